//go:build linux

package doctor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	"mitm-appliance/capture"
	"mitm-appliance/redirect"
)

// healthy is a machine on which everything works.
func healthy() machine {
	return machine{
		capabilities: func() (uint64, error) { return ^uint64(0), nil },
		tryTUN:       func() (bool, error) { return true, nil },
		link: func(name string) (string, error) {
			if name == "lan0" {
				return "veth", nil
			}
			return "", errors.New("Link not found")
		},
		links: func(...string) ([]string, error) { return []string{"lan0"}, nil },
		probeSteer: func(redirect.Config) []redirect.Finding {
			return []redirect.Finding{{Name: "nftables", OK: true, Detail: "works"}}
		},
		probeCapture: func() []capture.Finding {
			return []capture.Finding{{Name: "cgroup2", OK: true, Detail: "/sys/fs/cgroup"}}
		},
		listen:     func(string, string) error { return nil },
		lowestPort: func() int { return 1024 },
		loadPeers:  func(string) error { return nil },
		openFiles:  func() (uint64, error) { return 1 << 20, nil },
	}
}

func TestHealthyMachineIsToldWithoutCures(t *testing.T) {
	list := run(t.Context(), nil, healthy())
	if Worst(list) != OK || len(list) < 8 {
		t.Errorf("got %+v, want a dozen findings that are OK", list)
	}
	for _, f := range list {
		if f.Check == "" || f.Detail == "" || f.Cure != "" || len(f.Modes) == 0 {
			t.Errorf("an OK finding has a check, a detail, modes and no cure: %+v", f)
		}
	}
}

