//go:build linux

package lab

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/miekg/dns"
	"github.com/vishvananda/netlink"

	"mitm-appliance/flow"
	"mitm-appliance/internal/netnstest"
)

// Way is one way into the appliance: whose traffic, and how it gets there.
type Way struct {
	Name   string // "transparent", "wireguard", "local", "tun", "regular"
	Feed   string // as flows name it
	Client string // what kind of thing the host is: "laptop", "phone", ...
	Host   *netnstest.Host
	Proxy  string // URL of an explicit proxy, or ""
}

// Visit is one exchange of a real client with the Internet.
type Visit struct {
	Way  Way
	What string // "HTTP", "HTTPS", "DNS/udp", "DNS/tcp", "UDP echo"
	IPv6 bool
	Want string // part of what the client prints
	// To is the destination that the client means.
	To  netip.AddrPort
	cmd func(ctx context.Context) (*exec.Cmd, error)
}

// PhoneName is the WireGuard peer of the tour.
const PhoneName = "annas-phone"

// Modes lists the arguments that open all ways at once. talker is the name of the program that calls
// Agent.
func Modes(talker string) []string {
	return []string{
		"-m", "transparent:" + LAN,
		"-m", "wireguard",
		"-m", "local:curl,dig," + talker,
		"-m", "tun:" + TourTUN,
		"-m", "regular@8080",
	}
}

// TourTUN is the device of tun mode.
const TourTUN = "mitm0"

// Ways lists the ways of an appliance that runs Modes on the gateway.
func (w *World) Ways() []Way {
	return []Way{
		{Name: "transparent", Feed: "transparent", Client: "laptop", Host: w.Laptop},
		{Name: "wireguard", Feed: "wireguard", Client: "phone", Host: w.Phone},
		{Name: "local", Feed: "local", Client: "gateway", Host: w.Gateway},
		{Name: "tun", Feed: "tun", Client: "board", Host: w.Board},
		{Name: "regular", Client: "laptop", Host: w.Laptop, Proxy: "http://" + net.JoinHostPort(GatewayLAN4, "8080")},
	}
}

// Prepare makes a confdir in which the WireGuard server knows the phone.
func (w *World) Prepare(ctx context.Context, program string) (dir string, err error) {
	dir, err = os.MkdirTemp(w.Dir, "appliance-*")
	if err != nil {
		return "", err
	}
	out, err := w.Command(ctx, w.Gateway, program, "wg", "peer", "add", PhoneName, "--confdir", dir, "--endpoint", GatewayCell).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("lab: add the peer: %w\n%s", err, out)
	}
	return dir, nil
}

// JoinPhone connects the phone with the configuration that the appliance prints for it.
func (w *World) JoinPhone(ctx context.Context, program, dir string) error {
	out, err := w.Command(ctx, w.Gateway, program, "wg", "peer", "show-config", PhoneName, "--confdir", dir, "--endpoint", GatewayCell).Output()
	if err != nil {
		return fmt.Errorf("lab: show the peer's configuration: %w", err)
	}
	return w.Join(w.Phone, string(out))
}

// boardTable is where the board's packets look for routes first, as the owner of a router would say
// with "ip rule add iif lan1 lookup 77". It is empty until RouteBoard.
const boardTable = 77

func (w *World) ruleBoard() error {
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		rule := netlink.NewRule()
		rule.Family, rule.IifName, rule.Table, rule.Priority = family, Bench, boardTable, 50
		if err := w.Gateway.Netlink().RuleAdd(rule); err != nil {
			return fmt.Errorf("lab: rule for %s: %w", Bench, err)
		}
	}
	return nil
}

// Forward makes the gateway a router, which its owner does for the board; transparent mode needs no
// such help.
func (w *World) Forward() error {
	for _, key := range []string{"net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"} {
		w.Gateway.Sysctl(key, "1")
	}
	return w.Net.Err()
}

// RouteBoard leads what the board sends into a TUN device of the gateway, which has to forward.
func (w *World) RouteBoard(device string) error {
	nl := w.Gateway.Netlink()
	link, err := nl.LinkByName(device)
	if err != nil {
		return err
	}
	for _, all := range []string{"0.0.0.0/0", "::/0"} {
		_, dst, err := net.ParseCIDR(all)
		if err != nil {
			return err
		}
		if err := nl.RouteReplace(&netlink.Route{Dst: dst, LinkIndex: link.Attrs().Index, Table: boardTable}); err != nil {
			return fmt.Errorf("lab: route into %s: %w", device, err)
		}
	}
	return nil
}

// Visits lists what a way's clients do: everything over IPv4 and IPv6. ca is the certificate that they
// trust.
func (w *World) Visits(way Way, ca string) []Visit {
	var visits []Visit
	for _, v6 := range []bool{false, true} {
		web, name := Web4, DNS4
		if v6 {
			web, name = Web6, DNS6
		}
		visits = append(visits, w.curl(way, "http", web, v6, ca), w.curl(way, "https", web, v6, ca))
		if way.Proxy == "" {
			visits = append(visits, w.dig(way, "udp", name, v6), w.dig(way, "tcp", name, v6), w.echo(way, web, v6))
		}
	}
	return visits
}

