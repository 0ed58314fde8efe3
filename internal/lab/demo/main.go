//go:build linux

// Command demo shows what mitm-appliance does: real clients in a small network of namespaces, real
// traffic through every mode, and the decrypted flows. ./scripts/demo builds and runs it.
//
// In: the path of the mitm-appliance binary. Out: a tour on stdout, and exit status 0 when every client
// got its answer and every exchange was recorded in the clear.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"mitm-appliance/flow"
	"mitm-appliance/flow/flowfile"
	"mitm-appliance/internal/lab"
)

func main() {
	lab.Agent()
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: demo PATH-OF-MITM-APPLIANCE (or simply ./scripts/demo)")
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	failures, err := run(ctx, os.Args[1])
	stop()
	switch {
	case errors.Is(err, context.Canceled):
		fmt.Fprintln(os.Stderr, "demo: interrupted; everything was removed")
		os.Exit(130)
	case err != nil:
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	case failures > 0:
		os.Exit(1)
	}
}

// timeout bounds the whole tour.
const timeout = 3 * time.Minute

// tour is the demo while it runs.
type tour struct {
	*lab.World
	page
	program string
	dir     string
	app     *lab.Appliance
	printed int // how much of the appliance's output was shown
	results []result
}

type result struct {
	visit lab.Visit
	err   error
}

func run(ctx context.Context, program string) (failures int, err error) {
	start := time.Now()
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	t := &tour{page: newPage(os.Stdout), program: program}
	t.title()
	if t.World, err = lab.Open(); err != nil {
		return 0, err
	}
	failures, err = t.run(ctx)
	if err = errors.Join(err, t.Close()); err == nil {
		t.closing(failures, time.Since(start))
	}
	return failures, err
}

func (t *tour) run(ctx context.Context) (failures int, err error) {
	if err := t.Forward(); err != nil {
		return 0, err
	}
	before, err := lab.Traces(t.Gateway)
	if err != nil {
		return 0, err
	}
	if err := t.begin(ctx); err != nil {
		return 0, withLog(err, t.app)
	}
	for i, way := range t.Ways() {
		t.chapter(i+2, way)
		for _, v := range t.Visits(way, t.app.CA()) {
			if ctx.Err() != nil {
				return 0, ctx.Err()
			}
			t.visit(ctx, v)
		}
		t.showFlows(ctx)
	}
	if err := t.end(ctx, before); err != nil {
		return 0, err
	}
	return t.summary(ctx)
}

func withLog(err error, a *lab.Appliance) error {
	if a == nil {
		return err
	}
	return fmt.Errorf("%w\n%s", err, a.Log())
}

// begin starts the appliance with all modes, and connects the phone and the board.
func (t *tour) begin(ctx context.Context) (err error) {
	t.heading(1, "The appliance starts", "one process, five modes at once")
	self, err := os.Executable()
	if err != nil {
		return err
	}
	args := lab.Modes(filepath.Base(self))
	t.typed("gateway", "mitm-appliance wg peer add "+lab.PhoneName)
	if t.dir, err = t.Prepare(ctx, t.program); err != nil {
		return err
	}
	t.typed("gateway", "mitm-appliance dump --showhost "+strings.Join(args, " "))
	t.app, err = t.Start(ctx, lab.Program{Path: t.program, Face: "dump", Dir: t.dir, Args: append(args, "--showhost"), Env: []string{"COLUMNS=100"}})
	if err != nil {
		return err
	}
	t.lines(t.app.Log())
	t.typed("phone", "scan the QR code")
	if err := t.JoinPhone(ctx, t.program, t.dir); err != nil {
		return err
	}
	t.typed("gateway", "ip route add default dev "+lab.TourTUN+" table 77   # what lan1's board sends, goes into the TUN")
	return t.RouteBoard(lab.TourTUN)
}

func (t *tour) visit(ctx context.Context, v lab.Visit) {
	command, output, err := v.Run(ctx)
	t.results = append(t.results, result{v, err})
	t.exchange(v, command, output, err)
}

// showFlows prints what the appliance printed since the last time, once it is silent for a moment.
func (t *tour) showFlows(ctx context.Context) {
	const silence, most = 300 * time.Millisecond, 3 * time.Second
	seen, since, end := len(t.app.Output()), time.Now(), time.Now().Add(most)
	for time.Since(since) < silence && time.Now().Before(end) && ctx.Err() == nil {
		time.Sleep(20 * time.Millisecond)
		if n := len(t.app.Output()); n != seen {
			seen, since = n, time.Now()
		}
	}
	t.rest()
}

func (t *tour) rest() {
	text := t.app.Output()
	t.saw(text[t.printed:])
	t.printed = len(text)
}

// end stops the appliance and looks whether it left anything behind.
func (t *tour) end(ctx context.Context, before []string) error {
	t.heading(7, "The appliance stops", "and leaves nothing behind")
	t.typed("gateway", "kill -INT "+fmt.Sprint(t.app.PID()))
	status, err := t.app.Stop(ctx)
	if err != nil {
		return err
	}
	t.rest()
	after, err := lab.Traces(t.Gateway)
	if err != nil {
		return err
	}
	if status != 0 {
		return withLog(fmt.Errorf("the appliance ended with status %d, want 0", status), t.app)
	}
	if !slices.Equal(before, after) {
		return fmt.Errorf("the appliance left something behind:\nbefore: %s\nafter:  %s", before, after)
	}
	t.say("Exit status 0. Its interfaces, routes, rules, tables and sysctls are gone.")
	return nil
}

// inFull prints one of the saved flows with all that is known of it.
func (t *tour) inFull(ctx context.Context, flows []*flow.Flow) error {
	i := slices.IndexFunc(flows, func(f *flow.Flow) bool { return f.HTTP != nil && f.HTTP.Request.Scheme == "https" })
	if i < 0 {
		return nil // the summary tells
	}
	path := filepath.Join(t.Dir, "one.mitm")
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	if err := errors.Join(flowfile.NewWriter(file).Write(flows[i]), file.Close()); err != nil {
		return err
	}
	t.heading(8, "One flow in full", "read back from the file, which mitmproxy reads as well")
	t.typed("gateway", "mitm-appliance dump -n -r one.mitm --flow-detail 3 --showhost")
	out, err := t.Command(ctx, t.Gateway, t.program, "dump", "-n", "-r", path, "--flow-detail", "3", "--showhost", "--confdir", t.dir).Output()
	if err != nil {
		return fmt.Errorf("read the saved flow: %w", err)
	}
	t.lines(string(out))
	return nil
}

// summary judges every visit by its client and by the saved flows.
func (t *tour) summary(ctx context.Context) (failures int, err error) {
	flows, err := t.app.Flows()
	if err != nil {
		return 0, fmt.Errorf("read the saved flows: %w", err)
	}
	if err := t.inFull(ctx, flows); err != nil {
		return 0, err
	}
	t.heading(9, "Summary", fmt.Sprintf("%d flows were saved; ok = the client got its answer and its flow shows it in the clear", len(flows)))
	table := t.newTable()
	for _, r := range t.results {
		f := r.visit.Seen(flows)
		ok := r.err == nil && f != nil
		if !ok {
			failures++
		}
		table.add(r.visit, ok, f)
	}
	table.print()
	for _, r := range t.results {
		if r.err != nil {
			t.failed(fmt.Sprintf("%s: %v", r.visit, r.err))
		} else if r.visit.Seen(flows) == nil {
			t.failed(fmt.Sprintf("%s: no flow shows it", r.visit))
		}
	}
	if failures > 0 {
		t.lines(t.app.Log())
	}
	return failures, nil
}
