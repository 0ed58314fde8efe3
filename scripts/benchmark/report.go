//go:build linux

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"
)

// results are the samples of a case: by subject, then by round. A round in which a subject failed has
// a nil sample.
type results struct {
	samples map[string][]sample
	errors  map[string]string // the last one of each subject
}

// runCase measures all subjects of a case round by round, in turns, so that whatever else the machine
// does meets all of them.
func (b *bench) runCase(ctx context.Context, c testCase) results {
	res := results{samples: map[string][]sample{}, errors: map[string]string{}}
	rounds := b.rounds
	if c.rounds > 0 {
		rounds = c.rounds
	}
	for round := range rounds {
		for i := range c.subjects {
			if ctx.Err() != nil {
				return res
			}
			s := c.subjects[(i+round)%len(c.subjects)]
			got, err := b.measure(ctx, c, s)
			if err != nil {
				res.errors[s.name] = err.Error()
				fmt.Fprintf(os.Stderr, "%s, %s: %v\n", c.name, s.name, err)
			} else {
				fmt.Fprintf(os.Stderr, "%-24s %d/%d %-22s %s\n", c.name, round+1, rounds, s.name, c.figures(got))
			}
			res.samples[s.name] = append(res.samples[s.name], got)
		}
	}
	return res
}

func (b *bench) measure(ctx context.Context, c testCase, s subject) (sample, error) {
	r, err := s.start(ctx, b)
	if err != nil {
		return nil, err
	}
	defer r.end()
	if b.perf != "" {
		defer b.profile(c, s, r)()
	}
	got, err := c.measure(ctx, b, r)
	if err != nil {
		return nil, fmt.Errorf("%w: %s", err, r.tail())
	}
	return got, nil
}

// profile records a profile of a subject with perf until the function that it returns is called.
func (b *bench) profile(c testCase, s subject, r *running) func() {
	name := strings.ReplaceAll(c.name+" "+s.name, " ", "-") + ".perf"
	cmd := exec.Command("perf", "record", "-q", "-F", "499", "-g", "-o", filepath.Join(b.perf, name), "-p", strconv.Itoa(r.pid()))
	if err := cmd.Start(); err != nil {
		fmt.Fprintf(os.Stderr, "no profile: %v\n", err)
		return func() {}
	}
	return func() {
		_ = cmd.Process.Signal(os.Interrupt)
		_ = cmd.Wait() // says only that it was interrupted
	}
}

func (c *testCase) figures(s sample) string {
	var texts []string
	for _, m := range c.metrics {
		texts = append(texts, number(s[m.name])+" "+m.unit)
	}
	return strings.Join(texts, ", ")
}

func (c *testCase) unit(name string) string {
	for _, m := range c.metrics {
		if m.name == name {
			return m.unit
		}
	}
	return ""
}

// row is one line of the table, and of the JSON output.
type row struct {
	Case, Subject, Metric, Unit string
	Figure                      float64
	Reference                   string  `json:",omitempty"`
	Against                     float64 `json:",omitempty"`
	Ratio                       float64 `json:",omitempty"` // the median of the rounds' ratios
	Low, High                   float64 `json:",omitempty"` // of the rounds
	Limit                       float64 `json:",omitempty"`
	AtMost                      bool    `json:",omitempty"`
	Met                         *bool   `json:",omitempty"`
	Error                       string  `json:",omitempty"`
}

type report struct {
	Machine string
	Rounds  int
	Seconds float64 // of one measurement
	Rows    []row
}

func newReport(s settings, _ *bench) *report {
	return &report{Machine: machine(), Rounds: s.rounds, Seconds: s.duration.Seconds()}
}

// machine describes where this runs, without names.
func machine() string {
	var u unix.Utsname
	_ = unix.Uname(&u) // cannot fail
	model := "unknown processor"
	if data, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(data)) {
			if name, ok := strings.CutPrefix(line, "model name"); ok {
				model = strings.TrimSpace(strings.TrimLeft(name, "\t :"))
				break
			}
		}
	}
	load := "unknown"
	if data, err := os.ReadFile("/proc/loadavg"); err == nil {
		load = strings.Join(strings.Fields(string(data))[:3], " ")
	}
	kernel := strings.SplitN(unix.ByteSliceToString(u.Release[:]), "-", 2)[0]
	return fmt.Sprintf("%d cores (%s), Linux %s, %s; load at the start %s", runtime.NumCPU(), model, kernel, runtime.Version(), load)
}

