//go:build linux

package redirect

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
	"time"
)

var epoch = time.Unix(1_000_000, 0)

// parseBypasses reads "10.0.0.0/8 10.1.0.0/16@30" (expiry in seconds).
func parseBypasses(t testing.TB, s string) *bypasses {
	b := &bypasses{max: 1000, entries: map[netip.Prefix]time.Time{}}
	for _, field := range strings.Fields(s) {
		p, seconds, timed := strings.Cut(field, "@")
		entry := Bypass{Prefix: netip.MustParsePrefix(p)}
		if timed {
			d, err := time.ParseDuration(seconds + "s")
			if err != nil {
				t.Fatal(err)
			}
			entry.Expires = epoch.Add(d)
		}
		b.entries[entry.Prefix] = entry.Expires
	}
	return b
}

func TestSpansAreDisjointAndTheLongestLivedCounts(t *testing.T) {
	for _, c := range []struct{ name, entries, want string }{
		{"none", "", ""},
		{"one host", "192.0.2.1/32", "192.0.2.1-192.0.2.1"},
		{"one network", "10.0.0.0/8@9", "10.0.0.0-10.255.255.255@9"},
		{"neighbours join", "10.0.0.0/25 10.0.0.128/25", "10.0.0.0-10.0.0.255"},
		{"neighbours of different age do not", "10.0.0.0/25@5 10.0.0.128/25", "10.0.0.0-10.0.0.127@5 10.0.0.128-10.0.0.255"},
		{"a shorter-lived inner one vanishes", "10.0.0.0/8 10.1.0.0/16@5", "10.0.0.0-10.255.255.255"},
		{"a longer-lived inner one splits", "10.0.0.0/8@5 10.1.0.0/16@9", "10.0.0.0-10.0.255.255@5 10.1.0.0-10.1.255.255@9 10.2.0.0-10.255.255.255@5"},
		{"at the outer one's start", "10.0.0.0/8@5 10.0.0.0/16", "10.0.0.0-10.0.255.255 10.1.0.0-10.255.255.255@5"},
		{"at the outer one's end", "10.0.0.0/8@5 10.255.0.0/16", "10.0.0.0-10.254.255.255@5 10.255.0.0-10.255.255.255"},
		{"three deep", "10.0.0.0/8@1 10.1.0.0/16@2 10.1.1.0/24@3", "10.0.0.0-10.0.255.255@1 10.1.0.0-10.1.0.255@2 10.1.1.0-10.1.1.255@3 10.1.2.0-10.1.255.255@2 10.2.0.0-10.255.255.255@1"},
		{"end of the address space", "255.255.255.255/32 128.0.0.0/1@5", "128.0.0.0-255.255.255.254@5 255.255.255.255-255.255.255.255"},
		{"IPv6", "2001:db8::/32@5 2001:db8::/128", "2001:db8::-2001:db8:: 2001:db8::1-2001:db8:ffff:ffff:ffff:ffff:ffff:ffff@5"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := formatSpans(spans(parseBypasses(t, c.entries).list(epoch))); got != c.want {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
		})
	}
}

func formatSpans(list []span) string {
	var fields []string
	for _, s := range list {
		field := fmt.Sprintf("%v-%v", s.first, s.last)
		if !s.expires.IsZero() {
			field += fmt.Sprintf("@%d", int(s.expires.Sub(epoch).Seconds()))
		}
		fields = append(fields, field)
	}
	return strings.Join(fields, " ")
}

// TestSpansAgreeWithTheirEntries compares with the definition, address by
// address, over random prefixes inside of a /24.
func TestSpansAgreeWithTheirEntries(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for range 300 {
		b := &bypasses{max: 1000, entries: map[netip.Prefix]time.Time{}}
		for range random.IntN(12) {
			addr := netip.AddrFrom4([4]byte{192, 0, 2, byte(random.IntN(256))})
			p := netip.PrefixFrom(addr, 24+random.IntN(9)).Masked()
			b.entries[p] = time.Time{}
			if life := random.IntN(4); life > 0 {
				b.entries[p] = epoch.Add(time.Duration(life) * time.Second)
			}
		}
		list := b.list(epoch)
		got := spans(list)
		for host := range 256 {
			addr := netip.AddrFrom4([4]byte{192, 0, 2, byte(host)})
			if want, have := longest(list, addr), covering(got, addr); want != have {
				t.Fatalf("%v of %v: got %s, want %s", addr, list, have, want)
			}
		}
	}
}

func longest(list []Bypass, addr netip.Addr) string {
	result := "not bypassed"
	var best time.Time
	for _, e := range list {
		if e.Prefix.Contains(addr) && (result == "not bypassed" || outlives(e.Expires, best)) {
			best, result = e.Expires, fmt.Sprint(e.Expires.IsZero(), e.Expires.Unix())
		}
	}
	return result
}

func covering(list []span, addr netip.Addr) string {
	result := "not bypassed"
	for _, s := range list {
		if s.first.Compare(addr) <= 0 && addr.Compare(s.last) <= 0 {
			if result != "not bypassed" {
				return "in two spans"
			}
			result = fmt.Sprint(s.expires.IsZero(), s.expires.Unix())
		}
	}
	return result
}

func TestBypassesExpireAndAreBounded(t *testing.T) {
	b := &bypasses{max: 2, entries: map[netip.Prefix]time.Time{}}
	add := func(p string, expires time.Time, now time.Time) (bool, error) {
		return b.add(Bypass{netip.MustParsePrefix(p), expires}, now)
	}
	if alone, err := add("10.0.0.0/8", epoch.Add(time.Second), epoch); err != nil || !alone {
		t.Fatalf("first: alone %v, %v; want true, nil", alone, err)
	}
	if alone, err := add("10.1.0.0/16", time.Time{}, epoch); err != nil || alone {
		t.Fatalf("overlapping: alone %v, %v; want false, nil", alone, err)
	}
	if _, err := add("192.0.2.0/24", time.Time{}, epoch); !errors.Is(err, ErrBypassFull) {
		t.Errorf("third of two: got %v, want ErrBypassFull", err)
	}
	if _, err := add("10.1.0.0/16", epoch.Add(time.Hour), epoch); err != nil {
		t.Errorf("a new time for a known one: %v", err)
	}
	later := epoch.Add(time.Second)
	if _, err := add("192.0.2.0/24", time.Time{}, later); err != nil {
		t.Errorf("after one expired: %v", err)
	}
	if got := b.list(later); len(got) != 2 || got[0].Prefix.String() != "10.1.0.0/16" {
		t.Errorf("list: got %v", got)
	}
}

func TestCheckBypass(t *testing.T) {
	for in, want := range map[string]string{
		"192.0.2.77/24":     "192.0.2.0/24",
		"2001:db8::1/64":    "2001:db8::/64",
		"0.0.0.0/0":         "",
		"::/0":              "",
		"::ffff:1.2.3.4/99": "",
	} {
		p, err := netip.ParsePrefix(in)
		if err == nil {
			p, err = checkBypass(p)
		}
		if (err == nil) != (want != "") || (err == nil && p.String() != want) {
			t.Errorf("%s: got %v, %v; want %q", in, p, err, want)
		}
	}
	if _, err := checkBypass(netip.Prefix{}); err == nil {
		t.Error("the zero prefix was accepted")
	}
}
