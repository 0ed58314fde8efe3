// Package save writes flows to a file as they end: the option save_stream_file (FMT-save).
//
// In: the hooks of flows. Out: a file in mitmproxy's dump format, one write per flow. It knows neither
// filters nor other formats. A flow that cannot be written ends the program, through Config.Fatal:
// traffic must not pass unrecorded.
package save

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"mitm-appliance/flow"
	"mitm-appliance/flow/flowfile"
	"mitm-appliance/option"
	"mitm-appliance/proxycore"
)

// Options are the settings of this addon.
type Options struct {
	File option.OptString // save_stream_file
}

// DeclareOptions declares them.
func DeclareOptions(r *option.Registry) *Options {
	return &Options{
		File: r.OptString("save_stream_file",
			"Write flows to this file when they end, in mitmproxy's dump format. A leading + appends instead of overwriting. "+
				"The path may contain strftime() directives such as %Y-%m-%d; a new file begins when the result changes. "+
				"Missing directories are made.", option.Check(checkPath)),
	}
}

// otherFormats are endings that promise a format which this addon does not write.
var otherFormats = []string{".har", ".zhar", ".pcap", ".pcapng"}

func checkPath(p *string) error {
	if p == nil {
		return nil
	}
	path := strings.TrimPrefix(*p, "+")
	if path == "" {
		return fmt.Errorf("a file name is missing")
	}
	if ending := strings.ToLower(filepath.Ext(path)); slices.Contains(otherFormats, ending) {
		return fmt.Errorf("%s files cannot be written; only mitmproxy's dump format can: choose a name that does not end in %s",
			ending, ending)
	}
	return checkTime(path)
}

// Config is what an Addon is built from. Options is required.
type Config struct {
	Options *Options
	Logger  *slog.Logger     // nil discards
	Fatal   func(error)      // called once, when a flow could not be written; nil ignores it
	Now     func() time.Time // the clock for names of files; nil means time.Now
}

// Addon saves flows. Its hooks may run on many goroutines; Configure and Done on one at a time.
type Addon struct {
	cfg      Config
	encoders sync.Pool

	recording atomic.Bool // new flows are to be saved
	mu        sync.Mutex
	out       *output // nil when nothing is being written
	pattern   string  // what out's path was made from
	append    bool
	begun     map[flow.ID]*flow.Flow // begun while recording and not yet written
	left      map[string]bool        // files that a change of the option has left: they are never truncated
	failed    bool
}

var _ interface {
	proxycore.ConfigureHook
	proxycore.DoneHook
	proxycore.RequestHook
	proxycore.ResponseHook
	proxycore.ErrorHook
	proxycore.WebSocketEndHook
	proxycore.TCPStartHook
	proxycore.TCPEndHook
	proxycore.TCPErrorHook
	proxycore.UDPStartHook
	proxycore.UDPEndHook
	proxycore.UDPErrorHook
	proxycore.DNSRequestHook
	proxycore.DNSResponseHook
	proxycore.DNSErrorHook
} = (*Addon)(nil)

// New returns an Addon that saves nothing until Configure finds a file name.
func New(cfg Config) *Addon {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Fatal == nil {
		cfg.Fatal = func(error) {}
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Addon{
		cfg: cfg, begun: map[flow.ID]*flow.Flow{}, left: map[string]bool{},
		encoders: sync.Pool{New: func() any { return new(flowfile.Encoder) }},
	}
}

// Configure opens the file that the option names. When it cannot, the old one stays. Without a name
// the file stays open for the flows that have begun, so that they are saved whole.
func (a *Addon) Configure(changed []string) error {
	if !slices.Contains(changed, "save_stream_file") {
		return nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	text := a.cfg.Options.File.Text()
	if text == "" {
		a.recording.Store(false)
		if a.out != nil {
			a.left[a.out.path] = true
		}
		a.closeIfDone()
		return nil
	}
	path, add := strings.CutPrefix(text, "+")
	path, err := expandHome(path)
	if err != nil {
		return err
	}
	if a.out != nil {
		a.left[a.out.path] = true
	}
	if err := a.rotate(path, add); err != nil {
		return err
	}
	a.pattern, a.append = path, add
	a.recording.Store(true)
	return nil
}

// rotate makes out the file that the pattern names now. On failure the old one stays.
func (a *Addon) rotate(pattern string, add bool) error {
	path := formatTime(pattern, a.cfg.Now())
	if a.out != nil && a.out.path == path {
		return nil
	}
	next, cut, err := open(path, add || a.left[path])
	if err != nil {
		return fmt.Errorf("cannot save flows: %w", err)
	}
	if cut > 0 {
		a.cfg.Logger.Warn("the file ended in the middle of a flow, which was cut off", "path", path, "bytes", cut)
	}
	old := a.out
	a.out = next
	a.close(old)
	return nil
}

// closeIfDone closes the file when recording has ended and every flow that had begun is in it.
func (a *Addon) closeIfDone() {
	if a.recording.Load() || len(a.begun) > 0 {
		return
	}
	a.close(a.out)
	a.out = nil
}

// close closes a file. What the disk has not taken then is lost.
func (a *Addon) close(out *output) {
	if out == nil {
		return
	}
	if err := out.close(); err != nil {
		a.fail(err)
	}
}

// begin notes a flow, so that it is saved even when its end is never seen.
func (a *Addon) begin(l *proxycore.LiveFlow) error {
	if !a.recording.Load() {
		return nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.recording.Load() { // still
		a.begun[l.ID] = l.Flow
	}
	return nil
}

// end saves a flow. It runs on the goroutine that owns the flow.
func (a *Addon) end(l *proxycore.LiveFlow) error {
	if !a.wants(l.ID) {
		return nil
	}
	enc := a.encoders.Get().(*flowfile.Encoder)
	defer a.encoders.Put(enc)
	b, err := enc.Encode(l.Flow)
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.begun, l.ID)
	if err != nil {
		return err
	}
	a.write(b)
	a.closeIfDone()
	return nil
}

// wants reports whether a flow is to be saved: when recording has ended, those that began before.
func (a *Addon) wants(id flow.ID) bool {
	if a.recording.Load() {
		return true
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.begun[id] != nil
}

// write appends the bytes of one flow to the current file.
func (a *Addon) write(b []byte) {
	if a.out == nil || a.failed {
		return
	}
	err := a.rotate(a.pattern, a.append)
	if err == nil {
		err = a.out.write(b)
	}
	if err != nil {
		a.fail(err)
	}
}

// fail says once that flows are being lost.
func (a *Addon) fail(err error) {
	if a.failed {
		return
	}
	a.failed = true
	a.cfg.Logger.Error("saving flows failed, which ends the program", "err", err)
	a.cfg.Fatal(err)
}

// Done saves the flows whose end was not seen and closes the file. Conversations must have ended
// before.
func (a *Addon) Done(context.Context) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	left := make([]*flow.Flow, 0, len(a.begun))
	for _, f := range a.begun {
		left = append(left, f)
	}
	slices.SortFunc(left, func(x, y *flow.Flow) int { return x.Created.Compare(y.Created) })
	clear(a.begun)
	a.recording.Store(false)
	defer a.closeIfDone()
	var enc flowfile.Encoder
	for _, f := range left {
		b, err := enc.Encode(f)
		if err != nil {
			return err
		}
		a.write(b)
	}
	return nil
}

// Request, Response, Error and WebSocketEnd save HTTP flows; those that became WebSockets at their
// end only. CONNECT has hooks of its own and is not saved.

// Request implements proxycore.RequestHook.
func (a *Addon) Request(_ context.Context, l *proxycore.LiveFlow) error { return a.begin(l) }

// Response implements proxycore.ResponseHook.
func (a *Addon) Response(_ context.Context, l *proxycore.LiveFlow) error {
	if l.HTTP.WebSocket != nil || failsLater(l) {
		return nil
	}
	return a.end(l)
}

// failsLater reports whether the error hook follows on a response hook: so it is with recorded flows
// that have both, which are to be saved once.
func failsLater(l *proxycore.LiveFlow) bool { return !l.Live && l.Flow.Error != nil }

// Error implements proxycore.ErrorHook.
func (a *Addon) Error(_ context.Context, l *proxycore.LiveFlow) error {
	if l.HTTP.WebSocket != nil {
		return nil
	}
	return a.end(l)
}

// WebSocketEnd implements proxycore.WebSocketEndHook.
func (a *Addon) WebSocketEnd(_ context.Context, l *proxycore.LiveFlow) error { return a.end(l) }

// TCPStart implements proxycore.TCPStartHook.
func (a *Addon) TCPStart(_ context.Context, l *proxycore.LiveFlow) error { return a.begin(l) }

// TCPEnd implements proxycore.TCPEndHook.
func (a *Addon) TCPEnd(_ context.Context, l *proxycore.LiveFlow) error { return a.end(l) }

// TCPError implements proxycore.TCPErrorHook.
func (a *Addon) TCPError(_ context.Context, l *proxycore.LiveFlow) error { return a.end(l) }

// UDPStart implements proxycore.UDPStartHook.
func (a *Addon) UDPStart(_ context.Context, l *proxycore.LiveFlow) error { return a.begin(l) }

// UDPEnd implements proxycore.UDPEndHook.
func (a *Addon) UDPEnd(_ context.Context, l *proxycore.LiveFlow) error { return a.end(l) }

// UDPError implements proxycore.UDPErrorHook.
func (a *Addon) UDPError(_ context.Context, l *proxycore.LiveFlow) error { return a.end(l) }

// DNSRequest implements proxycore.DNSRequestHook.
func (a *Addon) DNSRequest(_ context.Context, l *proxycore.LiveFlow) error { return a.begin(l) }

// DNSResponse implements proxycore.DNSResponseHook.
func (a *Addon) DNSResponse(_ context.Context, l *proxycore.LiveFlow) error {
	if failsLater(l) {
		return nil
	}
	return a.end(l)
}

// DNSError implements proxycore.DNSErrorHook.
func (a *Addon) DNSError(_ context.Context, l *proxycore.LiveFlow) error { return a.end(l) }
