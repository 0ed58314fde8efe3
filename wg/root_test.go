package wg

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/vishvananda/netlink"
	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"

	"mitm-appliance/internal/netnstest"
	"mitm-appliance/netstack"
)

const (
	ownMark  = 0x20000
	outer4   = "192.0.2.1"
	outer6   = "2001:db8:ffff::1"
	phone4   = "192.0.2.2"
	phone6   = "2001:db8:ffff::2"
	markedRT = 77 // routing table
)

// newPhoneLab connects a phone's host and an appliance's. The appliance can
// reach the phone only from sockets that carry ownMark.
func newPhoneLab(t *testing.T) (phone, box *netnstest.Host) {
	lab := netnstest.New(t)
	phone, box = lab.Host("phone"), lab.Host("box")
	lab.Link(phone, "eth0", box, "eth0")
	phone.Addr("eth0", phone4+"/24", phone6+"/64")
	box.Addr("eth0", outer4+"/32", outer6+"/128")
	link, err := box.Netlink().LinkByName("eth0")
	if err != nil {
		t.Fatal(err)
	}
	for _, addr := range []string{phone4, phone6} {
		ip := net.ParseIP(addr)
		bits, family := 32, netlink.FAMILY_V4
		if ip.To4() == nil {
			bits, family = 128, netlink.FAMILY_V6
		}
		dst := &net.IPNet{IP: ip, Mask: net.CIDRMask(bits, bits)}
		rule := netlink.NewRule()
		rule.Family, rule.Mark, rule.Table, rule.Priority = family, ownMark, markedRT, 100
		err := errors.Join(err, box.Netlink().RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: dst, Table: markedRT}),
			box.Netlink().RuleAdd(rule))
		if err != nil {
			t.Fatal(err)
		}
	}
	return phone, box
}

