// Package store keeps the flows that were seen: a window of recent ones in memory, bounded in bytes,
// and a feed of changes for whoever watches.
//
// In: snapshots from the core's serving goroutines (it is a proxycore.Recorder). Out: flows by ID and
// in order of arrival, and Watch. It never blocks traffic. It knows no protocol and no face.
package store

import (
	"sync"

	"mitm-appliance/flow"
	"mitm-appliance/proxycore"
)

// DefaultLimit is how many bytes of flows are kept, by estimate, unless Config says otherwise.
const DefaultLimit = 256 << 20

// Config of a Store.
type Config struct {
	// Limit is how many bytes of finished flows are kept, by estimate: above it the oldest finished
	// ones go. Live flows are always kept. 0 means DefaultLimit.
	Limit int64
}

// Store is safe for concurrent use. Make one with New.
type Store struct {
	mu       sync.Mutex
	limit    int64
	bytes    int64
	byID     map[flow.ID]*entry
	order    queue // of arrival; evicted from the front
	watchers map[*Watcher]struct{}
	evicted  uint64
	closed   bool
}

type entry struct {
	f    *flow.Flow
	live *proxycore.LiveFlow // nil once f is final
	size int64

	messages counted
}

var _ proxycore.Recorder = (*Store)(nil)

// New returns an empty store.
func New(cfg Config) *Store {
	if cfg.Limit == 0 {
		cfg.Limit = DefaultLimit
	}
	return &Store{limit: cfg.Limit, byID: map[flow.ID]*entry{}, watchers: map[*Watcher]struct{}{}}
}

// Record takes a snapshot, the newest state of its flow, and its live side while it has one.
func (s *Store) Record(f *flow.Flow, l *proxycore.LiveFlow) {
	if !f.Live {
		l = nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.byID[f.ID]
	if e == nil {
		e = &entry{}
		s.byID[f.ID] = e
		s.order.push(e)
	}
	size := e.messages.footprint(f)
	s.bytes += size - e.size
	e.f, e.live, e.size = f, l, size
	for w := range s.watchers {
		w.put(f)
	}
	s.evict()
}

// evict drops finished flows from the old end. Live ones that it meets go to the young end: they
// cannot be dropped, and must not be looked at again and again.
func (s *Store) evict() {
	for tries := s.order.len(); s.bytes > s.limit && tries > 0; tries-- {
		e := s.order.pop()
		if e.live != nil {
			s.order.push(e)
			continue
		}
		delete(s.byID, e.f.ID)
		s.bytes -= e.size
		s.evicted++
	}
}

// Get returns the newest snapshot of a flow.
func (s *Store) Get(id flow.ID) (*flow.Flow, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.byID[id]; e != nil {
		return e.f, true
	}
	return nil, false
}

// Live returns the live side of a flow, nil when it has ended or is unknown.
func (s *Store) Live(id flow.ID) *proxycore.LiveFlow {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.byID[id]; e != nil {
		return e.live
	}
	return nil
}

// All returns the newest snapshots of all flows in order of arrival.
func (s *Store) All() []*flow.Flow {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]*flow.Flow, 0, s.order.len())
	for e := range s.order.all() {
		out = append(out, e.f)
	}
	return out
}

// Remove forgets flows. Live ones are killed.
func (s *Store) Remove(ids ...flow.ID) {
	var live []*proxycore.LiveFlow
	s.mu.Lock()
	for _, id := range ids {
		e := s.byID[id]
		if e == nil {
			continue
		}
		delete(s.byID, id)
		s.bytes -= e.size
		if e.live != nil {
			live = append(live, e.live)
			e.live = nil
		}
	}
	s.order.keep(func(e *entry) bool { return s.byID[e.f.ID] == e })
	s.mu.Unlock()
	for _, l := range live {
		_ = l.Kill(nil) // it may have ended meanwhile, which is as good
	}
}

// SetLimit changes Config.Limit; the oldest finished flows go at once if need be.
func (s *Store) SetLimit(bytes int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.limit = bytes
	s.evict()
}

// Stats are counters for people and metrics.
type Stats struct {
	Flows   int
	Bytes   int64  // estimate of what the flows occupy
	Limit   int64  // above it the oldest finished flows go
	Evicted uint64 // flows that went
}

// Stats returns the counters.
func (s *Store) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	return Stats{Flows: len(s.byID), Bytes: s.bytes, Limit: s.limit, Evicted: s.evicted}
}
