//go:build linux

package tun

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// addressTimeout bounds the wait for the kernel to finish an IPv6 address.
const addressTimeout = 5 * time.Second

// configure gives the interface its addresses, MTU and routes and brings it up.
// A device that somebody has prepared is taken as it is.
func (d *Device) configure(cfg Config) error {
	link, err := d.nl.LinkByName(d.name)
	if err != nil {
		return fmt.Errorf("find the interface: %w", err)
	}
	d.index = link.Attrs().Index
	prepared, err := d.isPrepared(link)
	if err != nil {
		return err
	}
	if prepared {
		d.mtu = link.Attrs().MTU
	} else if err := d.prepare(link, cfg); err != nil {
		return err
	}
	if err := d.steer(cfg); err != nil {
		return err
	}
	for _, route := range cfg.Routes {
		if err := d.AddRoute(route); err != nil {
			return err
		}
	}
	return nil
}

func (d *Device) isPrepared(link netlink.Link) (bool, error) {
	if !d.attached || link.Attrs().Flags&net.FlagUp == 0 {
		return false, nil
	}
	addresses, err := d.nl.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return false, fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range addresses {
		if !a.IP.IsLinkLocalUnicast() {
			return true, nil
		}
	}
	return false, nil
}

func (d *Device) prepare(link netlink.Link, cfg Config) error {
	if err := d.nl.LinkSetMTU(link, cfg.MTU); err != nil {
		return fmt.Errorf("set MTU %d: %w", cfg.MTU, err)
	}
	if err := d.nl.LinkSetTxQLen(link, queueLength); err != nil {
		return fmt.Errorf("set queue length: %w", err)
	}
	d.setSysctls(cfg.Logger)
	added := make([]netip.Prefix, 0, len(cfg.Addresses))
	for _, prefix := range cfg.Addresses {
		err := d.addAddress(link, prefix)
		switch {
		case err == nil:
			added = append(added, prefix)
		case prefix.Addr().Is6() && ipv6Off(err):
			cfg.Logger.Warn("IPv6 is off on this machine, address left out", "device", d.name, "address", prefix)
		default:
			return err
		}
	}
	if err := d.nl.LinkSetUp(link); err != nil {
		return fmt.Errorf("bring it up: %w", err)
	}
	return d.waitForAddresses(added)
}

// waitForAddresses returns when packets to the device's own IPv6 addresses
// reach this host: the kernel sets their routes up after the call that added
// them, and loses what arrives before.
func (d *Device) waitForAddresses(addresses []netip.Prefix) error {
	end := time.Now().Add(addressTimeout)
	for _, prefix := range addresses {
		if !prefix.Addr().Is6() {
			continue
		}
		for !d.isLocal(prefix.Addr()) {
			if time.Now().After(end) {
				return fmt.Errorf("address %s is not usable after %v", prefix, addressTimeout)
			}
			time.Sleep(time.Millisecond)
		}
	}
	return nil
}

func (d *Device) isLocal(address netip.Addr) bool {
	routes, err := d.nl.RouteGet(address.AsSlice())
	return err == nil && len(routes) > 0 && routes[0].Type == unix.RTN_LOCAL
}

func (d *Device) addAddress(link netlink.Link, prefix netip.Prefix) error {
	address := &netlink.Addr{IPNet: ipNet(prefix, prefix.Addr())}
	if prefix.Addr().Is6() {
		address.Flags = unix.IFA_F_NODAD // nobody else is on the link
	}
	if err := d.nl.AddrReplace(link, address); err != nil {
		return fmt.Errorf("add address %s: %w", prefix, err)
	}
	return nil
}

// setSysctls makes the kernel accept what the device answers in others' names,
// and keeps it from asking the device for routers. Where /proc/sys cannot be
// written the values may be right already, so that this is no error here.
func (d *Device) setSysctls(log *slog.Logger) {
	for _, s := range []struct{ key, value string }{
		{"ipv4/conf/" + d.name + "/rp_filter", "2"}, // loose: strict drops every answer
		{"ipv6/conf/" + d.name + "/disable_ipv6", "0"},
		{"ipv6/conf/" + d.name + "/accept_ra", "0"},
		{"ipv6/conf/" + d.name + "/addr_gen_mode", "1"}, // no link-local address of its own
	} {
		err := os.WriteFile(filepath.Join("/proc/sys/net", s.key), []byte(s.value), 0)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			log.Warn("sysctl not set", "key", s.key, "value", s.value, "err", err)
		}
	}
}

// ipv6Off recognises how the kernel refuses an IPv6 address without IPv6: it is
// not built in, or disable_ipv6 is set.
func ipv6Off(err error) bool {
	return errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EACCES)
}

// AddRoute routes prefix through the device, in the table of Config.Routes. A
// route that is there already is replaced.
func (d *Device) AddRoute(prefix netip.Prefix) error {
	if err := d.nl.RouteReplace(d.route(prefix)); err != nil {
		return fmt.Errorf("add route %s: %w", prefix, err)
	}
	return nil
}

// RemoveRoute removes what AddRoute added.
func (d *Device) RemoveRoute(prefix netip.Prefix) error {
	if err := d.nl.RouteDel(d.route(prefix)); err != nil {
		return fmt.Errorf("remove route %s: %w", prefix, err)
	}
	return nil
}

func (d *Device) route(prefix netip.Prefix) *netlink.Route {
	route := &netlink.Route{LinkIndex: d.index, Dst: ipNet(prefix, prefix.Masked().Addr()), Table: d.table}
	if prefix.Addr().Is4() {
		route.Scope = netlink.SCOPE_LINK
	}
	return route
}

func ipNet(prefix netip.Prefix, address netip.Addr) *net.IPNet {
	return &net.IPNet{IP: address.AsSlice(), Mask: net.CIDRMask(prefix.Bits(), address.BitLen())}
}

// families returns the address families the kernel has.
func families() []int {
	if _, err := os.Stat("/proc/sys/net/ipv6"); err != nil {
		return []int{unix.AF_INET}
	}
	return []int{unix.AF_INET, unix.AF_INET6}
}
