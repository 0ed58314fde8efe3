//go:build linux

package redirect

import (
	"errors"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Clean removes what a process that died without Undo has left, and puts the
// kernel settings back: for ExecStopPost= and for "doctor". Of cfg the names,
// numbers, TUN and StateDir count; the zero Config means the defaults. It
// returns ErrInUse, and touches nothing, while an owner is alive. It works in
// the calling thread's network namespace.
func Clean(cfg Config) error {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return err
	}
	here, err := currentNamespace()
	if err != nil {
		return err
	}
	defer here.close()
	id, err := here.id()
	if err != nil {
		return err
	}
	return here.do(func() error { return clean(cfg, id) })
}

func clean(cfg Config, namespaceID string) error {
	state, err := openState(cfg.StateDir, cfg.Name, namespaceID)
	if err != nil {
		return err
	}
	left := record{Name: cfg.Name, TUN: cfg.TUN, RouteTable: cfg.RouteTable, RulePriority: cfg.RulePriority, Marks: cfg.Marks}
	if state.stale != nil {
		left = *state.stale
	} else if err := state.conflict(left, namespaceID); err != nil {
		state.finish()
		return err
	}
	if err := errors.Join(restoreSettings(left.Settings), newTable(cfg.Name).remove(), left.policy().remove()); err != nil {
		state.abandon()
		return err
	}
	state.finish()
	return nil
}

// dropUnreachable removes the routes that stop packets without a TUN.
func (p policy) dropUnreachable() error {
	var errs []error
	for _, family := range families() {
		if err := netlink.RouteDel(p.unreachable(family)); err != nil && !isGone(err) && !errors.Is(err, unix.ESRCH) {
			errs = append(errs, explain("remove a route", err))
		}
	}
	return errors.Join(errs...)
}
