package exchange

import (
	"math"
	"testing"

	"mitm-appliance/option"
)

func TestParseSize(t *testing.T) {
	for text, want := range map[string]int64{
		"0": 0, "1": 1, "12b": 12, "2k": 2048, "3M": 3 << 20, "4g": 4 << 30, "5T": 5 << 40, "9223372036854775807": math.MaxInt64,
	} {
		if got, err := parseSize(text); err != nil || got != want {
			t.Errorf("parseSize(%q) = %d, %v; want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"", "k", "-1", "1.5m", "1kb", " 1", "1 k", "9223372036854775807k", "99999999999999999999", "0x10"} {
		if got, err := parseSize(text); err == nil {
			t.Errorf("parseSize(%q) = %d, want an error", text, got)
		}
	}
}

func TestBadSizeIsAnOptionError(t *testing.T) {
	r := option.New()
	o := DeclareOptions(r)
	if err := r.SetText("body_size_limit=huge"); err == nil {
		t.Error("body_size_limit=huge is accepted")
	}
	if o.maxBody() != math.MaxInt64 || o.maxCollected() != streamFrom {
		t.Errorf("defaults are %d and %d", o.maxBody(), o.maxCollected())
	}
	if err := r.SetText("body_size_limit=1k", "stream_large_bodies=2k"); err != nil || o.maxBody() != 1024 || o.maxCollected() != 2048 {
		t.Errorf("%v, %d, %d", err, o.maxBody(), o.maxCollected())
	}
}
