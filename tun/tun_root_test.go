//go:build linux

package tun

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand"
	"net"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"

	"mitm-appliance/internal/netnstest"
	"mitm-appliance/netstack"
)

const (
	patience = 10 * time.Second
	far4     = "198.51.100.7"
	far6     = "2001:db8:77::7"
)

// handlerFuncs is a netstack.Handler made of functions.
type handlerFuncs struct {
	tcp func(*netstack.TCPRequest)
	udp func(*netstack.UDPConn)
}

func (h handlerFuncs) HandleTCP(r *netstack.TCPRequest) { go h.tcp(r) }
func (h handlerFuncs) HandleUDP(c *netstack.UDPConn)    { go h.udp(c) }

// echo answers everything with what it got.
func echo() handlerFuncs {
	return handlerFuncs{
		tcp: func(r *netstack.TCPRequest) {
			c, err := r.Accept()
			if err != nil {
				return
			}
			defer c.Close()
			_, _ = io.Copy(c, c)
			_ = c.CloseWrite()
		},
		udp: func(c *netstack.UDPConn) {
			defer c.Close()
			buf := make([]byte, 65536)
			for {
				n, err := c.Read(buf)
				if err != nil {
					return
				}
				_, _ = c.Write(buf[:n])
			}
		},
	}
}

// box is a host whose default routes lead into a device with a stack behind it.
type box struct {
	*netnstest.Host
	t      *testing.T
	device *Device
	stack  *netstack.Stack
}

func newBox(t *testing.T, cfg Config, h netstack.Handler) *box {
	t.Helper()
	host := netnstest.New(t).Host("box")
	return openBox(t, host, cfg, h)
}

func openBox(t *testing.T, host *netnstest.Host, cfg Config, h netstack.Handler) *box {
	t.Helper()
	b := &box{Host: host, t: t}
	if cfg.Routes == nil {
		cfg.Routes = []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}
	}
	err := host.Do(func() (err error) {
		b.device, err = Open(cfg)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.device.Close(); err != nil {
			t.Error(err)
		}
	})
	if b.stack, err = netstack.New(netstack.Config{}, b.device.Endpoint(), h); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.stack.Close() })
	return b
}

func (b *box) dial(network, host, port string) net.Conn {
	b.t.Helper()
	c, err := b.tryDial(network, host, port)
	if err != nil {
		b.t.Fatal(err)
	}
	return c
}

func (b *box) tryDial(network, host, port string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	c, err := b.Dial(ctx, network, net.JoinHostPort(host, port))
	if err == nil {
		_ = c.SetDeadline(time.Now().Add(patience))
		b.t.Cleanup(func() { c.Close() })
	}
	return c, err
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	rand.New(rand.NewSource(int64(n))).Read(b)
	return b
}

func TestTransfersUseSuperPackets(t *testing.T) {
	b := newBox(t, Config{}, echo())
	for _, host := range []string{far4, far6} {
		before := b.device.Stats()
		c := b.dial("tcp", host, "80").(*net.TCPConn)
		data := randomBytes(64 << 20)
		var wg sync.WaitGroup
		wg.Go(func() {
			_, _ = c.Write(data)
			_ = c.CloseWrite()
		})
		sum := sha256.New()
		n, err := io.Copy(sum, c)
		wg.Wait()
		want := sha256.Sum256(data)
		if err != nil || !bytes.Equal(sum.Sum(nil), want[:]) {
			t.Fatalf("%s: got %d bytes back, %v", host, n, err)
		}
		st := b.device.Stats()
		reads, bytesRead := st.Reads-before.Reads, st.ReadBytes-before.ReadBytes
		writes, bytesWritten := st.Writes-before.Writes, st.WriteBytes-before.WriteBytes
		t.Logf("%s: %d bytes per read, %d per write", host, bytesRead/reads, bytesWritten/writes)
		if bytesRead/reads < 10<<10 || bytesWritten/writes < 10<<10 {
			t.Errorf("%s: %d bytes per read, %d per write: no super-packets", host, bytesRead/reads, bytesWritten/writes)
		}
	}
}

