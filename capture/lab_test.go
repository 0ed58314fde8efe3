//go:build linux

package capture

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"mitm-appliance/internal/netnstest"
	"mitm-appliance/redirect"
)

// The lab: a host whose default route leads to the hosts "direct", and whose
// marked packets go to "proxy" instead. Both have the same far addresses and
// servers that answer who they are, so an answer says which way was taken.
const (
	far4, far6 = "203.0.113.7", "2001:db8:7::7"
	farPort    = "7007"
	innerDNS   = "198.18.0.2:53"
	agentEnv   = "CAPTURE_TEST_AGENT"
	patience   = 20 * time.Second
)

func TestMain(m *testing.M) {
	if os.Getenv(agentEnv) != "" {
		runAgent()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

type lab struct {
	t                   testing.TB
	ctx                 context.Context
	net                 *netnstest.Lab
	host, direct, proxy *netnstest.Host
	cgroup              string // a cgroup of our own; capture runs on it
	log                 *slog.Logger

	mu      sync.Mutex
	capture *Capture // asked by the proxy who its clients are
}

// newLab makes the lab and the policy route to "proxy".
func newLab(t testing.TB) *lab {
	t.Helper()
	l := newWires(t)
	l.policyRoute()
	l.serve(l.proxy, l.describe)
	return l
}

// newWires makes a lab that has no policy route yet.
func newWires(t testing.TB) *lab {
	t.Helper()
	l := &lab{t: t, net: netnstest.New(t)}
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	l.ctx = ctx
	l.log = slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
	l.host, l.direct, l.proxy = l.net.Host("host"), l.net.Host("direct"), l.net.Host("proxy")
	l.wire(l.direct, "wan0", "10.1.0.1/24", "10.1.0.2/24", "fd01::1/64", "fd01::2/64")
	l.wire(l.proxy, "alt0", "198.18.0.1/30", "198.18.0.2/30", "fd02::1/64", "fd02::2/64")
	l.host.Route("default", "10.1.0.2", "")
	l.host.Route("default", "fd01::2", "")
	l.proxy.Route("10.1.0.0/24", "198.18.0.1", "") // sockets that had an address before
	l.proxy.Route("fd01::/64", "fd02::1", "")
	l.makeCgroup()
	l.serve(l.direct, nil)
	return l
}

func (l *lab) wire(to *netnstest.Host, ifname, near4, to4, near6, to6 string) {
	l.net.Link(l.host, ifname, to, "eth0")
	l.host.Addr(ifname, near4, near6)
	to.Addr("eth0", to4, to6)
	to.Addr("lo", far4+"/32", far6+"/128")
	l.host.Sysctl("net.ipv4.conf.all.rp_filter", "0")
	l.host.Sysctl("net.ipv4.conf."+ifname+".rp_filter", "0")
}

// policyRoute does what package redirect does, without a TUN.
func (l *lab) policyRoute() {
	l.t.Helper()
	nl := l.host.Netlink()
	link, err := nl.LinkByName("alt0")
	must(l.t, err)
	for family, via := range map[int]string{unix.AF_INET: "198.18.0.2", unix.AF_INET6: "fd02::2"} {
		_, everything, _ := net.ParseCIDR(map[int]string{unix.AF_INET: "0.0.0.0/0", unix.AF_INET6: "::/0"}[family])
		must(l.t, nl.RouteAdd(&netlink.Route{Table: 100, Dst: everything, Gw: net.ParseIP(via), LinkIndex: link.Attrs().Index}))
		rule := netlink.NewRule()
		mask := uint32(redirect.DefaultMask)
		rule.Family, rule.Priority, rule.Table, rule.Mark, rule.Mask = family, 100, 100, redirect.DefaultCaptureMark, &mask
		must(l.t, nl.RuleAdd(rule))
	}
}

func (l *lab) makeCgroup() {
	l.t.Helper()
	mount, err := cgroupMount()
	must(l.t, err)
	l.cgroup, err = os.MkdirTemp(mount, "mitm-test-*")
	must(l.t, err)
	l.t.Cleanup(func() { removeCgroup(l.t, l.cgroup) })
}

// removeCgroup waits until the processes in it have been reaped.
func removeCgroup(t testing.TB, dir string) {
	deadline := time.Now().Add(patience)
	for {
		err := os.Remove(dir)
		if err == nil || errors.Is(err, os.ErrNotExist) {
			return
		}
		if time.Now().After(deadline) {
			t.Errorf("remove cgroup: %v", err)
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// path of a cgroup below the mount, as items name it.
func (l *lab) path(dir string) string {
	mount, err := cgroupMount()
	must(l.t, err)
	rel, err := filepath.Rel(mount, dir)
	must(l.t, err)
	return "/" + rel
}

// serve answers on the far addresses, and on TCP and UDP port 53 of the proxy.
func (l *lab) serve(h *netnstest.Host, describe func(network string, src, dst netip.AddrPort) string) {
	l.t.Helper()
	greet := func(network string, src, dst net.Addr) string {
		text := h.Name() + " " + src.String()
		if describe != nil {
			text += " " + describe(network, endpoint(src), endpoint(dst))
		}
		return text + "\n"
	}
	addresses := []string{net.JoinHostPort(far4, farPort), net.JoinHostPort(far6, farPort)}
	if h == l.proxy {
		addresses = append(addresses, innerDNS)
	}
	for _, address := range addresses {
		listener, err := h.Listen("tcp", address)
		must(l.t, err)
		l.t.Cleanup(func() { _ = listener.Close() })
		go serveTCP(listener, h.Name(), greet)
		packets, err := h.ListenPacket("udp", address)
		must(l.t, err)
		l.t.Cleanup(func() { _ = packets.Close() })
		go serveUDP(packets, greet)
	}
}

// serveTCP greets, then answers each line with its name; curl is content with the greeting.
func serveTCP(listener net.Listener, name string, greet func(string, net.Addr, net.Addr) string) {
	for {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		go func() {
			defer conn.Close()
			_, _ = io.WriteString(conn, greet("tcp", conn.RemoteAddr(), conn.LocalAddr()))
			for lines := bufio.NewScanner(conn); lines.Scan(); {
				if strings.HasPrefix(lines.Text(), "GET ") {
					return
				}
				_, _ = io.WriteString(conn, name+"\n")
			}
		}()
	}
}

func serveUDP(packets net.PacketConn, greet func(string, net.Addr, net.Addr) string) {
	buf := make([]byte, 2048)
	for {
		_, from, err := packets.ReadFrom(buf)
		if err != nil {
			return
		}
		_, _ = packets.WriteTo([]byte(greet("udp", from, packets.LocalAddr())), from)
	}
}

func endpoint(a net.Addr) netip.AddrPort { return netip.MustParseAddrPort(a.String()) }

// describe says which process a flow belongs to, as far as known.
func (l *lab) describe(network string, src, dst netip.AddrPort) string {
	l.mu.Lock()
	c := l.capture
	l.mu.Unlock()
	if c == nil {
		return "nobody asked"
	}
	p, ok := c.Process(network, src, dst)
	if !ok {
		return "unknown"
	}
	return fmt.Sprintf("pid=%d name=%s uid=%d exe=%s cgroup=%s", p.PID, p.Name, p.UID, p.Exe, p.Cgroup)
}

// start captures on the lab's cgroup.
func (l *lab) start(spec string, change ...func(*Config)) *Capture {
	l.t.Helper()
	cfg := Config{Logger: l.log, Mechanism: EBPF, Cgroup: l.cgroup, Spec: parse(l.t, spec)}
	for _, f := range change {
		f(&cfg)
	}
	var c *Capture
	must(l.t, l.host.Do(func() (err error) {
		c, err = New(cfg)
		return err
	}))
	l.t.Cleanup(func() {
		if err := c.Close(); err != nil {
			l.t.Error(err)
		}
	})
	l.mu.Lock()
	l.capture = c
	l.mu.Unlock()
	return c
}

func parse(t testing.TB, data string) Spec {
	t.Helper()
	spec, err := ParseSpec(data)
	must(t, err)
	return spec
}

// agent is a process of the host that does as it is told.
type agent struct {
	t     testing.TB
	cmd   *exec.Cmd
	in    io.WriteCloser
	lines *bufio.Reader
}

// agent starts one. program "" is the test binary itself; dir "" the lab's cgroup.
func (l *lab) agent(program, dir string) *agent {
	l.t.Helper()
	if program == "" {
		program = testBinary(l.t)
	}
	if dir == "" {
		dir = l.cgroup
	}
	group, err := os.Open(dir)
	must(l.t, err)
	defer group.Close()
	a := &agent{t: l.t, cmd: exec.Command(program)}
	a.cmd.Env = append(os.Environ(), agentEnv+"=1", "TMPDIR="+l.t.TempDir())
	a.cmd.Stderr = l.t.Output()
	a.cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(group.Fd())}
	a.in, err = a.cmd.StdinPipe()
	must(l.t, err)
	out, err := a.cmd.StdoutPipe()
	must(l.t, err)
	a.lines = bufio.NewReader(out)
	must(l.t, l.host.Do(a.cmd.Start))
	l.t.Cleanup(a.stop)
	return a
}

func testBinary(t testing.TB) string {
	t.Helper()
	exe, err := os.Executable()
	must(t, err)
	return exe
}

func (a *agent) stop() {
	_ = a.in.Close()
	_ = a.cmd.Process.Kill()
	_ = a.cmd.Wait()
}

func (a *agent) pid() int { return a.cmd.Process.Pid }

// ask gives a command and returns the answer.
func (a *agent) ask(command ...string) string {
	a.t.Helper()
	if _, err := io.WriteString(a.in, strings.Join(command, " ")+"\n"); err != nil {
		a.t.Fatalf("agent, %v: %v", command, err)
	}
	line, err := a.lines.ReadString('\n')
	if err != nil {
		a.t.Fatalf("agent, %v: %v", command, err)
	}
	return strings.TrimSuffix(line, "\n")
}

// goes checks which way a command's answer came.
func (a *agent) goes(way string, command ...string) string {
	a.t.Helper()
	answer := a.ask(command...)
	if !strings.HasPrefix(answer, way) {
		_, file, line, _ := runtime.Caller(1)
		a.t.Errorf("%s:%d: %v answered %q, want it to come from %q", filepath.Base(file), line, command, answer, way)
	}
	return answer
}

// goesAll checks TCP and UDP over both families with new sockets.
func (a *agent) goesAll(way string) {
	a.t.Helper()
	for _, far := range []string{far4, far6} {
		for _, verb := range []string{"tcp", "udp", "udp-connected"} {
			a.goes(way, verb, net.JoinHostPort(far, farPort))
		}
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
