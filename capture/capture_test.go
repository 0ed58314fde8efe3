//go:build linux

package capture

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

var farTCP4 = net.JoinHostPort(far4, farPort)

func TestSpecPicksProcesses(t *testing.T) {
	l := newLab(t)
	child := filepath.Join(l.cgroup, "child")
	must(t, os.Mkdir(child, 0o755))
	t.Cleanup(func() { removeCgroup(t, child) })
	named := filepath.Join(t.TempDir(), "a-browser-with-a-long-name")
	must(t, os.Symlink(testBinary(t), named))
	copied := filepath.Join(t.TempDir(), "other-program")
	binary, err := os.ReadFile(testBinary(t))
	must(t, err)
	must(t, os.WriteFile(copied, binary, 0o755))

	browser, other := l.agent(named, ""), l.agent("", "")
	program, inChild := l.agent(copied, ""), l.agent("", child)
	user := l.agent("", "")
	if answer := user.ask("setuid", "12345"); answer != "ok" {
		t.Fatal(answer)
	}
	all := map[string]*agent{"browser": browser, "other": other, "program": program, "child": inChild, "user": user}
	c := l.start("1")
	for _, test := range []struct{ spec, captured string }{
		{fmt.Sprint(other.pid()), "other"},
		{"a-browser-with-a-long-name", "browser"},
		{"a-browser-with-another-end", "browser"}, // 15 bytes are all that the kernel has
		{"a-browser-wit", ""},
		{"uid:12345", "user"},
		{"cgroup:" + l.path(child), "child"},
		{"cgroup:" + l.path(l.cgroup) + ",!cgroup:" + l.path(child), "browser other program user"},
		{"exe:" + copied, "program"},
		{"exe:" + testBinary(t), "browser other child user"},
		{"", "browser other program child user"},
		{"!uid:12345", "browser other program child"},
		{fmt.Sprintf("!uid:12345,!%d", other.pid()), "browser program child"},
		{fmt.Sprintf("!exe:%s,%d", testBinary(t), other.pid()), "other program"},
		{fmt.Sprintf("%d,!exe:%s", other.pid(), testBinary(t)), ""},
		{fmt.Sprintf("cgroup:%s,!uid:12345,%d", l.path(l.cgroup), user.pid()), "browser other program child user"},
	} {
		t.Run(test.spec, func(t *testing.T) {
			must(t, c.Set(parse(t, test.spec)))
			for name, a := range all {
				way := "direct"
				if strings.Contains(test.captured, name) {
					way = "proxy"
				}
				a.t = t
				a.goesAll(way)
			}
		})
	}
}

func TestRealClients(t *testing.T) {
	l := newLab(t)
	a := l.agent("", "")
	l.start("curl")
	a.goes("proxy", "curl", farTCP4)
	a.goes("direct", "python", far4, farPort)
	l.capture.Set(parse(t, "python3"))
	a.goes("direct", "curl", farTCP4)
	if answer := a.goes("proxy", "python", far6, farPort); !strings.Contains(answer, "name=python3") {
		t.Errorf("python was taken for %q", answer)
	}
}

func TestThreadsCountAsTheirProcess(t *testing.T) {
	l := newLab(t)
	a := l.agent("", "")
	l.start("SocketThread")
	a.goes("direct", "tcp-thread", farTCP4, "SocketThread")
	must(t, l.capture.Set(parse(t, filepath.Base(testBinary(t)))))
	a.goes("proxy", "tcp-thread", farTCP4, "SocketThread")
}

func TestIPv4MappedDestinations(t *testing.T) {
	l := newLab(t)
	a := l.agent("", "")
	c := l.start("")
	a.goes("proxy", "udp", farTCP4, "udp") // a socket of IPv6
	must(t, c.Set(Spec{}))
	a.goes("direct", "udp", farTCP4, "udp")
}

