package archtest

import (
	"bufio"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// gVisor is pinned: the branch "go" is generated for users of Go modules and has neither tags nor
// promises, so that every step is a decision with a run of the whole bench. "go get -u" would choose
// the main branch, which does not build as a module.
const gVisor = "v0.0.0-20260905035102-160fafc42237"

// module says which packages may import a dependency, and what it is for. Tests may import any.
type module struct{ Path, Users, Why string }

// modules are all direct dependencies. A new one needs a line here and one in docs/adr.
func modules() []module {
	return []module{
		{"gvisor.dev/gvisor", "netstack tun wg", "the TCP/IP stack, and its link endpoints"},
		{"golang.zx2c4.com/wireguard", "wg", "the WireGuard protocol"},
		{"github.com/vishvananda/netlink", "tun redirect capture internal/netnstest internal/doctor", "links, addresses, routes, rules, socket lookup"},
		{"github.com/vishvananda/netns", "internal/netnstest", "network namespaces"},
		{"github.com/google/nftables", "redirect", "nftables without the nft program"},
		{"github.com/mdlayher/netlink", "redirect capture", "raw netlink sockets, under nftables and for sock_diag"},
		{"github.com/cilium/ebpf", "capture", "eBPF programs, written by its assembler"},
		{"golang.org/x/sys", "netstack tun wg redirect capture proxycore/relay internal/appliance internal/doctor internal/netnstest", "system calls"},
		{"golang.org/x/crypto", "proxycore/sniff proxycore/certs proxycore/tlsmitm addon/...", "cryptobyte for TLS messages; bcrypt for htpasswd files"},
		{"golang.org/x/net", "proxycore/http2 proxycore/dnsmitm", "HTTP/2 frames, hpack; nettest in tests"},
		{"golang.org/x/time", "wg netstack redirect", "rate limits"},
		{"golang.org/x/term", "ui/...", "the width of a terminal"},
		{"github.com/mattn/go-isatty", "ui/... cmd/...", "is this a terminal?"},
		{"github.com/mdp/qrterminal/v3", "wg", "QR codes on a terminal"},
		{"rsc.io/qr", "wg", "QR codes"},
		{"github.com/miekg/dns", "proxycore/dnsmitm", "DNS messages"},
		{"github.com/quic-go/quic-go", "proxycore/quicmitm proxycore/http3", "QUIC; the tests of sniff make real Initials with it"},
		{"software.sslmate.com/src/go-pkcs12", "proxycore/certs", "the .p12 files of the CA"},
		{"github.com/spf13/cobra", "cmd/...", "subcommands, help, completion"},
		{"github.com/spf13/pflag", "cmd/...", "GNU flags"},
		{"github.com/coreos/go-systemd/v22", "cmd/...", "sd_notify and the watchdog"},
		{"kernel.org/pub/linux/libs/security/libcap/cap", "internal/appliance", "giving up capabilities in all threads"},
		{"kernel.org/pub/linux/libs/security/libcap/psx", "internal/appliance", "a system call in all threads"},
		{"go.yaml.in/yaml/v3", "internal/appliance", "config.yaml"},
	}
}

func TestDependenciesHaveTheirPlace(t *testing.T) {
	for _, p := range packages(t) {
		if _, ok := floorOf(p.Name); !ok || matches(development, p.Name) {
			continue
		}
		for _, path := range p.Foreign {
			m, ok := moduleOf(path)
			switch {
			case !ok:
				t.Errorf("%s imports %s, which modules() does not have: a dependency needs a reason", p.Name, path)
			case !matches(m.Users, p.Name):
				t.Errorf("%s imports %s, which belongs to %s only (%s)", p.Name, path, m.Users, m.Why)
			}
		}
	}
}

func moduleOf(path string) (module, bool) {
	all := modules()
	i := slices.IndexFunc(all, func(m module) bool { return path == m.Path || strings.HasPrefix(path, m.Path+"/") })
	if i < 0 {
		return module{}, false
	}
	return all[i], true
}

// TestNoUnknownRequirement reads go.mod, so that a dependency of tests needs a line in modules() too.
func TestNoUnknownRequirement(t *testing.T) {
	file, err := os.Open(filepath.Join(root(t), "go.mod"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	requirement := regexp.MustCompile(`^\s*(?:require )?(\S+\.\S+/\S+|rsc\.io/\S+) (v\S+)(.*)$`)
	used := map[string]bool{}
	for _, p := range packages(t) {
		for _, path := range slices.Concat(p.Imports, p.TestImports) {
			if m, ok := moduleOf(path); ok {
				used[m.Path] = true
			}
		}
	}
	seen := map[string]string{}
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		m := requirement.FindStringSubmatch(lines.Text())
		if m == nil {
			continue
		}
		seen[m[1]] = m[2] + m[3]
		if _, ok := moduleOf(m[1]); !ok && !strings.Contains(m[3], "// indirect") {
			t.Errorf("go.mod requires %s, which modules() does not have", m[1])
		}
		if strings.HasPrefix(strings.TrimSpace(lines.Text()), "replace") {
			t.Errorf("go.mod replaces %s: go install would then ignore it", m[1])
		}
	}
	if err := lines.Err(); err != nil {
		t.Fatal(err)
	}
	if got := seen["gvisor.dev/gvisor"]; got != gVisor {
		t.Errorf("go.mod has gVisor %s, want %s (see the comment at the constant)", got, gVisor)
	}
	for _, m := range modules() {
		version, ok := seen[m.Path]
		switch {
		case !ok:
			t.Errorf("modules() has %s, which go.mod does not require: remove the line", m.Path)
		case !used[m.Path] && !strings.HasSuffix(version, "// indirect"):
			t.Errorf("go.mod requires %s, which nothing imports: go mod tidy", m.Path)
		}
	}
}
