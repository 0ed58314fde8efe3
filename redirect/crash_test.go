//go:build linux

package redirect

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"mitm-appliance/internal/netnstest"
)

// child is an appliance in a process of its own, so that it can be killed.
type child struct {
	t     *testing.T
	cmd   *exec.Cmd
	stdin io.WriteCloser
	out   *bufio.Reader
}

const childEnv = "REDIRECT_TEST_CHILD" // STATEDIR ROUTETABLE FAILOPEN

// TestChild is the appliance that other tests start and kill: a TUN that
// swallows everything, and the steering into it, until its input ends.
func TestChild(t *testing.T) {
	fields := strings.Fields(os.Getenv(childEnv))
	if len(fields) != 3 {
		return // an ordinary test run
	}
	tun, err := makeTUN(testTUN)
	if err != nil {
		t.Fatal(err)
	}
	defer tun.Close()
	link, err := netlink.LinkByName(testTUN)
	if err != nil {
		t.Fatal(err)
	}
	addr, err := netlink.ParseAddr("198.18.0.1/30")
	if err == nil {
		err = netlink.AddrAdd(link, addr)
	}
	if err != nil {
		t.Fatal(err)
	}
	table, _ := strconv.Atoi(fields[1])
	r, err := New(Config{TUN: testTUN, Interfaces: []string{netnstest.LAN(0)}, StateDir: fields[0], RouteTable: table, FailOpen: fields[2] == "true"})
	if err == nil {
		err = r.Apply()
	}
	if err != nil {
		t.Fatal(err)
	}
	fmt.Println("ready")
	_, _ = io.Copy(io.Discard, os.Stdin)
	if err := r.Undo(); err != nil {
		t.Fatal(err)
	}
	fmt.Println("undone")
}

func (b *box) start(stateDir string, routeTable int, failOpen bool) *child {
	b.t.Helper()
	c := &child{t: b.t, cmd: b.Gateway.Gateway.Command(context.Background(), os.Args[0], "-test.run=^TestChild$")}
	c.cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s %d %v", childEnv, stateDir, routeTable, failOpen))
	c.cmd.Stderr = os.Stderr
	stdin, err := c.cmd.StdinPipe()
	if err != nil {
		b.t.Fatal(err)
	}
	stdout, err := c.cmd.StdoutPipe()
	if err != nil {
		b.t.Fatal(err)
	}
	if err := c.cmd.Start(); err != nil {
		b.t.Fatal(err)
	}
	c.stdin, c.out = stdin, bufio.NewReader(stdout)
	c.expect("ready")
	return c
}

func (c *child) expect(want string) {
	c.t.Helper()
	if line, err := c.out.ReadString('\n'); err != nil || line != want+"\n" {
		rest, _ := io.ReadAll(c.out)
		_ = c.cmd.Wait()
		c.t.Fatalf("the child says %q, %v; want %q\n%s", line, err, want, rest)
	}
}

// kill is kill -9.
func (c *child) kill() {
	c.t.Helper()
	if err := c.cmd.Process.Kill(); err != nil {
		c.t.Fatal(err)
	}
	_ = c.cmd.Wait()
}

func (c *child) exit() {
	c.t.Helper()
	_ = c.stdin.Close()
	c.expect("undone")
	if err := c.cmd.Wait(); err != nil {
		c.t.Fatal(err)
	}
}

// newCrashBox is a box without a TUN; its children bring it. The Internet
// answers over TCP.
func newCrashBox(t *testing.T) *box {
	t.Parallel()
	b := &box{Gateway: netnstest.New(t).Gateway(1), t: t}
	l, err := b.Internet.Listen("tcp", fmt.Sprintf("[::]:%d", testPort))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return b
}

// connect says what a client experiences: "connected", "unreachable", or
// "silence" within the time given.
func (b *box) connect(ip string, within time.Duration) string {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	c, err := b.Client().Dial(ctx, "tcp", net.JoinHostPort(ip, fmt.Sprint(testPort)))
	var timeout net.Error
	switch {
	case err == nil:
		_ = c.Close()
		return "connected"
	case errors.Is(err, unix.EHOSTUNREACH), errors.Is(err, unix.ENETUNREACH):
		return "unreachable"
	case errors.As(err, &timeout) && timeout.Timeout():
		return "silence"
	}
	return err.Error()
}

func (b *box) wantConnect(when, want string) {
	b.t.Helper()
	within := 9 * time.Second
	if want == "silence" {
		within = 300 * time.Millisecond
	}
	for _, ip := range []string{netnstest.Server4, netnstest.Server6} {
		if got := b.connect(ip, within); got != want {
			b.t.Errorf("%s: a connection to %s: %s, want %s", when, ip, got, want)
		}
	}
}

