//go:build linux

package netnstest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func TestGatewayForwardsWhenToldTo(t *testing.T) {
	lab := New(t)
	net := lab.Gateway(2)
	net.Gateway.Sysctl("net.ipv4.ip_forward", "1")
	net.Gateway.Sysctl("net.ipv6.conf.all.forwarding", "1")

	for _, server := range []string{Server4, "203.0.113.12", Far4, Server6, "2001:db8:1::12", Far6} {
		for _, client := range net.Clients {
			if got, err := echo(t, client, net.Internet, server); err != nil || got != "hello" {
				t.Errorf("%s to %s: got %q, %v; want hello", client.Name(), server, got, err)
			}
		}
	}
}

// echo sends "hello" over TCP to a server that the host runs for it.
func echo(t *testing.T, client, server *Host, ip string) (string, error) {
	l, err := server.Listen("tcp", net.JoinHostPort(ip, "0"))
	if err != nil {
		return "", err
	}
	defer l.Close()
	go func() {
		if c, err := l.Accept(); err == nil {
			_, _ = io.Copy(c, c)
			_ = c.Close()
		}
	}()
	c, err := client.Dial(testContext(t), "tcp", l.Addr().String())
	if err != nil {
		return "", err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	got := make([]byte, 5)
	if _, err = c.Write([]byte("hello")); err == nil {
		_, err = io.ReadFull(c, got)
	}
	return string(got), err
}

func TestDatagramsStayInTheirHost(t *testing.T) {
	lab := New(t)
	a, b := lab.Host("a"), lab.Host("b")
	lab.Link(a, "eth0", b, "eth0")
	a.Addr("eth0", "192.0.2.1/24")
	b.Addr("eth0", "192.0.2.2/24")

	server, err := b.ListenPacket("udp", "192.0.2.2:53")
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	client, err := a.Dial(testContext(t), "udp", "192.0.2.2:53")
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if _, err := client.Write([]byte("query")); err != nil {
		t.Fatal(err)
	}
	_ = server.SetDeadline(time.Now().Add(10 * time.Second))
	buf := make([]byte, 16)
	n, from, err := server.ReadFrom(buf)
	if err != nil || string(buf[:n]) != "query" || !strings.HasPrefix(from.String(), "192.0.2.1:") {
		t.Errorf("got %q from %v, %v; want query from 192.0.2.1", buf[:n], from, err)
	}
}

// TestAddressesReceiveAtOnce looks for the local routes that the kernel adds
// with a delay.
func TestAddressesReceiveAtOnce(t *testing.T) {
	lab := New(t)
	a, b := lab.Host("a"), lab.Host("b")
	lab.Link(a, "eth0", b, "eth0")
	a.Addr("eth0", "2001:db8::1/64")
	out, err := a.Command(testContext(t), "ip", "-6", "route", "show", "table", "local").Output()
	if err != nil || !bytes.Contains(out, []byte("2001:db8::1 dev eth0")) || !bytes.Contains(out, []byte("fe80::")) {
		t.Errorf("%v; want both addresses in:\n%s", err, out)
	}
}

func TestCommandSeesOnlyItsHostsNetworkButAllCgroups(t *testing.T) {
	lab := New(t)
	h := lab.Host("h")
	h.Addr("lo", "192.0.2.7/32")
	out, err := h.Command(testContext(t), "ip", "-o", "addr").Output()
	if err != nil || !bytes.Contains(out, []byte("192.0.2.7/32")) || bytes.Contains(out, []byte("eth0")) {
		t.Errorf("ip addr: %v\n%s", err, out)
	}
	want, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	got, err := h.Command(testContext(t), "cat", "/proc/self/mountinfo").Output()
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("the command has other mounts than its parent (%v)", err)
	}
}

func TestCloseEndsEverything(t *testing.T) {
	lab := New(t)
	h := lab.Host("h")
	sleep := h.Command(context.Background(), "sleep", "600")
	if err := sleep.Start(); err != nil {
		t.Fatal(err)
	}
	stray := exec.Command("nsenter", "--net="+h.Path(), "--", "sleep", "600") // not known to the lab
	if err := stray.Start(); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the stray process to enter the host", func() bool {
		its, err := os.Stat(fmt.Sprintf("/proc/%d/ns/net", stray.Process.Pid))
		ns, err2 := os.Stat(h.Path())
		return err == nil && err2 == nil && os.SameFile(its, ns)
	})
	ended := false
	h.Go(func(ctx context.Context) error {
		<-ctx.Done()
		ended = true
		return ctx.Err()
	})
	if err := lab.Close(); err != nil {
		t.Fatal(err)
	}
	if !ended {
		t.Error("Close did not wait for Host.Go")
	}
	for _, cmd := range []*exec.Cmd{sleep, stray} {
		if err := cmd.Wait(); err == nil {
			t.Errorf("%v ended by itself; want it killed", cmd.Args)
		}
	}
	if _, err := os.Stat(h.Path()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is still there: %v", h.Path(), err)
	}
}

