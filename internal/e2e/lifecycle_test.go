//go:build linux

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"mitm-appliance/flow"
	"mitm-appliance/internal/lab"
)

// traces lists what is in the gateway.
func (w *world) traces() []string {
	w.t.Helper()
	list, err := lab.Traces(w.Gateway)
	if err != nil {
		w.t.Fatal(err)
	}
	return list
}

// TestNothingIsLeft: a stopped appliance has removed what it made, whichever signal stopped it, and a
// conversation that still ran is in the file.
func TestNothingIsLeft(t *testing.T) {
	for _, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP} {
		t.Run(signal.String(), func(t *testing.T) {
			w := open(t)
			before := w.traces()
			w.launch(lab.Program{Args: lab.Modes("nobody")})
			if slices.Equal(before, w.traces()) {
				t.Fatal("the appliance runs and there is no trace of it: nothing is proved")
			}
			c, err := w.Laptop.Dial(w.ctx, "tcp", addr(lab.Web4, lab.EchoPort))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if _, err := c.Write([]byte("still here")); err != nil {
				t.Fatal(err)
			}
			if _, err := c.Read(make([]byte, 10)); err != nil {
				t.Fatal(err)
			}
			begin := time.Now()
			if err := w.app.Signal(signal); err != nil {
				t.Fatal(err)
			}
			if status, err := w.app.Wait(w.ctx); err != nil || status != 0 {
				t.Errorf("exit status %d, %v; want 0", status, err)
			}
			if took := time.Since(begin); took > 8*time.Second {
				t.Errorf("the end took %v", took)
			}
			if after := w.traces(); !slices.Equal(before, after) {
				t.Errorf("left behind:\n%s\nbefore:\n%s", strings.Join(after, "\n"), strings.Join(before, "\n"))
			}
			flows, err := w.app.Flows()
			if err != nil {
				t.Fatal(err)
			}
			f := oneFlow(t, flows, func(f *flow.Flow) bool { return f.Kind == flow.KindTCP })
			if len(f.Stream.Messages) != 2 || f.Live || f.Error == nil {
				t.Errorf("the conversation that was cut: %d messages, live %v, error %v; want 2, not live, an error",
					len(f.Stream.Messages), f.Live, f.Error)
			}
		})
	}
}

// TestKillFailsClosed: nothing passes a dead appliance unseen, and the next one needs no help.
func TestKillFailsClosed(t *testing.T) {
	w := open(t)
	before := w.traces()
	program := lab.Program{Args: []string{"-m", "transparent:" + lab.LAN}}
	w.launch(program)
	if out, err := w.curl("http://" + lab.Web + "/"); err != nil {
		t.Fatal(err, out)
	}
	w.app.Kill()
	for _, ip := range []string{lab.Web4, lab.Web6} {
		begin := time.Now()
		if c, err := w.Laptop.Dial(w.ctx, "tcp", addr(ip, 80)); err == nil {
			c.Close()
			t.Errorf("%s is reached past the dead appliance", ip)
		}
		if took := time.Since(begin); took > 5*time.Second {
			t.Errorf("the refusal of %s took %v; want it at once", ip, took)
		}
	}
	w.launch(program)
	for _, family := range []string{"-4", "-6"} {
		if out, err := w.curl(family, "https://"+lab.Web+"/"); err != nil {
			t.Errorf("after the restart: %v, %s", err, out)
		}
	}
	if flows := w.stop(); len(flows) == 0 {
		t.Error("the second appliance has seen nothing")
	}
	if after := w.traces(); !slices.Equal(before, after) {
		t.Errorf("left behind:\n%s\nbefore:\n%s", strings.Join(after, "\n"), strings.Join(before, "\n"))
	}
}

// TestKillFailsOpen: on request traffic passes a dead appliance.
func TestKillFailsOpen(t *testing.T) {
	w := start(t, "-m", "transparent:"+lab.LAN, "--fail-open")
	if out, err := w.curl("https://" + lab.Web + "/"); err != nil {
		t.Fatal(err, out)
	}
	w.app.Kill()
	for _, family := range []string{"-4", "-6"} {
		out, err := w.curl(family, "--cacert", w.CA, "https://"+lab.Web+"/")
		if err != nil || !strings.Contains(out, "Hello from") {
			t.Errorf("past the dead appliance: %v, %s", err, out)
		}
	}
}

