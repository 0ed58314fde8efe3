package appliance

import (
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
	"kernel.org/pub/linux/libs/security/libcap/cap"
	"kernel.org/pub/linux/libs/security/libcap/psx"

	"mitm-appliance/proxycore/mode"
)

// Needs lists the capabilities that the wanted modes need while they run: to undo and verify rules,
// to mark sockets, to change what is captured. Modes that are added later need theirs from the start.
func (a *Appliance) Needs() []cap.Value {
	var needs []cap.Value
	add := func(values ...cap.Value) {
		for _, v := range values {
			if !slices.Contains(needs, v) {
				needs = append(needs, v)
			}
		}
	}
	for _, st := range a.modes.Status() {
		switch st.Spec.Name {
		case mode.Transparent, mode.TUN:
			add(cap.NET_ADMIN, cap.NET_RAW)
		case mode.WireGuard:
			add(cap.NET_ADMIN)
		case mode.Local:
			add(cap.NET_ADMIN, cap.NET_RAW, cap.BPF, cap.PERFMON, cap.SYS_PTRACE) // ptrace: which program a process runs
		}
		if host, port := st.Spec.Address("", -1); host == "" && port >= 0 && port < 1024 {
			add(cap.NET_BIND_SERVICE)
		}
	}
	return needs
}

// DropPrivileges gives up every capability but those in keep, for ever and for all children. A
// process that has none to give up, or already runs with less than keep, is left alone.
func DropPrivileges(keep []cap.Value) error {
	now := cap.GetProc()
	next := cap.NewSet()
	for _, v := range keep {
		if has, err := now.GetFlag(cap.Permitted, v); err != nil || !has {
			continue
		}
		for _, flag := range []cap.Flag{cap.Permitted, cap.Effective} {
			if err := next.SetFlag(flag, true, v); err != nil {
				return fmt.Errorf("keep capability %s: %w", v, err)
			}
		}
	}
	// Without new privileges neither a set-uid program nor file capabilities can give them back.
	if _, _, errno := psx.Syscall6(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0, 0); errno != 0 {
		return fmt.Errorf("forbid new privileges: %w", errno)
	}
	if err := next.SetProc(); err != nil {
		return fmt.Errorf("give up capabilities: %w", err)
	}
	return nil
}