func (r *report) add(c testCase, res results) {
	for _, t := range c.targets {
		line := row{Case: c.name, Subject: t.subject, Metric: t.metric, Unit: c.unit(t.metric), Reference: t.reference, Limit: t.limit, AtMost: t.atMost}
		line.fill(res, t)
		r.Rows = append(r.Rows, line)
	}
}

func (l *row) fill(res results, t target) {
	mine, theirs := res.samples[t.subject], res.samples[t.reference]
	var figures, against, ratios []float64
	for i, s := range mine {
		if s == nil {
			continue
		}
		figures = append(figures, s[t.metric])
		if t.reference != "" && i < len(theirs) && theirs[i] != nil {
			against = append(against, theirs[i][t.metric])
			ratios = append(ratios, s[t.metric]/theirs[i][t.metric])
		}
	}
	l.Figure, l.Against, l.Ratio = median(figures), median(against), median(ratios)
	judged := l.Figure
	if t.reference != "" {
		judged = l.Ratio
		if len(ratios) > 0 {
			l.Low, l.High = slices.Min(ratios), slices.Max(ratios)
		}
	}
	if len(figures) == 0 || t.reference != "" && len(ratios) == 0 {
		l.Error = "not measured"
		for _, name := range []string{t.subject, t.reference} {
			if e := res.errors[name]; e != "" {
				l.Error = name + ": " + strings.TrimSpace(strings.SplitN(e, "\n", 2)[0])
				break
			}
		}
		return
	}
	if t.limit != 0 {
		met := judged >= t.limit
		if t.atMost {
			met = judged <= t.limit
		}
		l.Met = &met
	}
}

func median(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	v := slices.Sorted(slices.Values(values))
	if n := len(v); n%2 == 0 {
		return (v[n/2-1] + v[n/2]) / 2
	}
	return v[len(v)/2]
}

// print writes the table.
func (r *report) print(w io.Writer, took time.Duration) {
	fmt.Fprintf(w, "\n%s\n%d rounds of %.1f s per measurement, medians; took %v\n\n", r.Machine, r.Rounds, r.Seconds, took.Round(time.Second))
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "case\tsubject\tagainst\tratio\trounds\ttarget\tmet\tfigure\tagainst's\tunit")
	missed := 0
	for _, l := range r.Rows {
		fmt.Fprintln(t, strings.Join(l.cells(), "\t"))
		if l.Met == nil && l.Error != "" || l.Met != nil && !*l.Met {
			missed++
		}
	}
	_ = t.Flush() // as the Fprintf around it
	fmt.Fprintf(w, "\n%d of %d lines miss their target or could not be measured\n", missed, len(r.Rows))
}

func (l *row) cells() []string {
	if l.Error != "" {
		return []string{l.Case, l.Subject, l.Reference, "-", "-", "-", "NO", l.Error}
	}
	ratio, spread, against := "-", "-", "-"
	if l.Reference != "" {
		ratio, against = fmt.Sprintf("%.2fx", l.Ratio), number(l.Against)
		spread = fmt.Sprintf("%.2f-%.2f", l.Low, l.High)
	}
	limit, met := "(info)", ""
	if l.Met != nil {
		limit = ">= " + strconv.FormatFloat(l.Limit, 'g', -1, 64)
		if l.AtMost {
			limit = "<= " + strconv.FormatFloat(l.Limit, 'g', -1, 64)
		}
		if l.Reference != "" {
			limit += "x"
		}
		met = map[bool]string{true: "yes", false: "NO"}[*l.Met]
	}
	return []string{l.Case, l.Subject, l.Reference, ratio, spread, limit, met, number(l.Figure), against, l.Unit}
}

// number writes three significant digits.
func number(f float64) string {
	switch {
	case f >= 1000:
		return strconv.FormatFloat(f, 'f', 0, 64)
	case f >= 100:
		return strconv.FormatFloat(f, 'f', 0, 64)
	case f >= 10:
		return strconv.FormatFloat(f, 'f', 1, 64)
	default:
		return strconv.FormatFloat(f, 'f', 2, 64)
	}
}

func (r *report) writeJSON(path string) error {
	data, err := json.MarshalIndent(r, "", "\t")
	return errors.Join(err, os.WriteFile(path, append(data, '\n'), 0o644)) //nolint:gosec // not secret
}
