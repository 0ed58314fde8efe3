//go:build linux

// Package e2e tests the real program with real clients, packets and servers, in the world of
// internal/lab. It needs root: MITM_ROOT_TESTS=require turns the skip into a failure.
package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"mitm-appliance/flow"
	"mitm-appliance/internal/lab"
)

// patience is for what takes milliseconds on a quiet machine.
const patience = 30 * time.Second

func TestMain(m *testing.M) {
	lab.Agent()
	remote()
	status := m.Run()
	built.remove()
	os.Exit(status)
}

// built is the program under test, compiled once.
var built program

type program struct {
	once sync.Once
	dir  string
	err  error
}

func (p *program) path(t testing.TB) string {
	t.Helper()
	p.once.Do(func() {
		if p.dir, p.err = os.MkdirTemp("", "mitm-e2e-*"); p.err != nil {
			return
		}
		build := exec.Command("go", "build", "-o", p.dir, "mitm-appliance/cmd/mitm-appliance")
		if out, err := build.CombinedOutput(); err != nil {
			p.err = fmt.Errorf("%w\n%s", err, out)
		}
	})
	if p.err != nil {
		t.Fatal("build the program:", p.err)
	}
	return filepath.Join(p.dir, "mitm-appliance")
}

func (p *program) remove() {
	if p.dir != "" {
		_ = os.RemoveAll(p.dir)
	}
}

// world is a lab with one appliance in it.
type world struct {
	*lab.World
	t   testing.TB
	ctx context.Context
	app *lab.Appliance
}

// open makes a world without an appliance.
func open(t testing.TB) *world {
	t.Helper()
	w := &world{World: lab.New(t), t: t}
	ctx, cancel := context.WithTimeout(t.Context(), 3*patience)
	t.Cleanup(cancel)
	w.ctx = ctx
	return w
}

// start makes a world and runs an appliance in it, until the test ends.
func start(t testing.TB, args ...string) *world {
	t.Helper()
	w := open(t)
	w.launch(lab.Program{Args: args})
	return w
}

func (w *world) launch(p lab.Program) {
	w.t.Helper()
	p.Path = built.path(w.t)
	p.Log = w.t.Output()
	ctx, cancel := context.WithTimeout(w.ctx, patience)
	defer cancel()
	a, err := w.Start(ctx, p)
	if err != nil {
		w.t.Fatal(err)
	}
	w.app = a
}

// fails runs an appliance that must not start, and returns how it ended.
func (w *world) fails(t testing.TB, p lab.Program) *lab.EndError {
	t.Helper()
	p.Path = built.path(t)
	ctx, cancel := context.WithTimeout(w.ctx, patience)
	defer cancel()
	_, err := w.Start(ctx, p)
	var end *lab.EndError
	if !errors.As(err, &end) {
		t.Fatalf("the appliance started (%v); want it to fail", err)
	}
	return end
}

// stop ends the appliance and returns its flows.
func (w *world) stop() []*flow.Flow {
	w.t.Helper()
	status, err := w.app.Stop(w.ctx)
	if err != nil {
		w.t.Fatal(err)
	}
	if status != 0 {
		w.t.Errorf("exit status %d, want 0; the log:\n%s", status, w.app.Log())
	}
	flows, err := w.app.Flows()
	if err != nil {
		w.t.Fatal("read the saved flows:", err)
	}
	return flows
}

// curl runs curl on the laptop and returns what it printed.
func (w *world) curl(args ...string) (string, error) {
	args = append([]string{"-sS", "--max-time", "25", "--cacert", w.app.CA()}, args...)
	out, err := w.Command(w.ctx, w.Laptop, "curl", args...).CombinedOutput()
	return string(out), err
}

// oneFlow returns the only flow that match accepts.
func oneFlow(t testing.TB, flows []*flow.Flow, match func(*flow.Flow) bool) *flow.Flow {
	t.Helper()
	found := slices.DeleteFunc(slices.Clone(flows), func(f *flow.Flow) bool { return !match(f) })
	if len(found) != 1 {
		t.Fatalf("%d flows match, want 1, of:\n%s", len(found), list(flows))
	}
	return found[0]
}

// url matches HTTP flows by the URL that people see.
func url(text string) func(*flow.Flow) bool {
	return func(f *flow.Flow) bool { return f.HTTP != nil && f.HTTP.Request.PrettyURL() == text }
}

// list describes flows for messages.
func list(flows []*flow.Flow) string {
	var b strings.Builder
	for _, f := range flows {
		fmt.Fprintf(&b, "  %s %s %v -> %v", f.Kind, f.Client.Feed, f.Client.Peer, f.Client.Local)
		switch {
		case f.HTTP != nil:
			fmt.Fprintf(&b, " %s %s", f.HTTP.Request.Method, f.HTTP.Request.PrettyURL())
			if f.HTTP.Response != nil {
				fmt.Fprintf(&b, " %d, %d bytes", f.HTTP.Response.Status, f.HTTP.Response.Body.Size)
			}
		case f.Stream != nil:
			fmt.Fprintf(&b, " %s, %d messages", f.Stream.Protocol, len(f.Stream.Messages))
		case f.DNS != nil:
			fmt.Fprintf(&b, " %v", f.DNS.Request.Questions)
		}
		if f.Error != nil {
			fmt.Fprintf(&b, " error: %s", f.Error.Message)
		}
		b.WriteByte('\n')
	}
	return b.String()
}

// eventually waits until ok.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(2 * patience); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited %v for %s", 2*patience, what)
		}
	}
}
