//go:build linux

// Package doctor says what this machine lacks for the modes that somebody wants to run.
//
// In: mode specs as on the command line. Out: findings, each with the modes it concerns and, where
// something is missing, the command that cures it. It looks and tries: sockets, a TUN device and rules
// that exist for a moment; it changes nothing that stays. It does not know the options of a running
// appliance, and a port that is in use by one is in use.
//
// It looks in the calling thread's network namespace.
package doctor

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"mitm-appliance/proxycore/mode"
)

// Severity says how bad a finding is.
type Severity int

// The severities, from good to bad.
const (
	OK   Severity = iota
	Warn          // the mode works, but less well
	Fail          // the mode cannot start, or captures nothing
)

// String is the word at the beginning of a line: "ok", "warn", "FAIL".
func (s Severity) String() string {
	switch s {
	case OK:
		return "ok"
	case Warn:
		return "warn"
	}
	return "FAIL"
}

// Finding is one thing that was looked at.
type Finding struct {
	Check    string   // short and stable: "tun device", "port 8080/tcp"
	Modes    []string // the specs that it concerns
	Severity Severity
	Detail   string // what was found
	Cure     string // a command, or what to do; "" when OK
}

// Defaults are the modes looked at when none is given: those that need anything of the machine.
func Defaults() []string {
	return []string{mode.Regular, mode.Transparent, mode.Local, mode.TUN, mode.WireGuard}
}

// Run looks at everything that the modes need; no modes means Defaults. It ends early, with what it has,
// when ctx does.
func Run(ctx context.Context, modes []string) []Finding {
	return run(ctx, modes, thisMachine())
}

func run(ctx context.Context, modes []string, m machine) []Finding {
	if len(modes) == 0 {
		modes = Defaults()
	}
	var list []Finding
	var specs []mode.Spec
	for _, text := range modes {
		s, err := mode.Parse(text)
		if err != nil {
			list = append(list, Finding{"mode", []string{text}, Fail, err.Error(), "mitm-appliance run --help"})
			continue
		}
		specs = append(specs, s)
	}
	for _, check := range []func(machine, []mode.Spec) []Finding{
		capabilities, tunDevice, interfaces, steering, localCapture, ports, wireguardFile, files,
	} {
		if ctx.Err() != nil {
			break
		}
		list = append(list, check(m, specs)...)
	}
	return list
}

// Worst is the highest severity of the list, OK for an empty one.
func Worst(list []Finding) Severity {
	worst := OK
	for _, f := range list {
		worst = max(worst, f.Severity)
	}
	return worst
}

// Print writes one line per finding: "ok|warn|FAIL  check (modes)  detail — cure: command".
func Print(w io.Writer, list []Finding, colour bool) error {
	width := 0
	for _, f := range list {
		width = max(width, len(f.what()))
	}
	for _, f := range list {
		word := fmt.Sprintf("%-4s", f.Severity)
		if colour {
			word = map[Severity]string{OK: "\x1b[32m", Warn: "\x1b[33m", Fail: "\x1b[31m"}[f.Severity] + word + "\x1b[0m"
		}
		line := fmt.Sprintf("%s  %-*s  %s", word, width, f.what(), oneLine(f.Detail))
		if f.Cure != "" {
			line += " — cure: " + oneLine(f.Cure)
		}
		if _, err := fmt.Fprintln(w, line); err != nil {
			return err
		}
	}
	return nil
}

func (f Finding) what() string { return f.Check + " (" + strings.Join(f.Modes, ", ") + ")" }

func oneLine(text string) string { return strings.Join(strings.Fields(text), " ") }

// named returns the specs of these kinds as they were written; nil when there is none.
func named(specs []mode.Spec, names ...string) []string {
	var out []string
	for _, s := range specs {
		if slices.Contains(names, s.Name) && !slices.Contains(out, s.Full) {
			out = append(out, s.Full)
		}
	}
	return out
}
