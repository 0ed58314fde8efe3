//go:build linux

package redirect

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"mitm-appliance/internal/netnstest"
)

const (
	testTUN  = "mitm0"
	testPort = 7777
)

// box is a gateway under test: a client, an Internet, and a TUN of which the
// test is the reader.
type box struct {
	*netnstest.Gateway
	t        *testing.T
	arrivals chan arrival
}

// arrival is a datagram that came somewhere.
type arrival struct{ where, payload string }

// Boxes share nothing, so that their tests run side by side.
func newBox(t *testing.T) *box {
	t.Parallel()
	b := &box{Gateway: netnstest.New(t).Gateway(2), t: t, arrivals: make(chan arrival, 1000)}
	b.readTUN(openTUN(t, b.Gateway.Gateway, testTUN))
	b.listen("internet", b.Internet)
	b.listen("gateway", b.Gateway.Gateway)
	return b
}

// openTUN makes a TUN device as the tun package would leave it.
func openTUN(t *testing.T, h *netnstest.Host, name string) *os.File {
	t.Helper()
	var file *os.File
	err := h.Do(func() error {
		var err error
		file, err = makeTUN(name)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	h.Addr(name, "198.18.0.1/30", "fd00:198:18::1/64")
	t.Cleanup(func() { _ = file.Close() })
	return file
}

// makeTUN creates a TUN device in the present namespace and sets it up.
func makeTUN(name string) (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	request, err := unix.NewIfreq(name)
	if err != nil {
		return nil, err
	}
	request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, request); err != nil {
		return nil, err
	}
	link, err := netlink.LinkByName(name)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), netlink.LinkSetUp(link)
}

// readTUN reports every UDP datagram that comes out of the TUN; the file's end
// is the end of the test.
func (b *box) readTUN(file *os.File) {
	var done sync.WaitGroup
	done.Go(func() {
		buf := make([]byte, 65536)
		for {
			n, err := file.Read(buf)
			if err != nil {
				return
			}
			if payload, ok := udpPayload(buf[:n]); ok {
				b.arrivals <- arrival{"tun", payload}
			}
		}
	})
	b.t.Cleanup(func() { _ = file.Close(); done.Wait() })
}

func udpPayload(packet []byte) (string, bool) {
	switch {
	case len(packet) >= 28 && packet[0] == 0x45 && packet[9] == unix.IPPROTO_UDP:
		return string(packet[28:]), true
	case len(packet) >= 48 && packet[0]>>4 == 6 && packet[6] == unix.IPPROTO_UDP:
		return string(packet[48:]), true
	}
	return "", false
}

func (b *box) listen(where string, h *netnstest.Host) {
	c, err := h.ListenPacket("udp", fmt.Sprintf("[::]:%d", testPort))
	if err != nil {
		b.t.Fatal(err)
	}
	var done sync.WaitGroup
	done.Go(func() {
		buf := make([]byte, 2048)
		for {
			n, _, err := c.ReadFrom(buf)
			if err != nil {
				return
			}
			b.arrivals <- arrival{where, string(buf[:n])}
		}
	})
	b.t.Cleanup(func() { _ = c.Close(); done.Wait() })
}

// where sends datagrams from a host to ip until one arrives and says where:
// "tun", "internet", "gateway"; "nowhere" after a while.
func (b *box) where(from *netnstest.Host, ip string) string {
	b.t.Helper()
	payload := fmt.Sprintf("%s %s %d", from.Name(), ip, time.Now().UnixNano())
	for range 12 {
		if err := send(from, ip, payload); err != nil {
			if errors.Is(err, unix.EHOSTUNREACH) || errors.Is(err, unix.ENETUNREACH) {
				return "unreachable"
			}
			b.t.Fatal(err)
		}
		if where, ok := b.arrival(payload); ok {
			return where
		}
	}
	return "nowhere"
}

// arrival waits a moment for a datagram.
func (b *box) arrival(payload string) (where string, ok bool) {
	for timeout := time.After(100 * time.Millisecond); ; {
		select {
		case a := <-b.arrivals:
			if a.payload == payload {
				return a.where, true
			}
		case <-timeout:
			return "", false
		}
	}
}

func send(from *netnstest.Host, ip, payload string) error {
	c, err := from.Dial(context.Background(), "udp", net.JoinHostPort(ip, fmt.Sprint(testPort)))
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = c.Write([]byte(payload))
	return err
}

// want checks where datagrams of the first client arrive.
func (b *box) want(where string, ips ...string) {
	b.t.Helper()
	for _, ip := range ips {
		if got := b.where(b.Client(), ip); got != where {
			b.t.Errorf("datagrams to %s arrive at %s, want %s", ip, got, where)
		}
	}
}

// steer makes a Redirect in the gateway, without applying it.
func (b *box) steer(change func(*Config)) *Redirect {
	b.t.Helper()
	r, err := newIn(b.Gateway.Gateway, b.config(change))
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() {
		if err := r.Undo(); err != nil {
			b.t.Error(err)
		}
	})
	return r
}

func (b *box) config(change func(*Config)) Config {
	cfg := Config{TUN: testTUN, Interfaces: []string{netnstest.LAN(0)}, StateDir: b.t.TempDir()}
	if change != nil {
		change(&cfg)
	}
	return cfg
}

func newIn(h *netnstest.Host, cfg Config) (r *Redirect, err error) {
	err = h.Do(func() error {
		r, err = New(cfg)
		return err
	})
	return r, err
}

func (b *box) apply(change func(*Config)) *Redirect {
	b.t.Helper()
	r := b.steer(change)
	if err := r.Apply(); err != nil {
		b.t.Fatal(err)
	}
	return r
}

// run runs a command in the gateway and returns what it printed.
func (b *box) run(command string) string {
	b.t.Helper()
	return runIn(b.t, b.Gateway.Gateway, command)
}

func runIn(t *testing.T, h *netnstest.Host, command string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	out, err := h.Command(ctx, "sh", "-c", command).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", command, err, out)
	}
	return string(out)
}

// dump is everything that steering may touch, as text.
func (b *box) dump() string {
	b.t.Helper()
	return b.run(`
		nft -a list ruleset
		ip rule; ip -6 rule
		ip route show table all; ip -6 route show table all
		cd /proc/sys/net
		grep -r . ipv4/ip_forward ipv4/conf ipv6/conf 2>/dev/null || true`)
}

// diff names the lines that differ.
func diff(before, after string) string {
	have := map[string]int{}
	for line := range strings.Lines(before) {
		have[line]--
	}
	for line := range strings.Lines(after) {
		have[line]++
	}
	var out strings.Builder
	for line, n := range have {
		if n != 0 {
			fmt.Fprintf(&out, "%+d %s", n, line)
		}
	}
	return out.String()
}

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }
