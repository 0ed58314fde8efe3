//go:build linux

package redirect

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"regexp"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Defaults of Config.
const (
	DefaultName         = "mitm_appliance"
	DefaultRouteTable   = 5180
	DefaultRulePriority = 5180
	DefaultMaxBypass    = 16384
	DefaultStateDir     = "/run/mitm-appliance"
)

// Config says what to steer where. Only TUN has no default.
type Config struct {
	Logger *slog.Logger // nil: no log

	// TUN is the device that gets the packets. It must be up and have an IPv4
	// address: without one the kernel drops the replies that leave it.
	TUN string

	// Interfaces are those whose forwarded traffic is captured. Empty: none;
	// see DefaultInterfaces.
	Interfaces []string

	// Output captures this host's own traffic by nftables.
	Output OutputRules

	// Bypass are destinations that are not captured from the start.
	Bypass []Bypass

	// FailOpen lets traffic pass unseen when the process dies; else it is
	// stopped.
	FailOpen bool

	// Two appliances in one network namespace must differ in all of these.
	Name         string // of the nftables table: a-z, 0-9, _; "" means DefaultName
	RouteTable   int    // 0 means DefaultRouteTable
	RulePriority int    // 0 means DefaultRulePriority
	Marks        Marks

	MaxBypass int    // most bypassed destinations; 0 means DefaultMaxBypass
	StateDir  string // for what a crash must not forget; "" means DefaultStateDir
}

func (c Config) withDefaults() (Config, error) {
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Name == "" {
		c.Name = DefaultName
	}
	if !regexp.MustCompile(`^[a-z][a-z0-9_]{0,31}$`).MatchString(c.Name) {
		return c, fmt.Errorf("redirect: %q is no name for a table: want a letter, then letters, digits or _, at most 32", c.Name)
	}
	for _, d := range []struct {
		value    *int
		standard int
	}{{&c.RouteTable, DefaultRouteTable}, {&c.RulePriority, DefaultRulePriority}, {&c.MaxBypass, DefaultMaxBypass}} {
		if *d.value == 0 {
			*d.value = d.standard
		}
	}
	switch {
	case c.RouteTable < 1 || c.RouteTable > 1<<31-1 || c.RouteTable >= unix.RT_TABLE_DEFAULT && c.RouteTable <= unix.RT_TABLE_LOCAL:
		return c, fmt.Errorf("redirect: route table %d is reserved or out of range", c.RouteTable)
	case c.RulePriority < 1 || c.RulePriority >= 32766:
		return c, fmt.Errorf("redirect: rule priority %d must lie between 1 and 32765, before the main table", c.RulePriority)
	case c.MaxBypass < 0:
		return c, fmt.Errorf("redirect: at most %d bypassed destinations makes no sense", c.MaxBypass)
	}
	if c.StateDir == "" {
		c.StateDir = DefaultStateDir
	}
	c.Marks = c.Marks.withDefaults()
	return c, errors.Join(c.Marks.check(), c.Output.check())
}

func checkTUN(name string) (netlink.Link, error) {
	tun, err := netlink.LinkByName(name)
	if err != nil {
		return nil, fmt.Errorf("redirect: TUN device %s: %w", name, err)
	}
	if tun.Attrs().Flags&net.FlagUp == 0 {
		return nil, fmt.Errorf("redirect: TUN device %s is down (cure: ip link set %s up)", name, name)
	}
	addrs, err := dump(func() ([]netlink.Addr, error) { return netlink.AddrList(tun, unix.AF_INET) })
	if err != nil {
		return nil, fmt.Errorf("redirect: addresses of TUN device %s: %w", name, err)
	}
	if len(addrs) == 0 {
		return nil, fmt.Errorf("redirect: TUN device %s has no IPv4 address, so the kernel would drop its replies (cure: ip addr add 198.18.0.1/30 dev %s)", name, name)
	}
	return tun, nil
}
