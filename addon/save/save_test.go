package save

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"mitm-appliance/flow"
	"mitm-appliance/flow/flowfile"
	"mitm-appliance/option"
	"mitm-appliance/proxycore"
)

// desk is an Addon with what stands around it.
type desk struct {
	*testing.T
	*Addon
	options *option.Registry
	now     time.Time
	fatal   []error
	log     bytes.Buffer
}

func newDesk(t *testing.T) *desk {
	d := &desk{T: t, options: option.New(), now: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}
	d.Addon = New(Config{
		Options: DeclareOptions(d.options), Logger: slog.New(slog.NewTextHandler(&d.log, nil)),
		Fatal: func(err error) { d.fatal = append(d.fatal, err) }, Now: func() time.Time { return d.now },
	})
	d.options.Subscribe(d.Configure)
	return d
}

func (d *desk) saveTo(path string) {
	d.Helper()
	if err := d.options.Set(map[string]any{"save_stream_file": &path}); err != nil {
		d.Fatal(err)
	}
}

func (d *desk) stop() {
	d.Helper()
	if err := d.options.Set(map[string]any{"save_stream_file": (*string)(nil)}); err != nil {
		d.Fatal(err)
	}
}

func (d *desk) done() {
	d.Helper()
	if err := d.Done(context.Background()); err != nil {
		d.Fatal(err)
	}
}

// named returns a live HTTP flow that a comment tells from others.
func named(name string) *proxycore.LiveFlow {
	f := &flow.Flow{ID: flow.NewID(time.Now()), Kind: flow.KindHTTP, Created: time.Now(), Comment: name, HTTP: &flow.HTTP{}}
	return &proxycore.LiveFlow{Flow: f}
}

// exchange runs a whole HTTP flow past the addon.
func (d *desk) exchange(name string) {
	d.Helper()
	l := named(name)
	ctx := context.Background()
	if err := errors.Join(d.Request(ctx, l), d.Response(ctx, l)); err != nil {
		d.Fatal(err)
	}
}

// holds fails unless the file has flows with these comments and nothing else.
func (d *desk) holds(path string, want ...string) {
	d.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		d.Fatal(err)
	}
	got, err := comments(data)
	if err != nil || strings.Join(got, " ") != strings.Join(want, " ") {
		d.Errorf("%s holds %v (%v), want %v", filepath.Base(path), got, err, want)
	}
}

func comments(data []byte) (names []string, err error) {
	r := flowfile.NewReader(bytes.NewReader(data))
	for {
		f, err := r.Next()
		if errors.Is(err, io.EOF) {
			return names, nil
		}
		if err != nil {
			return names, err
		}
		names = append(names, f.Comment)
	}
}

func TestFlowsAreInTheFileAsSoonAsTheyEnd(t *testing.T) {
	d := newDesk(t)
	path := filepath.Join(t.TempDir(), "new", "folder", "flows")
	d.exchange("before")
	d.saveTo(path)
	d.holds(path)
	d.exchange("a")
	d.holds(path, "a")
	d.exchange("b")
	d.holds(path, "a", "b")
	d.done()
	d.exchange("after")
	d.holds(path, "a", "b")
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("others may read the file: %v %v", info.Mode(), err)
	}
}

