//go:build linux

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"strconv"
	"time"
)

// testCase is one kind of work that several subjects do.
type testCase struct {
	name     string
	metrics  []metric
	subjects []subject
	targets  []target
	rounds   int // 0: as many as the user wants
	measure  func(ctx context.Context, b *bench, r *running) (sample, error)
}

// metric is a figure of a case, by its name in samples.
type metric struct{ name, unit string }

// sample is what one measurement of one subject gave.
type sample map[string]float64

// target compares a subject's metric with a reference's: their ratio should be at least limit, or at
// most. Without a reference the figure itself is compared; with limit 0 it is only shown.
type target struct {
	metric, subject, reference string
	limit                      float64
	atMost                     bool
}

const (
	speed = "speed"
	work  = "cpu"
	peak  = "peak"
	calm  = "idle cpu"
)

func allCases(s settings) []testCase {
	var cases []testCase
	for _, streams := range []int{1, 4} {
		for _, direction := range []string{"up", "down"} {
			cases = append(cases, bulkCase(streams, direction))
		}
	}
	cases = append(cases, connectCase(), udpCase(), idleCase(s))
	for _, streams := range []int{1, 4} {
		for _, direction := range []string{"up", "down"} {
			cases = append(cases, wireGuardCase(streams, direction))
		}
	}
	cases = append(cases,
		httpCase(s, "https keep-alive 1 KiB", 1.2, 0.8, 15, "-size", strconv.Itoa(smallBody)),
		httpCase(s, "https new connections", 0.8, 0, 3, "-size", strconv.Itoa(smallBody), "-fresh"),
		httpCase(s, "https bodies 100 KB", 0.9, 0, 6, "-size", strconv.Itoa(largeBody)),
		memoryCase(s))
	if s.variant != "" {
		for i := range cases {
			cases[i].addVariant(s.variant)
		}
	}
	return cases
}

// addVariant measures another build of the product beside every subject that is the product.
func (c *testCase) addVariant(path string) {
	for _, s := range c.subjects {
		if !s.product {
			continue
		}
		name := s.name + " variant"
		c.subjects = append(c.subjects, subject{name: name, start: func(ctx context.Context, b *bench) (*running, error) {
			other := *b
			other.product = path
			return s.start(ctx, &other)
		}})
		for _, m := range c.metrics {
			c.targets = append(c.targets, target{m.name, name, s.name, 0, false})
		}
	}
}

func bulkCase(streams int, direction string) testCase {
	c := testCase{
		name:     fmt.Sprintf("bulk %d %s", streams, direction),
		metrics:  []metric{{speed, "Gbit/s"}, {work, "CPU s/GB"}},
		subjects: []subject{tunMode(), transparentLAN(), tproxy(), naive()},
		measure:  bulk(streams, direction),
	}
	for _, name := range []string{"tun", "transparent"} {
		c.targets = append(c.targets,
			target{speed, name, "tproxy", 0.8, false}, target{speed, name, "naive", 6, false}, target{work, name, "tproxy", 2.5, true})
	}
	if streams == 1 {
		c.subjects = append(c.subjects, product("tun unrecorded", "tun:bench0", "--set", "stream_store_limit=0"))
		c.targets = append(c.targets, target{speed, "tun unrecorded", "tproxy", 0, false})
	}
	return c
}

func wireGuardCase(streams int, direction string) testCase {
	limit := map[string]float64{"up": 0.8, "down": 0.5}[direction]
	return testCase{
		name:     fmt.Sprintf("wireguard %d %s", streams, direction),
		metrics:  []metric{{speed, "Gbit/s"}, {work, "CPU s/GB"}},
		subjects: []subject{wireGuardProduct(), wireGuardForward()},
		targets:  []target{{speed, "wireguard", "forward", limit, false}, {work, "wireguard", "forward", 0, true}},
		measure:  bulk(streams, direction),
	}
}

// bulk moves bytes with iperf3, or with this program's own sender, which costs the ends less.
func bulk(streams int, direction string) func(context.Context, *bench, *running) (sample, error) {
	return func(ctx context.Context, b *bench, r *running) (sample, error) {
		send := b.iperf
		if b.ownSender {
			send = b.send
		}
		before := cpu(r.pid())
		c, err := send(ctx, streams, direction == "down")
		if err := enough(c, err, 1e6); err != nil {
			return nil, err
		}
		return sample{speed: c.rate() * 8 / 1e9, work: (cpu(r.pid()) - before) / (c.Ops / 1e9)}, nil
	}
}

