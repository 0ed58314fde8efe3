package mode

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"testing"
)

// fakeModes starts modes that only write down what happened to them.
type fakeModes struct{ events []string }

type fakeMode struct {
	log  *fakeModes
	spec Spec
}

func (f *fakeModes) start(_ context.Context, s Spec) (Instance, error) {
	f.events = append(f.events, "start "+s.Full)
	if s.Data == "broken" {
		return nil, errors.New("no such device")
	}
	return fakeMode{f, s}, nil
}

func (m fakeMode) State() State { return State{Interface: m.spec.Name} }
func (m fakeMode) Stop()        { m.log.events = append(m.log.events, "stop "+m.spec.Full) }

func TestApplyChangesOnlyWhatDiffers(t *testing.T) {
	fake := &fakeModes{}
	m := NewManager(fake.start, slog.New(slog.DiscardHandler), nil)
	apply := func(texts ...string) []error {
		fake.events = nil
		specs, err := ParseAll(texts, "", -1)
		if err != nil {
			t.Fatal(err)
		}
		return m.Apply(t.Context(), specs, "", -1)
	}
	expect := func(want ...string) {
		t.Helper()
		if !slices.Equal(fake.events, want) {
			t.Errorf("got %q, want %q", fake.events, want)
		}
	}
	apply("regular", "tun")
	expect("start regular", "start tun")
	apply("tun", "socks5")
	expect("stop regular", "start socks5")
	if failed := apply("tun", "transparent:broken", "dns"); len(failed) != 1 || !strings.Contains(failed[0].Error(), "no such device") {
		t.Errorf("a mode that cannot start gave %v", failed)
	}
	expect("stop socks5", "start transparent:broken", "start dns")
	if st := m.Status(); len(st) != 3 || st[1].Running || st[1].Err == nil || !st[2].Running {
		t.Errorf("status: %+v", st)
	}
	apply("tun", "transparent:broken", "dns") // tried again, as it never ran
	expect("start transparent:broken")
	fake.events = nil
	m.Stop()
	expect("stop dns", "stop tun")
}
