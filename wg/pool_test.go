package wg

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"
)

func TestFreedAddressIsGivenAgain(t *testing.T) {
	f := newFile(t)
	for i := range 3 {
		add(t, f, PeerConfig{Name: fmt.Sprint(i)})
	}
	gone, err := f.RemovePeer("1")
	if err != nil {
		t.Fatal(err)
	}
	if got := add(t, f, PeerConfig{Name: "new"}).Addresses; fmt.Sprint(got) != fmt.Sprint(gone.Addresses) {
		t.Errorf("the new peer got %v, want %v", got, gone.Addresses)
	}
}

func TestSmallPoolGivesEveryAddressOnce(t *testing.T) {
	f := newFile(t)
	f.Peers, f.ClientKey = nil, SecretKey{}
	f.Pools = []netip.Prefix{netip.MustParsePrefix("192.0.2.64/26")}
	// A peer with a whole network in the middle is stepped over.
	add(t, f, PeerConfig{Name: "router", Addresses: []netip.Prefix{netip.MustParsePrefix("192.0.2.96/28")}})
	seen := make(map[netip.Addr]bool)
	for i := 0; ; i++ {
		p, err := f.AddPeer(PeerConfig{Name: fmt.Sprint(i)})
		if errors.Is(err, ErrPoolFull) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		addr := p.Addresses[0].Addr()
		if seen[addr] || !f.Pools[0].Contains(addr) {
			t.Fatalf("peer %d got %s", i, addr)
		}
		seen[addr] = true
	}
	for _, reserved := range []string{"192.0.2.64", "192.0.2.65", "192.0.2.117", "192.0.2.127", "192.0.2.100"} {
		if seen[netip.MustParseAddr(reserved)] {
			t.Errorf("%s was given to a peer", reserved)
		}
	}
	if want := 64 - 4 - 16; len(seen) != want {
		t.Errorf("%d peers fitted, want %d", len(seen), want)
	}
}

func TestNoPoolsNeedAddresses(t *testing.T) {
	f := newFile(t)
	f.Pools = []netip.Prefix{}
	if p, err := f.AddPeer(PeerConfig{Name: "a"}); err == nil {
		t.Errorf("got %v without a pool", p.Addresses)
	}
}
