//go:build linux

package redirect

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"mitm-appliance/internal/netnstest"
)

// cgroupRoot finds the cgroup2 tree; hybrid systems mount it below.
func cgroupRoot(t *testing.T) string {
	for _, dir := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		if _, err := os.Stat(filepath.Join(dir, "cgroup.controllers")); err == nil {
			return dir
		}
	}
	t.Fatal("no cgroup2 tree is mounted (cure: mount -t cgroup2 none /sys/fs/cgroup/unified)")
	return ""
}

// makeCgroup makes a cgroup at level 1 and returns its id.
func makeCgroup(t *testing.T) (dir string, cgroup Cgroup) {
	dir, err := os.MkdirTemp(cgroupRoot(t), "mitm-redirect-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for deadline := time.Now().Add(5 * time.Second); os.Remove(dir) != nil && time.Now().Before(deadline); {
			time.Sleep(10 * time.Millisecond) // its last process is just ending
		}
	})
	info, err := os.Stat(dir)
	if err != nil {
		t.Fatal(err)
	}
	return dir, Cgroup{ID: info.Sys().(*syscall.Stat_t).Ino, Level: 1}
}

// whereAs is where for a datagram that a process of the gateway sends.
func (b *box) whereAs(sender, ip string) string {
	b.t.Helper()
	payload := fmt.Sprintf("local %s %d", ip, time.Now().UnixNano())
	script := fmt.Sprintf("printf '%s' > /dev/udp/%s/%d", payload, ip, testPort)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	for range 12 {
		out, err := b.Gateway.Gateway.Command(ctx, "bash", "-c", fmt.Sprintf(sender, script)).CombinedOutput()
		if err != nil {
			b.t.Fatalf("%s: %v\n%s", sender, err, out)
		}
		if where, ok := b.arrival(payload); ok {
			return where
		}
	}
	return "nowhere"
}

func TestOutputRulesCaptureThisHostsOwn(t *testing.T) {
	b := newBox(t)
	dir, cgroup := makeCgroup(t)
	const (
		root = `%s`
		user = `exec setpriv --reuid=12345 --clear-groups bash -c "%s"`
	)
	inCgroup := `echo $$ >` + dir + `/cgroup.procs; %s`
	ips := []string{netnstest.Server4, netnstest.Server6}
	r := b.apply(func(c *Config) { c.Interfaces = nil })
	for _, c := range []struct {
		name               string
		rules              OutputRules
		root, user, cgroup string
	}{
		{"nothing", OutputRules{}, "internet", "internet", "internet"},
		{"a user", OutputRules{UIDs: []uint32{12345}}, "internet", "tun", "internet"},
		{"a cgroup", OutputRules{Cgroups: []Cgroup{cgroup}}, "internet", "internet", "tun"},
		{"both", OutputRules{UIDs: []uint32{12345}, Cgroups: []Cgroup{cgroup}}, "internet", "tun", "tun"},
		{"all", OutputRules{All: true}, "tun", "tun", "tun"},
		{"all but a cgroup and a user", OutputRules{All: true, ExceptUIDs: []uint32{12345}, ExceptCgroups: []Cgroup{cgroup}}, "tun", "internet", "internet"},
		{"nothing again", OutputRules{}, "internet", "internet", "internet"},
	} {
		if err := r.SetOutput(c.rules); err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		if err := r.Verify(); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		for _, ip := range ips {
			for _, s := range []struct{ name, sender, want string }{{"root", root, c.root}, {"user", user, c.user}, {"cgroup", inCgroup, c.cgroup}} {
				if got := b.whereAs(s.sender, ip); got != s.want {
					t.Errorf("capture %s: a datagram of %s to %s arrives at %s, want %s", c.name, s.name, ip, got, s.want)
				}
			}
		}
	}
	if err := r.SetOutput(OutputRules{UIDs: []uint32{1}, Cgroups: []Cgroup{{ID: 1}}}); err == nil {
		t.Error("a cgroup without level was accepted")
	}
}

