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
// goes into the TUN (docker's, for its own networks) hides the client's address.
//
// Everything happens in the network namespace of the thread that calls New.
package redirect

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

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

// ErrChanged is returned by Verify when something of the steering is gone.
var ErrChanged = errors.New("redirect: the steering was changed from outside")

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
	return ruleset{marks: r.cfg.Marks, lan: r.lan, output: r.output, bypass: r.bypasses.list(time.Now())}
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

func checkTUN(name string) (netlink.Link, error) {
	tun, err := netlink.LinkByName(name)
	if err != nil {
		return nil, fmt.Errorf("redirect: TUN device %s: %w", name, err)
	}
	if tun.Attrs().Flags&net.FlagUp == 0 {
		return nil, fmt.Errorf("redirect: TUN device %s is down (cure: ip link set %s up)", name, name)
	}
	addrs, err := netlink.AddrList(tun, unix.AF_INET)
	if err != nil {
		return nil, fmt.Errorf("redirect: addresses of TUN device %s: %w", name, err)
	}
	if len(addrs) == 0 {
		return nil, fmt.Errorf("redirect: TUN device %s has no IPv4 address, so the kernel would drop its replies (cure: ip addr add 198.18.0.1/30 dev %s)", name, name)
	}
	return tun, nil
}
