//go:build linux

package lab

import (
	"fmt"
	"os"
	"slices"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"mitm-appliance/internal/netnstest"
)

// Traces lists what an appliance may leave in a host: interfaces, rules, routes, packet filter tables
// and forwarding, one per line. Two equal lists mean that nothing was left.
func Traces(h *netnstest.Host) ([]string, error) {
	var all []string
	for _, list := range []func(*netnstest.Host) ([]string, error){links, rules, routes, tables, forwarding} {
		lines, err := list(h)
		if err != nil {
			return nil, fmt.Errorf("lab: list what is in %s: %w", h.Name(), err)
		}
		all = append(all, lines...)
	}
	slices.Sort(all)
	return all, nil
}

func links(h *netnstest.Host) (lines []string, err error) {
	list, err := h.Netlink().LinkList()
	for _, l := range list {
		lines = append(lines, fmt.Sprintf("interface %s (%s)", l.Attrs().Name, l.Type()))
	}
	return lines, err
}

func rules(h *netnstest.Host) (lines []string, err error) {
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		list, err := h.Netlink().RuleList(family)
		if err != nil {
			return nil, err
		}
		for _, r := range list {
			lines = append(lines, fmt.Sprintf("rule %d: %s", family, r))
		}
	}
	return lines, nil
}

// routes leaves those of the kernel itself out: they come and go with interfaces and caches.
func routes(h *netnstest.Host) (lines []string, err error) {
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		list, err := h.Netlink().RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
		if err != nil {
			return nil, err
		}
		for _, r := range list {
			if r.Protocol != unix.RTPROT_KERNEL {
				lines = append(lines, fmt.Sprintf("route %s table %d", r, r.Table))
			}
		}
	}
	return lines, nil
}

func tables(h *netnstest.Host) (lines []string, err error) {
	ns, err := os.Open(h.Path())
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	c, err := nftables.New(nftables.WithNetNSFd(int(ns.Fd())))
	if err != nil {
		return nil, err
	}
	list, err := c.ListTables()
	for _, t := range list {
		lines = append(lines, fmt.Sprintf("nftables table %s (family %d)", t.Name, t.Family))
	}
	return lines, err
}

func forwarding(h *netnstest.Host) (lines []string, err error) {
	for _, key := range []string{"net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"} {
		value, err := h.ReadSysctl(key)
		if err != nil {
			return nil, err
		}
		lines = append(lines, key+"="+value)
	}
	return lines, nil
}
