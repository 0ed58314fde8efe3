package option

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestSubscriberMayReadOptions guards against a subscriber that waits for the change it is told of.
func TestSubscriberMayReadOptions(t *testing.T) {
	r := New()
	r.String("word", "old", "A word.")
	got := make(chan any, 1)
	r.Subscribe(func(changed []string) error {
		v, _ := r.Value("word")
		if _, ok := r.Lookup("word"); ok && len(r.Specs()) == 1 {
			got <- v
		}
		return nil
	})
	done := make(chan error, 1)
	go func() { done <- r.SetText("word=new") }()
	select {
	case err := <-done:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("setting an option does not return while a subscriber reads one")
	}
	if v := <-got; v != "new" {
		t.Errorf("the subscriber read %v, want new", v)
	}
}

func TestRefusedChangeIsUndoneForAll(t *testing.T) {
	r := New()
	number, word := r.Int("number", 1, "A number."), r.String("word", "old", "A word.")
	var told []string
	r.Subscribe(func(changed []string) error {
		told = append(told, strings.Join(changed, "+")+"="+word.Get())
		return nil
	})
	refusal := errors.New("no")
	r.Subscribe(func([]string) error {
		if word.Get() == "bad" {
			return refusal
		}
		return nil
	})
	if err := r.SetText("word=bad", "number=2"); !errors.Is(err, refusal) {
		t.Errorf("got %v, want the subscriber's error", err)
	}
	if number.Get() != 1 || word.Get() != "old" {
		t.Errorf("got %d and %q, want the old values", number.Get(), word.Get())
	}
	if want := []string{"number+word=bad", "number+word=old"}; !slices.Equal(told, want) {
		t.Errorf("the other subscriber was told %q, want %q", told, want)
	}
}

// FuzzSetText: whatever the text, the registry keeps values that its declarations allow.
func FuzzSetText(f *testing.F) {
	for _, s := range []string{"word=x", "number=7", "number=", "number=99999999999999999999", "flag", "flag=toggle", "list=a\nlist=b", "list", "choice=b", "=", "unknown=1", "number=\x00"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		r := New()
		r.Bool("flag", false, "A flag.")
		r.String("word", "", "A word.")
		number := r.Int("number", 1, "A number.", Check(func(n int) error {
			if n < 0 {
				return errors.New("expected a positive number")
			}
			return nil
		}))
		r.OptInt("maybe", "A number or none.")
		r.Strings("list", nil, "A list.")
		_ = r.SetText(strings.Split(text, "\n")...) // an error leaves the old values
		if number.Get() < 0 {
			t.Errorf("%q made a number that is forbidden: %d", text, number.Get())
		}
		for _, s := range r.Specs() {
			v, ok := r.Value(s.Name)
			if err := s.check(v); !ok || err != nil {
				t.Errorf("%q: %s has the value %v: %v", text, s.Name, v, err)
			}
		}
	})
}
