package archtest

import (
	"os"
	"path/filepath"
	"testing"
)

// The rules themselves are tested here: a rule that cannot fail protects nothing.

func TestMatches(t *testing.T) {
	for _, c := range []struct {
		list, name string
		want       bool
	}{
		{"flow", "flow", true},
		{"flow", "flow/flowfile", false},
		{"flow/...", "flow/flowfile", true},
		{"flow/...", "flow", true},
		{"flow/...", "flower", false},
		{"a flow/... b", "flow/x/y", true},
		{"...", "anything/at/all", true},
		{"", "flow", false},
	} {
		if got := matches(c.list, c.name); got != c.want {
			t.Errorf("matches(%q, %q) = %v, want %v", c.list, c.name, got, c.want)
		}
	}
}

func TestFloorOf(t *testing.T) {
	for name, want := range map[string]int{"flow": 0, "flow/flowfile": 1, "proxycore": 2, "proxycore/sniff": 1, "proxycore/http1": 4, "cmd/mitm-appliance": 9} {
		if f, ok := floorOf(name); !ok || f.Level != want {
			t.Errorf("floorOf(%s) = %d, %v, want %d", name, f.Level, ok, want)
		}
	}
	if f, ok := floorOf("proxycore/unheard"); ok {
		t.Errorf("floorOf(proxycore/unheard) = %v, want none", f)
	}
}

func TestWrittenFindsEveryKindOfWrite(t *testing.T) {
	dir := t.TempDir()
	const source = `package x
import "net/http"
var table = []int{1}
var assigned, indexed, counted, pointed, emptied, field, shadowed = 1, []int{1}, 1, 1, map[int]int{}, struct{ a int }{}, 1
func f() int {
	assigned = 2
	indexed[0] = 2
	counted++
	_ = &pointed
	delete(emptied, 1)
	field.a = 1
	shadowed := 1
	shadowed = 2
	_ = http.StatusOK
	http.Get("")
	return table[0] + shadowed
}`
	if err := os.WriteFile(filepath.Join(dir, "x.go"), []byte(source), 0o600); err != nil {
		t.Fatal(err)
	}
	p := &pkg{Name: "x", Dir: dir, Files: []string{"x.go"}}
	written := p.written(t)
	for name, want := range map[string]string{
		"assigned": "x/x.go:6", "indexed": "x/x.go:7", "counted": "x/x.go:8", "pointed": "x/x.go:9",
		"emptied": "x/x.go:10", "field": "x/x.go:11", "table": "", "shadowed": "",
	} {
		if written[name] != want {
			t.Errorf("%s is written at %q, want %q", name, written[name], want)
		}
	}
	uses := p.uses(t, "net/http")
	if len(uses) != 2 || uses[0] != (use{"StatusOK", "x/x.go:14"}) || uses[1].name != "Get" {
		t.Errorf("got the uses %v, want StatusOK and Get", uses)
	}
}
