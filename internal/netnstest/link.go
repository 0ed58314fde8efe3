//go:build linux

package netnstest

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// readyTimeout bounds the wait for a new link or address to become usable.
const readyTimeout = 10 * time.Second

// Link connects two hosts by a veth pair; both ends are up and have a carrier
// and IPv6 link-local addresses that receive on return. Offloads keep the kernel's defaults.
func (l *Lab) Link(a *Host, ifA string, b *Host, ifB string) {
	if l.failed() {
		return
	}
	l.check(connect(a, ifA, b, ifB))
}

func connect(a *Host, ifA string, b *Host, ifB string) error {
	ns, err := netns.GetFromPath(b.path)
	if err != nil {
		return fmt.Errorf("netnstest: open %s: %w", b.path, err)
	}
	defer ns.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = ifA
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: ifB, PeerNamespace: netlink.NsFd(ns)}
	if err := a.nl.LinkAdd(veth); err != nil {
		return fmt.Errorf("netnstest: link %s/%s to %s/%s: %w", a.name, ifA, b.name, ifB, err)
	}
	if err := errors.Join(a.up(ifA), b.up(ifB)); err != nil {
		return err
	}
	return errors.Join(a.waitUp(ifA), b.waitUp(ifB))
}

// Addr gives an interface addresses such as "192.0.2.1/24". IPv6 addresses
// are usable at once.
func (h *Host) Addr(ifname string, cidrs ...string) {
	if h.lab.failed() {
		return
	}
	link, err := h.link(ifname)
	for _, cidr := range cidrs {
		if err != nil {
			break
		}
		err = h.addAddr(link, cidr)
	}
	h.lab.check(err)
}

func (h *Host) addAddr(link netlink.Link, cidr string) error {
	addr, err := netlink.ParseAddr(cidr)
	if err != nil {
		return fmt.Errorf("netnstest: address %q: %w", cidr, err)
	}
	if addr.IP.To4() == nil {
		addr.Flags = unix.IFA_F_NODAD
	}
	if err := h.nl.AddrAdd(link, addr); err != nil {
		return fmt.Errorf("netnstest: add %s to %s/%s: %w", cidr, h.name, link.Attrs().Name, err)
	}
	if addr.IP.To4() == nil && link.Attrs().Flags&net.FlagRunning != 0 {
		return h.waitReceives(addr.IP)
	}
	return nil
}

// waitReceives waits for the local route of an IPv6 address: the kernel adds
// it a moment after the address, and only then packets to it are taken.
func (h *Host) waitReceives(ip net.IP) error {
	local := &netlink.Route{Table: unix.RT_TABLE_LOCAL, Dst: &net.IPNet{IP: ip, Mask: net.CIDRMask(128, 128)}}
	return wait(fmt.Sprintf("%v in %s does not receive", ip, h.name), func() (bool, error) {
		routes, err := h.nl.RouteListFiltered(unix.AF_INET6, local, netlink.RT_FILTER_TABLE|netlink.RT_FILTER_DST)
		if errors.Is(err, netlink.ErrDumpInterrupted) {
			return false, nil
		}
		return len(routes) > 0, err
	})
}

// Up sets an interface up.
func (h *Host) Up(ifname string) {
	if !h.lab.failed() {
		h.lab.check(h.up(ifname))
	}
}

// Down sets an interface down.
func (h *Host) Down(ifname string) {
	if h.lab.failed() {
		return
	}
	link, err := h.link(ifname)
	if err == nil {
		err = h.nl.LinkSetDown(link)
	}
	h.lab.check(err)
}

// Route adds a route to dst ("default" for both families' default, by the
// family of via; else a prefix) via a gateway address, by a device, or both;
// empty means not given.
func (h *Host) Route(dst, via, dev string) {
	if !h.lab.failed() {
		h.lab.check(h.route(dst, via, dev))
	}
}