func TestPing(t *testing.T) {
	b := newBox(t, Config{}, echo())
	for _, c := range []struct {
		network, host string
		request       icmp.Type
		reply         icmp.Type
		protocol      int
	}{
		{"ip4:icmp", far4, ipv4.ICMPTypeEcho, ipv4.ICMPTypeEchoReply, 1},
		{"ip6:ipv6-icmp", far6, ipv6.ICMPTypeEchoRequest, ipv6.ICMPTypeEchoReply, 58},
	} {
		conn := b.dialICMP(c.network, c.host)
		for seq, size := range []int{0, 56, 4000} {
			want := icmp.Echo{ID: 7, Seq: seq, Data: randomBytes(size)}
			msg, err := (&icmp.Message{Type: c.request, Body: &want}).Marshal(nil)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := conn.Write(msg); err != nil {
				t.Fatal(err)
			}
			buf := make([]byte, 65536)
			n, err := conn.Read(buf)
			if err != nil {
				t.Errorf("%s, %d bytes: %v", c.host, size, err)
				continue
			}
			answer := buf[:n]
			if c.protocol == 1 { // with its IP header
				answer = answer[int(answer[0]&15)*4:]
			}
			got, err := icmp.ParseMessage(c.protocol, answer)
			if err != nil || got.Type != c.reply {
				t.Errorf("%s, %d bytes: got %v, %v", c.host, size, got, err)
				continue
			}
			if e := got.Body.(*icmp.Echo); e.ID != want.ID || e.Seq != want.Seq || !bytes.Equal(e.Data, want.Data) {
				t.Errorf("%s, %d bytes: the answer is not the question", c.host, size)
			}
		}
	}
}

func (b *box) dialICMP(network, host string) (c net.Conn) {
	b.t.Helper()
	if err := b.Do(func() (err error) {
		c, err = net.Dial(network, host)
		return err
	}); err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(patience))
	return c
}

func TestUDPOfEachSize(t *testing.T) {
	b := newBox(t, Config{}, echo())
	for _, host := range []string{far4, far6} {
		c := b.dial("udp", host, "5000")
		for _, size := range []int{0, 1, 1000, 1452, 1472, 1473, 3000, 30000, 60000} {
			data := randomBytes(size)
			if _, err := c.Write(data); err != nil {
				t.Fatal(err)
			}
			buf := make([]byte, 65536)
			n, err := c.Read(buf)
			if err != nil || !bytes.Equal(buf[:n], data) {
				t.Fatalf("%s: sent %d bytes, got %d back, %v\n%+v\n%+v", host, size, n, err, b.device.Stats(), b.stack.Stats())
			}
		}
	}
}

// A sender with UDP segmentation offload gives the kernel one buffer, and the
// handler sees the datagrams.
func TestUDPSegmentationOffload(t *testing.T) {
	b := newBox(t, Config{}, echo())
	if !b.device.usable.uso {
		t.Log("this kernel has no USO for TUN: the segments come one by one")
	}
	for _, host := range []string{far4, far6} {
		c := b.dial("udp", host, "5000").(*net.UDPConn)
		raw, err := c.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		const udpSegment = 103 // linux/udp.h UDP_SEGMENT
		if cerr := raw.Control(func(fd uintptr) {
			err = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_UDP, udpSegment, 1000)
		}); cerr != nil || err != nil {
			t.Fatal(cerr, err)
		}
		data := randomBytes(20500)
		if _, err := c.Write(data); err != nil {
			t.Fatal(err)
		}
		for at := 0; at < len(data); {
			buf := make([]byte, 65536)
			n, err := c.Read(buf)
			if err != nil {
				t.Fatalf("%s: datagram at %d: %v\n%+v\n%+v", host, at, err, b.device.Stats(), b.stack.Stats())
			}
			want := data[at:min(at+1000, len(data))]
			if !bytes.Equal(buf[:n], want) {
				t.Fatalf("%s: datagram at %d: got %d bytes, want %d", host, at, n, len(want))
			}
			at += n
		}
	}
	st := b.device.Stats()
	if b.device.usable.uso && st.SplitDatagrams != 42 {
		t.Errorf("split %d datagrams, want 42: %+v", st.SplitDatagrams, st)
	}
}