// TestClean removes what a killed appliance has left, and touches nothing of a living one.
func TestClean(t *testing.T) {
	w := open(t)
	before := w.traces()
	w.launch(lab.Program{Args: []string{
		"-m", "transparent:" + lab.LAN, "-m", "local:nobody", "-m", "tun", "--set", "tun_routes=198.51.100.0/24",
	}})
	clean := func() (string, error) {
		out, err := w.Command(w.ctx, w.Gateway, built.path(t), "clean").CombinedOutput()
		return string(out), err
	}
	if out, err := clean(); err == nil {
		t.Errorf("cleaned while an appliance runs: %s", out)
	}
	if out, err := w.curl("http://" + lab.Web + "/"); err != nil {
		t.Error(err, out)
	}
	w.app.Kill()
	if slices.Equal(before, w.traces()) {
		t.Fatal("the killed appliance left nothing behind: nothing is proved")
	}
	if out, err := clean(); err != nil {
		t.Error(err, out)
	}
	if after := w.traces(); !slices.Equal(before, after) {
		t.Errorf("left behind:\n%s\nbefore:\n%s", strings.Join(after, "\n"), strings.Join(before, "\n"))
	}
}

// TestPrivilegesAreDropped: every thread keeps only what the modes need while they run.
func TestPrivilegesAreDropped(t *testing.T) {
	const netAdmin, netRaw, ptrace, perfmon, bpf = 1 << 12, 1 << 13, 1 << 19, 1 << 38, 1 << 39
	for _, test := range []struct {
		mode string
		want uint64
	}{
		{"regular@8080", 0},
		{"wireguard", netAdmin},
		{"transparent:" + lab.LAN, netAdmin | netRaw},
		{"tun", netAdmin | netRaw},
		{"local:nobody", netAdmin | netRaw | ptrace | perfmon | bpf},
	} {
		t.Run(test.mode, func(t *testing.T) {
			w := start(t, "-m", test.mode)
			threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", w.app.PID()))
			if err != nil || len(threads) == 0 {
				t.Fatal(threads, err)
			}
			for _, path := range threads {
				status, err := os.ReadFile(path)
				if err != nil {
					continue // a thread that has ended
				}
				for _, want := range []string{
					fmt.Sprintf("CapEff:\t%016x\n", test.want), fmt.Sprintf("CapPrm:\t%016x\n", test.want), "NoNewPrivs:\t1\n",
				} {
					if !strings.Contains(string(status), want) {
						t.Fatalf("%s: no %q in\n%s", path, want, status)
					}
				}
			}
			w.stop() // what is left is enough for a clean end
		})
	}
}

// TestStartErrors: what cannot work is said in one line with its cure, and the exit status tells what
// kind of error it was.
func TestStartErrors(t *testing.T) {
	w := open(t)
	if _, err := w.Gateway.Listen("tcp", ":8080"); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		args   []string
		status int
		says   string
	}{
		{[]string{"-m", "regular@8080"}, 1, "8080"},
		{[]string{"-m", "transparent:nosuch0"}, 1, "nosuch0"},
		{[]string{"-m", "tun:" + lab.LAN}, 1, lab.LAN},
		{[]string{"-m", "wireguard:/nosuch/wg.conf"}, 1, "/nosuch"},
		{[]string{"-m", "regular@8081", "-w", "/proc/nosuch/flows"}, 1, "/proc/nosuch"},
		{[]string{"-m", "transparent:nosuch0", "-m", "tun:" + lab.LAN}, 1, "nosuch0"},
		{[]string{"-m", "regular@8081", "-m", "regular@8081"}, 2, "8081"},
		{[]string{"-m", "nonsense"}, 2, "nonsense"},
		{[]string{"-m", "local:,"}, 1, "empty item"},
		{[]string{"--nonsense"}, 2, "--nonsense"},
		{[]string{"filter", "words"}, 2, ""},
		{[]string{"--set", "tcp_timeout=soon"}, 2, "tcp_timeout"},
		{[]string{"--ignore-hosts", "("}, 2, "regular expression"},
		{[]string{"-p", "70000"}, 2, "70000"},
	} {
		t.Run(strings.Join(test.args, " "), func(t *testing.T) {
			end := w.fails(t, lab.Program{Args: test.args, NoSave: true})
			if end.Status != test.status {
				t.Errorf("exit status %d, want %d", end.Status, test.status)
			}
			if !strings.Contains(end.Stderr, test.says) {
				t.Errorf("it does not say %q", test.says)
			}
			var said []string // log records may stand before
			for line := range strings.Lines(end.Stderr) {
				if !strings.HasPrefix(line, "time=") && !strings.HasPrefix(line, "Try: ") {
					said = append(said, line)
				}
			}
			if len(said) != 1 || !strings.HasPrefix(said[0], "mitm-appliance: ") {
				t.Errorf("it says %q, want one line", said)
			}
			t.Logf("%s", end.Stderr)
		})
	}
}

