//go:build linux

package capture

import (
	"errors"
	"fmt"
	"log/slog"
	"os"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/rlimit"
)

const (
	maxRules   = 65536 // keys of one Spec, processes found for Exe items included
	maxServers = 16384 // UDP server sockets remembered
)

// hook is a place in the kernel where one of our programs runs.
type hook struct {
	name     string
	typ      ebpf.ProgramType
	attach   ebpf.AttachType
	code     func(*programConfig) asm.Instructions
	optional bool // missing on older kernels; only what its comment says is lost
}

func hooks() []hook {
	sends := func(v6, datagram bool) func(*programConfig) asm.Instructions {
		return func(c *programConfig) asm.Instructions { return socketSends(c, v6, datagram) }
	}
	receives := func(v6, datagram bool) func(*programConfig) asm.Instructions {
		return func(c *programConfig) asm.Instructions { return socketReceives(c, v6, datagram) }
	}
	addr := ebpf.CGroupSockAddr
	// What undoes and remembers is attached before what changes.
	return []hook{
		{"packet_leaves", ebpf.CGroupSKB, ebpf.AttachCGroupInetEgress, packetLeaves, true}, // attribution by sock_diag instead
		{"recvmsg4", addr, ebpf.AttachCGroupUDP4Recvmsg, receives(false, true), true},      // DNS stubs' answers, UDP servers
		{"recvmsg6", addr, ebpf.AttachCGroupUDP6Recvmsg, receives(true, true), true},
		{"getpeername4", addr, ebpf.AttachCgroupInet4GetPeername, receives(false, false), true}, // DNS stub's address
		{"getpeername6", addr, ebpf.AttachCgroupInet6GetPeername, receives(true, false), true},
		{"connect4", addr, ebpf.AttachCGroupInet4Connect, sends(false, false), false},
		{"connect6", addr, ebpf.AttachCGroupInet6Connect, sends(true, false), false},
		{"sendmsg4", addr, ebpf.AttachCGroupUDP4Sendmsg, sends(false, true), false},
		{"sendmsg6", addr, ebpf.AttachCGroupUDP6Sendmsg, sends(true, true), false},
		{"sock_create", ebpf.CGroupSock, ebpf.AttachCGroupInetSockCreate, socketCreated, false},
	}
}

// kernelSteer is the eBPF mechanism: its maps, and the links that hold the programs.
type kernelSteer struct {
	rules, owners, servers, flows *ebpf.Map
	links                         []link.Link

	current *ebpf.Map          // rules in force
	entries map[ruleKey]uint64 // what current holds
}

func ruleMapSpec() *ebpf.MapSpec {
	return &ebpf.MapSpec{
		Name: "mitm_rule", Type: ebpf.Hash, KeySize: 24, ValueSize: 8,
		MaxEntries: maxRules, Flags: 1, // BPF_F_NO_PREALLOC
	}
}

// newKernelSteer creates the maps. Nothing runs before attach.
func newKernelSteer(maxSockets uint32) (_ *kernelSteer, err error) {
	_ = rlimit.RemoveMemlock() // only kernels before 5.11 need it; if they do, the maps say so
	k := &kernelSteer{}
	defer func() {
		if err != nil {
			_ = k.close()
		}
	}()
	for _, m := range []struct {
		to   **ebpf.Map
		spec *ebpf.MapSpec
	}{
		{&k.rules, &ebpf.MapSpec{Name: "mitm_rules", Type: ebpf.ArrayOfMaps, KeySize: 4, ValueSize: 4, MaxEntries: 1, InnerMap: ruleMapSpec()}},
		{&k.owners, &ebpf.MapSpec{Name: "mitm_owners", Type: ebpf.LRUHash, KeySize: 8, ValueSize: ownerSize, MaxEntries: maxSockets}},
		{&k.flows, &ebpf.MapSpec{Name: "mitm_flows", Type: ebpf.LRUHash, KeySize: 40, ValueSize: 8, MaxEntries: maxSockets}},
		{&k.servers, &ebpf.MapSpec{Name: "mitm_servers", Type: ebpf.LRUHash, KeySize: 8, ValueSize: 8, MaxEntries: maxServers}},
	} {
		if *m.to, err = ebpf.NewMap(m.spec); err != nil {
			return nil, fmt.Errorf("create eBPF map %s (needs CAP_BPF and CAP_NET_ADMIN): %w", m.spec.Name, err)
		}
	}
	return k, nil
}

