//go:build linux

package redirect

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"
	"testing"
)

func goodRecord() record {
	return record{
		PID: 7, Name: "mitm_appliance", TUN: "mitm0", RouteTable: 5180, RulePriority: 5180, Marks: Marks{}.withDefaults(),
		Settings: []setting{{Key: "net/ipv4/conf/eth0.7/forwarding", Old: "0", New: "1"}, {Key: "net/ipv6/conf/all/forwarding", Old: "0", New: "1"}},
	}
}

func TestRecordsAreReadBackAndDangerousOnesRefused(t *testing.T) {
	for _, c := range []struct {
		name     string
		change   func(*record)
		accepted bool
		settings int
	}{
		{"as written", func(*record) {}, true, 2},
		{"main route table", func(r *record) { r.RouteTable = 254 }, false, 0},
		{"no route table", func(r *record) { r.RouteTable = 0 }, false, 0},
		{"priority of the main table", func(r *record) { r.RulePriority = 32766 }, false, 0},
		{"no name", func(r *record) { r.Name = "" }, false, 0},
		{"a path as name", func(r *record) { r.Name = "../x" }, false, 0},
		{"marks outside of their mask", func(r *record) { r.Marks.Mask = 1 }, false, 0},
		{"a setting out of place", func(r *record) { r.Settings[0].Key = "net/ipv4/conf/../../../kernel/core_pattern" }, true, 1},
		{"a setting of others", func(r *record) { r.Settings[0].Key = "kernel/core_pattern" }, true, 1},
	} {
		r := goodRecord()
		c.change(&r)
		data, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		got := parseRecord(bytes.NewReader(append(data, "\nrest of a longer one"...)))
		if (got.Name != "") != c.accepted || len(got.Settings) != c.settings {
			t.Errorf("%s: got %+v, want accepted %v with %d settings", c.name, got, c.accepted, c.settings)
		}
	}
}

func FuzzRecord(f *testing.F) {
	good, err := json.Marshal(goodRecord())
	if err != nil {
		f.Fatal(err)
	}
	for _, seed := range []string{string(good), "", "{", `{"Name":"a","RouteTable":-1}`, `{"Settings":[{"Key":"net/ipv4/conf/../x"}]}`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		r := parseRecord(bytes.NewReader(data))
		if r.Name == "" {
			return
		}
		if r.RouteTable >= 253 && r.RouteTable <= 255 || r.RouteTable <= 0 || r.RulePriority <= 0 || r.RulePriority >= 32766 {
			t.Errorf("accepted %+v", r)
		}
		if slices.ContainsFunc(r.Settings, func(s setting) bool { return strings.Contains(s.Key, "..") && strings.Contains(s.Key, "/../") }) {
			t.Errorf("accepted %+v", r.Settings)
		}
	})
}
