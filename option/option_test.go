package option

import (
	"errors"
	"slices"
	"strings"
	"testing"
)

func example(t *testing.T) (*Registry, func(...string) string) {
	t.Helper()
	r := New()
	r.Bool("flag", false, "a flag")
	r.String("colour", "red", "a colour", Choose("red", "green"))
	r.OptString("file", "a file")
	r.Int("count", 1, "a count", Check(func(n int) error {
		if n < 0 {
			return errors.New("expected at least 0")
		}
		return nil
	}))
	r.OptInt("port", "a port")
	r.Strings("hosts", nil, "hosts")
	return r, func(texts ...string) string {
		if err := r.SetText(texts...); err != nil {
			return err.Error()
		}
		return ""
	}
}

func TestSetText(t *testing.T) {
	for _, c := range []struct {
		texts []string
		name  string
		want  string // value as text, or what the error says after "!"
	}{
		{[]string{"flag"}, "flag", "true"},
		{[]string{"flag=false"}, "flag", "false"},
		{[]string{"flag=toggle"}, "flag", "true"},
		{[]string{"flag=yes"}, "flag", "!expected true, false or toggle"},
		{[]string{"colour=green"}, "colour", "green"},
		{[]string{"colour"}, "colour", "!a value is required"},
		{[]string{"colour=blue"}, "colour", "!must be one of"},
		{[]string{"file=a=b"}, "file", "a=b"},
		{[]string{"file="}, "file", ""},
		{[]string{"file"}, "file", ""},
		{[]string{"count=7"}, "count", "7"},
		{[]string{"count="}, "count", "!a value is required"},
		{[]string{"count=-1"}, "count", "!expected at least 0"},
		{[]string{"count=x"}, "count", "!expected a whole number"},
		{[]string{"count=1", "count=2"}, "count", "!takes one value"},
		{[]string{"port=80"}, "port", "80"},
		{[]string{"port"}, "port", ""},
		{[]string{"hosts=a", "hosts=b"}, "hosts", "a\nb"},
		{[]string{"hosts=a", "hosts"}, "hosts", "a"},
		{[]string{"hosts"}, "hosts", ""},
	} {
		r, set := example(t)
		err := set(c.texts...)
		if wantErr, ok := strings.CutPrefix(c.want, "!"); ok {
			if !strings.Contains(err, wantErr) {
				t.Errorf("%q: error %q, want %q", c.texts, err, wantErr)
			}
			continue
		}
		if v, _ := r.Value(c.name); err != "" || Text(v) != c.want {
			t.Errorf("%q: %s is %q, error %q; want %q", c.texts, c.name, Text(v), err, c.want)
		}
	}
}

func TestAChangeIsWholeOrNothing(t *testing.T) {
	r, set := example(t)
	if err := set("flag=true", "count=-1"); err == "" {
		t.Fatal("a bad value was accepted")
	}
	if v, _ := r.Value("flag"); v.(bool) {
		t.Error("the good half of a bad change was applied")
	}
}

func TestSubscribersSeeNamesAndValuesAndMayReject(t *testing.T) {
	r, set := example(t)
	var heard [][]string
	r.Subscribe(func(changed []string) error {
		heard = append(heard, changed)
		return nil
	})
	r.Subscribe(func([]string) error {
		if v, _ := r.Value("count"); v.(int) == 13 { // reading from a subscriber must not lock up
			return errors.New("unlucky")
		}
		return nil
	})
	if err := set("hosts=a", "count=5", "flag=false"); err != "" { // flag does not change
		t.Fatal(err)
	}
	if err := set("count=13", "flag"); err != "unlucky" {
		t.Errorf("got %q", err)
	}
	want := [][]string{{"count", "hosts"}, {"count", "flag"}, {"count", "flag"}} // the last: rolled back
	if !slices.EqualFunc(heard, want, slices.Equal) {
		t.Errorf("heard %q, want %q", heard, want)
	}
	if v, _ := r.Value("count"); v.(int) != 5 {
		t.Errorf("count is %v after a rejected change", v)
	}
}

func TestUnknownNamesWaitForTheirDeclaration(t *testing.T) {
	r, set := example(t)
	if err := set("later=9", "never=1", "wrong=x"); err != "" {
		t.Fatal(err)
	}
	later := r.Int("later", 0, "declared later")
	r.Int("wrong", 0, "takes a number")
	if later.Get() != 9 {
		t.Errorf("later is %d", later.Get())
	}
	if got := r.Deferred(); !slices.Equal(got, []string{"never", "wrong"}) {
		t.Errorf("still waiting: %q", got)
	}
	var unknown *UnknownError
	if err := r.Set(map[string]any{"never": 1}); !errors.As(err, &unknown) {
		t.Errorf("got %v", err)
	}
}

func FuzzSetText(f *testing.F) {
	for _, seed := range []string{"flag=toggle", "colour=red", "hosts", "count=99999999999999999999", "=", "port=-0"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		r, set := example(t)
		if set(text) != "" {
			return
		}
		name, _, _ := strings.Cut(text, "=")
		v, ok := r.Value(name)
		if s, known := r.Lookup(name); known != ok || known && s.check(v) != nil {
			t.Errorf("%q left %s at %v", text, name, v)
		}
	})
}
