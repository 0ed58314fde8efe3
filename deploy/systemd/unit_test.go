package systemd

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const unit = "mitm-appliance.service"

// directives returns all values of a setting of the unit, each word of its own.
func directives(t *testing.T, name string) []string {
	t.Helper()
	data, err := os.ReadFile(unit)
	if err != nil {
		t.Fatal(err)
	}
	var words []string
	for line := range strings.Lines(string(data)) {
		if value, ok := strings.CutPrefix(strings.TrimSpace(line), name+"="); ok {
			words = append(words, strings.Fields(value)...)
		}
	}
	return words
}

// installed is a copy of the unit whose program exists on this machine.
func installed(t *testing.T) string {
	t.Helper()
	data, err := os.ReadFile(unit)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), unit)
	text := strings.ReplaceAll(string(data), "/usr/local/bin/mitm-appliance", "/bin/true")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestSystemdUnderstandsTheUnit(t *testing.T) {
	out, err := exec.Command("systemd-analyze", "verify", "--man=no", "--recursive-errors=no", installed(t)).CombinedOutput()
	if err != nil || strings.Contains(string(out), unit) {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
}

// TestExposure keeps what systemd thinks of the sandbox: 0 is sealed, 100 is none. What is left is what
// the program is for: the host's network, its processes, BPF.
func TestExposure(t *testing.T) {
	const threshold = "25"
	out, err := exec.Command("systemd-analyze", "security", "--offline=true", "--no-pager", "--threshold="+threshold, installed(t)).CombinedOutput()
	if err != nil {
		t.Errorf("systemd-analyze security: %v\n%s", err, out)
	}
}

// TestCapabilitiesAreThoseOfTheCode compares the unit with what internal/appliance keeps for its modes.
// Of these CAP_SYS_PTRACE is for comfort only, and much power: the unit tells how to add it.
func TestCapabilitiesAreThoseOfTheCode(t *testing.T) {
	code, err := os.ReadFile(filepath.Join("..", "..", "internal", "appliance", "privileges.go"))
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	for _, m := range regexp.MustCompile(`\bcap\.([A-Z][A-Z_]+)\b`).FindAllStringSubmatch(string(code), -1) {
		if m[1] != "SYS_PTRACE" {
			want = append(want, "CAP_"+m[1])
		}
	}
	slices.Sort(want)
	want = slices.Compact(want)
	for _, setting := range []string{"AmbientCapabilities", "CapabilityBoundingSet"} {
		got := directives(t, setting)
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Errorf("%s is %v, want %v", setting, got, want)
		}
	}
}
