//go:build linux

package redirect

import (
	"net/netip"
	"testing"

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
