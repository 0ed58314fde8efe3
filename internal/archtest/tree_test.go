package archtest

import (
	"bytes"
	"flag"
	"io/fs"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// binaryFiles are files whose bytes are not ours to judge.
const binaryFiles = ".mitm .p12 .png .ico .gz .zst .pcapng .woff2 .sum"

// eachFile calls f for every text file that belongs to the repository.
func eachFile(t *testing.T, f func(name string, text []byte)) {
	t.Helper()
	top := root(t)
	err := filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
		name, _ := filepath.Rel(top, path)
		switch {
		case err != nil:
			return err
		case d.IsDir() && (d.Name() == ".git" || d.Name() == "testdata" || d.Name() == "bin"):
			return fs.SkipDir
		case !d.Type().IsRegular() || slices.Contains(strings.Fields(binaryFiles), filepath.Ext(name)):
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if !bytes.ContainsRune(text[:min(len(text), 8000)], 0) {
			f(name, text)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestNothingIsLeftUndone looks for notes to oneself: what is missing belongs into an issue.
func TestNothingIsLeftUndone(t *testing.T) {
	note := regexp.MustCompile(`\b(TO` + `DO|FIX` + `ME|X` + `XX)\b`) // written so that this line is none
	eachFile(t, func(name string, text []byte) {
		for i, line := range strings.Split(string(text), "\n") {
			if note.MatchString(line) {
				t.Errorf("%s:%d: %s", name, i+1, strings.TrimSpace(line))
			}
		}
	})
}

// TestTreeNamesNoMachine looks for what is true on the developer's machine only: paths of the checkout,
// of caches and homes, its name, and the package proxies it is told to use.
func TestTreeNamesNoMachine(t *testing.T) {
	private := machineNames(t)
	eachFile(t, func(name string, text []byte) {
		for _, p := range private {
			if i := bytes.Index(text, []byte(p)); i >= 0 {
				t.Errorf("%s:%d names %q, which is of this machine", name, 1+bytes.Count(text[:i], []byte("\n")), p)
			}
		}
	})
}

func machineNames(t *testing.T) []string {
	t.Helper()
	cmd := exec.Command("go", "env", "GOMODCACHE", "GOCACHE", "GOROOT", "GOPROXY", "GOSUMDB")
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	env := strings.Split(string(out), "\n")
	if len(env) < 5 {
		t.Fatalf("go env says %q", out)
	}
	names := []string{root(t) + "/", env[0] + "/", env[1] + "/"}
	if home, err := os.UserHomeDir(); err == nil {
		names = append(names, home+"/.", home+"/go/")
	}
	hosts := strings.FieldsFunc(env[3], func(r rune) bool { return r == ',' || r == '|' })
	for _, name := range []string{"PIP_INDEX_URL", "UV_INDEX_URL", "npm_config_registry", "HTTPS_PROXY", "https_proxy"} {
		hosts = append(hosts, os.Getenv(name))
	}
	for _, h := range hosts {
		if u, err := url.Parse(h); err == nil && u.Hostname() != "" {
			names = append(names, u.Hostname())
		}
	}
	if host, err := os.Hostname(); err == nil && len(host) >= 8 { // a short one is an ordinary word
		names = append(names, host)
	}
	return slices.DeleteFunc(names, func(s string) bool {
		return len(s) < 6 || s == "localhost" || s == "127.0.0.1"
	})
}

var update = flag.Bool("update", false, "rewrite what docs/ARCHITECTURE.md has from the code")

// TestArchitectureIsWhatTheCodeSays compares the generated parts of docs/ARCHITECTURE.md: the floors, and
// the keys of log records; -update writes them.
func TestArchitectureIsWhatTheCodeSays(t *testing.T) {
	path := filepath.Join(root(t), "docs", "ARCHITECTURE.md")
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	text := string(data)
	for name, want := range map[string]string{"floors": floorsTable(t), "log keys": logKeys(t)} {
		begin, end := "<!-- "+name+": go test ./internal/archtest -update -->\n", "<!-- /"+name+" -->"
		before, rest, ok := strings.Cut(text, begin)
		got, after, ok2 := strings.Cut(rest, end)
		if !ok || !ok2 {
			t.Fatalf("%s has no lines %q and %q", path, begin, end)
		}
		if got != want && !*update {
			t.Errorf("the %s of docs/ARCHITECTURE.md are not those of the code: go test ./internal/archtest -update", name)
		}
		text = before + begin + want + end + after
	}
	if *update {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}
