//go:build linux

package redirect

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// ErrBypassFull is returned when Config.MaxBypass destinations bypass already.
var ErrBypassFull = errors.New("redirect: too many bypassed destinations")

// Bypass is a destination that is not captured: the kernel forwards it as if
// the appliance were not there.
type Bypass struct {
	Prefix  netip.Prefix
	Expires time.Time // zero: stays until removed
}

// bypasses is the wanted content of the kernel's bypass sets. The kernel's
// interval sets refuse overlaps, so it is kept here as it was asked for and
// handed over as disjoint spans.
type bypasses struct {
	max     int
	entries map[netip.Prefix]time.Time
}

// add enters a destination; alone says that no other entry overlaps it.
func (b *bypasses) add(entry Bypass, now time.Time) (alone bool, err error) {
	b.prune(now)
	if _, known := b.entries[entry.Prefix]; !known && len(b.entries) >= b.max {
		return false, fmt.Errorf("%w: the limit is %d", ErrBypassFull, b.max)
	}
	alone = !b.overlaps(entry.Prefix)
	b.entries[entry.Prefix] = entry.Expires
	return alone, nil
}

func (b *bypasses) overlaps(p netip.Prefix) bool {
	for other := range b.entries {
		if other.Overlaps(p) {
			return true
		}
	}
	return false
}

func (b *bypasses) prune(now time.Time) {
	for p, expires := range b.entries {
		if !expires.IsZero() && !expires.After(now) {
			delete(b.entries, p)
		}
	}
}

// list returns the live entries, ordered by address.
func (b *bypasses) list(now time.Time) []Bypass {
	b.prune(now)
	list := make([]Bypass, 0, len(b.entries))
	for p, expires := range b.entries {
		list = append(list, Bypass{p, expires})
	}
	slices.SortFunc(list, func(x, y Bypass) int {
		if c := x.Prefix.Addr().Compare(y.Prefix.Addr()); c != 0 {
			return c
		}
		return x.Prefix.Bits() - y.Prefix.Bits()
	})
	return list
}

// span is a closed range of addresses that expires as a whole.
type span struct {
	first, last netip.Addr
	expires     time.Time // zero: never
}

// spans turns entries (ordered as list orders them, one family) into disjoint
// spans in ascending order. Where entries overlap, the one that lives longest
// counts. Prefixes either nest or are disjoint, so a stack of the open ones is
// enough.
func spans(list []Bypass) []span {
	var (
		out  []span
		open []Bypass
		next netip.Addr // first address that is not yet written
	)
	emit := func(last netip.Addr, until time.Time) {
		if next.IsValid() && next.Compare(last) <= 0 {
			out = appendSpan(out, span{next, last, until})
			next = last.Next()
		}
	}
	closeTop := func() {
		top := open[len(open)-1]
		emit(lastAddr(top.Prefix), top.Expires)
		open = open[:len(open)-1]
	}
	for _, entry := range list {
		for len(open) > 0 && !open[len(open)-1].Prefix.Contains(entry.Prefix.Addr()) {
			closeTop()
		}
		if len(open) > 0 {
			outer := open[len(open)-1]
			if !outlives(entry.Expires, outer.Expires) {
				continue // inside of one that lives at least as long
			}
			if prev := entry.Prefix.Addr().Prev(); prev.IsValid() {
				emit(prev, outer.Expires)
			}
		}
		next = entry.Prefix.Addr()
		open = append(open, entry)
	}
	for len(open) > 0 {
		closeTop()
	}
	return out
}

// appendSpan joins neighbours that expire together.
func appendSpan(out []span, s span) []span {
	if n := len(out); n > 0 && out[n-1].last.Next() == s.first && out[n-1].expires.Equal(s.expires) {
		out[n-1].last = s.last
		return out
	}
	return append(out, s)
}

func outlives(a, b time.Time) bool {
	return !b.IsZero() && (a.IsZero() || a.After(b))
}

// lastAddr returns the highest address of p.
func lastAddr(p netip.Prefix) netip.Addr {
	bytes := p.Addr().AsSlice()
	for bit := p.Bits(); bit < len(bytes)*8; bit++ {
		bytes[bit/8] |= 0x80 >> (bit % 8)
	}
	addr, _ := netip.AddrFromSlice(bytes)
	return addr
}

// checkBypass returns the canonical form of a destination.
func checkBypass(p netip.Prefix) (netip.Prefix, error) {
	switch {
	case !p.IsValid():
		return p, errors.New("redirect: bypass: not a valid address range")
	case p.Addr().Is4In6():
		return p, fmt.Errorf("redirect: bypass %v: write the IPv4 address as such", p)
	case p.Addr().Zone() != "":
		return p, fmt.Errorf("redirect: bypass %v: addresses with a zone are never forwarded", p)
	case p.Bits() == 0:
		return p, fmt.Errorf("redirect: bypass %v is everything: stop the mode instead", p)
	}
	return p.Masked(), nil
}