func (b *bench) send(ctx context.Context, streams int, down bool) (counted, error) {
	return b.generate(ctx, b.duration+20*time.Second, "bulk", "-streams", strconv.Itoa(streams),
		"-down="+strconv.FormatBool(down), "-duration", b.duration.String())
}

// iperf has a server for itself: one whose client vanished with a tunnel would stay busy.
func (b *bench) iperf(ctx context.Context, streams int, down bool) (c counted, err error) {
	ctx, cancel := context.WithTimeout(ctx, b.duration+20*time.Second)
	defer cancel()
	far, err := b.launch(ctx, b.internet.Command(context.WithoutCancel(ctx), "iperf3", "-s", "-1"), b.listening(b.internet, 5201))
	if err != nil {
		return c, err
	}
	defer far.stop()
	args := []string{"-J", "-c", server(0), "-P", strconv.Itoa(streams), "-t", strconv.Itoa(int(math.Ceil(b.duration.Seconds())))}
	if down {
		args = append(args, "-R")
	}
	out, err := b.client.Command(ctx, "iperf3", args...).Output()
	if err != nil {
		return c, fmt.Errorf("iperf3: %w: %.300s", err, out)
	}
	var result struct {
		Error string
		End   struct {
			Received struct{ Bytes, Seconds float64 } `json:"sum_received"`
		}
	}
	if err := json.Unmarshal(out, &result); err != nil || result.Error != "" {
		return c, fmt.Errorf("iperf3: %s: %w", result.Error, err)
	}
	return counted{Ops: result.End.Received.Bytes, Seconds: result.End.Received.Seconds}, nil
}

// enough refuses a measurement with errors, or in which nothing happened.
func enough(c counted, err error, least float64) error {
	switch {
	case err != nil:
		return err
	case float64(c.Errors) > c.Ops/100:
		return fmt.Errorf("%d errors for %.0f successes, such as: %s", c.Errors, c.Ops, c.Error)
	case c.Ops < least:
		return fmt.Errorf("only %.0f successes", c.Ops)
	}
	return nil
}

// counting is a case whose generator counts operations.
func counting(args ...string) func(context.Context, *bench, *running) (sample, error) {
	return func(ctx context.Context, b *bench, r *running) (sample, error) {
		before := cpu(r.pid())
		all := append(append([]string{}, args...), append(r.http, "-duration", b.duration.String())...)
		c, err := b.generate(ctx, b.duration+20*time.Second, all...)
		if err := enough(c, err, 10); err != nil {
			return nil, err
		}
		return sample{speed: c.rate(), work: (cpu(r.pid()) - before) / c.Ops * 1e6}, nil
	}
}

func connectCase() testCase {
	return testCase{
		name:     "tcp connections",
		metrics:  []metric{{speed, "conn/s"}, {work, "CPU µs/conn"}},
		subjects: []subject{tunMode(), transparentLAN(), tproxy()},
		targets:  []target{{speed, "tun", "tproxy", 0.85, false}, {speed, "transparent", "tproxy", 0.85, false}},
		measure: func(ctx context.Context, b *bench, r *running) (sample, error) {
			withoutHTTP := &running{process: r.process}
			return counting("connect")(ctx, b, withoutHTTP)
		},
	}
}

func udpCase() testCase {
	c := connectCase()
	c.name, c.metrics = "udp 200 B echo", []metric{{speed, "packets/s"}, {work, "CPU µs/packet"}}
	c.targets = []target{{speed, "tun", "tproxy", 0.6, false}, {speed, "transparent", "tproxy", 0.6, false}}
	c.measure = func(ctx context.Context, b *bench, r *running) (sample, error) {
		return counting("udp")(ctx, b, &running{process: r.process})
	}
	return c
}

