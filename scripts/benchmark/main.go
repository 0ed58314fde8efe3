//go:build linux

// Command benchmark measures mitm-appliance against other ways to do the same work, side by side in
// one run, and prints one table of ratios: see scripts/bench --help and docs/performance.md.
//
// In: a built mitm-appliance binary and root. Out: a table, and the raw figures as JSON when asked
// for. It makes its own network of namespaces; every program that takes part is a child process of
// it, most of them this same binary with a worker's name as first argument.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"regexp"
	"syscall"
	"time"
)

// settings of a run.
type settings struct {
	product   string
	variant   string // another build of the product, compared with it; empty: none
	only      *regexp.Regexp
	rounds    int
	duration  time.Duration
	quick     bool
	ownSender bool   // for bulk, instead of iperf3
	mitmproxy string // its mitmdump; empty: not measured
	json      string
	perf      string // directory for profiles of the product; empty: none
	list      bool
}

func main() {
	if len(os.Args) > 1 {
		if work := workers()[os.Args[1]]; work != nil {
			if err := work(os.Args[2:]); err != nil {
				fmt.Fprintf(os.Stderr, "benchmark %s: %v\n", os.Args[1], err)
				os.Exit(1)
			}
			return
		}
	}
	if err := run(); err != nil {
		fmt.Fprintf(os.Stderr, "scripts/bench: %v\n", err)
		os.Exit(1)
	}
}

// workers are the roles that this binary plays in the namespaces.
func workers() map[string]func([]string) error {
	return map[string]func([]string) error{
		"server":  serverWorker,  // the Internet's TCP and UDP servers
		"bulk":    bulkWorker,    // clients
		"connect": connectWorker, //
		"udp":     udpWorker,     //
		"idle":    idleWorker,    //
		"http":    httpWorker,    //
		"phone":   phoneWorker,   //
		"tproxy":  tproxyWorker,  // what the product is compared with
		"naive":   naiveWorker,   //
		"forward": forwardWorker, //
		"goproxy": goproxyWorker, //
	}
}

func parse() (settings, error) {
	s := settings{}
	only := flag.String("only", "", "")
	seconds := flag.Float64("duration", 0, "")
	flag.StringVar(&s.product, "product", "", "")
	flag.StringVar(&s.variant, "variant", "", "")
	flag.IntVar(&s.rounds, "rounds", 0, "")
	flag.BoolVar(&s.quick, "quick", false, "")
	flag.BoolVar(&s.ownSender, "own-sender", false, "")
	flag.BoolVar(&s.list, "list", false, "")
	flag.StringVar(&s.mitmproxy, "mitmdump", "", "")
	flag.StringVar(&s.json, "json", "", "")
	flag.StringVar(&s.perf, "perf", "", "")
	flag.Parse()
	rounds, length := 3, 2.0
	if s.quick {
		rounds, length = 1, 1.0
	}
	if s.rounds == 0 {
		s.rounds = rounds
	}
	if *seconds == 0 {
		*seconds = length
	}
	s.duration = time.Duration(*seconds * float64(time.Second))
	var err error
	switch {
	case flag.NArg() > 0:
		err = fmt.Errorf("unknown argument %q", flag.Arg(0))
	case s.rounds < 1 || s.duration < 100*time.Millisecond:
		err = errors.New("expected at least one round of at least 0.1 seconds")
	case *only != "":
		if s.only, err = regexp.Compile(*only); err != nil {
			err = fmt.Errorf("--only: %w", err)
		}
	}
	return s, err
}

func run() (err error) {
	s, err := parse()
	if err != nil {
		return err
	}
	cases := selected(allCases(s), s.only)
	if s.list {
		for _, c := range cases {
			fmt.Println(c.name)
		}
		return nil
	}
	if len(cases) == 0 {
		return errors.New("no case has a name that matches --only (see --list)")
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	start := time.Now()
	b, err := newBench(ctx, s)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.close()) }()
	report := newReport(s, b)
	for _, c := range cases {
		if ctx.Err() != nil {
			break
		}
		report.add(c, b.runCase(ctx, c))
	}
	report.print(os.Stdout, time.Since(start))
	if s.json != "" {
		return report.writeJSON(s.json)
	}
	return nil
}

func selected(cases []testCase, only *regexp.Regexp) []testCase {
	var out []testCase
	for _, c := range cases {
		if only == nil || only.MatchString(c.name) {
			out = append(out, c)
		}
	}
	return out
}