func TestWhichHooksSave(t *testing.T) {
	ctx := context.Background()
	for name, c := range map[string]struct {
		run   func(*Addon, *proxycore.LiveFlow) error
		kind  flow.Kind
		saved bool
	}{
		"response":    {func(a *Addon, l *proxycore.LiveFlow) error { return a.Response(ctx, l) }, flow.KindHTTP, true},
		"error":       {func(a *Addon, l *proxycore.LiveFlow) error { return a.Error(ctx, l) }, flow.KindHTTP, true},
		"request":     {func(a *Addon, l *proxycore.LiveFlow) error { return a.Request(ctx, l) }, flow.KindHTTP, false},
		"tcp end":     {func(a *Addon, l *proxycore.LiveFlow) error { return a.TCPEnd(ctx, l) }, flow.KindTCP, true},
		"tcp error":   {func(a *Addon, l *proxycore.LiveFlow) error { return a.TCPError(ctx, l) }, flow.KindTCP, true},
		"udp end":     {func(a *Addon, l *proxycore.LiveFlow) error { return a.UDPEnd(ctx, l) }, flow.KindUDP, true},
		"udp error":   {func(a *Addon, l *proxycore.LiveFlow) error { return a.UDPError(ctx, l) }, flow.KindUDP, true},
		"dns answer":  {func(a *Addon, l *proxycore.LiveFlow) error { return a.DNSResponse(ctx, l) }, flow.KindDNS, true},
		"dns error":   {func(a *Addon, l *proxycore.LiveFlow) error { return a.DNSError(ctx, l) }, flow.KindDNS, true},
		"dns request": {func(a *Addon, l *proxycore.LiveFlow) error { return a.DNSRequest(ctx, l) }, flow.KindDNS, false},
		"websocket begins": {func(a *Addon, l *proxycore.LiveFlow) error {
			l.HTTP.WebSocket = &flow.WebSocket{}
			return a.Response(ctx, l)
		}, flow.KindHTTP, false},
		"websocket ends": {func(a *Addon, l *proxycore.LiveFlow) error {
			l.HTTP.WebSocket = &flow.WebSocket{}
			return errors.Join(a.Response(ctx, l), a.WebSocketEnd(ctx, l))
		}, flow.KindHTTP, true},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDesk(t)
			path := filepath.Join(t.TempDir(), "flows")
			d.saveTo(path)
			l := named("x")
			l.Kind = c.kind
			if c.kind != flow.KindHTTP {
				l.HTTP, l.Stream, l.DNS = nil, &flow.Stream{}, &flow.DNS{}
			}
			if err := c.run(d.Addon, l); err != nil {
				t.Fatal(err)
			}
			if c.saved {
				d.holds(path, "x")
			} else {
				d.holds(path)
			}
		})
	}
}

func TestRecordedFlowsAreSavedOnce(t *testing.T) {
	d := newDesk(t)
	path := filepath.Join(t.TempDir(), "flows")
	d.saveTo(path)
	core := proxycore.New(proxycore.Config{})
	core.SetAddons(d.Addon)
	failed := &flow.Error{Message: "broken"}
	for i, f := range []*flow.Flow{
		{Kind: flow.KindHTTP, Error: failed, HTTP: &flow.HTTP{Response: &flow.Response{}}},
		{Kind: flow.KindHTTP, HTTP: &flow.HTTP{Response: &flow.Response{}}},
		{Kind: flow.KindHTTP, Error: failed, HTTP: &flow.HTTP{WebSocket: &flow.WebSocket{}}},
		{Kind: flow.KindDNS, Error: failed, DNS: &flow.DNS{Response: &flow.DNSMessage{}}},
		{Kind: flow.KindTCP, Error: failed, Stream: &flow.Stream{}},
		{Kind: flow.KindUDP, Stream: &flow.Stream{}},
	} {
		f.ID, f.Comment = flow.NewID(time.Now()), fmt.Sprint(i)
		if err := core.Replay(t.Context(), f); err != nil {
			t.Fatal(err)
		}
	}
	d.holds(path, "0", "1", "2", "3", "4", "5")
	d.done()
	d.holds(path, "0", "1", "2", "3", "4", "5")
}

func TestFlowsThatHaveNotEndedAreSavedAtTheEnd(t *testing.T) {
	d := newDesk(t)
	path := filepath.Join(t.TempDir(), "flows")
	d.saveTo(path)
	first, second := named("first"), named("second")
	if err := errors.Join(d.TCPStart(context.Background(), first), d.Request(context.Background(), second)); err != nil {
		t.Fatal(err)
	}
	d.exchange("ended")
	d.done()
	d.holds(path, "ended", "first", "second")
}

