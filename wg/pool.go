package wg

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
)

// Addresses mitmproxy gives its one client and its resolver (WG-04, WG-06).
var (
	mitmproxyPool    = netip.MustParsePrefix("10.0.0.0/24")
	mitmproxyAddress = netip.MustParsePrefix("10.0.0.1/32")
)

// DefaultPools returns the networks a new server gives out. The IPv6 one is
// from the unique local range (RFC 4193).
func DefaultPools() []netip.Prefix {
	return []netip.Prefix{
		netip.MustParsePrefix("10.66.0.0/16"),
		netip.MustParsePrefix("fd66:6d69:746d::/64"),
	}
}

// Of every pool these host numbers are never given to a peer: 0, the network
// itself, 1, kept for the appliance, and the resolver's.
const (
	ownHost = 1
	dnsHost = 53   // 10.66.0.53; mitmproxy's is 10.0.0.53
	dnsHex  = 0x53 // fd66:…::53 reads the same
)

// smallestPool: with fewer host bits the resolver's address would not fit.
const smallestPool = 6

// DNS returns the inner addresses that the configurations of clients name as
// their resolver, one for each pool. Whoever runs the server answers there.
func (f *File) DNS() []netip.Addr {
	var addrs []netip.Addr
	for _, pool := range f.Pools {
		addrs = append(addrs, dnsAddress(pool))
	}
	return addrs
}

func dnsAddress(pool netip.Prefix) netip.Addr {
	if pool.Addr().Is4() {
		return hostAddress(pool, dnsHost)
	}
	return hostAddress(pool, dnsHex)
}

// hostAddress adds a host number to the pool's first address.
func hostAddress(pool netip.Prefix, host uint64) netip.Addr {
	b := pool.Masked().Addr().As16()
	for i := len(b) - 1; host > 0; i-- {
		host += uint64(b[i])
		b[i] = byte(host)
		host >>= 8
	}
	addr := netip.AddrFrom16(b)
	if pool.Addr().Is4() {
		return addr.Unmap()
	}
	return addr
}

func checkPools(pools []netip.Prefix) error {
	seen := make(map[bool]bool)
	for _, p := range pools {
		switch {
		case !p.IsValid() || p.Addr().Is4In6() || p != p.Masked():
			return fmt.Errorf("pool %s is not a network: write it like 10.66.0.0/16", p)
		case p.Addr().BitLen()-p.Bits() < smallestPool:
			return fmt.Errorf("pool %s is too small: it needs at least %d host bits", p, smallestPool)
		case seen[p.Addr().Is4()]:
			return errors.New("more than one pool of one IP version: keep one IPv4 and one IPv6 network")
		}
		seen[p.Addr().Is4()] = true
	}
	return nil
}

// ErrPoolFull is returned when a pool has no free address left.
var ErrPoolFull = errors.New("no free address left: remove a peer or enlarge the pool")

// allocate returns the lowest free address of each pool.
func (f *File) allocate() ([]netip.Prefix, error) {
	if len(f.Pools) == 0 {
		return nil, errors.New("the file has no pools: give the peer's addresses")
	}
	var got []netip.Prefix
	for _, pool := range f.Pools {
		addr, err := f.free(pool)
		if err != nil {
			return nil, err
		}
		got = append(got, netip.PrefixFrom(addr, addr.BitLen()))
	}
	return got, nil
}

// free skips over used ranges, so it takes one step per peer, not per address.
func (f *File) free(pool netip.Prefix) (netip.Addr, error) {
	var used []netip.Prefix
	for _, p := range f.Peers {
		for _, a := range p.Addresses {
			if a.Overlaps(pool) {
				used = append(used, a)
			}
		}
	}
	dns := dnsAddress(pool)
	used = append(used, netip.PrefixFrom(dns, dns.BitLen()))
	slices.SortFunc(used, comparePrefix)
	addr := hostAddress(pool, ownHost+1)
	for _, u := range used {
		if u.Contains(addr) {
			addr = lastAddress(u).Next()
		}
	}
	if !addr.IsValid() || !pool.Contains(addr) || pool.Addr().Is4() && addr == lastAddress(pool) {
		return netip.Addr{}, fmt.Errorf("pool %s: %w", pool, ErrPoolFull)
	}
	return addr, nil
}

// lastAddress is the highest address in p, for IPv4 the broadcast address.
func lastAddress(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	addr, _ := netip.AddrFromSlice(b)
	return addr
}

func comparePrefix(a, b netip.Prefix) int {
	if c := a.Addr().Compare(b.Addr()); c != 0 {
		return c
	}
	return a.Bits() - b.Bits()
}

// checkOverlap refuses addresses that two peers share. Sorted by address, a
// network that overlaps another one overlaps its direct successor.
func checkOverlap(peers []PeerConfig) error {
	type owned struct {
		prefix netip.Prefix
		owner  string
	}
	var all []owned
	for _, p := range peers {
		for _, a := range p.Addresses {
			all = append(all, owned{a.Masked(), p.Name})
		}
	}
	slices.SortFunc(all, func(a, b owned) int { return comparePrefix(a.prefix, b.prefix) })
	for i := 1; i < len(all); i++ {
		a, b := all[i-1], all[i]
		if a.prefix.Overlaps(b.prefix) {
			return fmt.Errorf("peers %q and %q overlap: %s and %s; give one of them another address", a.owner, b.owner, a.prefix, b.prefix)
		}
	}
	return nil
}