// kernelPhone runs wireguard-go on a TUN device in the phone's host.
func kernelPhone(t *testing.T, host *netnstest.Host, f *File, endpoint string) {
	t.Helper()
	p := f.Peers[0]
	err := host.Do(func() error {
		dev, err := tun.CreateTUN("wg0", defaultMTU)
		if err != nil {
			return err
		}
		d := device.NewDevice(dev, bindIn{conn.NewDefaultBind(), host}, device.NewLogger(device.LogLevelSilent, ""))
		t.Cleanup(d.Close)
		return errors.Join(d.IpcSet(fmt.Sprintf("private_key=%s\npublic_key=%s\nendpoint=%s\nallowed_ip=0.0.0.0/0\nallowed_ip=::/0\n",
			hexKey(p.PrivateKey), hexKey(f.ServerKey.Public()), endpoint)), d.Up())
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range p.Addresses {
		host.Addr("wg0", a.String())
	}
	host.Up("wg0")
	host.Route("198.51.100.0/24", "", "wg0")
	host.Route("2001:db8::/64", "", "wg0")
}

// bindIn opens its sockets in a host, whoever asks: wireguard-go also brings its device up from the
// goroutine that hears of the TUN's state.
type bindIn struct {
	conn.Bind
	host *netnstest.Host
}

func (b bindIn) Open(port uint16) (receive []conn.ReceiveFunc, actual uint16, err error) {
	err = b.host.Do(func() (err error) {
		receive, actual, err = b.Bind.Open(port)
		return err
	})
	return receive, actual, err
}

func serveIn(t *testing.T, box *netnstest.Host, cfg Config) *appliance {
	t.Helper()
	var a *appliance
	err := box.Do(func() (err error) {
		cfg.FirewallMark = ownMark
		a, err = tryServe(cfg, t)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.close)
	return a
}

func TestKernelPhone(t *testing.T) {
	for _, c := range []struct {
		name, outer string
		host        netip.Addr
	}{
		{"over IPv4", outer4, netip.Addr{}},
		{"over IPv6", outer6, netip.Addr{}},
		{"listening on one IPv4 address", outer4, netip.MustParseAddr(outer4)},
		{"listening on one IPv6 address", outer6, netip.MustParseAddr(outer6)},
	} {
		t.Run(c.name, func(t *testing.T) {
			host, box := newPhoneLab(t)
			f := someFile(t, "phone")
			f.ListenPort = 0
			a := serveIn(t, box, Config{File: f, ListenHost: c.host})
			kernelPhone(t, host, f, net.JoinHostPort(c.outer, fmt.Sprint(f.Port())))
			for _, address := range []string{web4, web6} {
				checkEcho(t, host, "tcp", address, 4<<20)
				for _, size := range []int{64, 512, 2000} {
					checkEcho(t, host, "udp", address, size)
				}
				checkQUIC(t, host, strings.Replace(address, ":80", ":443", 1))
				checkPing(t, host, strings.Trim(strings.TrimSuffix(address, ":80"), "[]"))
			}
			peers, err := a.Peers()
			if err != nil || len(peers) != 1 || peers[0].Received < 8<<20 || peers[0].Sent < 8<<20 {
				t.Errorf("statistics are %+v, error %v", peers, err)
			}
			if s := a.Stats(); s.Malformed > 0 {
				t.Errorf("counters are %+v", s)
			}
		})
	}
}

func TestServerAnswersOnItsListenHostOnly(t *testing.T) {
	host, box := newPhoneLab(t)
	f := someFile(t, "phone")
	a := serveIn(t, box, Config{File: f, ListenHost: netip.MustParseAddr(outer6)})
	kernelPhone(t, host, f, net.JoinHostPort(outer4, fmt.Sprint(f.Port())))
	c, err := host.Dial(t.Context(), "udp", web4)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(time.Second))
	_, _ = c.Write([]byte("hello"))
	if n, err := c.Read(make([]byte, 100)); err == nil {
		t.Errorf("%d bytes came back by way of another address", n)
	}
	peers, err := a.Peers()
	if err != nil || peers[0].Received != 0 {
		t.Errorf("statistics are %+v, error %v", peers, err)
	}
}

// checkEcho sends size bytes and wants them back behind the greeting.
func checkEcho(t *testing.T, host *netnstest.Host, network, address string, size int) {
	t.Helper()
	c, err := host.Dial(t.Context(), network, address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(60 * time.Second))
	sent := pattern(size)
	go c.Write(sent) // what is missing shows below
	want := append([]byte("phone>"+address+":"), sent...)
	got := make([]byte, len(want))
	if network == "udp" {
		n, err := c.Read(got)
		if err != nil || n != len(want) {
			t.Errorf("%d bytes by UDP to %s: answer of %d, error %v", size, address, n, err)
		}
	} else if _, err := io.ReadFull(c, got); err != nil {
		t.Fatalf("%d bytes by TCP to %s: %v", size, address, err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%d bytes by %s to %s came back changed", size, network, address)
	}
}

func checkPing(t *testing.T, host *netnstest.Host, address string) {
	t.Helper()
	network, kind, protocol := "ip4:icmp", icmp.Type(ipv4.ICMPTypeEcho), 1
	if strings.Contains(address, ":") {
		network, kind, protocol = "ip6:ipv6-icmp", ipv6.ICMPTypeEchoRequest, 58
	}
	var c net.PacketConn
	err := host.Do(func() (err error) { c, err = icmp.ListenPacket(network, ""); return err })
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	request, err := (&icmp.Message{Type: kind, Body: &icmp.Echo{ID: os.Getpid() & 0xffff, Data: []byte("hi")}}).Marshal(nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.WriteTo(request, &net.IPAddr{IP: net.ParseIP(address)}); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 1500)
	for {
		n, from, err := c.ReadFrom(buf)
		if err != nil {
			t.Fatalf("ping %s: %v", address, err)
		}
		m, err := icmp.ParseMessage(protocol, buf[:n])
		if err != nil || from.String() != address {
			continue
		}
		if echo, ok := m.Body.(*icmp.Echo); ok && string(echo.Data) == "hi" {
			return
		}
	}
}

// checkQUIC makes a handshake and exchanges one stream with the appliance's
// QUIC server.
func checkQUIC(t *testing.T, host *netnstest.Host, address string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	socket, err := host.ListenPacket("udp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	raddr, err := net.ResolveUDPAddr("udp", address)
	if err != nil {
		t.Fatal(err)
	}
	c, err := quic.Dial(ctx, socket, raddr, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"echo"}}, nil)
	if err != nil {
		t.Fatalf("QUIC to %s: %v", address, err)
	}
	defer c.CloseWithError(0, "")
	s, err := c.OpenStreamSync(ctx)
	if err != nil {
		t.Fatal(err)
	}
	_ = s.SetDeadline(time.Now().Add(patience))
	_, werr := s.Write([]byte("hello"))
	got, rerr := io.ReadAll(io.LimitReader(s, 5))
	if err := errors.Join(werr, rerr, s.Close()); err != nil || string(got) != "hello" {
		t.Errorf("QUIC stream to %s gives %q, %v", address, got, err)
	}
}

// serveQUIC echoes the streams of the one connection in c.
func serveQUIC(c *netstack.UDPConn) {
	defer c.Close()
	certificate, err := selfSigned()
	if err != nil {
		return
	}
	transport := quic.Transport{Conn: flow{c}}
	defer transport.Close()
	l, err := transport.Listen(&tls.Config{Certificates: []tls.Certificate{certificate}, NextProtos: []string{"echo"}}, nil)
	if err != nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	conn, err := l.Accept(ctx)
	if err != nil {
		return
	}
	if s, err := conn.AcceptStream(ctx); err == nil {
		_, _ = io.Copy(s, s)
	}
	<-conn.Context().Done()
}

// flow is a UDP session as the packet socket QUIC wants.
type flow struct{ *netstack.UDPConn }

func (f flow) ReadFrom(b []byte) (int, net.Addr, error) {
	n, err := f.Read(b)
	return n, f.RemoteAddr(), err
}

func (f flow) WriteTo(b []byte, _ net.Addr) (int, error) { return f.Write(b) }

func selfSigned() (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
}
