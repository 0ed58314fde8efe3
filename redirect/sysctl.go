//go:build linux

package redirect

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const allForwarding6 = "net/ipv6/conf/all/forwarding"

// setting is a kernel setting that we changed.
type setting struct {
	Key string // below /proc/sys
	Old string
	New string
	// Implied settings were not wanted for themselves: the kernel changes them
	// together with allForwarding6, or they soften its consequences.
	Implied bool `json:",omitempty"`
}

func readSysctl(key string) (string, error) {
	value, err := os.ReadFile(filepath.Join("/proc/sys", key))
	return strings.TrimSpace(string(value)), err
}

func writeSysctl(key, value string) error {
	err := os.WriteFile(filepath.Join("/proc/sys", key), []byte(value), 0)
	if err == nil {
		return nil
	}
	cure := fmt.Sprintf("sysctl -w %s=%s", key, value)
	if errors.Is(err, unix.EROFS) {
		cure += "; in a systemd unit, ProtectKernelTunables= must be off"
	}
	return fmt.Errorf("redirect: change a kernel setting: %w (cure: %s)", err, cure)
}

// wantedSettings lists what must be set, in the order to set it. Forwarding is
// enabled per interface, which is all IPv4 needs; IPv6 knows only all of them.
func wantedSettings(tun string, lan []string, unmarked bool) []setting {
	list := []setting{{Key: "net/ipv4/conf/" + tun + "/rp_filter", New: "2"}} // replies come with foreign sources
	if len(lan) == 0 {
		return list
	}
	forwarding := append([]string{tun}, lan...)
	if unmarked { // what is not captured comes back through the uplink
		forwarding = append(forwarding, uplinks(unix.AF_INET)...)
	}
	slices.Sort(forwarding)
	for _, name := range slices.Compact(forwarding) {
		list = append(list, setting{Key: "net/ipv4/conf/" + name + "/forwarding", New: "1"})
	}
	if len(families()) == 2 {
		list = append(list, setting{Key: allForwarding6, New: "1"})
	}
	return list
}

// uplinks returns the interfaces of the main table's default routes.
func uplinks(family int) []string {
	var names []string
	for _, route := range defaultRoutes(family) {
		if link, err := netlink.LinkByIndex(route.LinkIndex); err == nil {
			names = append(names, link.Attrs().Name)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

func defaultRoutes(family int) []netlink.Route {
	routes, err := dump(func() ([]netlink.Route, error) {
		return netlink.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_MAIN, Dst: nil},
			netlink.RT_FILTER_TABLE|netlink.RT_FILTER_DST)
	})
	if err != nil {
		return nil
	}
	var list []netlink.Route
	for _, r := range routes {
		for _, hop := range r.MultiPath {
			list = append(list, netlink.Route{LinkIndex: hop.LinkIndex, Protocol: r.Protocol})
		}
		if r.LinkIndex > 0 {
			list = append(list, r)
		}
	}
	return list
}

// planSettings returns the settings that differ from what is wanted, with
// their present values, in the order to write them.
func planSettings(wanted []setting) ([]setting, error) {
	var plan []setting
	for _, s := range wanted {
		old, err := readSysctl(s.Key)
		if err != nil {
			return nil, fmt.Errorf("redirect: read a kernel setting: %w", err)
		}
		if old == s.New {
			continue
		}
		if s.Key == allForwarding6 {
			plan = append(plan, keepRouterAdvertisements()...)
			plan = append(plan, impliedByForwarding6()...)
		}
		s.Old = old
		plan = append(plan, s)
	}
	return plan, nil
}

// keepRouterAdvertisements saves the default routes that this host learnt
// from router advertisements: a forwarding host forgets them and takes no new
// ones, unless accept_ra is 2.
func keepRouterAdvertisements() []setting {
	var list []setting
	for _, route := range defaultRoutes(unix.AF_INET6) {
		link, err := netlink.LinkByIndex(route.LinkIndex)
		if err != nil || route.Protocol != unix.RTPROT_RA {
			continue
		}
		key := "net/ipv6/conf/" + link.Attrs().Name + "/accept_ra"
		if old, err := readSysctl(key); err == nil && old == "1" {
			list = append(list, setting{Key: key, Old: old, New: "2", Implied: true})
		}
	}
	return list
}

// impliedByForwarding6 notes what the kernel will overwrite, so that it can be
// put back.
func impliedByForwarding6() []setting {
	entries, err := os.ReadDir("/proc/sys/net/ipv6/conf")
	if err != nil {
		return nil
	}
	var list []setting
	for _, e := range entries {
		key := "net/ipv6/conf/" + e.Name() + "/forwarding"
		if old, err := readSysctl(key); err == nil && key != allForwarding6 {
			list = append(list, setting{Key: key, Old: old, New: "1", Implied: true})
		}
	}
	return list
}

// writeSettings writes a plan. What the kernel implies is not written.
func writeSettings(plan []setting) error {
	for _, s := range plan {
		if now, err := readSysctl(s.Key); err == nil && now == s.New {
			continue
		}
		if s.Implied && strings.HasSuffix(s.Key, "/forwarding") {
			continue
		}
		if err := writeSysctl(s.Key, s.New); err != nil {
			return err
		}
	}
	return nil
}

// restoreSettings puts settings back, last changed first, unless somebody else
// has changed them since or the interface is gone.
func restoreSettings(list []setting) error {
	var ours []setting
	for _, s := range list {
		if now, err := readSysctl(s.Key); err == nil && now == s.New {
			ours = append(ours, s)
		}
	}
	var errs []error
	for _, s := range slices.Backward(ours) {
		if now, err := readSysctl(s.Key); err == nil && now != s.Old {
			errs = append(errs, writeSysctl(s.Key, s.Old))
		}
	}
	return errors.Join(errs...)
}

// splitSettings separates the settings that are still wanted from the rest.
func splitSettings(have, wanted []setting) (keep, drop []setting) {
	isWanted := func(key string) bool {
		return slices.ContainsFunc(wanted, func(w setting) bool { return w.Key == key })
	}
	for _, s := range have {
		if isWanted(s.Key) || s.Implied && isWanted(allForwarding6) {
			keep = append(keep, s)
		} else {
			drop = append(drop, s)
		}
	}
	return keep, drop
}
