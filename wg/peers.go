package wg

import (
	"net/netip"
	"slices"
)

// peerTable finds a peer by inner address: one map access per distinct prefix
// length, which is one for phones. It never changes once built.
type peerTable struct {
	byPrefix map[netip.Prefix]Peer
	bits4    []int // distinct prefix lengths, longest first
	bits6    []int
}

func newPeerTable(peers map[PublicKey]PeerConfig) *peerTable {
	t := &peerTable{byPrefix: make(map[netip.Prefix]Peer)}
	for key, p := range peers {
		for _, a := range p.Addresses {
			a = a.Masked()
			t.byPrefix[a] = Peer{Name: p.Name, PublicKey: key, Addresses: p.Addresses}
			bits := &t.bits6
			if a.Addr().Is4() {
				bits = &t.bits4
			}
			if !slices.Contains(*bits, a.Bits()) {
				*bits = append(*bits, a.Bits())
			}
		}
	}
	descending := func(a, b int) int { return b - a }
	slices.SortFunc(t.bits4, descending)
	slices.SortFunc(t.bits6, descending)
	return t
}

func (t *peerTable) lookup(addr netip.Addr) (Peer, bool) {
	addr = addr.Unmap().WithZone("")
	lengths := t.bits6
	if addr.Is4() {
		lengths = t.bits4
	}
	for _, bits := range lengths {
		prefix, err := addr.Prefix(bits)
		if err != nil {
			continue
		}
		if p, ok := t.byPrefix[prefix]; ok {
			return p, true
		}
	}
	return Peer{}, false
}
