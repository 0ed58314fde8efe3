package readfile

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"mitm-appliance/flow"
	"mitm-appliance/flow/flowfile"
	"mitm-appliance/option"
)

// file returns flows with these comments as bytes.
func file(t *testing.T, names ...string) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := flowfile.NewWriter(&buf)
	for _, name := range names {
		if err := w.Write(&flow.Flow{ID: flow.NewID(time.Now()), Kind: flow.KindTCP, Comment: name, Stream: &flow.Stream{}}); err != nil {
			t.Fatal(err)
		}
	}
	return buf.Bytes()
}

// load runs the addon on a file to its end and returns what was replayed and logged.
func load(t *testing.T, rfile string, stdin io.ReadCloser) (names, log string) {
	t.Helper()
	var got []string
	var logged bytes.Buffer
	options := option.New()
	a := New(Config{
		Options: DeclareOptions(options), Logger: slog.New(slog.NewTextHandler(&logged, nil)), Stdin: stdin,
		Replay: func(_ context.Context, f *flow.Flow) error {
			got = append(got, f.Comment)
			return nil
		},
	})
	if err := options.Set(map[string]any{"rfile": &rfile}); err != nil {
		t.Fatal(err)
	}
	if err := a.Running(t.Context()); err != nil {
		t.Fatal(err)
	}
	select {
	case <-a.Finished():
	case <-time.After(30 * time.Second):
		t.Fatal("reading does not end")
	}
	if err := a.Done(t.Context()); err != nil {
		t.Error(err)
	}
	return strings.Join(got, " "), logged.String()
}

func TestLoading(t *testing.T) {
	whole := file(t, "a", "b", "c")
	other := bytes.Replace(whole, []byte("7:version;2:21#"), []byte("7:version;2:99#"), 1)
	for name, c := range map[string]struct {
		data        []byte
		want, level string
		says        string
	}{
		"whole":         {whole, "a b c", "INFO", "loaded=3"},
		"empty":         {nil, "", "INFO", "loaded=0"},
		"truncated":     {whole[:len(whole)-1], "a b", "WARN", "ends in the middle of a flow"},
		"only a part":   {whole[:20], "", "ERROR", "ends in the middle of a flow at byte 0; 0 flows were read"},
		"garbage":       {[]byte("hello"), "", "ERROR", "no flow file"},
		"garbage later": {append(bytes.Clone(whole), "hello"...), "a b c", "WARN", "loaded=3"},
		"one too new":   {other, "b c", "WARN", "failed=1"},
		"all too new":   {bytes.ReplaceAll(whole, []byte("7:version;2:21#"), []byte("7:version;2:99#")), "", "ERROR", "update it"},
		"HAR":           {[]byte("{}"), "", "ERROR", "HAR"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "flows")
			if err := os.WriteFile(path, c.data, 0o600); err != nil {
				t.Fatal(err)
			}
			names, log := load(t, path, nil)
			if names != c.want {
				t.Errorf("loaded %q, want %q", names, c.want)
			}
			if !strings.Contains(log, "level="+c.level) || !strings.Contains(log, c.says) {
				t.Errorf("log: %s\nwant %s and %q", log, c.level, c.says)
			}
		})
	}
}

func TestAFileThatIsNotThere(t *testing.T) {
	if _, log := load(t, filepath.Join(t.TempDir(), "none"), nil); !strings.Contains(log, "no such file") {
		t.Errorf("log: %s", log)
	}
}

func TestHome(t *testing.T) {
	t.Setenv("HOME", t.TempDir())
	if err := os.WriteFile(filepath.Join(os.Getenv("HOME"), "flows"), file(t, "a"), 0o600); err != nil {
		t.Fatal(err)
	}
	if names, log := load(t, "~/flows", nil); names != "a" {
		t.Errorf("loaded %q: %s", names, log)
	}
}

func TestStandardInput(t *testing.T) {
	names, log := load(t, "-", io.NopCloser(bytes.NewReader(file(t, "a", "b"))))
	if names != "a b" {
		t.Errorf("loaded %q: %s", names, log)
	}
}

func TestWithoutTheOptionNothingIsRead(t *testing.T) {
	a := New(Config{Options: DeclareOptions(option.New())})
	if err := errors.Join(a.Running(t.Context()), a.Done(t.Context())); err != nil {
		t.Error(err)
	}
	select {
	case <-a.Finished():
		t.Error("something has been read")
	default:
	}
}

func TestDoneWakesAReaderThatWaits(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	replayed := make(chan struct{})
	options := option.New()
	a := New(Config{
		Options: DeclareOptions(options), Stdin: r,
		Replay: func(context.Context, *flow.Flow) error {
			close(replayed)
			return nil
		},
	})
	if err := options.SetText("rfile=-"); err != nil {
		t.Fatal(err)
	}
	if err := a.Running(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(file(t, "a")); err != nil {
		t.Fatal(err)
	}
	<-replayed
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := a.Done(ctx); err != nil {
		t.Errorf("reading did not end: %v", err)
	}
}