func TestRefusals(t *testing.T) {
	for _, c := range []struct {
		name string
		how  func(*netstack.TCPRequest)
		want error
	}{
		{"reject", (*netstack.TCPRequest).Reject, syscall.ECONNREFUSED},
		{"unreachable", (*netstack.TCPRequest).Unreachable, syscall.EHOSTUNREACH},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBox(t, Config{}, handlerFuncs{tcp: c.how, udp: func(u *netstack.UDPConn) { u.Reject() }})
			for _, host := range []string{far4, far6} {
				if _, err := b.tryDial("tcp", host, "80"); !errors.Is(err, c.want) {
					t.Errorf("%s: got %v, want %v", host, err, c.want)
				}
				u := b.dial("udp", host, "5000")
				_, _ = u.Write([]byte("x"))
				if _, err := u.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNREFUSED) {
					t.Errorf("UDP to %s: got %v, want refused", host, err)
				}
			}
		})
	}
}

func TestInterfaceIsConfiguredAndRemoved(t *testing.T) {
	host := netnstest.New(t).Host("box")
	b := openBox(t, host, Config{Name: "mitm%d"}, echo())
	if b.device.Name() != "mitm0" || b.device.Attached() {
		t.Errorf("name %s, attached %v", b.device.Name(), b.device.Attached())
	}
	out := b.ip("addr", "show", "dev", "mitm0")
	for _, want := range []string{"198.18.0.1/30", "fd6d:6974:6d00::1/64", "mtu 1500", ",UP"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	for key, want := range map[string]string{
		"net.ipv4.conf.mitm0.rp_filter": "2", "net.ipv6.conf.mitm0.accept_ra": "0",
	} {
		if got, err := host.ReadSysctl(key); got != want || err != nil {
			t.Errorf("%s is %q, want %q (%v)", key, got, want, err)
		}
	}
	prefix := netip.MustParsePrefix("192.0.2.0/24")
	if err := b.device.AddRoute(prefix); err != nil {
		t.Fatal(err)
	}
	if out := b.ip("route"); !strings.Contains(out, "192.0.2.0/24 dev mitm0") {
		t.Errorf("no route in\n%s", out)
	}
	if err := b.device.RemoveRoute(prefix); err != nil {
		t.Error(err)
	}
	// In the wrong order: the stack finds its device gone.
	if err := b.device.Close(); err != nil {
		t.Error(err)
	}
	if out := b.ip("link"); strings.Contains(out, "mitm0") {
		t.Errorf("still there:\n%s", out)
	}
}

func (b *box) ip(args ...string) string {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	out, err := b.Command(ctx, "ip", args...).CombinedOutput()
	if err != nil {
		b.t.Fatalf("ip %v: %v\n%s", args, err, out)
	}
	return string(out)
}

// A device that root prepared is used as it is, and left there.
func TestPersistentDevice(t *testing.T) {
	host := netnstest.New(t).Host("box")
	prep := &box{Host: host, t: t}
	prep.ip("tuntap", "add", "dev", "given", "mode", "tun")
	prep.ip("addr", "add", "10.9.8.7/24", "dev", "given")
	prep.ip("link", "set", "given", "up", "mtu", "1400")
	for range 2 {
		t.Run("open", func(t *testing.T) {
			b := openBox(t, host, Config{Name: "given"}, echo())
			if !b.device.Attached() || b.device.MTU() != 1400 {
				t.Errorf("attached %v, MTU %d", b.device.Attached(), b.device.MTU())
			}
			c := b.dial("tcp", far4, "80")
			_, _ = c.Write([]byte("x"))
			if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
				t.Error(err)
			}
		})
	}
	if out := prep.ip("addr", "show", "dev", "given"); strings.Contains(out, "198.18.0.1") || !strings.Contains(out, "10.9.8.7") {
		t.Errorf("addresses changed:\n%s", out)
	}
}

