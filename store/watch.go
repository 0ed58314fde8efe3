package store

import (
	"context"
	"errors"
	"sync"
	"time"

	"mitm-appliance/flow"
)

// maxPending bounds the flows that wait for one slow watcher. Their bytes are shared with the
// store while they are in it.
const maxPending = 8192

// Watcher receives the newest state of every flow that changes. States of one flow that the watcher
// was too slow for are merged into the newest; when more than maxPending flows wait, the oldest are
// left out and counted.
type Watcher struct {
	store *Store
	wake  chan struct{} // capacity 1

	mu      sync.Mutex
	pending map[flow.ID]*flow.Flow
	order   []flow.ID
	missed  int
	closed  bool
}

// ErrClosed ends a watch: the store was closed and everything before has been delivered.
var ErrClosed = errors.New("store: closed")

// Watch starts watching changes from now on. Close the watcher.
func (s *Store) Watch() *Watcher {
	w := &Watcher{store: s, wake: make(chan struct{}, 1), pending: map[flow.ID]*flow.Flow{}}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		w.closed = true
		return w
	}
	s.watchers[w] = struct{}{}
	return w
}

// Close ends all watches, once they have delivered what is pending.
func (s *Store) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for w := range s.watchers {
		w.end()
	}
	clear(s.watchers)
}

// Close ends the watch.
func (w *Watcher) Close() {
	w.store.mu.Lock()
	delete(w.store.watchers, w)
	w.store.mu.Unlock()
	w.end()
}

func (w *Watcher) end() {
	w.mu.Lock()
	w.closed = true
	w.mu.Unlock()
	w.signal()
}

func (w *Watcher) signal() {
	select {
	case w.wake <- struct{}{}:
	default: // it will look anyway
	}
}

func (w *Watcher) put(f *flow.Flow) {
	w.mu.Lock()
	if _, waiting := w.pending[f.ID]; !waiting {
		w.order = append(w.order, f.ID)
		if len(w.order) > maxPending {
			delete(w.pending, w.order[0])
			w.order = w.order[1:]
			w.missed++
		}
	}
	w.pending[f.ID] = f
	w.mu.Unlock()
	w.signal()
}

// Next waits for changes and returns them, oldest first, with the number of flows that were left out
// since the last call. It returns ErrClosed at the end, or the cause of ctx.
func (w *Watcher) Next(ctx context.Context) (flows []*flow.Flow, missed int, err error) {
	for {
		if flows, missed, closed := w.take(); len(flows) > 0 || missed > 0 {
			return flows, missed, nil
		} else if closed {
			return nil, 0, ErrClosed
		}
		select {
		case <-w.wake:
		case <-ctx.Done():
			return nil, 0, context.Cause(ctx)
		}
	}
}

// Settle waits until no watcher is far behind, or ctx ends: for sources that can wait, as files can
// and traffic cannot, so that their flows are not left out.
func (s *Store) Settle(ctx context.Context) {
	const poll = 5 * time.Millisecond
	for s.behind() && ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-time.After(poll):
		}
	}
}

func (s *Store) behind() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for w := range s.watchers {
		w.mu.Lock()
		waiting := len(w.order)
		w.mu.Unlock()
		if waiting > maxPending/2 {
			return true
		}
	}
	return false
}

func (w *Watcher) take() (flows []*flow.Flow, missed int, closed bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, id := range w.order {
		flows = append(flows, w.pending[id])
	}
	w.order = w.order[:0]
	clear(w.pending)
	missed, w.missed = w.missed, 0
	return flows, missed, w.closed
}
