//go:build linux

package e2e

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"mitm-appliance/internal/appliance"
	"mitm-appliance/internal/lab"
)

// remoteEnv makes the test program an appliance that takes orders: see remote.
const remoteEnv = "MITM_E2E_REMOTE"

// remote is an appliance in a process of its own, as it must be for its threads to be in the gateway.
// Each line on stdin is an option to set, as a face does through the API; each answer on stdout is
// "ok" or the error, followed by the modes that run.
func remote() {
	if os.Getenv(remoteEnv) == "" {
		return
	}
	a, err := appliance.New(appliance.Config{})
	if err == nil {
		err = a.Options().SetText(os.Args[1:]...)
	}
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	failed := a.Start(context.Background())
	fmt.Println("started", failed)
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		if lines.Text() == "modes" {
			fmt.Println(modes(a))
			continue
		}
		if err := a.API().SetOptions(context.Background(), lines.Text()); err != nil {
			fmt.Println("refused:", strings.ReplaceAll(err.Error(), "\n", " "))
			continue
		}
		fmt.Println("ok")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	a.Stop(ctx)
	cancel()
	os.Exit(0)
}

func modes(a *appliance.Appliance) string {
	list, err := a.API().Modes(context.Background())
	if err != nil {
		return err.Error()
	}
	var texts []string
	for _, m := range list {
		state := "failed"
		if m.Running {
			state = "runs"
		}
		texts = append(texts, m.Spec+" "+state)
	}
	slices.Sort(texts)
	return strings.Join(texts, ", ")
}

// order is a running remote.
type order struct {
	t   testing.TB
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

func (w *world) remote(options ...string) *order {
	w.t.Helper()
	self, err := os.Executable()
	if err != nil {
		w.t.Fatal(err)
	}
	cmd := w.Command(w.ctx, w.Gateway, self, options...)
	cmd.Env = append(os.Environ(), remoteEnv+"=1")
	cmd.Stderr = w.t.Output()
	o := &order{t: w.t, cmd: cmd}
	stdout, err := cmd.StdoutPipe()
	if err == nil {
		o.in, err = cmd.StdinPipe()
	}
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		w.t.Fatal(err)
	}
	o.out = bufio.NewReader(stdout)
	if line := o.answer(); line != "started []" {
		w.t.Fatal(line)
	}
	return o
}

func (o *order) answer() string {
	o.t.Helper()
	line, err := o.out.ReadString('\n')
	if err != nil {
		o.t.Fatal("the appliance answers no more:", err)
	}
	return strings.TrimSpace(line)
}

func (o *order) say(line string) string {
	o.t.Helper()
	if _, err := io.WriteString(o.in, line+"\n"); err != nil {
		o.t.Fatal(err)
	}
	return o.answer()
}

// TestModesChangeAtRunTime: modes come and go while others serve on (MODE-13..17), and each takes its
// traces with it.
func TestModesChangeAtRunTime(t *testing.T) {
	w := open(t)
	before := w.traces()
	dir := t.TempDir()
	o := w.remote("confdir="+dir, "ssl_verify_upstream_trusted_ca="+w.CA, "mode=regular@8080")
	curl := func(args ...string) (string, error) {
		args = append([]string{"-sS", "--max-time", "20", "--cacert", dir + "/mitmproxy-ca-cert.pem"}, args...)
		out, err := w.Command(w.ctx, w.Laptop, "curl", args...).CombinedOutput()
		return string(out), err
	}
	proxied := func() {
		t.Helper()
		if out, err := curl("-x", "http://"+addr(lab.GatewayLAN4, 8080), "https://"+lab.Web4Only+"/"); err != nil {
			t.Errorf("through the proxy: %v, %s", err, out)
		}
	}
	become := func(mode, want string) {
		t.Helper()
		if got := o.say("mode=" + mode); got != "ok" {
			t.Fatalf("%s: %s", mode, got)
		}
		got := ""
		for end := time.Now().Add(patience); got != want; time.Sleep(10 * time.Millisecond) {
			if got = o.say("modes"); time.Now().After(end) {
				t.Fatalf("after %s: %s, want %s", mode, got, want)
			}
		}
	}
	proxied()
	if out, err := curl("--max-time", "3", "https://"+lab.Web+"/"); err == nil {
		t.Errorf("without transparent mode the laptop reached the Internet: %s", out)
	}

	if got := o.say("mode=nonsense"); !strings.HasPrefix(got, "refused:") {
		t.Errorf("a mode that is none: %s", got)
	}
	proxied()

	become("transparent:"+lab.LAN, "transparent:lan0 runs")
	for _, family := range []string{"-4", "-6"} {
		if out, err := curl(family, "https://"+lab.Web+"/"); err != nil {
			t.Errorf("transparent %s: %v, %s", family, err, out)
		}
	}
	if _, err := w.Laptop.Dial(w.ctx, "tcp", addr(lab.GatewayLAN4, 8080)); err == nil {
		t.Error("the proxy port is still open")
	}
	become("transparent:nosuch0", "transparent:nosuch0 failed")
	become("regular@8080", "regular@8080 runs")
	proxied()
	if after := w.traces(); !slices.Equal(before, after) {
		t.Errorf("transparent mode left behind:\n%s\nbefore:\n%s", strings.Join(after, "\n"), strings.Join(before, "\n"))
	}
	_ = o.in.Close()
	if err := o.cmd.Wait(); err != nil {
		t.Errorf("the end: %v", err)
	}
}
