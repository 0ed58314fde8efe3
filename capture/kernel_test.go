//go:build linux

package capture

import (
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/cilium/ebpf/btf"

	"mitm-appliance/redirect"
)

func TestMemberOffset(t *testing.T) {
	number := &btf.Int{Size: 4}
	inside := &btf.Struct{Members: []btf.Member{{Name: "x", Type: number}, {Name: "comm", Type: number, Offset: 32}}}
	members := []btf.Member{
		{Name: "named", Type: inside, Offset: 64},
		{Type: &btf.Union{Members: []btf.Member{{Type: inside}}}, Offset: 128},
		{Name: "last", Type: number, Offset: 512},
	}
	for name, want := range map[string]btf.Bits{"named": 64, "comm": 160, "last": 512} {
		if got, ok := memberOffset(members, name); !ok || got != want {
			t.Errorf("%s: got %d, %v, want %d", name, got, ok, want)
		}
	}
	if got, ok := memberOffset(members, "gone"); ok {
		t.Errorf("a member that is not there is at %d", got)
	}
}

// A kernel whose structures cannot be read is one without offsets.
func TestWithoutKernelStructures(t *testing.T) {
	l := newLab(t)
	a := l.agent("", "")
	c := &Capture{cfg: Config{Cgroup: l.cgroup, Spec: parse(t, "SocketThread")}, log: slog.New(slog.DiscardHandler), done: make(chan struct{}), stop: func() {}}
	close(c.done)
	must(t, c.cfg.complete())
	must(t, l.host.Do(func() (err error) {
		if c.mount, err = cgroupMount(); err != nil {
			return err
		}
		if c.diag, err = openDiag(); err != nil {
			return err
		}
		if c.rules, err = compileRules(c.cfg.Spec, c.never(), c.system()); err != nil {
			return err
		}
		m := c.cfg.Marks
		return c.loadKernel(programConfig{mark: m.Capture, upstream: m.Own, mask: m.Mask, netns: netnsCookie(), serverPorts: ephemeralPorts()})
	}))
	defer func() { must(t, c.Close()) }()
	if !c.Status().ThreadNames {
		t.Error("the status does not say that names are those of threads")
	}
	a.goes("direct", "tcp", farTCP4)
	a.goes("proxy", "tcp-thread", farTCP4, "SocketThread")
	must(t, c.Set(parse(t, "exe:"+testBinary(t)))) // found by the search for running programs
	a.goesAll("proxy")
}

func TestNewRefuses(t *testing.T) {
	gone := filepath.Join(t.TempDir(), "gone")
	for name, cfg := range map[string]Config{
		"an unknown user":     {Spec: parse(t, "uid:no-such-user-here"), Cgroup: gone},
		"a missing cgroup":    {Mechanism: EBPF, Cgroup: gone},
		"not a cgroup":        {Mechanism: EBPF, Cgroup: os.TempDir()},
		"nftables without it": {Mechanism: NFT},
		"a name for nftables": {Mechanism: NFT, Spec: parse(t, "curl"), Output: func(redirect.OutputRules) error { return nil }},
	} {
		c, err := New(cfg)
		if err == nil {
			t.Errorf("%s: no error", name)
			_ = c.Close()
			continue
		}
		t.Logf("%s: %v", name, err)
	}
}

func TestAutoFallsBackAndSaysWhy(t *testing.T) {
	var rules redirect.OutputRules
	c, err := New(Config{
		Cgroup: filepath.Join(t.TempDir(), "gone"), Spec: parse(t, "uid:1000"),
		Output: func(r redirect.OutputRules) error { rules = r; return nil },
	})
	must(t, err)
	if s := c.Status(); s.Mechanism != NFT || s.Reason == "" {
		t.Errorf("status %+v, want nft and a reason", s)
	}
	if len(rules.UIDs) != 1 || rules.UIDs[0] != 1000 {
		t.Errorf("rules %+v, want user 1000", rules)
	}
	if err := c.Set(parse(t, "curl")); err == nil || c.Spec().String() != "uid:1000" {
		t.Errorf("Set of a name: %v, and now %q, want an error and uid:1000", err, c.Spec())
	}
	must(t, c.Set(parse(t, "uid:7")))
	if len(rules.UIDs) != 1 || rules.UIDs[0] != 7 {
		t.Errorf("rules %+v, want user 7", rules)
	}
	must(t, c.Close())
	if len(rules.UIDs) != 0 {
		t.Errorf("rules %+v after Close, want none", rules)
	}
}