func TestCloseReportsFailuresOfGo(t *testing.T) {
	lab := New(t)
	boom := errors.New("boom")
	lab.Host("h").Go(func(context.Context) error { return boom })
	lab.tasks.Wait()
	if err := lab.Close(); !errors.Is(err, boom) {
		t.Errorf("Close: got %v, want boom", err)
	}
}

func TestOpenKeepsTheFirstErrorAndStops(t *testing.T) {
	New(t) // only for its skip
	lab, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	defer lab.Close()
	h := lab.Host("h")
	h.Addr("nosuch0", "192.0.2.1/24")
	h.Addr("lo", "not an address")
	if err := lab.Err(); err == nil || !strings.Contains(err.Error(), "nosuch0") {
		t.Errorf("Err: got %v, want one about nosuch0", err)
	}
}

func TestDoReturnsThreadsAndFailures(t *testing.T) {
	lab := New(t)
	h := lab.Host("h")
	home, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	boom := errors.New("boom")
	if err := h.Do(func() error { return boom }); !errors.Is(err, boom) {
		t.Errorf("Do: got %v, want boom", err)
	}
	func() {
		defer func() {
			if recover() != "panic" {
				t.Error("a panic in Do did not reach the caller")
			}
		}()
		_ = h.Do(func() error { panic("panic") })
	}()
	for range 50 { // any thread of the runtime may be used: none may be left inside
		err := onThread(func() error {
			now, err := os.Readlink("/proc/thread-self/ns/net")
			if err == nil && now != home {
				err = fmt.Errorf("a thread is in %s, want %s", now, home)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

func TestDialRefusesNames(t *testing.T) {
	lab := New(t)
	if c, err := lab.Host("h").Dial(testContext(t), "tcp", "localhost:80"); err == nil {
		c.Close()
		t.Error("a name was resolved outside of the host")
	}
}

func TestOwnerOf(t *testing.T) {
	for name, want := range map[string]int{
		"mitmlab-12-abcdef-client": 12,
		"mitmlab-12":               0,
		"mitmlab-x-abcdef-client":  0,
		"mitmlab--5-abcdef":        0,
		"somebody-12-abcdef":       0,
	} {
		if got, _ := ownerOf(name); got != want {
			t.Errorf("ownerOf(%q) = %d, want %d", name, got, want)
		}
	}
}

// TestKilledLabIsSwept starts this test binary again, kills it in the middle
// of a lab and expects the next lab to remove what it left.
func TestKilledLabIsSwept(t *testing.T) {
	if os.Getenv("NETNSTEST_CHILD") == "1" {
		lab := New(t)
		h := lab.Host("orphan")
		cmd := h.Command(context.Background(), "sleep", "600")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		fmt.Printf("ready %s %d\n", h.Path(), cmd.Process.Pid)
		select {}
	}
	New(t)
	child := exec.Command(os.Args[0], "-test.run=^TestKilledLabIsSwept$")
	child.Env = append(os.Environ(), "NETNSTEST_CHILD=1")
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	var path string
	var sleeper int
	if _, err := fmt.Fscanf(out, "ready %s %d\n", &path, &sleeper); err != nil {
		t.Fatal(err)
	}
	if err := child.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = child.Wait()
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("the killed lab left nothing behind, so nothing is proved: %v", err)
	}
	foreign := filepath.Join(runDir, "netnstest-foreign-1-x")
	if err := createNamespace(foreign); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = removeNamespace(foreign) }()

	New(t)
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s was not swept: %v", path, err)
	}
	if _, err := os.Stat(foreign); err != nil {
		t.Errorf("a foreign namespace was swept: %v", err)
	}
	waitFor(t, "the orphan's process to end", func() bool {
		state, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", sleeper))
		return err != nil || bytes.Contains(state, []byte(") Z "))
	})
}

func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited too long for %s", what)
		}
	}
}
