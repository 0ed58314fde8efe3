package dump

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strconv"
	"time"

	"github.com/mattn/go-isatty"
	"golang.org/x/term"

	"mitm-appliance/api"
	"mitm-appliance/flow"
)

// Dump is the face. Make one with New.
type Dump struct {
	// NoColor turns colours off also on a terminal. The environment's NO_COLOR does the same.
	NoColor bool

	options  *Options
	out, log io.Writer
	progress progress
}

// New returns a Dump that prints flows to out and log records to log, in colours where these are
// terminals.
func New(o *Options, out, log io.Writer) *Dump {
	return &Dump{options: o, out: out, log: log, progress: progress{flows: map[flow.ID]*printed{}}}
}

// Run prints what happens until the appliance has stopped (nil), ctx ends, or out cannot be written.
func (d *Dump) Run(ctx context.Context, a api.API) error {
	return a.Watch(ctx, d.event)
}

func (d *Dump) event(e api.Event) error {
	switch e.Kind {
	case api.EventFlow:
		return d.flow(e.Flow)
	case api.EventLog:
		d.record(e.Log)
	case api.EventMissed:
		d.record(&api.LogRecord{
			Time: time.Now(), Level: slog.LevelWarn,
			Message: fmt.Sprintf("%d flows were not printed, as printing is slower than the traffic", e.Missed),
		})
	}
	return nil
}

func (d *Dump) record(r *api.LogRecord) {
	if r.Level < d.options.level() {
		return
	}
	p := page{color: d.colors(d.log)}
	p.logLine(r)
	_, _ = d.log.Write(p.b) // there is nowhere left to complain
}

func (d *Dump) flow(f *flow.Flow) error {
	detail := d.options.Detail.Get()
	if detail == 0 {
		return nil
	}
	p := newPrinter(style{
		detail: detail, showHost: d.options.showHost(), lines: d.options.Lines.Get(),
		color: d.colors(d.out), width: width(d.out),
	})
	d.progress.print(p, f)
	if len(p.b) == 0 {
		return nil
	}
	if _, err := d.out.Write(p.b); err != nil {
		return fmt.Errorf("printing flows: %w", err)
	}
	return nil
}

// colors reports whether w takes colours (https://no-color.org).
func (d *Dump) colors(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && !d.NoColor && os.Getenv("NO_COLOR") == "" && isatty.IsTerminal(f.Fd())
}

// width is how wide the terminal is; 80 where there is none.
func width(w io.Writer) int {
	if n, err := strconv.Atoi(os.Getenv("COLUMNS")); err == nil && n > 0 {
		return n
	}
	if f, ok := w.(*os.File); ok {
		if n, _, err := term.GetSize(int(f.Fd())); err == nil && n > 0 {
			return n
		}
	}
	return 80
}