func TestOpenErrors(t *testing.T) {
	host := netnstest.New(t).Host("box")
	b := openBox(t, host, Config{Name: "taken"}, echo())
	_ = b
	for name, cfg := range map[string]Config{
		"in use":            {Name: "taken"},
		"no TUN device":     {Name: "lo"},
		"MTU too small":     {MTU: 1000},
		"name too long":     {Name: strings.Repeat("x", 40)},
		"impossible prefix": {Routes: []netip.Prefix{{}}},
	} {
		err := host.Do(func() error {
			d, err := Open(cfg)
			if err == nil {
				d.Close()
			}
			return err
		})
		if err == nil {
			t.Errorf("%s: no error", name)
		}
		t.Logf("%s: %v", name, err)
	}
	if out := b.ip("link"); strings.Contains(out, "tun0") {
		t.Errorf("a failed Open left its device:\n%s", out)
	}
}

// A device that is deleted while it is in use ends cleanly.
func TestDeviceDeletedUnderneath(t *testing.T) {
	b := newBox(t, Config{Name: "gone"}, echo())
	c := b.dial("tcp", far4, "80")
	b.ip("link", "delete", "gone")
	_ = c.SetDeadline(time.Now().Add(50 * time.Millisecond))
	_, _ = c.Write([]byte("x"))
	b.stack.Close()
	if err := b.device.Close(); err != nil {
		t.Error(err)
	}
}

// routerLab puts a router with a narrow link between the client and the device.
//
//	client --1500-- router --narrow-- gateway(tun)
func routerLab(t *testing.T, narrow int, h netstack.Handler) (client *netnstest.Host, b *box) {
	t.Helper()
	lab := netnstest.New(t)
	client, router, gateway := lab.Host("client"), lab.Host("router"), lab.Host("gateway")
	lab.Link(client, "eth0", router, "in0")
	lab.Link(router, "out0", gateway, "lan0")
	client.Addr("eth0", "10.1.0.2/24", "fd01::2/64")
	router.Addr("in0", "10.1.0.1/24", "fd01::1/64")
	router.Addr("out0", "10.2.0.1/24", "fd02::1/64")
	gateway.Addr("lan0", "10.2.0.2/24", "fd02::2/64")
	client.Route("default", "10.1.0.1", "eth0")
	client.Route("default", "fd01::1", "eth0")
	router.Route("default", "10.2.0.2", "out0")
	router.Route("default", "fd02::2", "out0")
	gateway.Route("10.1.0.0/24", "10.2.0.1", "lan0")
	gateway.Route("fd01::/64", "fd02::1", "lan0")
	for _, host := range []*netnstest.Host{router, gateway} {
		host.Sysctl("net.ipv4.ip_forward", "1")
		host.Sysctl("net.ipv6.conf.all.forwarding", "1")
	}
	b = openBox(t, gateway, Config{}, h)
	rb := &box{Host: router, t: t}
	rb.ip("link", "set", "in0", "mtu", fmt.Sprint(narrow)) // towards the client only
	return client, b
}

// Answers that do not fit the path to the client come through: TCP after ICMP
// "fragmentation needed" or "packet too big", IPv4 UDP in fragments.
func TestPathMTU(t *testing.T) {
	answer := randomBytes(1400)
	client, b := routerLab(t, 1300, handlerFuncs{tcp: echo().tcp, udp: func(c *netstack.UDPConn) {
		defer c.Close()
		for buf := make([]byte, 10); ; {
			if _, err := c.Read(buf); err != nil {
				return
			}
			_, _ = c.Write(answer)
		}
	}})
	cb := &box{Host: client, t: t}
	for _, host := range []string{far4, far6} {
		c := cb.dial("tcp", host, "80").(*net.TCPConn)
		data := randomBytes(1 << 20)
		go func() {
			_, _ = c.Write(data)
			_ = c.CloseWrite()
		}()
		got, err := io.ReadAll(c)
		if err != nil || !bytes.Equal(got, data) {
			t.Errorf("TCP %s: got %d bytes, %v", host, len(got), err)
		}
	}
	u := cb.dial("udp", far4, "5000")
	buf := make([]byte, 2000)
	for try := 0; ; try++ { // the first answer meets the narrow link and is lost
		if _, err := u.Write([]byte("?")); err != nil {
			t.Fatal(err)
		}
		_ = u.SetReadDeadline(time.Now().Add(time.Second))
		n, err := u.Read(buf)
		if err == nil && bytes.Equal(buf[:n], answer) {
			break
		}
		if try == 10 {
			t.Fatalf("UDP: no answer: %v, %+v", err, b.stack.Stats())
		}
	}
}
