package api

import (
	"context"
	"log/slog"
	"slices"
	"sync"
)

// keptLogs is how many log records are kept for watchers that come later.
const keptLogs = 1000

// LogHub is a slog.Handler that keeps the latest records and tells watchers. It writes nowhere: a
// face prints. Make one with NewLogHub.
type LogHub struct {
	state *logState
	attrs []slog.Attr
	group string
}

type logState struct {
	level slog.Leveler
	tee   func(context.Context, slog.Record)
	mu    sync.Mutex
	kept  []*LogRecord // the latest keptLogs, oldest first
	first uint64       // number of kept[0]
	wake  map[chan struct{}]struct{}
}

// NewLogHub returns a hub that keeps records from level on. tee, when not nil, also sees each one.
func NewLogHub(level slog.Leveler, tee func(context.Context, slog.Record)) *LogHub {
	return &LogHub{state: &logState{level: level, tee: tee, wake: map[chan struct{}]struct{}{}}}
}

// Enabled implements slog.Handler.
func (h *LogHub) Enabled(_ context.Context, l slog.Level) bool { return l >= h.state.level.Level() }

// WithAttrs implements slog.Handler.
func (h *LogHub) WithAttrs(attrs []slog.Attr) slog.Handler {
	next := *h
	next.attrs = slices.Concat(h.attrs, prefixed(h.group, attrs))
	return &next
}

// WithGroup implements slog.Handler.
func (h *LogHub) WithGroup(name string) slog.Handler {
	next := *h
	next.group += name + "."
	return &next
}

func prefixed(group string, attrs []slog.Attr) []slog.Attr {
	if group == "" {
		return attrs
	}
	out := slices.Clone(attrs)
	for i := range out {
		out[i].Key = group + out[i].Key
	}
	return out
}

// Handle implements slog.Handler.
func (h *LogHub) Handle(ctx context.Context, r slog.Record) error {
	rec := &LogRecord{Time: r.Time, Level: r.Level, Message: r.Message}
	add := func(a slog.Attr) bool {
		if a.Key == "client" {
			rec.Client = a.Value.String()
		} else {
			rec.Attrs = append(rec.Attrs, LogField{a.Key, a.Value.Resolve().String()})
		}
		return true
	}
	for _, a := range h.attrs {
		add(a)
	}
	r.Attrs(func(a slog.Attr) bool {
		a.Key = h.group + a.Key
		return add(a)
	})
	h.state.keep(rec)
	if h.state.tee != nil {
		h.state.tee(ctx, r)
	}
	return nil
}

func (s *logState) keep(rec *LogRecord) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.kept) == keptLogs {
		s.kept = append(s.kept[:0:0], s.kept[keptLogs/4:]...)
		s.first += keptLogs / 4
	}
	s.kept = append(s.kept, rec)
	for w := range s.wake {
		select {
		case w <- struct{}{}:
		default: // it will look anyway
		}
	}
}

// since returns the kept records from number next on, and the number after the last.
func (s *logState) since(next uint64) ([]*LogRecord, uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	skip := 0
	if next > s.first {
		skip = int(next - s.first)
	}
	return slices.Clone(s.kept[min(skip, len(s.kept)):]), s.first + uint64(len(s.kept))
}

// subscribe returns a channel that gets a token after new records.
func (s *logState) subscribe() (wake chan struct{}, cancel func()) {
	wake = make(chan struct{}, 1)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.wake[wake] = struct{}{}
	return wake, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.wake, wake)
	}
}
