//go:build linux

package redirect_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"

	"mitm-appliance/internal/netnstest"
	"mitm-appliance/netstack"
	"mitm-appliance/redirect"
	"mitm-appliance/tun"
)

// teller answers everything and tells whom it takes for whom: "from
// client to server", then whatever was sent.
type teller struct{ serving sync.WaitGroup }

func (a *teller) HandleTCP(r *netstack.TCPRequest) {
	a.serving.Go(func() {
		c, err := r.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(30 * time.Second))
		_, _ = fmt.Fprintf(c, "from %v to %v\n", r.Source(), r.Destination())
		_, _ = io.Copy(c, c)
		_ = c.CloseWrite()
	})
}

func (a *teller) HandleUDP(c *netstack.UDPConn) {
	a.serving.Go(func() {
		defer c.Close()
		buf := make([]byte, 65536)
		_ = c.SetDeadline(time.Now().Add(30 * time.Second))
		n, err := c.Read(buf)
		if err == nil {
			_, _ = c.Write(append(fmt.Appendf(nil, "from %v to %v\n", c.Source(), c.Destination()), buf[:n]...))
		}
	})
}

// newPath puts the real pieces together: nftables, TUN device, netstack.
func newPath(t *testing.T) *netnstest.Gateway {
	lab, _ := newPathAfter(t, "true")
	return lab
}

