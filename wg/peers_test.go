package wg

import (
	"net/netip"
	"testing"
)

func TestPeerOfAnAddress(t *testing.T) {
	prefixes := func(list ...string) (out []netip.Prefix) {
		for _, s := range list {
			out = append(out, netip.MustParsePrefix(s))
		}
		return out
	}
	table := newPeerTable(map[PublicKey]PeerConfig{
		{1}: {Name: "phone", Addresses: prefixes("10.66.0.2/32", "fd66::2/128")},
		{2}: {Name: "router", Addresses: prefixes("10.66.1.0/24", "10.67.0.0/16", "fd67::/48")},
	})
	for addr, want := range map[string]string{
		"10.66.0.2": "phone", "fd66::2": "phone", "::ffff:10.66.0.2": "phone", "fd66::2%wg0": "phone",
		"10.66.1.0": "router", "10.66.1.255": "router", "10.67.255.1": "router", "fd67:0:0:ffff::1": "router",
		"10.66.0.3": "", "10.66.2.0": "", "fd66::3": "", "fd67:0:1::": "", "0.0.0.0": "",
	} {
		got, ok := table.lookup(netip.MustParseAddr(addr))
		if got.Name != want || ok != (want != "") {
			t.Errorf("%s belongs to %q (%v), want %q", addr, got.Name, ok, want)
		}
	}
	if _, ok := table.lookup(netip.Addr{}); ok {
		t.Error("the invalid address belongs to a peer")
	}
}

func BenchmarkPeer(b *testing.B) {
	peers := make(map[PublicKey]PeerConfig)
	pool := netip.MustParsePrefix("10.66.0.0/16")
	for i := range 10000 {
		peers[PublicKey{byte(i), byte(i >> 8)}] = PeerConfig{Addresses: []netip.Prefix{netip.PrefixFrom(hostAddress(pool, uint64(i)), 32)}}
	}
	var s Server
	s.table.Store(newPeerTable(peers))
	addr := netip.MustParseAddr("10.66.1.1")
	for b.Loop() {
		if _, ok := s.Peer(addr); !ok {
			b.Fatal("no peer")
		}
	}
}