func TestFlowsThatBeganWhileRecordingAreSavedWhole(t *testing.T) {
	d := newDesk(t)
	path := filepath.Join(t.TempDir(), "flows")
	d.saveTo(path)
	begun := named("begun")
	if err := d.Request(context.Background(), begun); err != nil {
		t.Fatal(err)
	}
	d.stop()
	d.exchange("not recorded")
	if err := d.Response(context.Background(), begun); err != nil {
		t.Fatal(err)
	}
	d.holds(path, "begun")
	if d.out != nil {
		t.Error("the file is still open")
	}
	d.saveTo(path) // what this run has written is not overwritten
	d.exchange("again")
	d.holds(path, "begun", "again")
}

func TestPlusAppendsAndOtherwiseFilesAreNew(t *testing.T) {
	path := filepath.Join(t.TempDir(), "flows")
	for _, step := range []struct{ option, want string }{{path, "a"}, {"+" + path, "a b"}, {path, "c"}} {
		d := newDesk(t)
		d.saveTo(step.option)
		d.exchange(step.want[len(step.want)-1:])
		d.done()
		d.holds(path, strings.Fields(step.want)...)
	}
}

func TestAppendingToAFileThatWasCutOff(t *testing.T) {
	path := filepath.Join(t.TempDir(), "flows")
	d := newDesk(t)
	d.saveTo(path)
	d.exchange("a")
	d.exchange("b")
	d.done()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, info.Size()-5); err != nil {
		t.Fatal(err)
	}
	d = newDesk(t)
	d.saveTo("+" + path)
	d.exchange("c")
	d.holds(path, "a", "c")
	if !strings.Contains(d.log.String(), "cut off") {
		t.Errorf("the log says nothing: %s", d.log.String())
	}
}

func TestNothingIsAppendedToOtherFiles(t *testing.T) {
	path := filepath.Join(t.TempDir(), "letter")
	if err := os.WriteFile(path, []byte("Dear Sir"), 0o600); err != nil {
		t.Fatal(err)
	}
	d := newDesk(t)
	name := "+" + path
	err := d.options.Set(map[string]any{"save_stream_file": &name})
	if err == nil || !strings.Contains(err.Error(), "something else than flows") {
		t.Errorf("got %v", err)
	}
	if data, _ := os.ReadFile(path); string(data) != "Dear Sir" {
		t.Errorf("the file is now %q", data)
	}
}

func TestAFileThatCannotBeOpenedLeavesTheOldOne(t *testing.T) {
	d := newDesk(t)
	path := filepath.Join(t.TempDir(), "flows")
	d.saveTo(path)
	d.exchange("a")
	bad := filepath.Join(path, "below a file")
	if err := d.options.Set(map[string]any{"save_stream_file": &bad}); err == nil {
		t.Error("a file below a file was accepted")
	}
	d.exchange("b")
	d.done()
	d.holds(path, "a", "b")
}

func TestARejectedChangeLosesNothing(t *testing.T) {
	d := newDesk(t)
	dir := t.TempDir()
	path := filepath.Join(dir, "flows")
	d.saveTo(path)
	d.exchange("a")
	refuse := true
	d.options.Subscribe(func([]string) error {
		if refuse {
			refuse = false
			return errors.New("no")
		}
		return nil
	})
	other := filepath.Join(dir, "other")
	if err := d.options.Set(map[string]any{"save_stream_file": &other}); err == nil {
		t.Fatal("the change was accepted")
	}
	d.exchange("b")
	d.holds(path, "a", "b")
}

func TestANewFileBeginsWithTheNextHour(t *testing.T) {
	d := newDesk(t)
	dir := t.TempDir()
	d.saveTo(filepath.Join(dir, "%Y/%m-%d/%H.mitm"))
	d.exchange("a")
	d.now = d.now.Add(10 * time.Minute)
	d.exchange("b")
	d.now = d.now.Add(time.Hour)
	d.exchange("c")
	d.holds(filepath.Join(dir, "2026/01-02/03.mitm"), "a", "b")
	d.holds(filepath.Join(dir, "2026/01-02/04.mitm"), "c")
}

