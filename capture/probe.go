//go:build linux

package capture

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// Finding is one thing that local capture needs of this machine.
type Finding struct {
	Name   string
	OK     bool
	Detail string // what was found
	Cure   string // how to get it; "" when OK
}

// oldestKernel has all hooks and helpers that the programs use.
var oldestKernel = [2]int{5, 10}

// Probe looks for everything that local capture needs. It changes nothing.
func Probe() []Finding {
	return []Finding{
		probeKernel(), probeCgroup(), probePIDNamespace(), probeBTF(),
		probeCapability("CAP_NET_ADMIN", unix.CAP_NET_ADMIN),
		probeCapability("CAP_BPF", unix.CAP_BPF, unix.CAP_SYS_ADMIN),
		probeCapability("CAP_PERFMON", unix.CAP_PERFMON, unix.CAP_SYS_ADMIN),
		probePrograms(),
	}
}

func probeKernel() Finding {
	f := Finding{Name: "kernel", Cure: fmt.Sprintf("use Linux %d.%d or newer; before that only uid: and cgroup: items work", oldestKernel[0], oldestKernel[1])}
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		f.Detail = err.Error()
		return f
	}
	f.Detail = unix.ByteSliceToString(name.Release[:])
	if major, minor, ok := kernelVersion(f.Detail); ok {
		f.OK = major > oldestKernel[0] || major == oldestKernel[0] && minor >= oldestKernel[1]
	}
	return f.settled()
}

func kernelVersion(release string) (major, minor int, ok bool) {
	n, _ := fmt.Sscanf(release, "%d.%d", &major, &minor)
	return major, minor, n == 2
}

func probeCgroup() Finding {
	f := Finding{Name: "cgroup2", Cure: "mount -t cgroup2 none /sys/fs/cgroup/unified"}
	mount, err := cgroupMount()
	if err != nil {
		f.Detail = err.Error()
		return f
	}
	f.OK, f.Detail = true, mount
	return f.settled()
}

func probePIDNamespace() Finding {
	f := Finding{Name: "pid namespace", Cure: "run the appliance on the host itself (docker: --pid=host --network=host)"}
	ns, err := os.Readlink("/proc/self/ns/pid")
	if err != nil {
		f.Detail = err.Error()
		return f
	}
	f.OK, f.Detail = ns == initPIDNamespace, ns
	return f.settled()
}

func probeBTF() Finding {
	f := Finding{Name: "BTF", Cure: "use a kernel with CONFIG_DEBUG_INFO_BTF; without, names of threads stand in for those of processes"}
	if _, err := kernelOffsets(); err != nil {
		f.Detail = err.Error()
		return f
	}
	f.OK, f.Detail = true, "task_struct, mm_struct and inode are described"
	return f.settled()
}

// probeCapability looks for the first capability or one that includes it.
func probeCapability(name string, any ...int) Finding {
	f := Finding{Name: name, Cure: "run as root, or AmbientCapabilities=" + name + " in the systemd unit"}
	effective, err := effectiveCapabilities()
	if err != nil {
		f.Detail = err.Error()
		return f
	}
	f.Detail = "not effective"
	for _, c := range any {
		if effective&(1<<c) != 0 {
			f.OK, f.Detail = true, "effective"
		}
	}
	return f.settled()
}

func effectiveCapabilities() (uint64, error) {
	text, err := os.ReadFile("/proc/thread-self/status")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "CapEff:"); ok {
			var bits uint64
			_, err := fmt.Sscanf(strings.TrimSpace(rest), "%x", &bits)
			return bits, err
		}
	}
	return 0, errors.New("no CapEff in /proc/thread-self/status")
}

// probePrograms loads every program without attaching it.
func probePrograms() Finding {
	f := Finding{Name: "eBPF programs", Cure: "grant CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN, use a kernel with CONFIG_CGROUP_BPF, and see whether kernel lockdown or a security module forbids bpf(2)"}
	k, err := newKernelSteer(1024)
	if err != nil {
		f.Detail = err.Error()
		return f
	}
	defer k.close()
	cfg := programConfig{rules: k.rules, owners: k.owners, servers: k.servers, flows: k.flows, mask: 1, mark: 1}
	cfg.offsets, _ = kernelOffsets()
	missing := []string{}
	for _, h := range hooks() {
		prog, err := h.load(&cfg)
		switch {
		case err == nil:
			_ = prog.Close()
		case h.optional:
			missing = append(missing, h.name)
		default:
			f.Detail = fmt.Sprintf("%s: %v", h.name, firstLine(err))
			return f
		}
	}
	f.OK, f.Detail = true, "all load"
	if len(missing) > 0 {
		f.Detail = "all needed ones load; this kernel lacks " + strings.Join(missing, ", ")
	}
	return f.settled()
}

// firstLine is an error without the verifier's log.
func firstLine(err error) error {
	var verifier *ebpf.VerifierError
	if errors.As(err, &verifier) {
		return verifier.Cause
	}
	return err
}

func (f Finding) settled() Finding {
	if f.OK {
		f.Cure = ""
	}
	return f
}