func (h *Host) route(dst, via, dev string) error {
	r := &netlink.Route{Gw: net.ParseIP(via)}
	if via != "" && r.Gw == nil {
		return fmt.Errorf("netnstest: gateway %q is not an address", via)
	}
	if dst == "default" {
		dst = "0.0.0.0/0"
		if strings.Contains(via, ":") {
			dst = "::/0"
		}
	}
	_, prefix, err := net.ParseCIDR(dst)
	if err != nil {
		return fmt.Errorf("netnstest: route to %q: %w", dst, err)
	}
	r.Dst = prefix
	if dev != "" {
		link, err := h.link(dev)
		if err != nil {
			return err
		}
		r.LinkIndex = link.Attrs().Index
	}
	if err := h.nl.RouteAdd(r); err != nil {
		return fmt.Errorf("netnstest: route to %s via %q dev %q in %s: %w", dst, via, dev, h.name, err)
	}
	return nil
}

// Sysctl writes a kernel setting of the host, "net.ipv4.ip_forward" or, where
// an interface name has a dot in it, "net/ipv4/conf/eth0.7/forwarding".
func (h *Host) Sysctl(key, value string) {
	if h.lab.failed() {
		return
	}
	err := h.Do(func() error { return os.WriteFile(sysctlPath(key), []byte(value), 0) })
	if err != nil {
		err = fmt.Errorf("netnstest: set %s=%s in %s: %w", key, value, h.name, err)
	}
	h.lab.check(err)
}

// ReadSysctl returns a kernel setting of the host, without the line end.
func (h *Host) ReadSysctl(key string) (string, error) {
	var value []byte
	err := h.Do(func() (err error) {
		value, err = os.ReadFile(sysctlPath(key))
		return err
	})
	return strings.TrimSpace(string(value)), err
}

func sysctlPath(key string) string {
	if !strings.Contains(key, "/") {
		key = strings.ReplaceAll(key, ".", "/")
	}
	return filepath.Join("/proc/sys", key)
}

func (h *Host) link(ifname string) (netlink.Link, error) {
	link, err := h.nl.LinkByName(ifname)
	if err != nil {
		return nil, fmt.Errorf("netnstest: interface %s in %s: %w", ifname, h.name, err)
	}
	return link, nil
}

func (h *Host) up(ifname string) error {
	link, err := h.link(ifname)
	if err != nil {
		return err
	}
	if err := h.nl.LinkSetUp(link); err != nil {
		return fmt.Errorf("netnstest: set %s in %s up: %w", ifname, h.name, err)
	}
	return nil
}

// waitUp waits until the kernel's link watch has seen the carrier and until the
// link-local address receives: before that, IPv6 does not answer.
func (h *Host) waitUp(ifname string) error {
	err := wait(fmt.Sprintf("%s in %s has no carrier", ifname, h.name), func() (bool, error) {
		link, err := h.link(ifname)
		return err == nil && link.Attrs().OperState == netlink.OperUp, err
	})
	if err != nil {
		return err
	}
	link, err := h.link(ifname)
	if err != nil {
		return err
	}
	var linkLocal net.IP
	err = wait(fmt.Sprintf("%s in %s has no link-local address", ifname, h.name), func() (bool, error) {
		addrs, err := h.nl.AddrList(link, unix.AF_INET6)
		if errors.Is(err, netlink.ErrDumpInterrupted) {
			return false, nil
		}
		for _, addr := range addrs {
			if addr.IP.IsLinkLocalUnicast() {
				linkLocal = addr.IP
			}
		}
		return linkLocal != nil, err
	})
	if err != nil {
		return err
	}
	return h.waitReceives(linkLocal)
}

// wait asks again and again whether something has come true.
func wait(complaint string, ready func() (bool, error)) error {
	for deadline := time.Now().Add(readyTimeout); ; time.Sleep(2 * time.Millisecond) {
		if ok, err := ready(); err != nil || ok {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("netnstest: %s after %v", complaint, readyTimeout)
		}
	}
}