// idleCase holds more connections than one process may have descriptors, so two generators share them.
func idleCase(s settings) testCase {
	conns := 20_000
	if s.quick {
		conns = 4_000
	}
	return testCase{
		name:     fmt.Sprintf("%d idle tcp", conns),
		metrics:  []metric{{speed, "KB/conn"}, {calm, "CPU s in 3 s"}},
		subjects: []subject{product("tun lazy", "tun:bench0", "--set", "connection_strategy=lazy")},
		targets:  []target{{speed, "tun lazy", "", 16, true}, {calm, "tun lazy", "", 0.03, true}},
		rounds:   1,
		measure: func(ctx context.Context, b *bench, r *running) (sample, error) {
			return b.idle(ctx, r, conns)
		},
	}
}

func (b *bench) idle(ctx context.Context, r *running, conns int) (sample, error) {
	const generators = 2
	before, err := memory(r.pid(), "VmRSS")
	if err != nil {
		return nil, err
	}
	for range generators {
		stop, c, err := b.hold(ctx, conns/generators)
		if stop != nil {
			defer stop()
		}
		if err := enough(c, err, float64(conns/generators)); err != nil {
			return nil, err
		}
	}
	// Longer than a client's first bytes are awaited, so that nothing is still to happen.
	if err := sleep(ctx, 4*time.Second); err != nil {
		return nil, err
	}
	busy := cpu(r.pid())
	if err := sleep(ctx, 3*time.Second); err != nil {
		return nil, err
	}
	busy = cpu(r.pid()) - busy
	after, err := memory(r.pid(), "VmRSS")
	return sample{speed: (after - before) / float64(conns) / 1e3, calm: busy}, err
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// hold starts a generator of idle connections; stop ends it.
func (b *bench) hold(ctx context.Context, conns int) (stop func(), c counted, err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, c, err
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	cmd := b.client.Command(ctx, self, "idle", "-conns", strconv.Itoa(conns))
	in, err := cmd.StdinPipe()
	if err != nil {
		cancel()
		return nil, c, err
	}
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		cancel()
		return nil, c, err
	}
	stop = func() {
		_ = in.Close()
		_ = cmd.Wait() // its result was read
		cancel()
	}
	return stop, c, json.NewDecoder(out).Decode(&c)
}

// httpCase compares interceptors. A limit of 0 is no target.
func httpCase(s settings, name string, goproxy, nginx, mitmproxy float64, args ...string) testCase {
	c := testCase{
		name:     name,
		metrics:  []metric{{speed, "req/s"}, {work, "CPU µs/req"}},
		subjects: []subject{product("regular", "regular"), goproxySubject(), nginxSubject()},
		targets: []target{
			{speed, "regular", "goproxy", goproxy, false}, {speed, "regular", "nginx", nginx, false},
			{work, "regular", "goproxy", 0, true},
		},
		measure: counting(append([]string{"http"}, args...)...),
	}
	if s.mitmproxy != "" {
		c.subjects = append(c.subjects, mitmproxySubject())
		c.targets = append(c.targets, target{speed, "regular", "mitmproxy", mitmproxy, false})
	}
	return c
}

// memoryCase records many more flows than the store may keep.
func memoryCase(s settings) testCase {
	requests := 1_000_000
	if s.quick {
		requests = 100_000
	}
	return testCase{
		name:     fmt.Sprintf("rss after %d requests", requests),
		metrics:  []metric{{speed, "MB"}, {peak, "MB peak"}},
		subjects: []subject{product("regular, 64 MiB store", "regular", "--set", "store_limit=64")},
		targets:  []target{{speed, "regular, 64 MiB store", "", 250, true}, {peak, "regular, 64 MiB store", "", 0, true}},
		rounds:   1,
		measure: func(ctx context.Context, b *bench, r *running) (sample, error) {
			const limit = 5 * time.Minute
			args := append([]string{"http", "-plain", "-size", strconv.Itoa(smallBody), "-duration", limit.String(),
				"-requests", strconv.Itoa(requests)}, r.http...)
			c, err := b.generate(ctx, limit+20*time.Second, args...)
			if err := enough(c, err, float64(requests)); err != nil {
				return nil, err
			}
			final, err := memory(r.pid(), "VmRSS")
			most, errPeak := memory(r.pid(), "VmHWM")
			return sample{speed: final / 1e6, peak: most / 1e6}, errors.Join(err, errPeak)
		},
	}
}
