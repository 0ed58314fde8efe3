//go:build linux

// Package lab is a ready-made world for the demo and the end-to-end tests: a gateway on which the
// appliance runs, devices behind it, a phone that reaches it by WireGuard, and an Internet with web,
// name and echo servers of its own certificate authority.
//
// In: a place for files. Out: hosts to run real programs in, servers that answer, and appliances as
// processes. It is built on internal/netnstest, needs root, and knows nothing of what is asserted or
// shown. Everything is removed by Close, and after a kill -9 by the next world that is made.
package lab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"mitm-appliance/internal/netnstest"
)

// Interfaces of the gateway.
const (
	LAN   = "lan0" // Laptop's side, for transparent mode
	Bench = "lan1" // Board's side, for tun mode
	Cell  = "cell0"
	WAN   = netnstest.WAN
)

// Addresses of the gateway as its devices see them.
const (
	GatewayLAN4 = "192.168.50.1"
	GatewayLAN6 = "2001:db8:50::1"
	GatewayCell = "100.64.0.1"
	phoneCell   = "100.64.0.2"
)

// World is a small home and an Internet.
//
//	laptop ── lan0 ┐
//	board  ── lan1 ┼ gateway ── wan0 ── internet (www, untrusted, dns, ...)
//	phone  ─ cell0 ┘
//
// The phone has no way to the Internet but Join's tunnel.
type World struct {
	Net      *netnstest.Lab
	Laptop   *netnstest.Host
	Board    *netnstest.Host
	Phone    *netnstest.Host
	Gateway  *netnstest.Host
	Internet *netnstest.Host

	// CA is the file of the Internet's certificate authority, to be trusted by the appliance.
	CA string
	// Dir is for files that live as long as the world.
	Dir string

	closers []func()
}

// New makes a world for a test; without root the test is skipped or fails as netnstest.New says.
func New(t testing.TB) *World {
	t.Helper()
	w, err := build(netnstest.New(t))
	if err == nil {
		t.Cleanup(w.close)
		err = w.Net.Err()
	}
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// Open makes a world for a program, which closes it.
func Open() (*World, error) {
	net, err := netnstest.Open()
	if err != nil {
		return nil, err
	}
	w, err := build(net)
	if err == nil {
		err = net.Err()
	}
	if err != nil {
		return nil, errors.Join(err, w.Close())
	}
	return w, nil
}

// Close ends every process and server and removes all that was made.
func (w *World) Close() error {
	w.close()
	return w.Net.Close()
}

func (w *World) close() {
	for i := len(w.closers) - 1; i >= 0; i-- {
		w.closers[i]()
	}
	w.closers = nil
}

func (w *World) onClose(f func()) { w.closers = append(w.closers, f) }

// build returns a world also when it fails, so that what was made can be closed.
func build(net *netnstest.Lab) (*World, error) {
	home := net.Gateway(2)
	w := &World{
		Net: net, Laptop: home.Clients[0], Board: home.Clients[1], Phone: net.Host("phone"),
		Gateway: home.Gateway, Internet: home.Internet,
	}
	net.Link(w.Gateway, Cell, w.Phone, "cell0")
	w.Gateway.Addr(Cell, GatewayCell+"/24")
	w.Phone.Addr("cell0", phoneCell+"/24")
	if err := net.Err(); err != nil {
		return w, err
	}
	if err := w.makeDir(); err != nil {
		return w, err
	}
	if err := w.ruleBoard(); err != nil {
		return w, err
	}
	for _, h := range []*netnstest.Host{w.Laptop, w.Board, w.Gateway, w.Phone} {
		if err := w.SetResolver(h, DNS4, DNS6); err != nil {
			return w, err
		}
	}
	return w, w.serve()
}

const dirPrefix = "mitm-lab-" // then the pid

// makeDir makes Dir and removes those of worlds whose process was killed.
func (w *World) makeDir() error {
	old, err := filepath.Glob(filepath.Join(os.TempDir(), dirPrefix+"*"))
	if err != nil {
		return err
	}
	for _, dir := range old {
		digits, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(dir), dirPrefix), "-")
		if pid, err := strconv.Atoi(digits); err == nil && errors.Is(unix.Kill(pid, 0), unix.ESRCH) {
			_ = os.RemoveAll(dir) // best effort: the next world tries again
		}
	}
	w.Dir, err = os.MkdirTemp("", fmt.Sprintf("%s%d-*", dirPrefix, os.Getpid()))
	if err != nil {
		return err
	}
	w.onClose(func() { _ = os.RemoveAll(w.Dir) })
	return nil
}
