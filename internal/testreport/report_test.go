package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestReport feeds what "go test -json" prints and expects a person's report, the counts and the status.
func TestReport(t *testing.T) {
	for _, c := range []struct {
		name, in, args, tally string
		want, not             []string
		status                int
	}{
		{"all pass", `{"Action":"run","Package":"m/a","Test":"TestX"}
{"Action":"output","Package":"m/a","Test":"TestX","Output":"chatter\n"}
{"Action":"pass","Package":"m/a","Test":"TestX","Elapsed":0.1}
{"Action":"pass","Package":"m/a","Elapsed":1.25}`, "", "1 0 0", []string{"ok    a", "1 passed", "1.3s"}, []string{"chatter", "failed"}, 0},
		{"a failure is quoted, its neighbour is not", `{"Action":"run","Package":"m/a","Test":"TestX"}
{"Action":"output","Package":"m/a","Test":"TestX","Output":"=== RUN   TestX\n"}
{"Action":"output","Package":"m/a","Test":"TestX","Output":"    x_test.go:3: got 1, want 2\n"}
{"Action":"fail","Package":"m/a","Test":"TestX"}
{"Action":"output","Package":"m/a","Test":"TestY","Output":"fine\n"}
{"Action":"pass","Package":"m/a","Test":"TestY"}
{"Action":"fail","Package":"m/a"}`, "", "1 1 0", []string{"FAIL  a", "1 failed", "got 1, want 2"}, []string{"fine", "=== RUN"}, 1},
		{"a test that never ends has failed", `{"Action":"run","Package":"m/a","Test":"TestX"}
{"Action":"output","Package":"m/a","Test":"TestX","Output":"panic: boom\n"}
{"Action":"fail","Package":"m/a"}`, "", "0 1 0", []string{"panic: boom"}, nil, 1},
		{"no build", `{"ImportPath":"m/a [m/a.test]","Action":"build-output","Output":"a.go:1:1: undefined: x\n"}
{"ImportPath":"m/a [m/a.test]","Action":"build-fail"}
{"Action":"fail","Package":"m/a","FailedBuild":"m/a [m/a.test]"}`, "", "0 1 0", []string{"undefined: x"}, nil, 1},
		{"a skip is told", `{"Action":"output","Package":"m/a","Test":"TestX","Output":"    x_test.go:3: needs root\n"}
{"Action":"output","Package":"m/a","Test":"TestX","Output":"--- SKIP: TestX (0.00s)\n"}
{"Action":"skip","Package":"m/a","Test":"TestX"}
{"Action":"pass","Package":"m/a"}`, "", "0 0 1", []string{"skipped TestX: x_test.go:3: needs root"}, nil, 0},
		{"a skip may be forbidden", `{"Action":"skip","Package":"m/a","Test":"TestX"}
{"Action":"pass","Package":"m/a"}`, "-no-skips", "0 0 1", []string{"skipped TestX"}, nil, 1},
		{"a package without tests is silent", `{"Action":"skip","Package":"m/a"}`, "", "0 0 0", nil, []string{"a"}, 0},
		{"cut off", `{"Action":"run","Package":"m/a","Test":"TestX"}`, "", "0 1 0", []string{"FAIL  a"}, nil, 1},
		{"the go command's own words", "go: cannot find main module", "", "0 0 0", []string{"go: cannot find main module"}, nil, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			var out, errs bytes.Buffer
			tally := filepath.Join(t.TempDir(), "tally")
			status := run(append([]string{"-module", "m", "-tally", tally}, strings.Fields(c.args)...), strings.NewReader(c.in), &out, &errs)
			if status != c.status || errs.Len() > 0 {
				t.Errorf("got status %d and %q, want %d", status, errs.String(), c.status)
			}
			for _, want := range c.want {
				if !strings.Contains(out.String(), want) {
					t.Errorf("missing %q in:\n%s", want, out.String())
				}
			}
			for _, not := range c.not {
				if strings.Contains(out.String(), not) {
					t.Errorf("unwanted %q in:\n%s", not, out.String())
				}
			}
			if got, err := os.ReadFile(tally); err != nil || strings.TrimSpace(string(got)) != c.tally {
				t.Errorf("got tally %q, %v, want %q", got, err, c.tally)
			}
		})
	}
}
