package api

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"mitm-appliance/flow"
	"mitm-appliance/option"
	"mitm-appliance/proxycore"
	"mitm-appliance/store"
)

func newService(t *testing.T) (*Service, *store.Store, *slog.Logger) {
	t.Helper()
	st := store.New(store.Config{})
	hub := NewLogHub(slog.LevelInfo, nil)
	return New(Config{Version: "test", Store: st, Options: option.New(), Logs: hub}), st, slog.New(hub)
}

func newFlow(live bool) *flow.Flow {
	return &flow.Flow{ID: flow.NewID(time.Now()), Kind: flow.KindDNS, Live: live, DNS: &flow.DNS{}}
}

func TestWatchTellsLogsFromBeforeThenWhatHappens(t *testing.T) {
	s, st, log := newService(t)
	log.With("client", "192.0.2.1:5").WithGroup("g").Info("before", "key", 7)
	log.Debug("too quiet")
	var got []string
	watching := make(chan struct{}, 10)
	done := make(chan error, 1)
	go func() {
		done <- s.Watch(t.Context(), func(e Event) error {
			switch e.Kind {
			case EventLog:
				line := "log " + e.Log.Message + " " + e.Log.Client
				for _, f := range e.Log.Attrs {
					line += " " + f.Key + "=" + f.Value
				}
				got = append(got, line)
			case EventFlow:
				got = append(got, "flow")
			case EventModes:
				got = append(got, "modes")
			}
			watching <- struct{}{}
			return nil
		})
	}()
	<-watching
	st.Record(newFlow(false), nil)
	<-watching
	s.ModesChanged()
	<-watching
	st.Close()
	if err := <-done; err != nil {
		t.Errorf("Watch ended with %v", err)
	}
	if want := []string{"log before 192.0.2.1:5 g.key=7", "flow", "modes"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestWatchEndsWithItsContextAndItsFunction(t *testing.T) {
	s, st, _ := newService(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Watch(ctx, func(Event) error { return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	full := errors.New("output is gone")
	go func() {
		for range 100 {
			st.Record(newFlow(false), nil)
			time.Sleep(time.Millisecond)
		}
	}()
	if err := s.Watch(t.Context(), func(Event) error { return full }); !errors.Is(err, full) {
		t.Errorf("got %v", err)
	}
}

func TestEditRevertAndVerbs(t *testing.T) {
	s, st, _ := newService(t)
	f := newFlow(false)
	st.Record(f, nil)
	for _, comment := range []string{"first", "second"} {
		if err := s.Edit(t.Context(), f.ID, func(f *flow.Flow) { f.Comment = comment }); err != nil {
			t.Fatal(err)
		}
	}
	edited, err := s.Flow(t.Context(), f.ID)
	if err != nil || edited.Comment != "second" || edited.Backup == nil || edited.Backup.Comment != "" || f.Comment != "" {
		t.Fatalf("after edits: %+v, %v; the old snapshot says %q", edited, err, f.Comment)
	}
	if err := s.Do(t.Context(), Revert, f.ID); err != nil {
		t.Fatal(err)
	}
	if back, _ := s.Flow(t.Context(), f.ID); back.Comment != "" || back.Backup != nil {
		t.Errorf("after revert: %+v", back)
	}
	if err := s.Do(t.Context(), Kill, f.ID); !errors.Is(err, proxycore.ErrNotLive) {
		t.Errorf("killing a finished flow: %v", err)
	}
	if err := s.Do(t.Context(), Remove, f.ID); err != nil {
		t.Fatal(err)
	}
	if err := s.Do(t.Context(), Resume, f.ID); !errors.Is(err, ErrUnknownFlow) || !strings.Contains(err.Error(), f.ID.String()) {
		t.Errorf("resuming an unknown flow: %v", err)
	}
	if err := s.Do(t.Context(), Verb("dance"), f.ID); err == nil {
		t.Error("an unknown verb was accepted")
	}
}
