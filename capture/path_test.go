//go:build linux

package capture

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"mitm-appliance/netstack"
	"mitm-appliance/redirect"
	"mitm-appliance/tun"
)

// appliance is the whole path in one process: capture, policy route, TUN
// device, network stack, and a handler that relays to the true destination
// through marked sockets.
type appliance struct {
	capture  *Capture
	redirect *redirect.Redirect

	mu    sync.Mutex
	flows []string
}

func newAppliance(dir, data, mechanism string) (*appliance, error) {
	spec, err := ParseSpec(data)
	if err != nil {
		return nil, err
	}
	device, err := tun.Open(tun.Config{Name: "mitm%d"})
	if err != nil {
		return nil, err
	}
	state, err := os.MkdirTemp("", "capture-test-*")
	if err != nil {
		return nil, err
	}
	a := &appliance{}
	a.redirect, err = redirect.New(redirect.Config{TUN: device.Name(), StateDir: state})
	if err != nil {
		return nil, err
	}
	if err := a.redirect.Apply(); err != nil {
		return nil, err
	}
	cfg := Config{Cgroup: dir, Spec: spec, Output: a.redirect.SetOutput, DNS: netip.MustParseAddrPort(innerDNS)}
	if mechanism == "nft" {
		cfg.Mechanism = NFT
	}
	if a.capture, err = New(cfg); err != nil {
		return nil, err
	}
	_, err = netstack.New(netstack.Config{}, device.Endpoint(), a)
	return a, err
}

// note records a flow and whose it is, asked in both ways while the client
// still waits.
func (a *appliance) note(network string, src, dst netip.AddrPort) {
	p, ok := a.capture.Process(network, src, dst)
	protocol := uint8(unix.IPPROTO_TCP)
	if network == "udp" {
		protocol = unix.IPPROTO_UDP
	}
	q, found := a.capture.searched(protocol, src, dst)
	line := fmt.Sprintf("%s>%s:pid=%d,uid=%d", network, dst, p.PID, p.UID)
	if !ok || !found || p != q {
		line += fmt.Sprintf("(unsure: %v %+v, %v %+v)", ok, p, found, q)
	}
	a.mu.Lock()
	a.flows = append(a.flows, strings.ReplaceAll(line, " ", "_"))
	a.mu.Unlock()
}

func (a *appliance) HandleTCP(r *netstack.TCPRequest) {
	go func() {
		a.note("tcp", r.Source(), r.Destination())
		d := net.Dialer{Timeout: agentTimeout, Control: redirect.Marks{}.Control}
		upstream, err := d.Dial("tcp", r.Destination().String())
		if err != nil {
			r.Reject()
			return
		}
		defer upstream.Close()
		conn, err := r.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		go func() {
			_, _ = io.Copy(upstream, conn)
			_ = upstream.(*net.TCPConn).CloseWrite()
		}()
		_, _ = io.Copy(conn, upstream)
	}()
}

func (a *appliance) HandleUDP(c *netstack.UDPConn) {
	go func() {
		defer c.Close()
		a.note("udp", c.Source(), c.Destination())
		if c.Destination().String() == innerDNS {
			_, _ = c.Write([]byte("proxy dns"))
			return
		}
		d := net.Dialer{Timeout: agentTimeout, Control: redirect.Marks{}.Control}
		upstream, err := d.Dial("udp", c.Destination().String())
		if err != nil {
			return
		}
		defer upstream.Close()
		go func() { _, _ = io.Copy(upstream, c) }()
		_ = upstream.SetReadDeadline(time.Now().Add(agentTimeout))
		_, _ = io.Copy(c, upstream)
	}()
}

// newFlows returns the flows since it was last called, sorted.
func (a *appliance) newFlows() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	slices.Sort(a.flows)
	text := strings.Join(a.flows, " ")
	a.flows = nil
	return text
}

func (a *agent) startAppliance(dir, data, mechanism string) {
	a.t.Helper()
	if answer := a.ask("appliance", dir, data, mechanism); answer != "ok" {
		a.t.Fatal(answer)
	}
}

// The appliance lives in the captured cgroup and is of the captured user, too:
// its own connections must not come back to it.
func TestWholePathWithoutLoops(t *testing.T) {
	l := newWires(t)
	proxy, app := l.agent("", ""), l.agent("", "")
	proxy.startAppliance(l.cgroup, "uid:0", "")
	app.goes("direct 10.1.0.1", "tcp", farTCP4) // the relay's answer
	app.goes("direct [fd01::1]", "tcp", net.JoinHostPort(far6, farPort))
	pid := app.pid()
	want := fmt.Sprintf("tcp>203.0.113.7:7007:pid=%d,uid=0 tcp>[2001:db8:7::7]:7007:pid=%d,uid=0", pid, pid)
	if got := proxy.ask("flows"); got != want {
		t.Errorf("two connections became the flows\n%s, want\n%s", got, want)
	}
	app.goes("direct", "udp", farTCP4)
	app.goes("direct", "udp-connected", farTCP4)
	app.goes("direct", "udp", net.JoinHostPort(far6, farPort))
	app.goes("proxy dns from=127.0.0.53:53", "udp", "127.0.0.53:53")
	want = fmt.Sprintf("udp>198.18.0.2:53:pid=%d,uid=0 udp>203.0.113.7:7007:pid=%d,uid=0 udp>203.0.113.7:7007:pid=%d,uid=0 udp>[2001:db8:7::7]:7007:pid=%d,uid=0", pid, pid, pid, pid)
	if got := proxy.ask("flows"); got != want {
		t.Errorf("four UDP sessions became the flows\n%s, want\n%s", got, want)
	}
	// its children are processes like others, unless their sockets carry the own mark
	app.goes("error", "tcp", net.JoinHostPort(far4, "9")) // refused there is refused here
	proxy.goes("direct", "tcp", farTCP4)
	if got := proxy.ask("flows"); strings.Count(got, "tcp>") != 1 {
		t.Errorf("flows: %q, want only the refused one", got)
	}
}

func TestKilledApplianceLetsTrafficPass(t *testing.T) {
	l := newWires(t)
	proxy, app := l.agent("", ""), l.agent("", "")
	proxy.startAppliance(l.cgroup, fmt.Sprint(app.pid()), "")
	app.goes("direct", "tcp", farTCP4)
	if got := proxy.ask("flows"); strings.Count(got, "tcp>") != 1 {
		t.Fatalf("flows: %q, want one", got)
	}
	must(t, proxy.cmd.Process.Signal(syscall.SIGKILL))
	_ = proxy.cmd.Wait()
	app.goesAll("direct")
	if answer := app.ask("tcp", farTCP4); !strings.Contains(answer, "mark=0x0 ") {
		t.Errorf("got %q, want no mark: no program is left", answer)
	}
}

func TestFallbackToNFTables(t *testing.T) {
	l := newWires(t)
	child := filepath.Join(l.cgroup, "child")
	must(t, os.Mkdir(child, 0o755))
	t.Cleanup(func() { removeCgroup(t, child) })
	proxy, app, other := l.agent("", ""), l.agent("", child), l.agent("", "")
	proxy.startAppliance("", "cgroup:"+l.path(child), "nft")
	app.goesAll("direct")
	other.goesAll("direct")
	got := proxy.ask("flows")
	if strings.Count(got, fmt.Sprintf("pid=%d,uid=0", app.pid())) != 6 || strings.Count(got, "pid=") != 6 {
		t.Errorf("flows: %s, want six of pid %d", got, app.pid())
	}
}
