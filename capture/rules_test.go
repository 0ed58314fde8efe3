//go:build linux

package capture

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"

	"mitm-appliance/redirect"
)

// paper is a machine that exists only in tests.
func paper() system {
	missing := func(what string) error { return fmt.Errorf("%s: %w", what, fs.ErrNotExist) }
	return system{
		user: func(name string) (uint32, error) {
			if name == "alice" {
				return 1000, nil
			}
			return 0, errors.New("no such user")
		},
		cgroup: func(path string) (uint64, error) {
			id, ok := map[string]uint64{"/": 1, "/a": 2, "/a/b": 3}[path]
			if !ok {
				return 0, missing(path)
			}
			return id, nil
		},
		file: func(path string) (uint64, uint64, error) {
			inode, ok := map[string]uint64{"/bin/x": 100, "/bin/y": 101}[path]
			if !ok {
				return 0, 0, missing(path)
			}
			return 9, inode, nil
		},
		exes: func() (map[string][]uint32, error) { return map[string][]uint32{"/bin/x": {1, 2}}, nil },
	}
}

// verdict does what the program does with the entries.
func verdict(entries map[ruleKey]uint64, p Process, sys system) bool {
	meta := entries[numberKey(kindMeta)]
	best := meta & 1
	try := func(kind Kind, key ruleKey) {
		if meta>>8&(1<<kind) != 0 {
			best = max(best, entries[key])
		}
	}
	try(PID, numberKey(uint32(PID), uint64(p.PID)))
	try(UID, numberKey(uint32(UID), uint64(p.UID)))
	try(Name, nameKey(p.Name))
	try(Exe, numberKey(kindExePID, uint64(p.PID)))
	if dev, inode, err := sys.file(p.Exe); err == nil {
		try(Exe, numberKey(uint32(Exe), dev, inode))
	}
	for path := p.Cgroup; ; path = path[:max(1, strings.LastIndex(path, "/"))] {
		if id, err := sys.cgroup(path); err == nil {
			try(Cgroup, numberKey(uint32(Cgroup), id))
		}
		if path == "/" {
			return best&1 == 1
		}
	}
}

// The highest matching entry must say what applying all items in order says.
func TestEntriesDecideAsTheSpecDoes(t *testing.T) {
	patterns := []string{"1", "2", "3", "curl", "sh", "uid:0", "uid:alice", "cgroup:/", "cgroup:/a", "cgroup:/a/b", "cgroup:/gone", "exe:/bin/x", "exe:/bin/y", "exe:/bin/z"}
	sys := paper()
	random := rand.New(rand.NewPCG(1, 2))
	for range 3000 {
		items := make([]string, 1+random.IntN(6))
		for i := range items {
			items[i] = strings.Repeat("!", random.IntN(2)) + patterns[random.IntN(len(patterns))]
		}
		spec := parse(t, strings.Join(items, ","))
		rules, err := compileRules(spec, nil, sys)
		must(t, err)
		entries, err := rules.entries(sys)
		must(t, err)
		for pid, exe := range map[int]string{1: "/bin/x", 2: "/bin/x", 3: "/bin/y", 4: "/bin/z"} {
			for _, name := range []string{"curl", "sh", "other"} {
				for uid, user := range map[uint32]string{0: "root", 1000: "alice"} {
					for _, cgroup := range []string{"/", "/a", "/a/b", "/c"} {
						p := Process{PID: pid, Name: name, Exe: exe, UID: uid, User: user, Cgroup: cgroup}
						want := spec.Match(p)
						if exe == "/bin/z" && strings.Contains(spec.String(), exe) {
							continue // neither a file nor a running program in this machine
						}
						if got := verdict(entries, p, sys); got != want {
							t.Fatalf("%s for %+v: entries say %v, the spec %v", spec, p, got, want)
						}
					}
				}
			}
		}
	}
}

func TestCompileRules(t *testing.T) {
	if _, err := compileRules(parse(t, "uid:bob"), nil, paper()); err == nil || !strings.Contains(err.Error(), "uid:bob") {
		t.Errorf("an unknown user gave %v, want an error that names it", err)
	}
	spec := parse(t, "1")
	rules, err := compileRules(spec, []Item{{Negated: true, Kind: PID, Number: 1}}, paper())
	must(t, err)
	entries, err := rules.entries(paper())
	must(t, err)
	if verdict(entries, Process{PID: 1, Cgroup: "/"}, paper()) {
		t.Error("what is never captured was captured by name")
	}
	if len(spec.Items) != 1 {
		t.Errorf("the caller's spec became %v", spec)
	}
	for data, want := range map[string]bool{"1,curl,uid:0": false, "cgroup:/a": true, "1,!exe:/bin/x": true} {
		rules, err := compileRules(parse(t, data), nil, paper())
		must(t, err)
		if got := rules.changing(); got != want {
			t.Errorf("%s: changing %v, want %v", data, got, want)
		}
	}
}

func TestRulesForNFTables(t *testing.T) {
	for _, test := range []struct {
		data, fails string
		want        redirect.OutputRules
	}{
		{data: "", want: redirect.OutputRules{All: true}},
		{data: "!uid:alice", want: redirect.OutputRules{All: true, ExceptUIDs: []uint32{1000}}},
		{data: "uid:5,cgroup:/a/b,!cgroup:/a", want: redirect.OutputRules{
			UIDs: []uint32{5}, Cgroups: []redirect.Cgroup{{ID: 3, Level: 2}}, ExceptCgroups: []redirect.Cgroup{{ID: 2, Level: 1}},
		}},
		{data: "cgroup:/,!uid:5", want: redirect.OutputRules{All: true, ExceptUIDs: []uint32{5}}},
		{data: "uid:5,cgroup:/gone", want: redirect.OutputRules{UIDs: []uint32{5}}},
		{data: "uid:5,!cgroup:/", want: redirect.OutputRules{}},
		{data: "curl", fails: "needs eBPF"},
		{data: "!7", fails: "needs eBPF"},
		{data: "exe:/bin/x", fails: "needs eBPF"},
		{data: "!uid:5,uid:6", fails: "exclusions last"},
	} {
		rules, err := compileRules(parse(t, test.data), nil, paper())
		must(t, err)
		got, err := rules.output(paper())
		switch {
		case test.fails != "" && (err == nil || !strings.Contains(err.Error(), test.fails)):
			t.Errorf("%s: got %v, want an error with %q", test.data, err, test.fails)
		case test.fails == "" && (err != nil || !reflect.DeepEqual(got, test.want)):
			t.Errorf("%s: got %+v, %v, want %+v", test.data, got, err, test.want)
		}
	}
}
