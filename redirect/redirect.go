//go:build linux

// Package redirect steers packets into a TUN device: those that LAN clients
// send through this host (transparent mode) and, where eBPF is missing, those
// that this host's own processes send.
//
// In go a TUN device that is up and has an IPv4 address, the names of LAN
// interfaces, marks and destinations to leave alone. Out comes kernel state:
// an nftables table that marks packets, a policy routing rule and a
// route table that lead marked packets into the TUN, and the kernel settings
// which that needs. The package reads no packet and knows neither proxies
// nor flows; whoever reads the TUN sees the client's own address and
// the original destination.
//
// Crash safety. Fail-closed (the default): the nftables table outlives the
// process, and an unreachable route with a bad metric takes over when the TUN
// disappears, so that clients get "unreachable" instead of an unwatched
// Internet. Fail-open: the nftables table has "flags owner" and disappears
// with the process, and there is no such route. Undo removes everything in both
// modes. What a killed process left is removed by the next Apply
// under the same name, or by Clean; a lock held by a living owner keeps both
// from destroying a running appliance.
//
// Limits. Traffic to an address of the router itself is never captured: the
// rule of table "local" comes first, whatever the mark. A DNS service for
// the LAN therefore has to listen on the router's LAN address. Another
// table's drop at the forward hook cannot be overruled from here; Probe finds it
// and tells the cure. A masquerading rule of others that also matches what
// goes into the TUN is forestalled, once it is there when Apply runs; Verify
// reports one that came later.
//
// Everything happens in the network namespace of the thread that calls New.
package redirect

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
)

// ErrChanged is returned by Verify when something of the steering is gone.
var ErrChanged = errors.New("redirect: the steering was changed from outside")

// Redirect is steering that can be applied, changed and undone. Its methods
// may be called from any goroutine.
type Redirect struct {
	cfg       Config
	log       *slog.Logger
	namespace namespace
	id        string

	mu       sync.Mutex
	lan      []string
	output   OutputRules
	bypasses bypasses
	table    *table
	state    *state // nil while not applied
	record   record
}

// New checks a configuration. It changes nothing yet.
func New(cfg Config) (*Redirect, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	if cfg.TUN == "" {
		return nil, errors.New("redirect: no TUN device given")
	}
	r := &Redirect{
		cfg: cfg, log: cfg.Logger, table: newTable(cfg.Name),
		lan: normalize(cfg.Interfaces), output: cfg.Output.clone(),
		bypasses: bypasses{max: cfg.MaxBypass, entries: map[netip.Prefix]time.Time{}},
	}
	for _, b := range cfg.Bypass {
		if b.Prefix, err = checkBypass(b.Prefix); err != nil {
			return nil, err
		}
		if _, err := r.bypasses.add(b, time.Now()); err != nil {
			return nil, err
		}
	}
	if r.namespace, err = currentNamespace(); err != nil {
		return nil, err
	}
	if r.id, err = r.namespace.id(); err != nil {
		r.namespace.close()
		return nil, err
	}
	return r, nil
}

func (r *Redirect) policy() policy {
	return policy{marks: r.cfg.Marks, table: r.cfg.RouteTable, priority: r.cfg.RulePriority, tun: r.cfg.TUN, failClosed: !r.cfg.FailOpen}
}

// Apply puts the steering into the kernel. Called again it repairs what Verify
// found missing. When it fails, what it did is undone as far as possible.
func (r *Redirect) Apply() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.namespace.do(func() error {
		first := r.state == nil
		if err := r.apply(); err != nil {
			if first && r.state != nil {
				err = errors.Join(err, r.undo())
			}
			return err
		}
		r.log.Info("steering applied", "tun", r.cfg.TUN, "interfaces", r.lan, "failOpen", r.cfg.FailOpen)
		return nil
	})
}

// apply enables forwarding last: before that nothing can slip past the marks.
func (r *Redirect) apply() error {
	tun, err := checkTUN(r.cfg.TUN)
	if err != nil {
		return err
	}
	if err := checkInterfaces(r.lan, r.cfg.TUN); err != nil {
		return err
	}
	if err := r.own(); err != nil {
		return err
	}
	if err := r.policy().apply(tun); err != nil {
		return err
	}
	if r.needsTable() {
		if err := r.table.install(r.ruleset(), r.cfg.FailOpen); err != nil {
			return err
		}
	}
	return r.applySettings()
}