// TestEachLackIsTold breaks one thing of a healthy machine at a time.
func TestEachLackIsTold(t *testing.T) {
	without := func(bits ...uint) func() (uint64, error) {
		held := ^uint64(0)
		for _, b := range bits {
			held &^= 1 << b
		}
		return func() (uint64, error) { return held, nil }
	}
	steer := func(name string) func(redirect.Config) []redirect.Finding {
		return func(redirect.Config) []redirect.Finding {
			return []redirect.Finding{{Name: name, Detail: "bad", Cure: "heal"}}
		}
	}
	local := func(name string) func() []capture.Finding {
		return func() []capture.Finding { return []capture.Finding{{Name: name, Detail: "bad", Cure: "heal"}} }
	}
	inUse := func(string, string) error {
		return &net.OpError{Op: "listen", Err: os.NewSyscallError("bind", syscall.EADDRINUSE)}
	}
	denied := func(string, string) error {
		return &net.OpError{Op: "listen", Err: os.NewSyscallError("bind", syscall.EACCES)}
	}
	for _, c := range []struct {
		name  string
		modes string
		harm  func(*machine)
		want  []string // one line each that is not OK, as printed
	}{
		{"no such mode", "nonsense", func(*machine) {}, []string{"FAIL mode (nonsense) invalid proxy mode"}},
		{
			"no NET_ADMIN", "transparent:lan0 wireguard", func(m *machine) { m.capabilities = without(12) },
			[]string{"FAIL CAP_NET_ADMIN (transparent:lan0) missing, so no devices", "warn CAP_NET_ADMIN (wireguard)"},
		},
		{
			"no BPF", "local:curl local:uid:7", func(m *machine) { m.capabilities = without(39, 21) },
			[]string{"FAIL CAP_BPF (local:curl)", "warn CAP_BPF (local:uid:7)"},
		},
		{"SYS_ADMIN instead of BPF", "local:curl", func(m *machine) { m.capabilities = without(39) }, nil},
		{"no TUN file", "tun", func(m *machine) {
			m.tryTUN = func() (bool, error) { return false, fmt.Errorf("open: %w", syscall.ENOENT) }
		}, []string{"FAIL tun device (tun) open: no such file or directory — cure: mkdir -p /dev/net"}},
		{"no TUN module", "tun", func(m *machine) { m.tryTUN = func() (bool, error) { return false, syscall.ENODEV } }, []string{"FAIL tun device (tun) no such device — cure: modprobe tun"}},
		{
			"TUN forbidden", "transparent:lan0 tun", func(m *machine) { m.tryTUN = func() (bool, error) { return false, syscall.EPERM } },
			[]string{"FAIL tun device (transparent:lan0, tun) operation not permitted — cure: run as root; in a container"},
		},
		{"no UDP offload", "tun", func(m *machine) { m.tryTUN = func() (bool, error) { return false, nil } }, []string{"warn tun device (tun) without UDP offload"}},
		{"name taken", "tun:lan0", func(*machine) {}, []string{"FAIL interface lan0 (tun:lan0) exists and is no TUN device (veth)"}},
		{"no such interface", "transparent:lan0,lan9", func(*machine) {}, []string{"FAIL interface lan9 (transparent:lan0,lan9) there is no interface lan9 — cure: choose one of: ip -br link"}},
		{"no interface that forwards", "transparent", func(m *machine) {
			m.links = func(...string) ([]string, error) { return nil, redirect.ErrNoInterface }
		}, []string{"FAIL interfaces (transparent) no such network interface — cure: name the interface"}},
		{"firewall", "transparent:lan0 local", func(m *machine) { m.probeSteer = steer("forward-chain") }, []string{"FAIL forward-chain (transparent:lan0) bad — cure: heal"}},
		{"no nftables", "transparent:lan0 local", func(m *machine) { m.probeSteer = steer("nftables") }, []string{"FAIL nftables (transparent:lan0, local) bad"}},
		{"no IPv6", "transparent:lan0", func(m *machine) { m.probeSteer = steer("ipv6") }, []string{"warn ipv6 (transparent:lan0) bad"}},
		{"no BTF", "local", func(m *machine) { m.probeCapture = local("BTF") }, []string{"warn BTF (local) bad"}},
		{"no cgroup2", "local:curl", func(m *machine) { m.probeCapture = local("cgroup2") }, []string{"FAIL cgroup2 (local:curl) bad — cure: heal"}},
		{"no eBPF, but not needed", "local:uid:7", func(m *machine) { m.probeCapture = local("eBPF programs") }, []string{"warn eBPF programs (local:uid:7) bad (nftables"}},
		{
			"port in use", "regular@8081", func(m *machine) { m.listen = inUse },
			[]string{"FAIL port 8081/tcp (regular@8081) in use by another program — cure: find it by: ss -lnpt 'sport = :8081', and stop it; or listen elsewhere: --mode regular@8082"},
		},
		{"WireGuard's port in use", "wireguard", func(m *machine) { m.listen = inUse }, []string{"FAIL port 51820/udp (wireguard) in use by another program — cure: find it by: ss -lnpu"}},
		{"low port", "regular@80", func(m *machine) { m.listen = denied }, []string{"FAIL port 80/tcp (regular@80) below 1024, which needs CAP_NET_BIND_SERVICE — cure: run as root, or sysctl"}},
		{
			"bad WireGuard file", "wireguard:/x.conf", func(m *machine) { m.loadPeers = func(string) error { return errors.New("line 3: what?") } },
			[]string{"FAIL wireguard file (wireguard:/x.conf) line 3: what? — cure: chmod 600 /x.conf"},
		},
		{"few files", "regular", func(m *machine) { m.openFiles = func() (uint64, error) { return 4096, nil } }, []string{"warn open files (regular) 4096 allowed, about 2048 connections — cure: ulimit -Hn"}},
		{"hardly any file", "regular", func(m *machine) { m.openFiles = func() (uint64, error) { return 256, nil } }, []string{"FAIL open files (regular) 256 allowed"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := healthy()
			c.harm(&m)
			list := run(t.Context(), strings.Fields(c.modes), m)
			list = slices.DeleteFunc(list, func(f Finding) bool { return f.Severity == OK })
			var out bytes.Buffer
			if err := Print(&out, list, false); err != nil {
				t.Fatal(err)
			}
			lines := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
			if len(list) != len(c.want) {
				t.Fatalf("got %d complaints, want %d:\n%s", len(list), len(c.want), out.String())
			}
			for i, want := range c.want {
				if got := strings.Join(strings.Fields(lines[i]), " "); !strings.HasPrefix(got, want) {
					t.Errorf("got  %s\nwant %s...", got, want)
				}
				if list[i].Cure == "" || len(list[i].Modes) == 0 {
					t.Errorf("a complaint names its mode and a cure: %+v", list[i])
				}
			}
		})
	}
}

func TestRunEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if list := run(ctx, []string{"tun"}, healthy()); len(list) != 0 {
		t.Errorf("got %+v, want nothing", list)
	}
}

func TestPrintIsOneLineEachAndColouredOnRequest(t *testing.T) {
	list := []Finding{
		{"a", []string{"tun"}, OK, "fine", ""},
		{"longer", []string{"tun", "local"}, Warn, "so\nso", "do this"},
		{"b", []string{"tun"}, Fail, "bad", "do that"},
	}
	var out bytes.Buffer
	if err := Print(&out, list, false); err != nil {
		t.Fatal(err)
	}
	const want = `ok    a (tun)              fine
warn  longer (tun, local)  so so — cure: do this
FAIL  b (tun)              bad — cure: do that
`
	if out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", out.String(), want)
	}
	out.Reset()
	if err := Print(&out, list[2:], true); err != nil || !strings.HasPrefix(out.String(), "\x1b[31mFAIL\x1b[0m") {
		t.Errorf("got %q, %v, want a red word", out.String(), err)
	}
	if Worst(list) != Fail || Worst(list[:2]) != Warn || Worst(nil) != OK {
		t.Error("Worst is not the highest severity")
	}
}
