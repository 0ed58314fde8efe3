//go:build linux

package capture

import (
	"fmt"
	"reflect"
	"strings"
	"testing"
)

func TestParseSpec(t *testing.T) {
	for _, test := range []struct {
		data string
		want Spec
	}{
		{"", Spec{All: true}},
		{"1234", Spec{Items: []Item{{Kind: PID, Number: 1234}}}},
		{" curl , !7 ", Spec{Items: []Item{{Kind: Name, Text: "curl"}, {Negated: true, Kind: PID, Number: 7}}}},
		{"! curl", Spec{Items: []Item{{Negated: true, Kind: Name, Text: "curl"}}}},
		{"!!curl", Spec{Items: []Item{{Negated: true, Kind: Name, Text: "!curl"}}}},
		{"Web Content", Spec{Items: []Item{{Kind: Name, Text: "Web Content"}}}},
		{"-5,+5,0x10,4294967296", Spec{Items: []Item{
			{Kind: Name, Text: "-5"}, {Kind: Name, Text: "+5"}, {Kind: Name, Text: "0x10"}, {Kind: Name, Text: "4294967296"},
		}}},
		{"uid:1000,!uid:alice", Spec{Items: []Item{{Kind: UID, Number: 1000}, {Negated: true, Kind: UID, Text: "alice"}}}},
		{"cgroup:/a//b/../c/", Spec{Items: []Item{{Kind: Cgroup, Text: "/a/c"}}}},
		{"exe: /usr/bin/curl", Spec{Items: []Item{{Kind: Exe, Text: "/usr/bin/curl"}}}},
		{"uid,exe,cgroup,kworker/0:1", Spec{Items: []Item{
			{Kind: Name, Text: "uid"}, {Kind: Name, Text: "exe"}, {Kind: Name, Text: "cgroup"}, {Kind: Name, Text: "kworker/0:1"},
		}}},
	} {
		got, err := ParseSpec(test.data)
		if err != nil || !reflect.DeepEqual(got, test.want) {
			t.Errorf("%q: got %+v, %v, want %+v", test.data, got, err, test.want)
		}
	}
}

func TestParseSpecRefuses(t *testing.T) {
	for _, data := range []string{
		" ", ",", "curl,", "!", "a,,b", "! ", "uid:", "!uid: ", "cgroup:", "cgroup:x", "exe:", "exe:curl", "a\x00b",
		strings.Repeat("a", maxPattern+1), strings.Repeat("a,", MaxItems) + "a",
	} {
		if got, err := ParseSpec(data); err == nil || !strings.HasPrefix(err.Error(), "invalid intercept spec: ") {
			t.Errorf("%.40q: got %+v, %v, want an invalid intercept spec", data, got, err)
		}
	}
}

func TestDescribe(t *testing.T) {
	for data, want := range map[string]string{
		"":                               "Include all processes.",
		"7":                              "Include PID 7.",
		"!7":                             "Exclude PID 7.",
		"curl,!uid:1000":                 "Include processes matching curl. Exclude processes of user 1000.",
		"uid:alice":                      "Include processes of user alice.",
		"cgroup:/a,!exe:/usr/bin/curl,u": "Include processes in cgroup /a. Exclude processes running /usr/bin/curl. Include processes matching u.",
	} {
		if got := parse(t, data).Describe(); got != want {
			t.Errorf("%q: got %q, want %q", data, got, want)
		}
	}
	if got, want := (Spec{}).Describe(), "Intercept nothing."; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestSpecMatch(t *testing.T) {
	curl := Process{PID: 7, Name: "curl", Exe: "/usr/bin/curl", UID: 1000, User: "alice", Cgroup: "/user.slice/a"}
	for _, test := range []struct {
		data string
		want bool
	}{
		{"", true},
		{"7", true},
		{"8", false},
		{"!7", false},
		{"!8", true},
		{"curl", true},
		{"cur", false},
		{"CURL", false},
		{"!8,!7", false},
		{"!7,7", true},
		{"7,!7", false},
		{"7,!curl,uid:1000", true},
		{"!curl,8", false},
		{"8,!9", false}, // starts with a plain item: nothing is captured unless it matches
		{"uid:1000", true},
		{"uid:1001", false},
		{"uid:alice", true},
		{"uid:bob", false},
		{"cgroup:/", true},
		{"cgroup:/user.slice", true},
		{"cgroup:/user.slice/a", true},
		{"cgroup:/user.slice/a/b", false},
		{"cgroup:/user", false},
		{"exe:/usr/bin/curl", true},
		{"exe:/usr/bin/cur", false},
	} {
		if got := parse(t, test.data).Match(curl); got != test.want {
			t.Errorf("%q: got %v, want %v", test.data, got, test.want)
		}
	}
	if (Spec{}).Match(curl) {
		t.Error("the zero Spec matches, want nothing")
	}
	long := Process{Name: "a-browser-with-a-long-name"}
	if !parse(t, "a-browser-with-another").Match(long) {
		t.Error("names that agree in 15 bytes do not match, want what the kernel does")
	}
}

func FuzzParseSpec(f *testing.F) {
	for _, data := range []string{"", "curl,!7", "uid:alice,cgroup:/a/b,exe:/x", "!!a", " ,", "cgroup:/..", "exe:/a, ,"} {
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data string) {
		spec, err := ParseSpec(data)
		if err != nil {
			return
		}
		again, err := ParseSpec(spec.String())
		if err != nil || fmt.Sprint(again) != fmt.Sprint(spec) {
			t.Errorf("%q became %+v and its text %q became %+v, %v", data, spec, spec, again, err)
		}
		if spec.Describe() == "" || len(spec.Items) > MaxItems {
			t.Errorf("%q became %+v", data, spec)
		}
	})
}
