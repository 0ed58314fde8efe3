//go:build linux

package redirect

import (
	"context"
	"net"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv6"

	"mitm-appliance/internal/netnstest"
)

// TestRouterAdvertisementsStay lets the gateway learn its IPv6 default route
// from its uplink, as a machine behind a home router does, and expects it
// to survive that forwarding is switched on.
func TestRouterAdvertisementsStay(t *testing.T) {
	b := newBox(t)
	b.run("ip -6 route del default")
	before := b.dump()
	b.advertise()
	learnt := func() bool { return strings.Contains(b.run("ip -6 route show default"), "proto ra") }
	for deadline := time.Now().Add(10 * time.Second); !learnt(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the advertisement was not taken: the test proves nothing")
		}
		b.advertise()
	}
	r := b.apply(nil)
	if !learnt() {
		t.Errorf("switching forwarding on lost the default route:\n%s", b.run("ip -6 route"))
	}
	if value, err := b.Gateway.Gateway.ReadSysctl("net.ipv6.conf.wan0.accept_ra"); err != nil || value != "2" {
		t.Errorf("accept_ra is %s, %v; want 2, for the next advertisement", value, err)
	}
	if err := r.Undo(); err != nil {
		t.Fatal(err)
	}
	b.run("ip -6 route del default proto ra")
	if d := diff(before, b.dump()); strings.Contains(d, "accept_ra ") || strings.Contains(d, "forwarding") {
		t.Errorf("undoing left (+) or took (-):\n%s", d)
	}
}

// advertise sends a router advertisement (RFC 4861, section 4.2) to the gateway.
func (b *box) advertise() {
	b.t.Helper()
	err := b.Internet.Do(func() error {
		c, err := icmp.ListenPacket("ip6:ipv6-icmp", "::")
		if err != nil {
			return err
		}
		defer c.Close()
		body := []byte{64, 0, 0x07, 0x08, 0, 0, 0, 0, 0, 0, 0, 0} // lifetime 1800 s
		message := icmp.Message{Type: ipv6.ICMPTypeRouterAdvertisement, Body: &icmp.RawBody{Data: body}}
		data, err := message.Marshal(nil)
		if err != nil {
			return err
		}
		if err := c.IPv6PacketConn().SetMulticastHopLimit(255); err != nil {
			return err
		}
		_, err = c.WriteTo(data, &net.IPAddr{IP: net.ParseIP("ff02::1"), Zone: "eth0"})
		return err
	})
	if err != nil {
		b.t.Fatal(err)
	}
}

func TestUndoRespectsWhatOthersChangedSince(t *testing.T) {
	b := newBox(t)
	b.run("echo 1 >/proc/sys/net/ipv4/conf/lan1/forwarding")
	r := b.apply(nil)
	b.run("echo 0 >/proc/sys/net/ipv4/conf/mitm0/rp_filter")
	if err := r.Undo(); err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]string{
		"net.ipv4.conf.mitm0.rp_filter": "0", // changed by somebody else since
		"net.ipv4.conf.lan0.forwarding": "0",
		"net.ipv4.conf.lan1.forwarding": "1", // never ours
		"net.ipv6.conf.all.forwarding":  "0",
	} {
		if got, err := b.Gateway.Gateway.ReadSysctl(key); err != nil || got != want {
			t.Errorf("%s is %s, %v; want %s", key, got, err, want)
		}
	}
}

// TestForwardingOfTheUplinkFollowsTheNeed: what is not captured comes back
// through the uplink, so that it forwards only while something may bypass.
func TestForwardingOfTheUplinkFollowsTheNeed(t *testing.T) {
	b := newBox(t)
	r := b.apply(nil)
	want := func(value string) {
		t.Helper()
		if got, err := b.Gateway.Gateway.ReadSysctl("net.ipv4.conf." + netnstest.WAN + ".forwarding"); err != nil || got != value {
			t.Errorf("forwarding of the uplink is %s, %v; want %s", got, err, value)
		}
	}
	want("0")
	if err := r.AddBypass(prefix("203.0.113.10/32"), 0); err != nil {
		t.Fatal(err)
	}
	want("1")
	l, err := b.Internet.Listen("tcp", "203.0.113.10:80")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := b.Client().Dial(context.Background(), "tcp", "203.0.113.10:80")
	if err != nil {
		t.Fatalf("a connection past the appliance: %v", err)
	}
	_ = c.Close()
	if _, err := r.RemoveBypass(prefix("203.0.113.10/32")); err != nil {
		t.Fatal(err)
	}
	if err := r.Apply(); err != nil {
		t.Fatal(err)
	}
	want("0")
}