// newPathAfter runs a command in the gateway first.
func newPathAfter(t *testing.T, setup string) (*netnstest.Gateway, *redirect.Redirect) {
	lab := netnstest.New(t).Gateway(1)
	runIn(t, lab.Gateway, setup)
	var steering *redirect.Redirect
	err := lab.Gateway.Do(func() error {
		device, err := tun.Open(tun.Config{Name: "mitm0"})
		if err != nil {
			return err
		}
		t.Cleanup(func() { _ = device.Close() })
		steering, err = redirect.New(redirect.Config{TUN: device.Name(), Interfaces: []string{netnstest.LAN(0)}, StateDir: t.TempDir()})
		if err != nil {
			return err
		}
		t.Cleanup(func() {
			if err := steering.Undo(); err != nil {
				t.Error(err)
			}
		})
		if err := steering.Apply(); err != nil {
			return err
		}
		handler := &teller{}
		stack, err := netstack.New(netstack.Config{}, device.Endpoint(), handler)
		if err != nil {
			return err
		}
		t.Cleanup(func() { _ = stack.Close(); handler.serving.Wait() })
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return lab, steering
}

func runIn(t *testing.T, h *netnstest.Host, command string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if out, err := h.Command(ctx, "sh", "-c", command).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", command, err, out)
	}
}

// masquerading rules as people write them: without naming the uplink.
var masquerading = map[string]string{
	"nftables":        "nft add table inet n; nft 'add chain inet n post { type nat hook postrouting priority srcnat; }'; nft add rule inet n post masquerade",
	"iptables-nft":    "iptables-nft -t nat -A POSTROUTING -j MASQUERADE; ip6tables-nft -t nat -A POSTROUTING -j MASQUERADE",
	"legacy iptables": "iptables-legacy -t nat -A POSTROUTING -j MASQUERADE; ip6tables-legacy -t nat -A POSTROUTING -j MASQUERADE",
}

func TestMasqueradingOfOthersDoesNotHideTheClient(t *testing.T) {
	for name, setup := range masquerading {
		t.Run(name, func(t *testing.T) {
			lab, steering := newPathAfter(t, setup)
			wantTrueSources(t, lab)
			if err := steering.Verify(); err != nil {
				t.Error(err)
			}
		})
	}
	t.Run("added later", func(t *testing.T) {
		lab, steering := newPathAfter(t, "true")
		runIn(t, lab.Gateway, masquerading["nftables"])
		if err := steering.Verify(); !errors.Is(err, redirect.ErrChanged) {
			t.Errorf("Verify: got %v, want ErrChanged", err)
		}
		if err := steering.Apply(); err != nil {
			t.Fatal(err)
		}
		wantTrueSources(t, lab)
	})
}

func wantTrueSources(t *testing.T, lab *netnstest.Gateway) {
	t.Helper()
	for _, network := range []string{"udp", "tcp"} {
		for _, ip := range destinations {
			c, err := lab.Client().Dial(context.Background(), network, net.JoinHostPort(ip, "443"))
			if err != nil {
				t.Fatal(err)
			}
			got, _, _ := strings.Cut(ask(t, c, []byte("x")), "\n")
			if want := fmt.Sprintf("from %v to %s", c.LocalAddr(), net.JoinHostPort(ip, "443")); got != want {
				t.Errorf("%s: got %q, want %q", network, got, want)
			}
			_ = c.Close()
		}
	}
}

var destinations = []string{netnstest.Server4, netnstest.None4, netnstest.Server6, netnstest.None6}

func TestFullPathTCP(t *testing.T) {
	lab := newPath(t)
	sent := bytes.Repeat([]byte("0123456789abcdef"), 1<<16) // 1 MiB: super-packets both ways
	for _, ip := range destinations {
		c, err := lab.Client().Dial(context.Background(), "tcp", net.JoinHostPort(ip, "443"))
		if err != nil {
			t.Fatalf("%s: %v", ip, err)
		}
		_ = c.SetDeadline(time.Now().Add(30 * time.Second))
		go func() {
			_, _ = c.Write(sent)
			_ = c.(*net.TCPConn).CloseWrite()
		}()
		got, err := io.ReadAll(c)
		want := fmt.Sprintf("from %v to %s\n", c.LocalAddr(), net.JoinHostPort(ip, "443"))
		if err != nil || !bytes.Equal(got, append([]byte(want), sent...)) {
			head, _, _ := strings.Cut(string(got[:min(len(got), 200)]), "\n")
			t.Errorf("%s: got %d bytes that begin with %q, %v; want %q and all that was sent", ip, len(got), head, err, want)
		}
		_ = c.Close()
	}
}

func TestFullPathUDPWithFragments(t *testing.T) {
	lab := newPath(t)
	for _, ip := range destinations {
		for _, size := range []int{1, 1400, 3000, 30000, 60000} {
			c, err := lab.Client().Dial(context.Background(), "udp", net.JoinHostPort(ip, "443"))
			if err != nil {
				t.Fatal(err)
			}
			sent := bytes.Repeat([]byte{'x'}, size)
			want := fmt.Sprintf("from %v to %s\n%s", c.LocalAddr(), net.JoinHostPort(ip, "443"), sent)
			if got := ask(t, c, sent); got != want {
				t.Errorf("%s, %d bytes: got %d bytes %.80q, want %d", ip, size, len(got), got, len(want))
			}
			_ = c.Close()
		}
	}
}

// ask sends a datagram until there is an answer.
func ask(t *testing.T, c net.Conn, question []byte) string {
	buf := make([]byte, 65536)
	for range 10 {
		if _, err := c.Write(question); err != nil {
			t.Fatal(err)
		}
		_ = c.SetReadDeadline(time.Now().Add(time.Second))
		if n, err := c.Read(buf); err == nil {
			return string(buf[:n])
		}
	}
	return ""
}

func TestFullPathEcho(t *testing.T) {
	lab := newPath(t)
	for _, ip := range destinations {
		network, echo, proto := "ip4:icmp", icmp.Type(ipv4.ICMPTypeEcho), 1
		if strings.Contains(ip, ":") {
			network, echo, proto = "ip6:ipv6-icmp", ipv6.ICMPTypeEchoRequest, 58
		}
		var c net.Conn
		err := lab.Client().Do(func() (err error) {
			c, err = net.Dial(network, ip)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		request := icmp.Message{Type: echo, Body: &icmp.Echo{ID: os.Getpid() & 0xffff, Seq: 1, Data: []byte("ping")}}
		data, err := request.Marshal(nil)
		if err != nil {
			t.Fatal(err)
		}
		got := ask(t, c, data)
		if proto == 1 && len(got) > 20 {
			got = got[20:] // raw IPv4 sockets show the IP header
		}
		answer, err := icmp.ParseMessage(proto, []byte(got))
		if err != nil {
			t.Errorf("%s: no answer that can be read: %v", ip, err)
		} else if body, ok := answer.Body.(*icmp.Echo); !ok || string(body.Data) != "ping" {
			t.Errorf("%s: got %+v, want the echo", ip, answer)
		}
		_ = c.Close()
	}
}