func (w *World) curl(way Way, scheme, ip string, v6 bool, ca string) Visit {
	args := []string{"-sS", "--max-time", "20", "--cacert", ca}
	name := Web
	switch {
	case way.Proxy != "" && v6: // the proxy resolves: only the name can choose
		name, args = Web6Only, append(args, "-x", way.Proxy)
	case way.Proxy != "":
		name, args = Web4Only, append(args, "-x", way.Proxy)
	case v6:
		args = append(args, "-6")
	default:
		args = append(args, "-4")
	}
	return Visit{
		Way: way, What: strings.ToUpper(scheme), IPv6: v6, Want: "Hello from " + name,
		To: netip.AddrPortFrom(netip.MustParseAddr(ip), flow.DefaultPort(scheme)),
		cmd: func(ctx context.Context) (*exec.Cmd, error) {
			return w.Command(ctx, way.Host, "curl", append(args, scheme+"://"+name+"/")...), nil
		},
	}
}

func (w *World) dig(way Way, transport, server string, v6 bool) Visit {
	kind, want := "A", Web4
	if v6 {
		kind, want = "AAAA", Web6
	}
	args := []string{"+short", "+tries=2", "+time=5", "@" + server, API, kind}
	if transport == "tcp" {
		args = append([]string{"+tcp"}, args...)
	}
	return Visit{
		Way: way, What: "DNS/" + transport, IPv6: v6, Want: want,
		To: netip.AddrPortFrom(netip.MustParseAddr(server), 53),
		cmd: func(ctx context.Context) (*exec.Cmd, error) {
			return w.Command(ctx, way.Host, "dig", args...), nil
		},
	}
}

func (w *World) echo(way Way, ip string, v6 bool) Visit {
	text := "ping-from-the-" + way.Client + "-by-" + way.Name
	to := netip.AddrPortFrom(netip.MustParseAddr(ip), EchoPort)
	return Visit{
		Way: way, What: "UDP echo", IPv6: v6, Want: text, To: to,
		cmd: func(ctx context.Context) (*exec.Cmd, error) {
			return w.Talker(ctx, way.Host, "udp", to.String(), text)
		},
	}
}

// Run makes the visit. command is what was typed, without the lab's own words; output is what the
// client printed.
func (v Visit) Run(ctx context.Context) (command, output string, err error) {
	cmd, err := v.cmd(ctx)
	if err != nil {
		return "", "", err
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	output = strings.TrimSpace(string(out))
	switch {
	case err != nil:
		err = fmt.Errorf("%w: %s", err, strings.TrimSpace(stderr.String()))
	case !strings.Contains(output, v.Want):
		err = fmt.Errorf("printed %q, want %q", output, v.Want)
	}
	return v.typed(cmd.Args), output, err
}

// typed is a command line as a person would type it.
func (v Visit) typed(args []string) string {
	for i, a := range args {
		if a == enter {
			args = args[i+2:]
			break
		}
	}
	words := []string{filepath.Base(args[0])}
	if v.What == "UDP echo" {
		return strings.Join(append(words, args[1:3]...), " ")
	}
	for i := 1; i < len(args); i++ {
		switch a := args[i]; {
		case a == "--max-time", a == "--cacert": // noise
			i++
		case a == "-sS", strings.HasPrefix(a, "+t") && a != "+tcp":
		default:
			words = append(words, a)
		}
	}
	return strings.Join(words, " ")
}

// Family is "IPv4" or "IPv6".
func (v Visit) Family() string {
	if v.IPv6 {
		return "IPv6"
	}
	return "IPv4"
}

// String names the visit.
func (v Visit) String() string { return v.Way.Name + " " + v.What + " " + v.Family() }

// Seen returns the flow that recorded the visit, decrypted, among flows; nil when there is none.
func (v Visit) Seen(flows []*flow.Flow) *flow.Flow {
	for _, f := range flows {
		if f.Client != nil && f.Client.Feed == v.Way.Feed && v.reached(f) && v.shows(f) {
			return f
		}
	}
	return nil
}

// reached says whether the flow went where the client meant.
func (v Visit) reached(f *flow.Flow) bool {
	if v.Way.Proxy == "" {
		return f.Client.Local == v.To
	}
	return f.Server != nil && f.Server.Peer == v.To
}

// shows says whether the flow shows what was exchanged.
func (v Visit) shows(f *flow.Flow) bool {
	switch v.What {
	case "HTTP", "HTTPS":
		return f.HTTP != nil && f.HTTP.Request.Scheme == strings.ToLower(v.What) && f.HTTP.Response != nil &&
			strings.Contains(string(f.HTTP.Response.Body.Data), v.Want)
	case "DNS/udp", "DNS/tcp":
		return f.DNS != nil && f.Client.Transport == v.What[len("DNS/"):] && v.answered(f.DNS)
	default:
		return f.Kind == flow.KindUDP && len(f.Stream.Messages) == 2 && string(f.Stream.Messages[1].Data) == v.Want
	}
}

func (v Visit) answered(d *flow.DNS) bool {
	want := dns.TypeA
	if v.IPv6 {
		want = dns.TypeAAAA
	}
	if d.Response == nil || len(d.Request.Questions) != 1 || d.Request.Questions[0].Name != API || d.Request.Questions[0].Type != want {
		return false
	}
	for _, r := range d.Response.Answers {
		if ip, ok := netip.AddrFromSlice(r.Data); ok && ip.String() == v.Want {
			return true
		}
	}
	return false
}
