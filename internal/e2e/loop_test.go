//go:build linux

package e2e

import (
	"bufio"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"mitm-appliance/flow"
	"mitm-appliance/internal/lab"
)

// TestCapturedProxyDoesNotLoop puts the appliance into the cgroup that it captures.
func TestCapturedProxyDoesNotLoop(t *testing.T) {
	w := open(t)
	mount := cgroupMount(t)
	group, err := os.MkdirTemp(mount, "mitm-e2e-*")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // last: after the processes in it
		eventually(t, "the cgroup to be empty", func() bool { return os.Remove(group) == nil })
	})
	t.Cleanup(func() { w.app.Kill() })
	inside := []string{"sh", "-c", `echo $$ >"$0/cgroup.procs" && exec "$@"`, group}
	w.launch(lab.Program{Within: inside, Args: []string{"-m", "local:cgroup:" + strings.TrimPrefix(group, mount)}})
	curl := append(inside, "curl", "-sS", "--max-time", "20", "--cacert", w.app.CA(), "https://"+lab.Web4Only+"/")
	for range 3 {
		if out, err := w.Command(w.ctx, w.Gateway, curl[0], curl[1:]...).CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
	}
	count := 0
	for _, f := range w.stop() {
		if f.HTTP != nil {
			count++
		}
		if f.Client.Process == nil || f.Client.Process.Name != "curl" {
			t.Errorf("captured: %s", list([]*flow.Flow{f}))
		}
	}
	if count != 3 {
		t.Errorf("%d HTTP flows, want 3", count)
	}
}

// cgroupMount is where the cgroup-v2 tree is.
func cgroupMount(t *testing.T) string {
	t.Helper()
	file, err := os.Open("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for lines := bufio.NewScanner(file); lines.Scan(); {
		if f := strings.Fields(lines.Text()); len(f) > 2 && f[2] == "cgroup2" {
			return filepath.Clean(f[1])
		}
	}
	t.Fatal("no cgroup2 mount: local capture needs one")
	return ""
}

// TestTUNRoutesDoNotLoop routes this host's own way to the Internet into the device.
func TestTUNRoutesDoNotLoop(t *testing.T) {
	for name, routes := range map[string][]string{
		"some": {"198.51.100.0/24", "2001:db8:2::/64"},
		"all":  {"0.0.0.0/0", "::/0"},
	} {
		t.Run(name, func(t *testing.T) {
			w := open(t)
			before := w.traces()
			w.launch(lab.Program{Args: []string{
				"-m", "tun:" + lab.TourTUN, "--set", "tun_routes=" + routes[0], "--set", "tun_routes=" + routes[1],
			}})
			for _, family := range []string{"-4", "-6"} {
				out, err := w.Command(w.ctx, w.Gateway, "curl", "-sS", "--max-time", "20", "--cacert", w.app.CA(), family, "https://"+lab.Web+"/").CombinedOutput()
				if err != nil {
					t.Errorf("%s: %v: %s", family, err, out)
				}
			}
			if _, err := lab.Talk(w.ctx, w.Laptop, "udp", addr(lab.GatewayLAN4, 9), "x"); !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("the gateway does not answer its LAN any more: %v", err)
			}
			flows := slices.DeleteFunc(w.stop(), func(f *flow.Flow) bool { return f.HTTP == nil })
			if len(flows) != 2 {
				t.Errorf("%d HTTP flows, want 2:\n%s", len(flows), list(flows[:min(len(flows), 10)]))
			}
			if after := w.traces(); !slices.Equal(before, after) {
				t.Errorf("left behind:\n%s\nbefore:\n%s", strings.Join(after, "\n"), strings.Join(before, "\n"))
			}
		})
	}
}

// TestProxyIsNotItsOwnServer: a client that asks the proxy for the proxy gets an error, not a loop.
func TestProxyIsNotItsOwnServer(t *testing.T) {
	w := start(t, "-m", "regular@8080", "-m", "transparent:"+lab.LAN)
	self := addr(lab.GatewayLAN4, 8080)
	out, err := w.curl("-x", "http://"+self, "-w", "%{http_code}", "http://"+self+"/")
	if err != nil || !strings.HasSuffix(out, "502") {
		t.Errorf("got %q, %v; want a 502", out, err)
	}
	if flows := w.stop(); len(flows) != 1 {
		t.Errorf("%d flows, want 1", len(flows))
	}
}
