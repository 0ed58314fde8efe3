// Package readfile loads flows from a file at start: the option rfile (ADD-readfile).
//
// In: a flow file, or standard input. Out: its flows, one by one, to whoever replays them through the
// hooks. It knows no filter and no format but mitmproxy's dump format.
package readfile

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"mitm-appliance/flow"
	"mitm-appliance/flow/flowfile"
	"mitm-appliance/option"
	"mitm-appliance/proxycore"
)

// Options are the settings of this addon.
type Options struct {
	File option.OptString // rfile
}

// DeclareOptions declares them.
func DeclareOptions(r *option.Registry) *Options {
	return &Options{
		File: r.OptString("rfile", "Load flows from this file at start; - means standard input.", option.NeedsRestart()),
	}
}

// Config is what an Addon is built from. Options and Replay are required.
type Config struct {
	Options *Options
	Logger  *slog.Logger // nil discards
	// Replay runs one flow through the hooks (proxycore.Core.Replay). Reading goes on when it
	// returns, so that it may hold the reader back. Its error ends reading.
	Replay func(context.Context, *flow.Flow) error
	Stdin  io.ReadCloser // nil means the program's
}

// Addon reads in the background, from the running hook to the end of the file or the done hook.
type Addon struct {
	cfg      Config
	cancel   context.CancelFunc // nil until something is read
	finished chan struct{}
}

var _ interface {
	proxycore.RunningHook
	proxycore.DoneHook
} = (*Addon)(nil)

// New returns an Addon.
func New(cfg Config) *Addon {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return &Addon{cfg: cfg, finished: make(chan struct{})}
}

// Finished is closed when the file that rfile names has been read, as far as it could be. Without the
// option it never is: there was nothing to wait for (ADD-keepserving).
func (a *Addon) Finished() <-chan struct{} { return a.finished }

// Running begins to read. It outlives the hook's context.
func (a *Addon) Running(ctx context.Context) error {
	path := a.cfg.Options.File.Text()
	if path == "" {
		return nil
	}
	ctx, a.cancel = context.WithCancel(context.WithoutCancel(ctx))
	go func() { // Done waits for it
		defer close(a.finished)
		a.load(ctx, path)
	}()
	return nil
}

// Done ends reading, and waits until it has ended or ctx has.
func (a *Addon) Done(ctx context.Context) error {
	if a.cancel == nil {
		return nil
	}
	a.cancel()
	select {
	case <-a.finished:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (a *Addon) load(ctx context.Context, path string) {
	log := a.cfg.Logger.With("path", path)
	in, err := a.open(path)
	if err != nil {
		log.Error("cannot load flows", "err", err)
		return
	}
	stop := context.AfterFunc(ctx, func() { _ = in.Close() }) // wakes a read that waits
	defer func() {
		if stop() {
			_ = in.Close() // it was only read
		}
	}()
	n, bad, err := a.replayAll(ctx, flowfile.NewReader(in))
	switch {
	case ctx.Err() != nil:
		log.Info("loading flows was stopped", "loaded", n)
	case err != nil && n == 0:
		log.Error("cannot load flows", "err", err)
	case err != nil:
		log.Warn("flow file is damaged, its flows were loaded up to there", "loaded", n, "err", err)
	case bad.count > 0:
		log.Warn("some flows could not be loaded", "loaded", n, "failed", bad.count, "first", bad.first)
	default:
		log.Info("flows were loaded", "loaded", n)
	}
}

// failures are flows that are in the file but not readable.
type failures struct {
	count int
	first error
}

// replayAll returns how many flows were replayed. err is why reading could not go on.
func (a *Addon) replayAll(ctx context.Context, r *flowfile.Reader) (n int, bad failures, err error) {
	for ctx.Err() == nil {
		f, err := r.Next()
		var one *flowfile.FileError
		switch {
		case err == nil:
			if err := a.cfg.Replay(ctx, f); err != nil {
				return n, bad, err
			}
			n++
			continue
		case errors.Is(err, io.EOF):
			if n == 0 {
				err = bad.first
			} else {
				err = nil
			}
			return n, bad, err
		case errors.As(err, &one) && !one.Final():
			if bad.count++; bad.count == 1 {
				bad.first = err
			}
			continue
		}
		return n, bad, err
	}
	return n, bad, context.Cause(ctx)
}

func (a *Addon) open(path string) (io.ReadCloser, error) {
	if path != "-" {
		if home, err := os.UserHomeDir(); err == nil && strings.HasPrefix(path, "~/") {
			path = filepath.Join(home, path[2:])
		}
		return os.Open(path)
	}
	if a.cfg.Stdin != nil {
		return a.cfg.Stdin, nil
	}
	info, err := os.Stdin.Stat()
	if err != nil {
		return nil, err
	}
	// A pipe or terminal is opened once more, as Go can interrupt a read only on what it opened. A
	// file would be read from its beginning then, but reading that never waits.
	if info.Mode()&(fs.ModeNamedPipe|fs.ModeCharDevice) != 0 {
		if again, err := os.Open("/dev/stdin"); err == nil {
			return again, nil
		}
	}
	return os.Stdin, nil
}