func TestOwnSocketsAndLocalDestinationsAreNotCaptured(t *testing.T) {
	b := newBox(t)
	b.apply(func(c *Config) {
		c.Output = OutputRules{All: true}
		c.Bypass = []Bypass{{Prefix: prefix("203.0.113.11/32")}}
	})
	want := func(where, ip string, control func(string, string, syscall.RawConn) error) {
		t.Helper()
		payload := fmt.Sprintf("own %s %d", ip, time.Now().UnixNano())
		for range 12 {
			err := b.Gateway.Gateway.Do(func() error {
				c, err := (&net.Dialer{Control: control}).Dial("udp", net.JoinHostPort(ip, fmt.Sprint(testPort)))
				if err != nil {
					return err
				}
				defer c.Close()
				_, err = c.Write([]byte(payload))
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			if got, ok := b.arrival(payload); ok {
				if got != where {
					t.Errorf("to %s: arrives at %s, want %s", ip, got, where)
				}
				return
			}
		}
		t.Errorf("to %s: arrives nowhere, want %s", ip, where)
	}
	lan4, lan6 := netnstest.LANAddrs(0)
	for _, ip := range []string{netnstest.Server4, netnstest.Far6} {
		want("tun", ip, nil)
		want("internet", ip, Marks{}.Control)
	}
	want("internet", "203.0.113.11", nil)
	for _, ip := range []string{lan4, lan6, "127.0.0.1", "::1"} {
		want("gateway", ip, nil)
	}
	noLoop := func(_, _ string, c syscall.RawConn) error { // else the gateway hears itself, too
		return c.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_LOOP, 0) })
	}
	want("internet", "ff02::1%"+netnstest.WAN, noLoop) // all hosts of the link
	b.want("tun", netnstest.Server4)                   // beside the LAN
}

// TestOutputRulesLeaveOlderConnectionsAndAnswersAlone: what was there before goes on, and so does what
// a service of this host says to its clients.
func TestOutputRulesLeaveOlderConnectionsAndAnswersAlone(t *testing.T) {
	b := newBox(t)
	gateway := b.Gateway.Gateway
	service := echoTCP(t, gateway, "[::]:7001")
	far := echoTCP(t, b.Internet, "[::]:7002")
	router, _ := netnstest.LANAddrs(0)
	older := dialEcho(t, gateway, net.JoinHostPort(netnstest.Server4, far))
	inside := dialEcho(t, b.Client(), net.JoinHostPort(router, service))
	older.echo("before")
	inside.echo("before")

	b.apply(func(c *Config) { c.Interfaces, c.Output = nil, OutputRules{All: true} })
	if got := b.whereAs("%s", netnstest.Server4); got != "tun" {
		t.Fatalf("a new conversation went to %s", got)
	}
	older.echo("while everything is captured")
	inside.echo("while everything is captured")
	dialEcho(t, b.Client(), net.JoinHostPort(router, service)).echo("new client")
}

// echoTCP answers on addr in h and returns the port.
func echoTCP(t *testing.T, h *netnstest.Host, addr string) (port string) {
	t.Helper()
	ln, err := h.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() { _, _ = io.Copy(c, c) }()
		}
	}()
	_, port, err = net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	return port
}

type echo struct {
	t *testing.T
	net.Conn
}

func dialEcho(t *testing.T, h *netnstest.Host, addr string) echo {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	c, err := h.Dial(ctx, "tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	return echo{t, c}
}

func (e echo) echo(text string) {
	e.t.Helper()
	buf := make([]byte, len(text))
	if _, err := fmt.Fprint(e, text); err != nil {
		e.t.Fatalf("%q: %v", text, err)
	}
	if _, err := io.ReadFull(e, buf); err != nil || string(buf) != text {
		e.t.Fatalf("%q came back as %q, %v", text, buf, err)
	}
}

// TestMarkedGroupsLeaveTheTable: eBPF marks sockets before it is known that they speak to a group.
func TestMarkedGroupsLeaveTheTable(t *testing.T) {
	b := newBox(t)
	b.run("ip route replace default dev " + netnstest.WAN)
	b.apply(nil)
	for ip, dev := range map[string]string{"239.1.2.3": netnstest.WAN, netnstest.Far4: testTUN} {
		if got := b.run(fmt.Sprintf("ip route get %s mark %#x", ip, DefaultCaptureMark)); !strings.Contains(got, "dev "+dev+" ") {
			t.Errorf("marked packets to %s: %s; want %s", ip, got, dev)
		}
	}
}
