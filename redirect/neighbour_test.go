//go:build linux

package redirect

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"mitm-appliance/internal/netnstest"
)

func TestNeighboursKnowTheDeviceBehindAnAddress(t *testing.T) {
	b := newBox(t)
	var neighbours *Neighbours
	err := b.Gateway.Gateway.Do(func() (err error) {
		neighbours, err = NewNeighbours()
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	lan4, lan6 := netnstest.LANAddrs(0)
	b.want("gateway", lan4, lan6) // now each knows the other

	link, err := b.Client().Netlink().LinkByName("eth0")
	if err != nil {
		t.Fatal(err)
	}
	client4, client6 := netnstest.ClientAddrs(0)
	for _, ip := range []string{client4, client6, "::ffff:" + client4, client6 + "%lan0"} {
		mac, err := neighbours.Lookup(netip.MustParseAddr(ip))
		if err != nil || mac.String() != link.Attrs().HardwareAddr.String() {
			t.Errorf("%s: got %v, %v; want %v", ip, mac, err, link.Attrs().HardwareAddr)
		}
	}
	for _, ip := range []string{netnstest.Far4, "192.168.50.77"} {
		if mac, err := neighbours.Lookup(netip.MustParseAddr(ip)); err != nil || mac != nil {
			t.Errorf("%s: got %v, %v; want none", ip, mac, err)
		}
	}
}

func TestNeighboursFindANewDeviceRightAfterAnother(t *testing.T) {
	b := newBox(t)
	var neighbours *Neighbours
	err := b.Gateway.Gateway.Do(func() (err error) {
		neighbours, err = NewNeighbours()
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	lan4, _ := netnstest.LANAddrs(0)
	for _, ip := range []string{"192.168.50.3", "192.168.50.4", "192.168.50.5"} {
		if mac, err := neighbours.Lookup(netip.MustParseAddr(ip)); err != nil || mac != nil {
			t.Fatalf("%s: got %v, %v before it is there", ip, mac, err)
		}
		b.Client().Addr("eth0", ip+"/24")
		exchange(t, b.Client(), ip, lan4)
		if mac, err := neighbours.Lookup(netip.MustParseAddr(ip)); err != nil || mac == nil {
			t.Errorf("%s: got %v, %v; want its hardware address", ip, mac, err)
		}
	}
}

// exchange returns when an address has heard from another one.
func exchange(t *testing.T, h *netnstest.Host, from, to string) {
	t.Helper()
	err := h.Do(func() error {
		d := net.Dialer{LocalAddr: &net.UDPAddr{IP: net.ParseIP(from)}}
		c, err := d.DialContext(t.Context(), "udp", net.JoinHostPort(to, "9"))
		if err != nil {
			return err
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		if _, err := c.Write([]byte("hello")); err != nil {
			return err
		}
		if _, err = c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNREFUSED) {
			return fmt.Errorf("the answer is %w, want a refusal", err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
