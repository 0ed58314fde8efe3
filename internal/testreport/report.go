package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"
)

// event is one line of test2json; see "go doc test2json".
type event struct {
	Action     string
	Package    string
	Test       string
	ImportPath string // of build-output and build-fail
	Output     string
	Elapsed    float64 // seconds
}

const (
	maxLine   = 16 << 20 // bytes of one event
	shownTest = 200      // lines shown of a failed test; the log has them all
)

// counts are numbers of tests and subtests.
type counts struct{ passed, failed, skipped int }

// testrun is one test or subtest; the empty name stands for the package.
type testrun struct {
	state string // "", pass, fail, skip
	lines []string
}

// pack is one package under test.
type pack struct {
	counts
	tests map[string]*testrun
	order []string
}

// report collects events and prints each package when it ends.
type report struct {
	out, log io.Writer
	module   string
	total    counts
	packs    map[string]*pack
	builds   map[string][]string // what the compiler said, by import path
}

func newReport(out, log io.Writer, module string) *report {
	return &report{out: out, log: log, module: module, packs: map[string]*pack{}, builds: map[string][]string{}}
}

// read takes all events. Lines that are none (of the go command itself) are shown as they are.
func (r *report) read(in io.Reader) error {
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, maxLine)
	for lines.Scan() {
		var e event
		if line := bytes.TrimSpace(lines.Bytes()); len(line) == 0 || line[0] != '{' || json.Unmarshal(line, &e) != nil {
			fmt.Fprintf(r.out, "%s\n", lines.Bytes())
			fmt.Fprintf(r.log, "%s\n", lines.Bytes())
			continue
		}
		r.take(e)
	}
	return lines.Err()
}

func (r *report) take(e event) {
	_, _ = io.WriteString(r.log, e.Output) // a full disk must not hide results
	switch e.Action {
	case "build-output":
		r.builds[e.ImportPath] = append(r.builds[e.ImportPath], e.Output)
	case "output":
		t := r.test(e)
		t.lines = append(t.lines, e.Output)
	case "pass", "fail", "skip":
		t := r.test(e)
		t.state = e.Action
		if e.Test == "" {
			r.end(e)
			return
		}
		if e.Action == "pass" {
			t.lines = nil
		}
	case "run":
		r.test(e)
	}
}

func (r *report) test(e event) *testrun {
	p := r.packs[e.Package]
	if p == nil {
		p = &pack{tests: map[string]*testrun{}}
		r.packs[e.Package] = p
	}
	t := p.tests[e.Test]
	if t == nil {
		t = &testrun{}
		p.tests[e.Test] = t
		p.order = append(p.order, e.Test)
	}
	return t
}

// end prints a package: a test that began and did not end (a panic, a timeout) has failed.
func (r *report) end(e event) {
	p := r.packs[e.Package]
	delete(r.packs, e.Package)
	for _, name := range p.order {
		switch t := p.tests[name]; {
		case name == "":
		case t.state == "pass":
			p.passed++
		case t.state == "skip":
			p.skipped++
		default:
			p.failed++
		}
	}
	if e.Action == "fail" && p.failed == 0 {
		p.failed = 1 // it did not build, or ended outside of a test
	}
	r.total.passed += p.passed
	r.total.failed += p.failed
	r.total.skipped += p.skipped
	if p.counts == (counts{}) && e.Action != "fail" {
		return // no tests
	}
	r.print(e, p)
}

func (r *report) print(e event, p *pack) {
	name := strings.TrimPrefix(strings.TrimPrefix(e.Package, r.module), "/")
	word := map[bool]string{true: "FAIL", false: "ok  "}[e.Action == "fail"]
	line := fmt.Sprintf("  %s  %-26s %5d passed", word, name, p.passed)
	if p.failed > 0 {
		line += fmt.Sprintf(", %d failed", p.failed)
	}
	if p.skipped > 0 {
		line += fmt.Sprintf(", %d skipped", p.skipped)
	}
	took := time.Duration(e.Elapsed * float64(time.Second)).Round(100 * time.Millisecond)
	fmt.Fprintf(r.out, "%s  %v\n", line, took)
	for _, name := range p.order {
		t := p.tests[name]
		switch {
		case t.state == "skip" && name != "":
			fmt.Fprintf(r.out, "        skipped %s: %s\n", name, reason(t.lines))
		case e.Action == "fail" && t.state != "pass" && t.state != "skip":
			r.quote(t.lines)
		}
	}
}

// quote prints what a failed test said, without the lines that only tell its progress.
func (r *report) quote(lines []string) {
	text := strings.Split(strings.TrimSuffix(strings.Join(lines, ""), "\n"), "\n")
	text = slices.DeleteFunc(text, func(s string) bool {
		return strings.HasPrefix(s, "=== ") || s == "FAIL" || s == "PASS" || s == ""
	})
	for i, s := range text {
		if i == shownTest {
			fmt.Fprintf(r.out, "        (%d more lines are in the log)\n", len(text)-i)
			return
		}
		fmt.Fprintf(r.out, "        %s\n", s)
	}
}

// reason is the last thing that a skipped test said.
func reason(lines []string) string {
	for _, s := range slices.Backward(lines) {
		if s = strings.TrimSpace(s); s != "" && !strings.HasPrefix(s, "---") && !strings.HasPrefix(s, "===") {
			return s
		}
	}
	return "no reason given"
}

// finish prints what the compiler said, and packages whose end never came.
func (r *report) finish() {
	for _, path := range slices.Sorted(maps.Keys(r.builds)) {
		fmt.Fprintf(r.out, "  building %s failed:\n", path)
		r.quote(r.builds[path])
	}
	for _, name := range slices.Sorted(maps.Keys(r.packs)) {
		r.end(event{Action: "fail", Package: name})
	}
}
