//go:build linux

package redirect

import (
	"errors"
	"fmt"
	"net"
	"os"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// unreachableMetric is worse than that of any route into a TUN, so that the
// unreachable route acts only when the TUN is gone.
const unreachableMetric = 9999

// dumpAttempts bounds how often a torn listing is read again.
const dumpAttempts = 10

// policy is the part of the steering that routing does: packets with the
// capture mark are looked up in a table of their own, which leads into the TUN.
type policy struct {
	marks      Marks
	table      int
	priority   int
	tun        string
	failClosed bool
}

// isGone says that what was to be removed or read is not there.
func isGone(err error) bool {
	for _, gone := range []error{unix.ENOENT, unix.ESRCH, unix.ENODEV, unix.EAFNOSUPPORT, os.ErrNotExist} {
		if errors.Is(err, gone) {
			return true
		}
	}
	return errors.As(err, &netlink.LinkNotFoundError{})
}

// dump lists kernel objects. While others change them the kernel says that a
// listing is torn; then it is read again.
func dump[T any](list func() ([]T, error)) ([]T, error) {
	for attempt := 1; ; attempt++ {
		all, err := list()
		if !errors.Is(err, netlink.ErrDumpInterrupted) || attempt == dumpAttempts {
			return all, err
		}
	}
}

// families returns the address families the kernel has.
func families() []int {
	if _, err := os.Stat("/proc/sys/net/ipv6"); err != nil {
		return []int{unix.AF_INET}
	}
	return []int{unix.AF_INET, unix.AF_INET6}
}

// apply adds what is missing. Routes come first: a rule without them would let
// marked packets fall through to the main table.
func (p policy) apply(tun netlink.Link) error {
	for _, family := range families() {
		if err := p.checkTable(family, tun); err != nil {
			return err
		}
		for _, route := range p.routes(family, tun) {
			if err := netlink.RouteReplace(route); err != nil {
				return fmt.Errorf("redirect: add the route of table %d into %s: %w", p.table, p.tun, err)
			}
		}
		if err := p.applyRule(family); err != nil {
			return err
		}
	}
	return nil
}

// checkTable refuses a route table that somebody else uses.
func (p policy) checkTable(family int, tun netlink.Link) error {
	routes, err := p.list(family)
	if err != nil {
		return err
	}
	for _, r := range routes {
		if r.Type != unix.RTN_UNREACHABLE && r.Type != unix.RTN_THROW && r.LinkIndex != tun.Attrs().Index {
			return fmt.Errorf("redirect: route table %d holds a route that is not ours (%v): choose another RouteTable", p.table, r)
		}
	}
	return nil
}

func (p policy) list(family int) ([]netlink.Route, error) {
	routes, err := dump(func() ([]netlink.Route, error) {
		return netlink.RouteListFiltered(family, &netlink.Route{Table: p.table}, netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return nil, fmt.Errorf("redirect: list route table %d: %w", p.table, err)
	}
	return routes, nil
}

// routes are those wanted in our table.
func (p policy) routes(family int, tun netlink.Link) []*netlink.Route {
	var list []*netlink.Route
	if family == unix.AF_INET || hasIPv6(p.tun) {
		list = append(list, &netlink.Route{Family: family, Dst: everything(family), Table: p.table, LinkIndex: tun.Attrs().Index})
	}
	if p.failClosed {
		list = append(list, p.unreachable(family))
	}
	return append(list, p.groups(family)...)
}

// groups send multicast and broadcast, which never belong into the TUN, back to
// the tables that know their interface. IPv6 needs none: its multicast is in
// table "local".
func (p policy) groups(family int) []*netlink.Route {
	if family != unix.AF_INET {
		return nil
	}
	var list []*netlink.Route
	for _, group := range []string{"224.0.0.0/4", "255.255.255.255/32"} {
		_, prefix, err := net.ParseCIDR(group)
		if err != nil {
			panic("redirect: " + err.Error()) // a constant of ours
		}
		list = append(list, &netlink.Route{Family: family, Dst: prefix, Table: p.table, Type: unix.RTN_THROW})
	}
	return list
}

func (p policy) unreachable(family int) *netlink.Route {
	return &netlink.Route{Family: family, Dst: everything(family), Table: p.table, Type: unix.RTN_UNREACHABLE, Priority: unreachableMetric}
}

func hasIPv6(ifname string) bool {
	value, err := readSysctl("net/ipv6/conf/" + ifname + "/disable_ipv6")
	return err == nil && value == "0"
}

func everything(family int) *net.IPNet {
	if family == unix.AF_INET {
		return &net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}
	}
	return &net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}
}

func (p policy) rule(family int) *netlink.Rule {
	rule := netlink.NewRule()
	rule.Family, rule.Priority, rule.Table = family, p.priority, p.table
	rule.Mark, rule.Mask = p.marks.Capture, &p.marks.Mask
	return rule
}

func (p policy) applyRule(family int) error {
	ours, stale, err := p.findRules(family)
	if err != nil {
		return err
	}
	if len(ours) == 0 {
		if err := netlink.RuleAdd(p.rule(family)); err != nil {
			return explain("add the policy routing rule", err)
		}
	}
	for _, rule := range stale {
		if err := deleteRule(rule, family); err != nil {
			return err
		}
	}
	return nil
}

// findRules returns the rules at our priority that lead into our table: those
// that are as wanted (one, or none) and others, left by an earlier
// configuration or added twice.
func (p policy) findRules(family int) (ours, others []netlink.Rule, err error) {
	rules, err := dump(func() ([]netlink.Rule, error) {
		return netlink.RuleListFiltered(family, &netlink.Rule{Priority: p.priority, Table: p.table},
			netlink.RT_FILTER_PRIORITY|netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return nil, nil, fmt.Errorf("redirect: list the policy routing rules: %w", err)
	}
	for _, rule := range rules {
		if len(ours) == 0 && rule.Mark == p.marks.Capture && rule.Mask != nil && *rule.Mask == p.marks.Mask && rule.Src == nil && rule.Dst == nil {
			ours = append(ours, rule)
		} else {
			others = append(others, rule)
		}
	}
	return ours, others, nil
}

func deleteRule(rule netlink.Rule, family int) error {
	rule.Family = family
	if err := netlink.RuleDel(&rule); err != nil && !isGone(err) {
		return explain("remove the policy routing rule", err)
	}
	return nil
}

// remove takes everything back; what is not there is no error.
func (p policy) remove() error {
	var errs []error
	for _, family := range families() {
		ours, others, err := p.findRules(family)
		errs = append(errs, err)
		for _, rule := range append(ours, others...) {
			errs = append(errs, deleteRule(rule, family))
		}
		routes := append(p.groups(family), p.unreachable(family))
		if tun, err := netlink.LinkByName(p.tun); err == nil {
			routes = append(routes, p.routes(family, tun)...)
		}
		for _, route := range routes {
			if err := netlink.RouteDel(route); err != nil && !isGone(err) {
				errs = append(errs, explain("remove a route", err))
			}
		}
	}
	return errors.Join(errs...)
}

// missing says what is no longer as apply left it.
func (p policy) missing() ([]string, error) {
	var list []string
	tun, err := netlink.LinkByName(p.tun)
	if isGone(err) {
		return []string{"the device " + p.tun}, nil
	}
	if err != nil {
		return nil, explain("look at the device "+p.tun, err)
	}
	for _, family := range families() {
		name := map[int]string{unix.AF_INET: "IPv4", unix.AF_INET6: "IPv6"}[family]
		ours, _, err := p.findRules(family)
		if err != nil {
			return nil, err
		}
		if len(ours) == 0 {
			list = append(list, fmt.Sprintf("the %s rule at priority %d", name, p.priority))
		}
		have, err := p.list(family)
		if err != nil {
			return nil, err
		}
		for _, want := range p.routes(family, tun) {
			if !hasRoute(have, want) {
				list = append(list, fmt.Sprintf("the %s %s route in table %d", name, prefixOf(want.Dst), p.table))
			}
		}
	}
	return list, nil
}

func hasRoute(have []netlink.Route, want *netlink.Route) bool {
	return slices.ContainsFunc(have, func(r netlink.Route) bool {
		switch {
		case prefixOf(r.Dst) != prefixOf(want.Dst):
			return false
		case want.Type == 0:
			return r.LinkIndex == want.LinkIndex
		}
		return r.Type == want.Type
	})
}

// prefixOf writes a destination; the kernel may leave the default one out.
func prefixOf(dst *net.IPNet) string {
	if dst == nil {
		return "default"
	}
	if ones, _ := dst.Mask.Size(); ones == 0 {
		return "default"
	}
	return dst.String()
}