// TestOneModeFails: the others go on.
func TestOneModeFails(t *testing.T) {
	w := start(t, "-m", "transparent:nosuch0", "-m", "regular@8080")
	if !strings.Contains(w.app.Log(), "nosuch0") {
		t.Error("the log does not say which mode failed")
	}
	if out, err := w.curl("-x", "http://"+addr(lab.GatewayLAN4, 8080), "http://"+lab.Web4Only+"/"); err != nil {
		t.Errorf("the mode that works: %v, %s", err, out)
	}
	w.stop()
}

// TestDiskFull: what cannot be recorded must not pass, so the program ends and says why.
func TestDiskFull(t *testing.T) {
	w := open(t)
	small := t.TempDir()
	w.launch(lab.Program{
		Within: []string{"sh", "-c", `mount -t tmpfs -o size=64k none "$0" && exec "$@"`, small}, NoSave: true,
		Args: []string{"-m", "transparent:" + lab.LAN, "-w", filepath.Join(small, "flows.mitm")},
	})
	for range 20 {
		if _, err := w.curl("http://" + lab.Web + "/bytes/20000"); err != nil {
			break
		}
	}
	status, err := w.app.Wait(w.ctx)
	if err != nil || status != 1 {
		t.Errorf("exit status %d, %v; want 1", status, err)
	}
	last := w.app.Log()[strings.LastIndex(strings.TrimSpace(w.app.Log()), "\n")+1:]
	if !strings.Contains(last, "no space left on device") || !strings.Contains(last, "flows.mitm") {
		t.Errorf("the last line is %q; want the file and the reason", last)
	}
}

// TestOutputGone: when nobody reads what is printed any more, the program ends as orderly as ever.
func TestOutputGone(t *testing.T) {
	w := open(t)
	before := w.traces()
	w.launch(lab.Program{
		Face: "dump", Within: []string{"bash", "-c", `exec "$@" > >(head -n 1)`, "bash"}, Args: []string{"-m", "transparent:" + lab.LAN},
	})
	for range 20 {
		if _, err := w.curl("--max-time", "5", "http://"+lab.Web+"/"); err != nil {
			break
		}
	}
	if status, err := w.app.Wait(w.ctx); err != nil || status != 1 {
		t.Errorf("exit status %d, %v; want 1", status, err)
	}
	if after := w.traces(); !slices.Equal(before, after) {
		t.Errorf("left behind:\n%s\nbefore:\n%s", strings.Join(after, "\n"), strings.Join(before, "\n"))
	}
}

// TestSecondAppliance: one that would take another one's traffic does not start, and breaks nothing.
func TestSecondAppliance(t *testing.T) {
	w := start(t, "-m", "transparent:"+lab.LAN, "-m", "local:nobody", "-m", "wireguard")
	running := w.traces()
	for _, mode := range []string{"transparent:" + lab.LAN, "local:curl", "wireguard"} {
		end := w.fails(t, lab.Program{Args: []string{"-m", mode}})
		if end.Status != 1 {
			t.Errorf("%s: exit status %d, want 1", mode, end.Status)
		}
		t.Logf("%s: %s", mode, end.Stderr)
	}
	if now := w.traces(); !slices.Equal(running, now) {
		t.Errorf("the second one has changed things:\n%s\nbefore:\n%s", strings.Join(now, "\n"), strings.Join(running, "\n"))
	}
	w.stillServes()
	w.stop()
}