func TestSocketsThatExisted(t *testing.T) {
	l := newLab(t)
	a := l.agent("", "")
	a.goes("direct", "keep", farTCP4)
	a.goes("ok", "open", ":0", "udp4")
	a.goes("direct", "send", farTCP4)
	c := l.start(fmt.Sprint(a.pid()))
	a.goes("direct", "again")         // an established connection goes on
	a.goes("direct", "send", farTCP4) // the kernel read the mark before the hook ran
	a.goes("proxy", "send", farTCP4)
	must(t, c.Set(parse(t, fmt.Sprintf("!%d", a.pid()))))
	a.goes("proxy", "send", farTCP4)
	a.goes("direct", "send", farTCP4)
	a.goesAll("direct")
	must(t, c.Close())
	a.goesAll("direct")
	a.goes("direct", "again")
}

func TestKickBringsInSocketsThatExisted(t *testing.T) {
	l := newLab(t)
	a, other, udp := l.agent("", ""), l.agent("", ""), l.agent("", "")
	a.goes("direct", "keep", farTCP4)
	other.goes("direct", "keep", farTCP4)
	udp.goes("ok", "open-connected", farTCP4)
	udp.goes("direct", "again")
	c := l.start(fmt.Sprintf("%d,%d", a.pid(), udp.pid()))
	udp.goes("direct", "again")
	kicked, err := c.Kick(t.Context())
	must(t, err)
	if kicked != (Kicked{Destroyed: 1, Marked: 1}) {
		t.Errorf("kicked %+v, want one connection and one UDP socket", kicked)
	}
	a.goes("error", "again")
	a.goes("proxy", "keep", farTCP4)
	udp.goes("proxy", "again")
	other.goes("direct", "again")
	must(t, c.Set(Spec{}))
	if kicked, err = c.Kick(t.Context()); err != nil || kicked != (Kicked{Marked: 1}) {
		t.Errorf("kicked %+v, %v, want one UDP socket let go", kicked, err)
	}
	udp.goes("direct", "again")
}

func TestLoopbackIsNotCaptured(t *testing.T) {
	l := newLab(t)
	a := l.agent("", "")
	l.start("")
	for _, address := range []string{"127.0.0.1:7007", "[::1]:7007"} {
		listener, err := l.host.Listen("tcp", address)
		must(t, err)
		t.Cleanup(func() { _ = listener.Close() })
		go serveTCP(listener, "loopback", func(string, net.Addr, net.Addr) string { return "loopback\n" })
		packets, err := l.host.ListenPacket("udp", address)
		must(t, err)
		t.Cleanup(func() { _ = packets.Close() })
		go serveUDP(packets, func(string, net.Addr, net.Addr) string { return "loopback\n" })
		if answer := a.goes("loopback", "tcp", address); !strings.Contains(answer, "mark=0x0 ") {
			t.Errorf("a loopback connection got %q, want no mark", answer)
		}
		a.goes("loopback", "udp", address)
		a.goes("loopback", "udp-connected", address)
	}
	a.goes("ok", "open", ":0", "udp4") // and one socket may do both
	a.goes("loopback", "send", "127.0.0.1:7007")
	a.goes("proxy", "send", farTCP4)
	a.goes("loopback", "send", "127.0.0.1:7007")
}

func TestMarksOfOthersSurvive(t *testing.T) {
	l := newLab(t)
	a := l.agent("", "")
	l.start("")
	if answer := a.goes("proxy", "tcp-mark", farTCP4, "0x40000"); !strings.Contains(answer, "mark=0x50000 ") {
		t.Errorf("got %q, want the mark 0x40000 kept beside ours", answer)
	}
	// the appliance's own upstream connections, from whichever process
	if answer := a.goes("direct", "tcp-mark", farTCP4, "0x20000"); !strings.Contains(answer, "mark=0x20000 ") {
		t.Errorf("got %q, want the mark 0x20000 left alone", answer)
	}
}

