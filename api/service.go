package api

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"mitm-appliance/flow"
	"mitm-appliance/option"
	"mitm-appliance/proxycore"
	"mitm-appliance/store"
)

// Config is what a Service speaks for.
type Config struct {
	Version string
	Store   *store.Store
	Options *option.Registry
	Logs    *LogHub
	Modes   func() []Mode
	Changed func([]*flow.Flow) // told about flows that were edited from outside; may be nil
}

// Service is the API in process.
type Service struct {
	cfg   Config
	modes modesFeed
}

var _ API = (*Service)(nil)

// New returns a Service.
func New(cfg Config) *Service {
	return &Service{cfg: cfg, modes: modesFeed{wake: map[chan struct{}]struct{}{}}}
}

// Version implements API.
func (s *Service) Version() string { return s.cfg.Version }

// Flows implements API.
func (s *Service) Flows(context.Context) ([]*flow.Flow, error) { return s.cfg.Store.All(), nil }

// Flow implements API.
func (s *Service) Flow(_ context.Context, id flow.ID) (*flow.Flow, error) {
	f, ok := s.cfg.Store.Get(id)
	if !ok {
		return nil, fmt.Errorf("flow %s: %w", id, ErrUnknownFlow)
	}
	return f, nil
}

// Do implements API.
func (s *Service) Do(_ context.Context, v Verb, ids ...flow.ID) error {
	var failed []error
	for _, id := range ids {
		if err := s.do(v, id); err != nil {
			failed = append(failed, fmt.Errorf("%s flow %s: %w", v, id, err))
		}
	}
	return errors.Join(failed...)
}

func (s *Service) do(v Verb, id flow.ID) error {
	if _, ok := s.cfg.Store.Get(id); !ok {
		return ErrUnknownFlow
	}
	live := s.cfg.Store.Live(id)
	switch v {
	case Remove:
		s.cfg.Store.Remove(id)
		return nil
	case Resume:
		if live == nil {
			return proxycore.ErrNotLive
		}
		live.Resume()
		return nil
	case Revert:
		return s.change(id, revert)
	case Kill:
		if live == nil {
			return proxycore.ErrNotLive
		}
		return live.Kill(nil)
	}
	return fmt.Errorf("unknown verb %q", v)
}

// Edit implements API.
func (s *Service) Edit(_ context.Context, id flow.ID, edit func(*flow.Flow)) error {
	change := func(f *flow.Flow) {
		if f.Backup == nil { // what Revert goes back to: the state before the first edit (FLOW-03)
			f.Backup = f.Snapshot()
		}
		edit(f)
	}
	return s.change(id, change)
}

// change changes a flow where it lives: with its owner, or in the store.
func (s *Service) change(id flow.ID, change func(*flow.Flow)) error {
	if live := s.cfg.Store.Live(id); live != nil {
		if err := live.Edit(change); !errors.Is(err, proxycore.ErrNotLive) {
			return err
		}
	}
	f, ok := s.cfg.Store.Get(id)
	if !ok {
		return fmt.Errorf("edit flow %s: %w", id, ErrUnknownFlow)
	}
	next := f.Snapshot()
	change(next)
	s.cfg.Store.Record(next, nil)
	if s.cfg.Changed != nil {
		s.cfg.Changed([]*flow.Flow{next})
	}
	return nil
}

// revert undoes all edits of a flow.
func revert(f *flow.Flow) {
	if before := f.Backup; before != nil {
		live, intercepted := f.Live, f.Intercepted
		*f = *before.Snapshot()
		f.Live, f.Intercepted, f.Backup = live, intercepted, nil
	}
}

// Inject implements API.
func (s *Service) Inject(_ context.Context, id flow.ID, toClient bool, data []byte, text bool) error {
	live := s.cfg.Store.Live(id)
	if live == nil {
		return fmt.Errorf("inject into flow %s: %w", id, proxycore.ErrNotLive)
	}
	return live.Inject(proxycore.Injection{ToClient: toClient, Data: data, Text: text})
}

// Options implements API.
func (s *Service) Options(context.Context) ([]Option, error) {
	var out []Option
	for _, spec := range s.cfg.Options.Specs() {
		v, _ := s.cfg.Options.Value(spec.Name)
		out = append(out, Option{spec, v})
	}
	return out, nil
}

// SetOptions implements API.
func (s *Service) SetOptions(_ context.Context, texts ...string) error {
	return s.cfg.Options.SetText(texts...)
}

// Modes implements API.
func (s *Service) Modes(context.Context) ([]Mode, error) {
	if s.cfg.Modes == nil {
		return nil, nil
	}
	return s.cfg.Modes(), nil
}

// ModesChanged tells the watchers that a mode came up, failed or went.
func (s *Service) ModesChanged() { s.modes.changed() }

// Watch implements API.
func (s *Service) Watch(ctx context.Context, f func(Event) error) error {
	logWake, logsDone := s.cfg.Logs.state.subscribe()
	defer logsDone()
	modeWake, modesDone := s.modes.subscribe()
	defer modesDone()
	flows := make(chan batch)
	ctx, cancel := context.WithCancel(ctx)
	var reader sync.WaitGroup
	defer reader.Wait()
	defer cancel()
	w := s.cfg.Store.Watch()
	reader.Go(func() { forward(ctx, w, flows) })

	var next uint64
	for {
		var records []*LogRecord
		records, next = s.cfg.Logs.state.since(next)
		for _, r := range records {
			if err := f(Event{Kind: EventLog, Log: r}); err != nil {
				return err
			}
		}
		select {
		case <-logWake:
		case <-modeWake:
			if err := f(Event{Kind: EventModes}); err != nil {
				return err
			}
		case b, more := <-flows:
			if !more {
				return s.lastLogs(ctx, next, f)
			}
			if err := b.tell(f); err != nil {
				return err
			}
		}
	}
}

// lastLogs delivers what was logged until the end.
func (s *Service) lastLogs(ctx context.Context, next uint64, f func(Event) error) error {
	records, _ := s.cfg.Logs.state.since(next)
	for _, r := range records {
		if err := f(Event{Kind: EventLog, Log: r}); err != nil {
			return err
		}
	}
	return context.Cause(ctx)
}

type batch struct {
	flows  []*flow.Flow
	missed int
}

func (b batch) tell(f func(Event) error) error {
	if b.missed > 0 {
		if err := f(Event{Kind: EventMissed, Missed: b.missed}); err != nil {
			return err
		}
	}
	for _, fl := range b.flows {
		if err := f(Event{Kind: EventFlow, Flow: fl}); err != nil {
			return err
		}
	}
	return nil
}

// forward moves batches from the store's watcher to a channel, which it closes at the end.
func forward(ctx context.Context, w *store.Watcher, out chan<- batch) {
	defer close(out)
	defer w.Close()
	for {
		flows, missed, err := w.Next(ctx)
		if err != nil {
			return // the end, or ctx: Watch tells which
		}
		select {
		case out <- batch{slices.Clip(flows), missed}:
		case <-ctx.Done():
			return
		}
	}
}

// modesFeed wakes watchers when modes change.
type modesFeed struct {
	mu   sync.Mutex
	wake map[chan struct{}]struct{}
}

func (m *modesFeed) subscribe() (wake chan struct{}, cancel func()) {
	wake = make(chan struct{}, 1)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.wake[wake] = struct{}{}
	return wake, func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		delete(m.wake, wake)
	}
}

func (m *modesFeed) changed() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for w := range m.wake {
		select {
		case w <- struct{}{}:
		default: // it will look anyway
		}
	}
}
