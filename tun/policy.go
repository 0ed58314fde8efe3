//go:build linux

package tun

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A program behind a device that reaches servers over the same machine's
// routes must not be led back into the device. So with Config.OwnMark the
// device's routes stand in a table of their own, which packets with that mark
// never look into:
//
//	5170: from all lookup main suppress_prefixlength 0   (only with a default route)
//	5171: not from all fwmark OWN lookup TABLE
//
// The first rule keeps a default route into the device from taking what has a
// better route, such as the neighbours on the LAN.
const (
	nearPriority  = 5170
	routePriority = 5171
	// tableBase and the interface's index make the number of the table, so that
	// devices do not share one and a rule tells whether its device is gone.
	tableBase = 51_800_000
	maxTables = 1_000_000
)

// steer adds the rules that the routes of a marked device need.
func (d *Device) steer(cfg Config) error {
	if cfg.OwnMark == 0 || len(cfg.Routes) == 0 {
		return nil
	}
	if err := clean(d.nl); err != nil {
		return err
	}
	d.table = tableBase + d.index
	for _, family := range families() {
		rule := netlink.NewRule()
		rule.Family, rule.Priority, rule.Table = family, routePriority, d.table
		rule.Mark, rule.Mask, rule.Invert = cfg.OwnMark, &cfg.OwnMask, true
		rules := []*netlink.Rule{rule}
		for _, p := range cfg.Routes {
			if p.Bits() == 0 && p.Addr().Is4() == (family == unix.AF_INET) {
				near := netlink.NewRule()
				near.Family, near.Priority, near.Table, near.SuppressPrefixlen = family, nearPriority, unix.RT_TABLE_MAIN, 0
				rules = append(rules, near)
			}
		}
		for _, r := range rules {
			if err := d.nl.RuleAdd(r); err != nil && !errors.Is(err, unix.EEXIST) {
				return fmt.Errorf("add rule %d: %w", r.Priority, err)
			}
			d.rules = append(d.rules, r)
		}
	}
	return nil
}

// unsteer removes the device's rules. The one that devices share stays while
// another one has routes.
func (d *Device) unsteer() error {
	var errs []error
	for _, r := range d.rules {
		if r.Priority == routePriority {
			errs = append(errs, gone(d.nl.RuleDel(r)))
		}
	}
	if d.rules != nil {
		errs = append(errs, clean(d.nl))
	}
	d.rules = nil
	return errors.Join(errs...)
}

// Clean removes the rules of devices that are gone, as a killed process leaves
// them, from the calling thread's network namespace. Without their device they
// have no effect.
func Clean() error {
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("tun: open netlink: %w", err)
	}
	defer nl.Close()
	if err := clean(nl); err != nil {
		return fmt.Errorf("tun: %w", err)
	}
	return nil
}

func clean(nl *netlink.Handle) error {
	for _, family := range families() {
		rules, err := nl.RuleList(family)
		if err != nil {
			return fmt.Errorf("list rules: %w", err)
		}
		live := false
		for i := range rules {
			r := &rules[i]
			if r.Priority != routePriority || r.Table < tableBase || r.Table >= tableBase+maxTables {
				continue
			}
			if _, err := nl.LinkByIndex(r.Table - tableBase); err == nil {
				live = true
				continue
			}
			r.Family = family
			if err := gone(nl.RuleDel(r)); err != nil {
				return fmt.Errorf("remove rule %d: %w", r.Priority, err)
			}
		}
		for i := range rules {
			r := &rules[i]
			if !live && r.Priority == nearPriority && r.Table == unix.RT_TABLE_MAIN && r.SuppressPrefixlen == 0 {
				r.Family = family
				if err := gone(nl.RuleDel(r)); err != nil {
					return fmt.Errorf("remove rule %d: %w", r.Priority, err)
				}
			}
		}
	}
	return nil
}

// gone takes it as well when there was nothing to remove.
func gone(err error) error {
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}