func TestDNSStub(t *testing.T) {
	l := newLab(t)
	a := l.agent("", "")
	c := l.start("", func(cfg *Config) { cfg.DNS = netip.MustParseAddrPort(innerDNS) })
	for _, test := range []struct{ answer, want string }{
		{a.goes("proxy", "udp", "127.0.0.53:53"), "from=127.0.0.53:53"},
		{a.goes("proxy", "udp", "127.0.0.53:53", "udp"), "from=127.0.0.53:53"}, // a socket of IPv6
		{a.goes("proxy", "udp", "127.0.1.1:53"), "from=127.0.1.1:53"},
		{a.goes("proxy", "udp-connected", "127.0.0.53:53"), "peer=127.0.0.53:53"},
		{a.goes("proxy", "tcp", "127.0.0.53:53"), "peer=127.0.0.53:53"},
		{a.goes("proxy", "tcp", "[::ffff:127.0.0.53]:53"), "peer=127.0.0.53:53"},
	} {
		if !strings.Contains(test.answer, test.want) || !strings.Contains(test.answer, fmt.Sprintf("pid=%d ", a.pid())) {
			t.Errorf("got %q, want %s and pid=%d", test.answer, test.want, a.pid())
		}
	}
	a.goes("error", "tcp", "127.0.0.53:54")
	must(t, c.Set(Spec{}))
	a.goes("error", "tcp", "127.0.0.53:53")
}

func TestServersOfThisHostAreNotCaptured(t *testing.T) {
	l := newLab(t)
	before, after := l.agent("", ""), l.agent("", "")
	before.goes("ok", "open-at", "10.1.0.1:1053", "udp4")
	l.start("")
	after.goes("ok", "open-at", "10.1.0.1:1054", "udp4")
	for port, server := range map[string]*agent{"1053": before, "1054": after} {
		for range 2 {
			client, err := l.direct.Dial(l.ctx, "udp", "10.1.0.1:"+port)
			must(t, err)
			_, err = client.Write([]byte("?"))
			must(t, err)
			server.goes("answered", "answer")
			must(t, client.SetReadDeadline(time.Now().Add(patience)))
			if _, err := client.Read(make([]byte, 9)); err != nil {
				t.Errorf("no answer of the server on port %s: %v", port, err)
			}
			_ = client.Close()
		}
	}
}

func TestProcessOfManyAtOnce(t *testing.T) {
	l := newLab(t)
	a := l.agent("", "")
	l.start("")
	if answer := a.ask("curl-many", farTCP4, "100"); answer != "100 right" {
		t.Error(answer)
	}
	agents := make([]*agent, 40)
	for i := range agents {
		agents[i] = l.agent("", "")
	}
	var wait sync.WaitGroup
	for _, a := range agents {
		wait.Go(func() {
			for _, verb := range []string{"udp", "udp-connected", "tcp"} {
				for _, far := range []string{far4, far6} {
					answer := a.ask(verb, net.JoinHostPort(far, farPort))
					if want := fmt.Sprintf("pid=%d name=%s uid=0 exe=%s cgroup=%s", a.pid(), filepath.Base(testBinary(t)), testBinary(t), l.path(l.cgroup)); !strings.Contains(answer, want) {
						t.Errorf("%s to %s: got %q, want %q", verb, far, answer, want)
					}
				}
			}
		})
	}
	wait.Wait()
}

func TestProcessThatHasEnded(t *testing.T) {
	l := newLab(t)
	a := l.agent("", "")
	c := l.start("")
	a.ask("setuid", "12345")
	sink, err := l.proxy.ListenPacket("udp", net.JoinHostPort(far4, "7008"))
	must(t, err)
	defer sink.Close()
	a.goes("ok", "fire", net.JoinHostPort(far4, "7008"))
	a.stop()
	must(t, sink.SetReadDeadline(time.Now().Add(patience)))
	_, from, err := sink.ReadFrom(make([]byte, 9))
	must(t, err)
	src, dst := endpoint(from), endpoint(sink.LocalAddr())
	want := Process{PID: a.pid(), Name: filepath.Base(testBinary(t)), UID: 12345, Cgroup: l.path(l.cgroup)}
	if p, ok := c.Process("udp", src, dst); !ok || p != want {
		t.Errorf("got %+v, %v, want %+v", p, ok, want)
	}
	for _, network := range []string{"tcp", "icmp", ""} {
		if p, ok := c.Process(network, src, dst); ok {
			t.Errorf("%q: got %+v, want nothing", network, p)
		}
	}
	if p, ok := c.Process("udp", netip.AddrPort{}, dst); ok {
		t.Errorf("no source: got %+v, want nothing", p)
	}
}