func TestKillFailsClosed(t *testing.T) {
	b := newCrashBox(t)
	before, dir := b.dump(), t.TempDir()
	first := b.start(dir, 0, false)
	b.wantConnect("captured by a TUN that answers nothing", "silence")
	first.kill()
	b.wantConnect("after kill -9", "unreachable")

	second := b.start(dir, 0, false)
	b.wantConnect("captured again", "silence")
	second.kill()
	third := b.start(dir, 5190, false) // another configuration than the crashed one's
	b.wantConnect("captured by another route table", "silence")
	third.exit()
	if d := diff(before, b.dump()); d != "" {
		t.Errorf("two crashes and a clean exit left (+) or took (-):\n%s", d)
	}
}

// TestNothingSlipsThroughDuringRestarts connects all the time while
// appliances are killed and started again.
func TestNothingSlipsThroughDuringRestarts(t *testing.T) {
	b := newCrashBox(t)
	dir := t.TempDir()
	b.start(dir, 0, false).kill()
	stop, done := make(chan struct{}), make(chan map[string]int)
	go func() {
		seen := map[string]int{}
		for i := 0; ; i++ {
			select {
			case <-stop:
				done <- seen
				return
			default:
				seen[b.connect([]string{netnstest.Server4, netnstest.Server6}[i%2], 20*time.Millisecond)]++
			}
		}
	}()
	for range 5 {
		b.start(dir, 0, false).kill()
	}
	close(stop)
	if seen := <-done; seen["connected"] > 0 || seen["silence"]+seen["unreachable"] < 10 {
		t.Errorf("attempts: %v; want none connected, and at least ten others", seen)
	}
}

func TestKillFailsOpen(t *testing.T) {
	b := newCrashBox(t)
	before, dir := b.dump(), t.TempDir()
	first := b.start(dir, 0, true)
	b.wantConnect("captured by a TUN that answers nothing", "silence")
	first.kill()
	b.wantConnect("after kill -9", "connected")
	if out := b.run("nft list tables"); strings.Contains(out, DefaultName) {
		t.Errorf("the table outlived its owner: %s", out)
	}
	second := b.start(dir, 0, true)
	b.wantConnect("captured again", "silence")
	second.exit()
	if d := diff(before, b.dump()); d != "" {
		t.Errorf("a crash and a clean exit left (+) or took (-):\n%s", d)
	}
}

func TestChangeOfModeAfterACrash(t *testing.T) {
	b := newCrashBox(t)
	before, dir := b.dump(), t.TempDir()
	b.start(dir, 0, false).kill()
	open := b.start(dir, 0, true)
	b.wantConnect("captured", "silence")
	if out := b.run("ip route show table 5180; ip -6 route show table 5180"); strings.Contains(out, "unreachable") {
		t.Errorf("fail-open with routes of fail-closed:\n%s", out)
	}
	open.kill()
	b.wantConnect("fail-open after a crash in fail-closed", "connected")
	b.start(dir, 0, false).kill()
	b.wantConnect("fail-closed after a crash in fail-open", "unreachable")
	if err := b.clean(dir); err != nil {
		t.Fatal(err)
	}
	if d := diff(before, b.dump()); d != "" {
		t.Errorf("Clean left (+) or took (-):\n%s", d)
	}
}

func (b *box) clean(dir string) error {
	return b.Gateway.Gateway.Do(func() error { return Clean(Config{TUN: testTUN, StateDir: dir}) })
}

func TestCleanWithoutAnythingToClean(t *testing.T) {
	b := newCrashBox(t)
	b.run("nft add table inet other; ip rule add pref 5180 fwmark 7 lookup 99")
	before := b.dump()
	for range 2 {
		if err := b.clean(t.TempDir()); err != nil {
			t.Fatal(err)
		}
	}
	if d := diff(before, b.dump()); d != "" {
		t.Errorf("Clean left (+) or took (-):\n%s", d)
	}
}

func TestCleanKnowsTheFixedNamesWithoutItsRecord(t *testing.T) {
	for name, damage := range map[string]func(path string) error{
		"file lost":    os.Remove,
		"file emptied": func(path string) error { return os.Truncate(path, 0) },
		"file damaged": func(path string) error { return os.WriteFile(path, []byte(`{"Name": 7`), 0o600) },
	} {
		t.Run(name, func(t *testing.T) {
			b := newCrashBox(t)
			dir := t.TempDir()
			b.start(dir, 0, false).kill()
			files, err := filepath.Glob(filepath.Join(dir, "redirect-*.json"))
			if err != nil || len(files) != 1 {
				t.Fatalf("state files: %v, %v", files, err)
			}
			if err := damage(files[0]); err != nil {
				t.Fatal(err)
			}
			if err := b.clean(dir); err != nil {
				t.Fatal(err)
			}
			out := b.run("nft list ruleset; ip rule; ip -6 rule; ip route show table all; ip -6 route show table all")
			if strings.Contains(out, "5180") || strings.Contains(out, DefaultName) || strings.Contains(out, "9999") {
				t.Errorf("left:\n%s", out)
			}
		})
	}
}
