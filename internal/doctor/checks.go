//go:build linux

package doctor

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"mitm-appliance/proxycore/mode"
)

// need is a capability, and what cannot do without. CAP_SYS_ADMIN includes those of older kernels.
type need struct {
	name     string
	bit      uint
	admin    bool // CAP_SYS_ADMIN will do
	modes    []string
	severity Severity
	what     string // becomes impossible without
}

func needs() []need {
	return []need{
		{"CAP_NET_ADMIN", unix.CAP_NET_ADMIN, false, []string{mode.Transparent, mode.TUN, mode.Local}, Fail, "devices, routes and rules"},
		{"CAP_NET_ADMIN", unix.CAP_NET_ADMIN, false, []string{mode.WireGuard}, Warn, "marks on its own packets, which other modes would capture"},
		{"CAP_BPF", unix.CAP_BPF, true, []string{mode.Local}, Fail, "eBPF programs"},
		{"CAP_PERFMON", unix.CAP_PERFMON, true, []string{mode.Local}, Fail, "eBPF programs that read the names of processes"},
		{"CAP_SYS_PTRACE", unix.CAP_SYS_PTRACE, false, []string{mode.Local}, Warn, "program files of other users' processes"},
	}
}

func capabilities(m machine, specs []mode.Spec) []Finding {
	effective, err := m.capabilities()
	if err != nil {
		return []Finding{{"capabilities", full(specs), Fail, err.Error(), "run as root"}}
	}
	has := func(bit uint) bool { return effective&(1<<bit) != 0 }
	var list []Finding
	for _, n := range needs() {
		for _, s := range specs {
			if !slices.Contains(n.modes, s.Name) {
				continue
			}
			f := Finding{Check: n.name, Detail: "held: " + n.what}
			if !has(n.bit) && !(n.admin && has(unix.CAP_SYS_ADMIN)) {
				f.Severity, f.Detail = n.severity, "missing, so no "+n.what
				f.Cure = "run as root (sudo mitm-appliance ...), or add " + n.name + " to AmbientCapabilities and CapabilityBoundingSet of the unit"
				if n.admin && !needsBPF(s) {
					f.Severity = Warn
				}
			}
			list = add(list, f, s.Full)
		}
	}
	return list
}

// full returns the specs as they were written.
func full(specs []mode.Spec) []string {
	out := make([]string, len(specs))
	for i, s := range specs {
		out[i] = s.Full
	}
	return out
}

func tunDevice(m machine, specs []mode.Spec) []Finding {
	modes := named(specs, mode.TUN, mode.Transparent, mode.Local)
	if len(modes) == 0 {
		return nil
	}
	f := Finding{Check: "tun device", Modes: modes, Detail: "with TCP and UDP offload"}
	udp, err := m.tryTUN()
	switch {
	case errors.Is(err, fs.ErrNotExist):
		f.Severity, f.Detail = Fail, err.Error()
		f.Cure = "mkdir -p /dev/net && mknod -m 666 " + tunPath + " c 10 200 (in docker: --device " + tunPath + " --cap-add NET_ADMIN)"
	case errors.Is(err, syscall.ENODEV), errors.Is(err, syscall.ENXIO):
		f.Severity, f.Detail, f.Cure = Fail, err.Error(), "modprobe tun"
	case errors.Is(err, fs.ErrPermission):
		f.Severity, f.Detail = Fail, err.Error()
		f.Cure = "run as root; in a container or unit also allow the device: docker --device " + tunPath + ", systemd DeviceAllow=" + tunPath + " rw"
	case err != nil:
		f.Severity, f.Detail, f.Cure = Fail, err.Error(), "use a kernel with CONFIG_TUN"
	case !udp:
		f.Severity, f.Detail, f.Cure = Warn, "without UDP offload: QUIC and other bulk UDP is slower", "use Linux 6.2 or later"
	}
	return append([]Finding{f}, tunNames(m, specs)...)
}

// tunNames looks at devices that are asked for by name.
func tunNames(m machine, specs []mode.Spec) []Finding {
	var list []Finding
	for _, s := range specs {
		if s.Name != mode.TUN || s.Data == "" {
			continue
		}
		if kind, err := m.link(s.Data); err == nil && kind != "tuntap" {
			list = append(list, Finding{"interface " + s.Data, []string{s.Full}, Fail, "exists and is no TUN device (" + kind + ")", "choose another name, as in --mode tun:mitm0"})
		}
	}
	return list
}