func TestNewCgroupsAndProgramsAreFound(t *testing.T) {
	l := newLab(t)
	child := filepath.Join(l.cgroup, "later")
	program := filepath.Join(t.TempDir(), "later")
	l.start("cgroup:"+l.path(child)+",exe:"+program, func(cfg *Config) { cfg.Refresh = 10 * time.Millisecond })
	must(t, os.Mkdir(child, 0o755))
	t.Cleanup(func() { removeCgroup(t, child) })
	binary, err := os.ReadFile(testBinary(t))
	must(t, err)
	must(t, os.WriteFile(program, binary, 0o755))
	inChild, runs := l.agent("", child), l.agent(program, "")
	for _, a := range []*agent{inChild, runs} {
		deadline := time.Now().Add(patience)
		for !strings.HasPrefix(a.ask("tcp", farTCP4), "proxy") {
			if time.Now().After(deadline) {
				t.Fatal("never captured")
			}
		}
		a.goesAll("proxy")
	}
	must(t, os.Remove(program)) // the running one stays captured
	must(t, os.WriteFile(program, binary, 0o755))
	again := l.agent(program, "")
	deadline := time.Now().Add(patience)
	for !strings.HasPrefix(again.ask("tcp", farTCP4), "proxy") {
		if time.Now().After(deadline) {
			t.Fatal("the replaced program was never captured")
		}
	}
	runs.goesAll("proxy")
}

func TestExcludedCgroups(t *testing.T) {
	l := newLab(t)
	child := filepath.Join(l.cgroup, "own")
	must(t, os.Mkdir(child, 0o755))
	t.Cleanup(func() { removeCgroup(t, child) })
	own, other := l.agent("", child), l.agent("", "")
	c := l.start("", func(cfg *Config) { cfg.Exclude = []string{l.path(child)} })
	own.goesAll("direct")
	other.goesAll("proxy")
	must(t, c.Set(parse(t, fmt.Sprint(own.pid()))))
	own.goesAll("direct")
	must(t, c.Close())
	if err := c.Set(Spec{}); !errors.Is(err, ErrClosed) {
		t.Errorf("Set after Close: %v, want ErrClosed", err)
	}
	must(t, c.Close())
}

func BenchmarkProcess(b *testing.B) {
	l := newLab(b)
	a := l.agent("", "")
	c := l.start("")
	var src string
	for _, word := range strings.Fields(a.goes("proxy", "keep", farTCP4)) {
		if _, err := netip.ParseAddrPort(word); err == nil {
			src = word
		}
	}
	from, to := netip.MustParseAddrPort(src), netip.MustParseAddrPort(farTCP4)
	must(b, func() error { _, err := c.diag.get(unix.IPPROTO_TCP, from, to); return err }())
	b.Run("map of flows", func(b *testing.B) {
		for b.Loop() {
			var cookie uint64
			must(b, c.kernel.flows.Lookup(newFlowKey(unix.IPPROTO_TCP, from, to), &cookie))
		}
	})
	b.Run("sock_diag", func(b *testing.B) {
		for b.Loop() {
			_, err := c.diag.get(unix.IPPROTO_TCP, from, to)
			must(b, err)
		}
	})
	b.Run("all", func(b *testing.B) {
		for b.Loop() {
			if _, ok := c.Process("tcp", from, to); !ok {
				b.Fatal("unknown")
			}
		}
	})
}
