//go:build linux

package doctor

import (
	"slices"

	"mitm-appliance/capture"
	"mitm-appliance/proxycore/mode"
	"mitm-appliance/redirect"
)

// steering asks package redirect about each transparent mode, and once for local mode, which uses its
// routes and, where eBPF is missing, its rules.
func steering(m machine, specs []mode.Spec) []Finding {
	var list []Finding
	for _, s := range specs {
		if s.Name == mode.Transparent {
			for _, p := range m.probeSteer(redirect.Config{Interfaces: lan(s)}) {
				list = add(list, steerFinding(p, mode.Transparent), s.Full)
			}
		}
	}
	if local := named(specs, mode.Local); len(local) > 0 {
		for _, p := range m.probeSteer(redirect.Config{}) {
			for _, full := range local {
				list = add(list, steerFinding(p, mode.Local), full)
			}
		}
	}
	return list
}

// add appends a finding for one mode, or adds the mode to the same finding of another.
func add(list []Finding, f Finding, mode string) []Finding {
	if f.Check == "" {
		return list
	}
	i := slices.IndexFunc(list, func(o Finding) bool {
		return o.Check == f.Check && o.Severity == f.Severity && o.Detail == f.Detail && o.Cure == f.Cure
	})
	if i < 0 {
		f.Modes = []string{mode}
		return append(list, f)
	}
	if !slices.Contains(list[i].Modes, mode) {
		list[i].Modes = append(list[i].Modes, mode)
	}
	return list
}

// steerFinding weighs what redirect found for a kind of mode; the zero Finding when it does not matter.
func steerFinding(p redirect.Finding, kind string) Finding {
	f := Finding{Check: p.Name, Severity: Fail, Detail: p.Detail, Cure: p.Cure}
	switch p.Name {
	case "cap-net-admin":
		return Finding{} // told by capabilities
	case "nft-table-owner", "ipv6":
		f.Severity = Warn // without fail-open, or without IPv6, the rest works
	case "nft-socket-cgroupv2":
		if kind != mode.Local {
			return Finding{}
		}
		f.Severity = Warn // eBPF does without
	case "forwarding", "forward-chain", "source-check":
		if kind != mode.Transparent {
			return Finding{} // nothing is forwarded
		}
	}
	if p.OK {
		f.Severity = OK
	}
	return f
}

// localCapture asks package capture about local mode. What can be captured by nftables is captured
// without eBPF too.
func localCapture(m machine, specs []mode.Spec) []Finding {
	if len(named(specs, mode.Local)) == 0 {
		return nil
	}
	var list []Finding
	for _, p := range m.probeCapture() {
		for _, s := range specs {
			if s.Name == mode.Local {
				list = add(list, captureFinding(p, needsBPF(s)), s.Full)
			}
		}
	}
	return list
}

func captureFinding(p capture.Finding, bpf bool) Finding {
	f := Finding{Check: p.Name, Severity: Fail, Detail: p.Detail, Cure: p.Cure}
	switch {
	case p.Name == "CAP_NET_ADMIN" || p.Name == "CAP_BPF" || p.Name == "CAP_PERFMON":
		return Finding{} // told by capabilities
	case p.OK:
		f.Severity = OK
	case p.Name == "BTF":
		f.Severity = Warn
	case !bpf:
		f.Severity = Warn
		f.Detail += " (nftables captures it instead, without the names of processes)"
	}
	return f
}

// needsBPF says that a local mode names what nftables does not know: pids, names, program files.
func needsBPF(s mode.Spec) bool {
	spec, err := capture.ParseSpec(s.Data)
	return err != nil || slices.ContainsFunc(spec.Items, func(i capture.Item) bool {
		return i.Kind != capture.UID && i.Kind != capture.Cgroup
	})
}