// attach loads the programs and runs them on a cgroup directory.
func (k *kernelSteer) attach(dir string, cfg programConfig, log *slog.Logger) error {
	cfg.rules, cfg.owners, cfg.servers, cfg.flows = k.rules, k.owners, k.servers, k.flows
	target, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("open cgroup: %w", err)
	}
	defer target.Close()
	for _, h := range hooks() {
		l, err := h.run(target, &cfg)
		switch {
		case err == nil:
			k.links = append(k.links, l)
		case h.optional:
			log.Debug("this kernel lacks a hook for local capture", "hook", h.name, "err", err)
		default:
			return fmt.Errorf("eBPF program %s: %w", h.name, err)
		}
	}
	return nil
}

// run attaches by a bpf_link and never by the older call, whose attachments
// would outlive us.
func (h hook) run(target *os.File, cfg *programConfig) (link.Link, error) {
	prog, err := h.load(cfg)
	if err != nil {
		return nil, fmt.Errorf("load: %w", err)
	}
	defer prog.Close() // the link keeps it
	l, err := link.AttachRawLink(link.RawLinkOptions{Target: int(target.Fd()), Program: prog, Attach: h.attach})
	if err != nil {
		return nil, fmt.Errorf("attach: %w", err)
	}
	return l, nil
}

func (h hook) load(cfg *programConfig) (*ebpf.Program, error) {
	return ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "mitm_" + h.name, Type: h.typ, AttachType: h.attach,
		Instructions: h.code(cfg), License: "Dual MIT/GPL",
	})
}

// swap puts a whole new set of rules in force at once.
func (k *kernelSteer) swap(entries map[ruleKey]uint64) error {
	if len(entries) > maxRules {
		return fmt.Errorf("capture: %d rules, at most %d fit", len(entries), maxRules)
	}
	m, err := ebpf.NewMap(ruleMapSpec())
	if err != nil {
		return fmt.Errorf("capture: create a map for the new rules: %w", err)
	}
	for key, value := range entries {
		if err := m.Put(key, value); err != nil {
			_ = m.Close()
			return fmt.Errorf("capture: write the new rules: %w", err)
		}
	}
	if err := k.rules.Put(uint32(0), m); err != nil {
		_ = m.Close()
		return fmt.Errorf("capture: put the new rules in force: %w", err)
	}
	if k.current != nil {
		_ = k.current.Close()
	}
	k.current, k.entries = m, entries
	return nil
}

// amend changes only the entries of the rules in force that differ. A rule
// that cannot be changed in place makes it swap them all.
func (k *kernelSteer) amend(entries map[ruleKey]uint64) error {
	if len(entries) > maxRules {
		return fmt.Errorf("capture: %d rules, at most %d fit", len(entries), maxRules)
	}
	var errs []error
	for key := range k.entries {
		if _, keep := entries[key]; !keep {
			errs = append(errs, k.current.Delete(key))
		}
	}
	for key, value := range entries {
		if old, ok := k.entries[key]; !ok || old != value {
			errs = append(errs, k.current.Put(key, value))
		}
	}
	if errors.Join(errs...) != nil {
		return k.swap(entries)
	}
	k.entries = entries
	return nil
}

// close stops capturing at once.
func (k *kernelSteer) close() error {
	var errs []error
	for _, l := range k.links {
		errs = append(errs, l.Close())
	}
	for _, m := range []*ebpf.Map{k.rules, k.current, k.owners, k.servers, k.flows} {
		if m != nil {
			errs = append(errs, m.Close())
		}
	}
	return errors.Join(errs...)
}
