package archtest

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// floor is one row of the architecture. Packages may import those of lower floors, and of their own
// floor those in Beside. Names are relative to the module; "x/..." is x and all below it.
type floor struct {
	Level    int
	Name     string
	Packages []string
	Beside   []string // "from -> to" on the same floor
	About    string   // for docs/ARCHITECTURE.md
}

// floors is the architecture, from the ground up.
func floors() []floor {
	return []floor{
		{0, "nouns", []string{"flow", "option"}, nil, "what is talked about: flows as plain data, typed options; the standard library only"},
		{1, "pure", []string{"flow/...", "policy/...", "proxycore/sniff", "proxycore/certs"}, nil, "functions of bytes: formats, decisions, certificates; no sockets"},
		{1, "packets", []string{"netstack"}, nil, "IP packets in, conversations out"},
		{2, "sources", []string{"tun", "wg", "redirect", "capture"}, []string{"capture -> redirect"}, "where packets come from, and what steers them"},
		{2, "contracts", []string{"proxycore"}, nil, "Inbound, Session, Handler, LiveFlow, hooks, Core"},
		{3, "protocols", []string{"proxycore/tlsmitm", "proxycore/quicmitm", "proxycore/relay", "proxycore/dnsmitm", "proxycore/websocket", "proxycore/exchange"}, nil, "one protocol each, nested by Session.Next"},
		{4, "framings, modes", []string{"proxycore/http1", "proxycore/http2", "proxycore/http3", "proxycore/mode"}, nil, "how HTTP looks on the wire; explicit listeners and mode specs"},
		{5, "users of flows", []string{"addon/...", "store/...", "gateway/..."}, nil, "what is done with flows: kept, saved, changed"},
		{6, "door", []string{"api/..."}, []string{"api/httpapi -> api"}, "the one API of all faces"},
		{7, "faces", []string{"ui/..."}, nil, "what people look at"},
		{8, "root", []string{"internal/appliance", "internal/doctor"}, nil, "builds everything from options; says what the machine lacks"},
		{9, "commands", []string{"cmd/..."}, nil, "parse the command line"},
		{9, "development", strings.Fields(development), []string{"internal/lab/... -> internal/netnstest internal/lab", "scripts/... -> internal/netnstest internal/lab"}, "for tests, demo and bench; nothing above imports it"},
	}
}

// development is the floor of that name: not part of the product, so that most bans do not concern it.
const development = "internal/archtest internal/netnstest internal/nettest internal/lab/... internal/e2e internal/testreport scripts/... deploy/..."

// wall is a ban beyond the floors. From and To are lists separated by spaces; Except are those of From
// that may.
type wall struct{ From, Except, To, Why string }

func walls() []wall {
	return []wall{
		{
			"netstack tun wg redirect capture", "", "flow flow/... option proxycore proxycore/...",
			"the packet half knows no proxy: it can be used, tested and replaced alone",
		},
		{
			"...", "internal/appliance internal/doctor cmd/... internal/lab/... scripts/... tun wg redirect capture netstack", "netstack tun wg redirect capture",
			"the packet half meets the proxy in internal/appliance only, in the adapter from netstack.Handler to Core.Serve",
		},
		{
			"ui/...", "", "proxycore proxycore/... store store/... addon/...",
			"a face can do what the API can, so that every face can do it, also from afar",
		},
		{
			"...", "cmd/... internal/lab/... scripts/...", "internal/appliance",
			"the composition root is built by a command and known to nobody else; what two packages share belongs on a lower floor",
		},
		{
			"...", development, "internal/netnstest internal/archtest internal/nettest internal/lab internal/e2e",
			"the lab is for tests, the demo and the bench; nothing in it may reach a user",
		},
		{
			"addon/...", "", "store store/...",
			"addons see flows through hooks, so that none depends on how flows are kept",
		},
	}
}

// stdBan keeps a package of the standard library out, except for names that begin with one of Only.
type stdBan struct {
	Std, From, Except string
	Only              []string
	Why               string
}

