package store

import (
	"context"
	"errors"
	"testing"
	"time"

	"mitm-appliance/flow"
	"mitm-appliance/proxycore"
)

func newFlow(live bool, body int) *flow.Flow {
	f := &flow.Flow{ID: flow.NewID(time.Now()), Kind: flow.KindHTTP, Live: live, HTTP: &flow.HTTP{}}
	f.HTTP.Request.Body = flow.BodyOf(make([]byte, body))
	return f
}

func TestOldestFinishedFlowsGoFirst(t *testing.T) {
	s := New(Config{Limit: 64 << 10})
	live := newFlow(true, 10<<10)
	s.Record(live, &proxycore.LiveFlow{Flow: live})
	var last *flow.Flow
	for range 100 {
		last = newFlow(false, 10<<10)
		s.Record(last, nil)
	}
	if _, ok := s.Get(live.ID); !ok {
		t.Error("the live flow was evicted")
	}
	if s.Live(live.ID) == nil {
		t.Error("the live flow lost its live side")
	}
	if _, ok := s.Get(last.ID); !ok {
		t.Error("the newest flow was evicted")
	}
	if st := s.Stats(); st.Bytes > st.Limit || st.Flows > 7 || st.Evicted != uint64(101-st.Flows) {
		t.Errorf("stats after eviction: %+v", st)
	}
	if got := len(s.All()); got != s.Stats().Flows {
		t.Errorf("All has %d flows, Stats %d", got, s.Stats().Flows)
	}
}

func TestANewerStateReplacesTheOlder(t *testing.T) {
	s := New(Config{})
	f := newFlow(true, 1)
	s.Record(f, nil)
	g := f.Snapshot()
	g.Live = false
	s.Record(g, nil)
	if got, _ := s.Get(f.ID); got != g || s.Stats().Flows != 1 {
		t.Errorf("got %p of %d flows, want the newer state %p alone", got, s.Stats().Flows, g)
	}
	s.Remove(f.ID)
	if st := s.Stats(); st.Flows != 0 || st.Bytes != 0 {
		t.Errorf("after Remove: %+v", st)
	}
}

func TestMessagesAreCountedAsTheyCome(t *testing.T) {
	s := New(Config{})
	f := &flow.Flow{ID: flow.NewID(time.Now()), Kind: flow.KindTCP, Live: true, Stream: &flow.Stream{}}
	size := func(messages, bytes int64) int64 { return flowSize + messages*messageSize + bytes }
	record := func(want int64) {
		t.Helper()
		s.Record(f.Snapshot(), nil)
		if got := s.Stats().Bytes; got != want {
			t.Errorf("%d messages weigh %d, want %d", len(f.Stream.Messages), got, want)
		}
	}
	record(size(0, 0))
	for i := range int64(3) {
		f.Stream.Messages = append(f.Stream.Messages, flow.StreamMessage{Data: make([]byte, 100)})
		record(size(i+1, 100*(i+1)))
	}
	f.Stream.Messages = []flow.StreamMessage{{Data: make([]byte, 7)}} // an addon dropped the rest
	record(size(1, 7))
	f.Stream.Messages[0].Data, f.Live = nil, false
	record(size(1, 0))
}

func TestWatchMergesStatesOfOneFlow(t *testing.T) {
	s := New(Config{})
	w := s.Watch()
	defer w.Close()
	a, b := newFlow(true, 1), newFlow(true, 1)
	s.Record(a, nil)
	s.Record(b, nil)
	final := a.Snapshot()
	s.Record(final, nil)
	flows, missed, err := w.Next(t.Context())
	if err != nil || missed != 0 || len(flows) != 2 || flows[0] != final || flows[1] != b {
		t.Fatalf("got %v, missed %d, %v; want the final state of a, then b", flows, missed, err)
	}
}

func TestASlowWatcherMissesTheOldestAndIsTold(t *testing.T) {
	s := New(Config{})
	w := s.Watch()
	defer w.Close()
	var last *flow.Flow
	for range maxPending + 10 {
		last = newFlow(false, 0)
		s.Record(last, nil)
	}
	flows, missed, err := w.Next(t.Context())
	if err != nil || missed != 10 || len(flows) != maxPending || flows[maxPending-1] != last {
		t.Fatalf("got %d flows, missed %d, %v", len(flows), missed, err)
	}
}

func TestCloseDeliversWhatIsPending(t *testing.T) {
	s := New(Config{})
	w := s.Watch()
	s.Record(newFlow(false, 0), nil)
	s.Close()
	if flows, _, err := w.Next(t.Context()); err != nil || len(flows) != 1 {
		t.Fatalf("got %d flows, %v; want the pending one", len(flows), err)
	}
	if _, _, err := w.Next(t.Context()); !errors.Is(err, ErrClosed) {
		t.Fatalf("got %v, want ErrClosed", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := New(Config{}).Watch().Next(ctx); !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v, want the context's error", err)
	}
}

func TestSettleWaitsForWatchersThatAreFarBehind(t *testing.T) {
	s := New(Config{})
	s.Settle(t.Context()) // nobody watches
	w := s.Watch()
	defer w.Close()
	for range maxPending/2 + 1 {
		s.Record(newFlow(false, 0), nil)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if s.Settle(ctx); ctx.Err() == nil {
		t.Error("Settle returned while the watcher was behind")
	}
	if _, _, err := w.Next(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.Settle(t.Context())
}
