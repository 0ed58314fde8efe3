//go:build linux

package redirect

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// ErrNoInterface is returned when an interface does not exist or none fits.
var ErrNoInterface = errors.New("no such network interface")

// DefaultInterfaces returns the interfaces to capture when the user names
// none: every one that forwards and is up, except those of the default
// routes, loopback, ports of a bridge or bond, and the devices in without
// (our own TUN devices). It looks in the calling thread's network namespace.
func DefaultInterfaces(without ...string) ([]string, error) {
	links, err := dump(netlink.LinkList)
	if err != nil {
		return nil, fmt.Errorf("redirect: list the network interfaces: %w", err)
	}
	uplink := append(uplinks(unix.AF_INET), uplinks(unix.AF_INET6)...)
	var names []string
	for _, link := range links {
		name, up := link.Attrs().Name, link.Attrs().Flags&net.FlagUp != 0
		if up && !isLoopback(link) && !isPort(link) && forwards(name) && !slices.Contains(uplink, name) && !slices.Contains(without, name) {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return nil, fmt.Errorf("redirect: %w to capture: none forwards; name the LAN interface, as in transparent:IFACE; this machine has: %s",
			ErrNoInterface, existing(links, without))
	}
	return normalize(names), nil
}

func forwards(name string) bool {
	for _, family := range []string{"ipv4", "ipv6"} {
		if value, err := readSysctl("net/" + family + "/conf/" + name + "/forwarding"); err == nil && value == "1" {
			return true
		}
	}
	return false
}

func isLoopback(link netlink.Link) bool { return link.Attrs().Flags&net.FlagLoopback != 0 }

// isPort says that packets arrive, for the IP layer, on another interface.
func isPort(link netlink.Link) bool {
	if link.Attrs().MasterIndex == 0 {
		return false
	}
	master, err := netlink.LinkByIndex(link.Attrs().MasterIndex)
	return err == nil && master.Type() != "vrf"
}

// checkInterfaces says which of the names cannot be captured, and why.
func checkInterfaces(names []string, tun string) error {
	if len(names) == 0 {
		return nil
	}
	links, err := dump(netlink.LinkList)
	if err != nil {
		return fmt.Errorf("redirect: list the network interfaces: %w", err)
	}
	for _, name := range names {
		at := slices.IndexFunc(links, func(l netlink.Link) bool { return l.Attrs().Name == name })
		switch {
		case at < 0:
			return fmt.Errorf("redirect: %w: %q; this machine has: %s", ErrNoInterface, name, existing(links, []string{tun}))
		case name == tun:
			return fmt.Errorf("redirect: %s is the TUN device itself; name the interface of the LAN", name)
		case isLoopback(links[at]):
			return fmt.Errorf("redirect: nothing is forwarded from %s; to capture this host's own processes use mode local", name)
		case isPort(links[at]):
			return fmt.Errorf("redirect: %s is a port of a bridge or bond; name that instead", name)
		}
	}
	return nil
}

func existing(links []netlink.Link, without []string) string {
	var names []string
	for _, link := range links {
		if name := link.Attrs().Name; !isLoopback(link) && !slices.Contains(without, name) {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return "none"
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}

// normalize returns the names ordered and each once.
func normalize(names []string) []string {
	names = slices.Clone(names)
	slices.Sort(names)
	return slices.Compact(names)
}
