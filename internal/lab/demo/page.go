//go:build linux

package main

import (
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/mattn/go-isatty"

	"mitm-appliance/flow"
	"mitm-appliance/internal/lab"
)

// page is how the tour looks.
type page struct {
	out   *os.File
	color bool
}

func newPage(out *os.File) page {
	return page{out: out, color: os.Getenv("NO_COLOR") == "" && isatty.IsTerminal(out.Fd())}
}

// The colours used, as SGR parameters.
const (
	bold  = "1"
	dim   = "2"
	red   = "31;1"
	green = "32"
	cyan  = "36"
)

func (p page) paint(style, text string) string {
	if !p.color {
		return text
	}
	return "\x1b[" + style + "m" + text + "\x1b[0m"
}

func (p page) printf(format string, args ...any) { fmt.Fprintf(p.out, format, args...) }

func (p page) say(text string) { p.printf("   %s\n", text) }

func (p page) title() {
	p.printf("\n%s\n\n", p.paint(bold, "   mitm-appliance: a tour with real packets"))
	p.printf("%s\n", p.paint(dim, `      laptop ── lan0 ─┐
      board  ── lan1 ─┤  gateway  ── wan0 ──  internet
      phone  ─ cell0 ─┘     ▲                 www.lab.test, dns, ...
                       mitm-appliance`))
	p.say("")
	p.say("Five network namespaces on this machine; nothing leaves it. The clients are real (curl, dig),")
	p.say("and so are the kernel's routes and rules. Clients trust the appliance's CA, the appliance trusts")
	p.say("the CA of the lab's internet.")
}

func (p page) heading(n int, what, about string) {
	p.printf("\n%s %s\n", p.paint(bold, fmt.Sprintf("%d. %s", n, what)), p.paint(dim, "· "+about))
}

// chapter introduces a way.
func (p page) chapter(n int, w lab.Way) {
	text := map[string][2]string{
		"transparent": {"A laptop on the LAN", "transparent:lan0 · it knows of no proxy; the gateway takes all it sends, TCP and UDP"},
		"wireguard":   {"A phone far away", "wireguard · its tunnel ends in the appliance, without any interface of the system"},
		"local":       {"Programs on the gateway itself", "local:curl,dig,... · picked by name, with eBPF"},
		"tun":         {"A board behind a route", "tun:" + lab.TourTUN + " · whatever the owner routes into the device"},
		"regular":     {"A client with a proxy setting", "regular · the classic: curl -x, with CONNECT for HTTPS"},
	}[w.Name]
	p.heading(n, text[0], text[1])
}

func (p page) typed(host, command string) {
	p.printf("   %s %s\n", p.paint(cyan, host+"$"), command)
}

// exchange shows one visit in a line: what was typed, and the answer.
func (p page) exchange(v lab.Visit, command, output string, err error) {
	const width = 66
	mark := p.paint(green, "✓")
	if err != nil {
		mark, output = p.paint(red, "✗"), err.Error()
	}
	answer := strings.ReplaceAll(output, "\n", " ")
	p.printf(" %s %s %-*s %s\n", mark, p.paint(cyan, v.Way.Client+"$"), width-len(v.Way.Client), command, p.paint(dim, answer))
}

// saw shows what the appliance printed.
func (p page) saw(text string) {
	text = strings.TrimRight(text, "\n")
	if text == "" {
		return
	}
	p.say(p.paint(dim, "what the appliance prints:"))
	p.lines(text)
}

func (p page) lines(text string) {
	for line := range strings.SplitSeq(strings.TrimRight(text, "\n"), "\n") {
		p.printf("   %s %s\n", p.paint(dim, "│"), line)
	}
}

func (p page) failed(text string) { p.printf("   %s %s\n", p.paint(red, "FAIL"), text) }

func (p page) closing(failures int, took time.Duration) {
	p.printf("\n")
	if failures == 0 {
		p.printf("   %s in %.0f s; all namespaces are removed now.\n\n", p.paint(green, "Everything worked"), took.Seconds())
		return
	}
	p.printf("   %s\n\n", p.paint(red, fmt.Sprintf("%d of the exchanges failed.", failures)))
}

// table is ways by kinds of traffic, each over IPv4 and IPv6.
type table struct {
	page
	ways  []string
	cells map[string]string // "way what family" -> text
	who   map[string]string
}

func (p page) newTable() *table {
	return &table{page: p, cells: map[string]string{}, who: map[string]string{}}
}

func (t *table) add(v lab.Visit, ok bool, f *flow.Flow) {
	if len(t.ways) == 0 || t.ways[len(t.ways)-1] != v.Way.Name {
		t.ways = append(t.ways, v.Way.Name)
	}
	text := "ok"
	if !ok {
		text = "FAIL"
	}
	t.cells[v.String()] = text
	if who := t.who[v.Way.Name]; f != nil && !strings.Contains(who, identity(f)) {
		t.who[v.Way.Name] = strings.TrimPrefix(who+", "+identity(f), ", ")
	}
}

// identity is who the client of a flow is, by what the feed knows.
func identity(f *flow.Flow) string {
	switch c := f.Client; {
	case c.Process != nil:
		return "process " + c.Process.Name
	case c.Tunnel != "":
		return "peer " + c.Tunnel
	case c.Device != "":
		return "device " + c.Device
	default:
		return "address " + c.Peer.Addr().String()
	}
}

func (t *table) print() {
	kinds := []string{"HTTP", "HTTPS", "DNS/udp", "DNS/tcp", "UDP echo"}
	t.printf("\n   %-12s", "")
	for _, k := range kinds {
		t.printf(" %-11s", k)
	}
	t.printf("\n   %-12s", "")
	for range kinds {
		t.printf(" %s", t.paint(dim, "IPv4 IPv6  "))
	}
	t.printf(" %s\n", t.paint(dim, "recorded as"))
	for _, way := range t.ways {
		t.printf("   %s", t.paint(bold, fmt.Sprintf("%-12s", way)))
		for _, k := range kinds {
			t.printf(" %s %s  ", t.cell(way, k, "IPv4"), t.cell(way, k, "IPv6"))
		}
		t.printf(" %s\n", t.who[way])
	}
	t.printf("\n")
}

func (t *table) cell(way, what, family string) string {
	text := t.cells[way+" "+what+" "+family]
	style := map[string]string{"ok": green, "FAIL": red, "": dim}[text]
	if text == "" {
		text = "-" // a plain HTTP proxy carries neither UDP nor DNS
	}
	return t.paint(style, fmt.Sprintf("%-4s", text))
}