// interfaces looks at those that transparent mode captures.
func interfaces(m machine, specs []mode.Spec) []Finding {
	var list []Finding
	for _, s := range specs {
		if s.Name != mode.Transparent {
			continue
		}
		wanted := lan(s)
		if len(wanted) == 0 {
			found, err := m.links()
			f := Finding{"interfaces", []string{s.Full}, OK, "captured: " + strings.Join(found, ", "), ""}
			if err != nil {
				f.Severity, f.Detail, f.Cure = Fail, err.Error(), "name the interface of the devices: --mode transparent:IFACE (ip -br link lists them)"
			}
			list = append(list, f)
		}
		for _, name := range wanted {
			f := Finding{"interface " + name, []string{s.Full}, OK, "exists", ""}
			if _, err := m.link(name); err != nil {
				f.Severity, f.Detail, f.Cure = Fail, "there is no interface "+name, "choose one of: ip -br link"
			}
			list = append(list, f)
		}
	}
	return list
}

func lan(s mode.Spec) []string {
	return strings.FieldsFunc(s.Data, func(r rune) bool { return r == ',' || r == ' ' })
}

// ports tries to listen where each mode will.
func ports(m machine, specs []mode.Spec) []Finding {
	var list []Finding
	for _, s := range specs {
		if !s.Listens() {
			continue
		}
		host, port := s.Address("", -1)
		for _, network := range transports(s) {
			address := net.JoinHostPort(host, strconv.Itoa(port))
			f := Finding{fmt.Sprintf("port %d/%s", port, network), []string{s.Full}, OK, "free", ""}
			err := m.listen(network, address)
			switch {
			case err == nil:
			case errors.Is(err, syscall.EADDRINUSE):
				f.Severity, f.Detail = Fail, "in use by another program"
				f.Cure = fmt.Sprintf("find it by: ss -lnp%.1s 'sport = :%d', and stop it; or listen elsewhere: --mode %s@%d", network, port, base(s), port+1)
			case errors.Is(err, fs.ErrPermission) && port < m.lowestPort():
				f.Severity, f.Detail = Fail, fmt.Sprintf("below %d, which needs CAP_NET_BIND_SERVICE", m.lowestPort())
				f.Cure = fmt.Sprintf("run as root, or sysctl -w net.ipv4.ip_unprivileged_port_start=%d", port)
			case errors.Is(err, syscall.EADDRNOTAVAIL):
				f.Severity, f.Detail, f.Cure = Fail, host+" is no address of this machine", "choose one of: ip -br address"
			default:
				f.Severity, f.Detail, f.Cure = Fail, err.Error(), "listen elsewhere: --mode "+base(s)+"@HOST:PORT"
			}
			list = append(list, f)
		}
	}
	return list
}

// base is a spec without where it listens.
func base(s mode.Spec) string {
	if at := strings.LastIndexByte(s.Full, '@'); at > 0 {
		return s.Full[:at]
	}
	return s.Full
}

func transports(s mode.Spec) []string {
	switch s.Name {
	case mode.WireGuard:
		return []string{"udp"}
	case mode.DNS:
		return []string{"udp", "tcp"}
	case mode.Reverse:
		if slices.Contains([]string{"http3", "dtls", "udp", "quic", "dns"}, s.Scheme) {
			return []string{"udp"}
		}
	}
	return []string{"tcp"}
}

// wireguardFile reads configurations that are named; the default one is made when it is missing.
func wireguardFile(m machine, specs []mode.Spec) []Finding {
	var list []Finding
	for _, s := range specs {
		if s.Name != mode.WireGuard || s.Data == "" {
			continue
		}
		f := Finding{"wireguard file", []string{s.Full}, OK, s.Data, ""}
		if err := m.loadPeers(s.Data); err != nil {
			f.Severity, f.Detail, f.Cure = Fail, err.Error(), "chmod 600 "+s.Data+", and correct what is named; or name a file that does not exist: it is made"
		}
		list = append(list, f)
	}
	return list
}

// Each conversation takes two files, a spliced one six.
const (
	fewFiles  = 1024
	manyFiles = 16384
)

func files(m machine, specs []mode.Spec) []Finding {
	if len(specs) == 0 {
		return nil
	}
	hard, err := m.openFiles()
	f := Finding{"open files", full(specs), OK, fmt.Sprintf("%d allowed", hard), ""}
	cure := "ulimit -Hn 262144, or LimitNOFILE=262144 in the unit"
	switch {
	case err != nil:
		f.Severity, f.Detail, f.Cure = Warn, err.Error(), cure
	case hard < fewFiles:
		f.Severity, f.Detail, f.Cure = Fail, fmt.Sprintf("%d allowed: not enough for a browser's connections", hard), cure
	case hard < manyFiles:
		f.Severity, f.Detail, f.Cure = Warn, fmt.Sprintf("%d allowed, about %d connections", hard, hard/2), cure
	}
	return []Finding{f}
}