func TestNamesOfFilesThatAreRefused(t *testing.T) {
	for name, says := range map[string]string{
		"x.har": "only mitmproxy's dump format", "+x.ZHAR": "only mitmproxy's dump format", "a/b.pcapng": ".pcapng", "+": "missing",
		"x%Q": "%Q is no strftime directive", "x%": "percent sign",
	} {
		d := newDesk(t)
		if err := d.options.Set(map[string]any{"save_stream_file": &name}); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: got %v, want %q", name, err, says)
		}
	}
}

func TestHome(t *testing.T) {
	t.Setenv("HOME", t.TempDir())
	d := newDesk(t)
	d.saveTo("~/flows")
	d.exchange("a")
	d.holds(filepath.Join(os.Getenv("HOME"), "flows"), "a")
}

func TestStrftime(t *testing.T) {
	at := time.Date(2026, 1, 4, 15, 6, 7, 89_000_000, time.FixedZone("CET", 3600)) // a Sunday
	for pattern, want := range map[string]string{
		"%Y-%m-%dT%H:%M:%S.%f%z": "2026-01-04T15:06:07.089000+0100", "%a %A %b %B %p %I": "Sun Sunday Jan January PM 03",
		"%y%j": "26004", "%w%u": "07", "%U %W %G-%V": "01 00 2026-01", "100%%": "100%", "%s": "1767535567", "plain": "plain", "%e|%D|%F %T": " 4|01/04/26|2026-01-04 15:06:07",
	} {
		if got := formatTime(pattern, at); got != want {
			t.Errorf("%q: got %q, want %q", pattern, got, want)
		}
	}
}

func TestManyFlowsAtOnce(t *testing.T) {
	d := newDesk(t)
	path := filepath.Join(t.TempDir(), "flows")
	d.saveTo(path)
	var all sync.WaitGroup
	for i := range 20 {
		all.Go(func() {
			for j := range 20 {
				l := named(fmt.Sprint(i, j))
				if err := errors.Join(d.Request(context.Background(), l), d.Response(context.Background(), l)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	d.done()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := comments(data); err != nil || len(got) != 400 {
		t.Errorf("%d flows, %v, want 400", len(got), err)
	}
}

func TestAFullDeviceEndsTheProgramOnce(t *testing.T) {
	d := newDesk(t)
	d.saveTo("/dev/full")
	d.exchange("a")
	d.exchange("b")
	if len(d.fatal) != 1 || !errors.Is(d.fatal[0], syscall.ENOSPC) {
		t.Errorf("fatal errors: %v, want no space once", d.fatal)
	}
	if strings.Count(d.log.String(), "saving flows failed") != 1 {
		t.Errorf("log: %s", d.log.String())
	}
}

// TestAFullDiskKeepsWholeFlows runs itself as a process whose files may not grow beyond a limit, at
// which the kernel writes what still fits, like a disk that fills up.
func TestAFullDiskKeepsWholeFlows(t *testing.T) {
	const variable = "SAVE_TEST_FULL_DISK"
	if path := os.Getenv(variable); path != "" {
		signal.Ignore(syscall.SIGXFSZ)
		const limit = 20_000
		if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: limit, Max: limit}); err != nil {
			t.Fatal(err)
		}
		d := newDesk(t)
		d.saveTo(path)
		for i := 0; len(d.fatal) == 0; i++ {
			d.exchange(fmt.Sprint(i))
		}
		d.done()
		if len(d.fatal) != 1 || !errors.Is(d.fatal[0], syscall.EFBIG) {
			t.Errorf("fatal errors: %v", d.fatal)
		}
		return
	}
	path := filepath.Join(t.TempDir(), "flows")
	child := exec.Command(os.Args[0], "-test.run=^TestAFullDiskKeepsWholeFlows$")
	child.Env = append(os.Environ(), variable+"="+path)
	if out, err := child.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := comments(data); err != nil || len(got) < 5 || len(data) > 20_000 {
		t.Errorf("%d bytes hold %d flows, %v", len(data), len(got), err)
	}
}