// own takes the lock and removes what a dead owner left under another
// configuration. What it left under the same one is replaced, not removed: no
// packet may slip through in between.
func (r *Redirect) own() error {
	if r.state != nil {
		return nil
	}
	state, err := openState(r.cfg.StateDir, r.cfg.Name, r.id)
	if err != nil {
		return err
	}
	fresh := record{
		PID: os.Getpid(), Name: r.cfg.Name, TUN: r.cfg.TUN, Marks: r.cfg.Marks,
		RouteTable: r.cfg.RouteTable, RulePriority: r.cfg.RulePriority,
	}
	if err := state.conflict(fresh, r.id); err != nil {
		state.finish()
		return err
	}
	if old := state.stale; old != nil {
		r.log.Warn("removing what a crashed process left", "pid", old.PID, "name", old.Name)
		fresh.Settings = old.Settings // with the values from before that process
		if old.RouteTable != fresh.RouteTable || old.RulePriority != fresh.RulePriority || old.TUN != fresh.TUN {
			if err := old.policy().remove(); err != nil {
				state.abandon()
				return err
			}
		}
	}
	if r.cfg.FailOpen { // a crashed fail-closed one left this
		if err := r.policy().dropUnreachable(); err != nil {
			state.abandon()
			return err
		}
	}
	r.state, r.record = state, fresh
	return r.state.write(r.record)
}

func (r *Redirect) needsTable() bool { return len(r.lan) > 0 || !r.output.empty() }

func (r *Redirect) ruleset() ruleset {
	return ruleset{marks: r.cfg.Marks, lan: r.lan, output: r.output, bypass: r.bypasses.list(time.Now()), tun: r.cfg.TUN}
}

// applySettings brings the kernel settings to what is wanted now and puts back
// those that are not wanted any more.
func (r *Redirect) applySettings() error {
	wanted := wantedSettings(r.cfg.TUN, r.lan, r.cfg.FailOpen || len(r.bypasses.entries) > 0)
	plan, err := planSettings(wanted)
	if err != nil {
		return err
	}
	keep, drop := splitSettings(r.record.Settings, wanted)
	for _, s := range plan {
		known := func(k setting) bool { return k.Key == s.Key }
		if !slices.ContainsFunc(keep, known) {
			keep = append(keep, s)
		}
	}
	r.record.Settings = slices.Concat(drop, keep)
	if err := r.state.write(r.record); err != nil {
		return err
	}
	if err := errors.Join(restoreSettings(drop), writeSettings(plan)); err != nil {
		return err
	}
	r.record.Settings = keep
	return r.state.write(r.record)
}

// Verify says whether the steering still stands. The error wraps ErrChanged
// and names what is missing; Apply repairs it.
func (r *Redirect) Verify() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.namespace.do(func() error {
		if r.state == nil {
			return fmt.Errorf("%w: it is not applied", ErrChanged)
		}
		missing, err := r.policy().missing()
		if err != nil {
			return err
		}
		if r.needsTable() {
			more, err := r.missingInTable()
			if err != nil {
				return err
			}
			missing = append(missing, more...)
		}
		for _, s := range wantedSettings(r.cfg.TUN, r.lan, r.cfg.FailOpen || len(r.bypasses.entries) > 0) {
			if now, err := readSysctl(s.Key); err != nil || now != s.New {
				missing = append(missing, "the setting "+s.Key+"="+s.New)
			}
		}
		if len(missing) > 0 {
			return fmt.Errorf("%w: missing %s", ErrChanged, strings.Join(missing, ", "))
		}
		return nil
	})
}

func (r *Redirect) missingInTable() ([]string, error) {
	handles, err := r.table.readHandles()
	if err != nil {
		return nil, err
	}
	for chain, want := range r.table.handles {
		if !slices.Equal(handles[chain], want) {
			return []string{"rules of the nftables table " + r.cfg.Name}, nil
		}
	}
	if others, err := r.table.othersTranslate(); err != nil {
		return nil, err
	} else if others && len(handles[chainKeep]) == 0 {
		return []string{"what keeps others from masquerading the clients"}, nil
	}
	names, err := r.table.interfaces()
	if err != nil || slices.Equal(names, r.lan) {
		return nil, err
	}
	return []string{"interfaces in the nftables table " + r.cfg.Name}, nil
}

// Undo removes everything and puts the kernel settings back, except those that
// somebody else has changed since. Doing it twice is harmless; after an error
// it may be tried again.
func (r *Redirect) Undo() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.namespace.do(r.undo)
}

func (r *Redirect) undo() error {
	if r.state == nil {
		return nil
	}
	// Forwarding goes first: nothing may slip past the marks.
	err := errors.Join(restoreSettings(r.record.Settings), r.table.remove(), r.policy().remove())
	if err != nil {
		return err
	}
	r.state.finish()
	r.state = nil
	r.log.Info("steering removed", "tun", r.cfg.TUN)
	return nil
}