func stdBans() []stdBan {
	return []stdBan{
		{"log", "...", development, nil, "a *slog.Logger is injected, so that two appliances in one process do not share one"},
		{
			"net/http", "flow flow/... proxycore proxycore/... addon/...", "",
			[]string{"Status", "Method"},
			"its server and client lose order, case and framing of headers; constants are fine, the control API may use all of it",
		},
		{"testing", "...", development, nil, "test code does not belong into the product"},
		{"unsafe", "...", "tun wg capture redirect netstack", nil, "only who talks to the kernel by ioctl or netlink needs it"},
		{"os/exec", "...", development + " addon/script", nil, "the product changes the system through netlink, not by running programs that may be missing"},
		{"math/rand", "...", "", nil, "what is random here is visible to an attacker; use crypto/rand or math/rand/v2"},
		{"plugin", "...", "", nil, "it ties a binary to one build of Go"},
		{"expvar", "...", "", nil, "it registers a global HTTP handler"},
		{"net/http/pprof", "...", "", nil, "it registers global HTTP handlers"},
	}
}

// matches reports whether name is in a list such as "flow proxycore/...".
func matches(list, name string) bool {
	return slices.ContainsFunc(strings.Fields(list), func(p string) bool {
		prefix, tree := strings.CutSuffix(p, "...")
		return p == name || tree && (prefix == "" || name+"/" == prefix || strings.HasPrefix(name, prefix))
	})
}

// floorOf returns the floor of a package: the row that names it exactly, else the one with its tree.
func floorOf(name string) (floor, bool) {
	var found floor
	ok := false
	for _, f := range floors() {
		if slices.Contains(f.Packages, name) {
			return f, true
		}
		if matches(strings.Join(f.Packages, " "), name) {
			found, ok = f, true
		}
	}
	return found, ok
}

func TestEveryPackageStandsOnAFloor(t *testing.T) {
	for _, p := range packages(t) {
		if _, ok := floorOf(p.Name); !ok {
			t.Errorf("%s stands on no floor: add it to floors(), with what it may import", p.Name)
		}
	}
}

func TestImportsGoDown(t *testing.T) {
	for _, p := range packages(t) {
		from, ok := floorOf(p.Name)
		if !ok {
			continue // told by TestEveryPackageStandsOnAFloor
		}
		for _, name := range p.Own {
			to, ok := floorOf(name)
			if !ok || to.Level < from.Level || besides(from, p.Name, name) {
				continue
			}
			t.Errorf("%s (floor %d, %s) imports %s (floor %d, %s): imports go down, or are named in Beside", p.Name, from.Level, from.Name, name, to.Level, to.Name)
		}
	}
}

func besides(f floor, from, to string) bool {
	return slices.ContainsFunc(f.Beside, func(rule string) bool {
		a, b, _ := strings.Cut(rule, " -> ")
		return matches(a, from) && matches(b, to)
	})
}

func TestWalls(t *testing.T) {
	for _, p := range packages(t) {
		for _, name := range p.Own {
			for _, w := range walls() {
				if matches(w.From, p.Name) && !matches(w.Except, p.Name) && matches(w.To, name) {
					t.Errorf("%s must not import %s: %s", p.Name, name, w.Why)
				}
			}
		}
	}
}

func TestStandardLibrary(t *testing.T) {
	for _, p := range packages(t) {
		for _, ban := range stdBans() {
			if !slices.Contains(p.Imports, ban.Std) || !matches(ban.From, p.Name) || matches(ban.Except, p.Name) {
				continue
			}
			for _, use := range p.uses(t, ban.Std) {
				if !slices.ContainsFunc(ban.Only, func(prefix string) bool { return strings.HasPrefix(use.name, prefix) }) {
					t.Errorf("%s uses %s.%s: %s", use.at, ban.Std, use.name, ban.Why)
				}
			}
		}
	}
}

// floorsTable is the table of docs/ARCHITECTURE.md: the packages that exist. floors() also gives those a
// place that are only planned.
func floorsTable(t *testing.T) string {
	t.Helper()
	var out strings.Builder
	out.WriteString("| floor | packages | what they are |\n|---|---|---|\n")
	for _, f := range floors() {
		var names []string
		for _, p := range packages(t) {
			if at, ok := floorOf(p.Name); ok && at.Name == f.Name {
				names = append(names, p.Name)
			}
		}
		if len(names) > 0 {
			fmt.Fprintf(&out, "| %d %s | %s | %s |\n", f.Level, f.Name, strings.Join(names, ", "), f.About)
		}
	}
	return out.String()
}
