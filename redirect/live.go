//go:build linux

package redirect

import (
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// Interfaces returns the LAN interfaces whose traffic is captured.
func (r *Redirect) Interfaces() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.lan)
}

// SetInterfaces changes the LAN interfaces; flows of the others go on.
func (r *Redirect) SetInterfaces(names []string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.namespace.do(func() error {
		names = normalize(names)
		if err := checkInterfaces(names, r.cfg.TUN); err != nil {
			return err
		}
		hadTable := r.needsTable()
		r.lan = names
		if r.state == nil {
			return nil
		}
		if err := r.changeTable(hadTable, func() error { return r.table.setInterfaces(names) }); err != nil {
			return err
		}
		r.log.Info("LAN interfaces changed", "interfaces", names)
		return r.applySettings()
	})
}

// SetOutput changes what is captured of this host's own traffic.
func (r *Redirect) SetOutput(rules OutputRules) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := rules.check(); err != nil {
		return err
	}
	return r.namespace.do(func() error {
		hadTable := r.needsTable()
		r.output = rules.clone()
		if r.state == nil {
			return nil
		}
		return r.changeTable(hadTable, func() error { return r.table.setOutput(r.cfg.Marks, r.output) })
	})
}

// changeTable installs or removes the whole table where that is the change,
// and else changes it in place.
func (r *Redirect) changeTable(had bool, inPlace func() error) error {
	switch needs := r.needsTable(); {
	case needs && had:
		return inPlace()
	case needs:
		return r.table.install(r.ruleset(), r.cfg.FailOpen)
	default:
		return r.table.remove()
	}
}

// AddBypass lets a destination pass in the kernel for a time, or for good when
// d is 0. Given again, the new time counts; where destinations overlap,
// the longer time. Flows that are already captured go on; ErrBypassFull
// tells that the limit is reached.
func (r *Redirect) AddBypass(p netip.Prefix, d time.Duration) error {
	p, err := checkBypass(p)
	if err != nil {
		return err
	}
	if d < 0 {
		return fmt.Errorf("redirect: bypass %v for %v: the time is negative", p, d)
	}
	entry := Bypass{Prefix: p}
	now := time.Now()
	if d > 0 {
		entry.Expires = now.Add(d)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	first := len(r.bypasses.entries) == 0
	alone, err := r.bypasses.add(entry, now)
	if err != nil || r.state == nil {
		return err
	}
	return r.namespace.do(func() error {
		if !r.needsTable() {
			return nil
		}
		added := alone && r.table.addBypass(entry) == nil
		if !added { // it overlaps one, perhaps one that expires this moment
			if err := r.table.setBypasses(r.bypasses.list(time.Now())); err != nil {
				return err
			}
		}
		if first {
			return r.applySettings()
		}
		return nil
	})
}

// RemoveBypass captures a destination again; false means that it was not
// bypassed. It takes back exactly one AddBypass, not what overlaps it.
func (r *Redirect) RemoveBypass(p netip.Prefix) (bool, error) {
	p, err := checkBypass(p)
	if err != nil {
		return false, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.bypasses.prune(time.Now())
	if _, known := r.bypasses.entries[p]; !known {
		return false, nil
	}
	delete(r.bypasses.entries, p)
	if r.state == nil || !r.needsTable() {
		return true, nil
	}
	return true, r.namespace.do(func() error {
		return r.table.setBypasses(r.bypasses.list(time.Now()))
	})
}

// Bypasses returns the destinations that are bypassed now, ordered by address.
func (r *Redirect) Bypasses() []Bypass {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.bypasses.list(time.Now())
}
