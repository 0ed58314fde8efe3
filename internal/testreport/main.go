// Command testreport turns the output of "go test -json" into what a person wants to read: one line per
// package, the full output of what failed, and the name and reason of every skipped test.
//
// In: events on standard input. Out: the report on standard output, everything unabridged in the file
// -log, and the counts "passed failed skipped" appended to the file -tally. It ends with status 1 when
// something failed, or was skipped although -no-skips was given. It runs no tests itself.
package main

import (
	"flag"
	"fmt"
	"io"
	"os"
)

func main() {
	os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

func run(args []string, in io.Reader, out, errs io.Writer) int {
	flags := flag.NewFlagSet("testreport", flag.ContinueOnError)
	flags.SetOutput(errs)
	module := flags.String("module", "", "`prefix` that package names are printed without")
	logFile := flags.String("log", os.DevNull, "append all output of the tests to this `file`")
	tallyFile := flags.String("tally", os.DevNull, "append the counts to this `file`")
	noSkips := flags.Bool("no-skips", false, "a skipped test is a failure")
	if err := flags.Parse(args); err != nil {
		return 2
	}
	log, err := os.OpenFile(*logFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		fmt.Fprintln(errs, "testreport:", err)
		return 2
	}
	defer log.Close()
	r := newReport(out, log, *module)
	if err := r.read(in); err != nil {
		fmt.Fprintln(errs, "testreport:", err)
		return 2
	}
	r.finish()
	if err := appendLine(*tallyFile, fmt.Sprintln(r.total.passed, r.total.failed, r.total.skipped)); err != nil {
		fmt.Fprintln(errs, "testreport:", err)
		return 2
	}
	if r.total.failed > 0 || *noSkips && r.total.skipped > 0 {
		return 1
	}
	return 0
}

func appendLine(path, line string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	if _, err := io.WriteString(f, line); err != nil {
		_ = f.Close()
		return err
	}
	return f.Close()
}
