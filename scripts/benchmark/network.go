//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"mitm-appliance/internal/netnstest"
)

// Addresses of the lab. The servers have many, so that upstream connections do not run out of ports.
const (
	gatewayLAN  = "192.168.50.1"
	serverNet   = "203.0.113.0/24"
	firstServer = 10
	servers     = 32

	userTable = "200" // where packets that come from the LAN are routed; empty: nowhere
)

func server(i int) string { return fmt.Sprintf("203.0.113.%d", firstServer+i%servers) }

// endpoint is a port of server i.
func endpoint(i, port int) string { return net.JoinHostPort(server(i), strconv.Itoa(port)) }

// bench is the network and what runs in it all the time.
//
//	client ── lan0 ─ gateway ─ wan0 ── internet
//
// The subjects run on the gateway. The internet has no route back to the client, so that nothing but
// a working proxy can answer.
type bench struct {
	settings
	dir      string
	lab      *netnstest.Lab
	client   *netnstest.Host
	gateway  *netnstest.Host
	internet *netnstest.Host
	pki      pki
}

func newBench(ctx context.Context, s settings) (*bench, error) {
	lab, err := netnstest.Open()
	if err != nil {
		return nil, err
	}
	b := &bench{settings: s, lab: lab}
	if err := b.build(ctx); err != nil {
		return nil, errors.Join(err, b.close())
	}
	return b, nil
}

func (b *bench) close() error {
	err := b.lab.Close()
	if b.dir != "" {
		err = errors.Join(err, os.RemoveAll(b.dir))
	}
	return err
}

func (b *bench) build(ctx context.Context) (err error) {
	if b.dir, err = os.MkdirTemp("", "mitm-appliance-bench-*"); err != nil {
		return err
	}
	b.client, b.gateway, b.internet = b.lab.Host("client"), b.lab.Host("gateway"), b.lab.Host("internet")
	b.lab.Link(b.gateway, "lan0", b.client, "eth0")
	b.lab.Link(b.gateway, "wan0", b.internet, "eth0")
	b.client.Addr("eth0", "192.168.50.2/24")
	b.gateway.Addr("lan0", gatewayLAN+"/24")
	b.gateway.Addr("wan0", "203.0.113.1/24")
	for i := range servers {
		b.internet.Addr("eth0", server(i)+"/24")
	}
	b.client.Route("default", gatewayLAN, "eth0")
	b.internet.Route("10.0.0.0/8", "203.0.113.1", "eth0") // WireGuard's clients, for the one that only forwards
	for _, h := range []*netnstest.Host{b.client, b.gateway, b.internet} {
		h.Sysctl("net.ipv4.tcp_tw_reuse", "1")
		h.Sysctl("net.ipv4.ip_local_port_range", "2000 65000")
	}
	for _, key := range []string{"all", "default", "lan0", "wan0"} {
		b.gateway.Sysctl("net.ipv4.conf."+key+".rp_filter", "0")
	}
	b.gateway.Sysctl("net.ipv4.ip_forward", "1")
	if err := b.lab.Err(); err != nil {
		return err
	}
	if err := b.exec(ctx, b.gateway, "ip rule add pref 50 fwmark 0x1/0xff lookup 100"); err != nil {
		return err
	}
	if err := b.exec(ctx, b.gateway, "ip route add local default dev lo table 100"); err != nil {
		return err
	}
	if err := b.exec(ctx, b.gateway, "ip rule add pref 5000 iif lan0 lookup "+userTable); err != nil {
		return err
	}
	if err := b.pki.create(b.dir); err != nil {
		return err
	}
	if _, err := b.worker(ctx, b.internet, "server"); err != nil {
		return err
	}
	return b.startOrigin(ctx)
}

// exec runs a command that ends by itself.
func (b *bench) exec(ctx context.Context, h *netnstest.Host, line string) error {
	return b.execInput(ctx, h, line, "")
}

func (b *bench) execInput(ctx context.Context, h *netnstest.Host, line, input string) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	words := strings.Fields(line)
	cmd := h.Command(ctx, words[0], words[1:]...)
	cmd.Stdin = strings.NewReader(input)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", line, err, out)
	}
	return nil
}

func (b *bench) path(name string) string { return filepath.Join(b.dir, name) }
