package proxycore

import (
	"context"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"log/slog"
	"os"
	"slices"
	"strings"
	"testing"

	"mitm-appliance/flow"
)

// goNames are mitmproxy's names in Go spelling, where it differs from CamelCase by rule.
func goName(hook string) string {
	var name strings.Builder
	for part := range strings.SplitSeq(hook, "_") {
		switch part {
		case "http", "tls", "tcp", "udp", "dns", "quic":
			part = strings.ToUpper(part)
		case "socks5":
			part = "SOCKS5"
		case "websocket":
			part = "WebSocket"
		case "clienthello":
			part = "ClientHello"
		case "requestheaders":
			part = "RequestHeaders"
		case "responseheaders":
			part = "ResponseHeaders"
		default:
			part = strings.ToUpper(part[:1]) + part[1:]
		}
		name.WriteString(part)
	}
	return name.String()
}

// TestEveryHookOfMitmproxyExists reads the list of mitmproxy's hooks and this package's source: each has
// an interface of one method, and there are no others.
func TestEveryHookOfMitmproxyExists(t *testing.T) {
	list, err := os.ReadFile("testdata/hooks.tsv")
	if err != nil {
		t.Fatal(err)
	}
	file, err := parser.ParseFile(token.NewFileSet(), "hooks.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	declared := map[string]string{} // interface -> method
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.TypeSpec)
		if !ok {
			return true
		}
		if i, ok := spec.Type.(*ast.InterfaceType); ok && i.Methods.NumFields() == 1 {
			declared[spec.Name.Name] = i.Methods.List[0].Names[0].Name
		}
		return true
	})
	lines := strings.Split(strings.TrimSpace(string(list)), "\n")[1:]
	if len(lines) != 46 {
		t.Errorf("the list has %d hooks, not 46", len(lines))
	}
	for _, line := range lines {
		hook, _, _ := strings.Cut(line, "\t")
		name := goName(hook)
		if method := declared[name+"Hook"]; method != name {
			t.Errorf("hook %s: want an interface %sHook with the method %s, got %q", hook, name, name, method)
		}
		delete(declared, name+"Hook")
	}
	for name := range declared {
		t.Errorf("%s is no hook of mitmproxy", name)
	}
}

// TestFlowHooksHaveTheirNames ties the table of flow hooks to the same list.
func TestFlowHooksHaveTheirNames(t *testing.T) {
	list, err := os.ReadFile("testdata/hooks.tsv")
	if err != nil {
		t.Fatal(err)
	}
	for h := range flowHooks {
		if !strings.Contains(string(list), "\n"+h.String()+"\tflow: ") {
			t.Errorf("%s is no hook with a flow", h)
		}
	}
}

type stumbling struct{ seen *[]string }

func (a stumbling) Request(context.Context, *LiveFlow) error {
	*a.seen = append(*a.seen, "stumbling")
	panic("ouch")
}

type failing struct{ seen *[]string }

func (a failing) Request(context.Context, *LiveFlow) error {
	*a.seen = append(*a.seen, "failing")
	return errors.New("no")
}

type halting struct{ seen *[]string }

func (a halting) Request(context.Context, *LiveFlow) error {
	*a.seen = append(*a.seen, "halting")
	return ErrHalt
}

func TestAddonsFailAloneAndHaltTogether(t *testing.T) {
	var seen []string
	core := New(Config{})
	core.SetAddons(stumbling{&seen}, failing{&seen}, halting{&seen}, failing{&seen})
	l := &LiveFlow{Flow: &flow.Flow{Live: true}, Session: &Session{core: core, root: &root{}}}
	if err := l.Fire(t.Context(), OnRequest); err != nil {
		t.Fatal(err)
	}
	if want := []string{"stumbling", "failing", "halting"}; !slices.Equal(seen, want) {
		t.Errorf("ran %v, want %v", seen, want)
	}
}

func TestAddLogReachesAddonsWithoutALoop(t *testing.T) {
	var got []string
	h := NewHooks(slog.New(slog.DiscardHandler), logger{&got})
	h.AddLog(t.Context(), slog.Record{Message: "hello"})
	if !slices.Equal(got, []string{"hello"}) {
		t.Errorf("got %q", got)
	}
}

type logger struct{ got *[]string }

func (l logger) AddLog(_ context.Context, r slog.Record) error {
	*l.got = append(*l.got, r.Message)
	return errors.New("must not be logged")
}

func live(t *testing.T) (*LiveFlow, *recorder) {
	rec := &recorder{states: make(chan *flow.Flow, 100)}
	core := New(Config{Recorder: rec})
	return &LiveFlow{Flow: &flow.Flow{Live: true}, Session: &Session{core: core, root: &root{}}}, rec
}

type recorder struct{ states chan *flow.Flow }

func (r *recorder) Record(f *flow.Flow, _ *LiveFlow) { r.states <- f }

func TestAnInterceptedFlowWaitsAndTakesEdits(t *testing.T) {
	l, rec := live(t)
	l.Intercept()
	done := make(chan error, 1)
	go func() { done <- l.Fire(t.Context(), OnRequest) }()
	for f := range rec.states {
		if f.Intercepted {
			break
		}
	}
	if err := l.Edit(func(f *flow.Flow) { f.Comment = "edited" }); err != nil {
		t.Fatal(err)
	}
	for f := range rec.states {
		if f.Comment == "edited" {
			break
		}
	}
	select {
	case err := <-done:
		t.Fatalf("an edit resumed the flow: %v", err)
	default:
	}
	l.Resume()
	if err := <-done; err != nil || l.Intercepted {
		t.Errorf("after Resume: %v, intercepted %v", err, l.Intercepted)
	}
}

func TestAKillWakesAnInterceptedFlow(t *testing.T) {
	l, rec := live(t)
	cut := make(chan error, 1)
	l.OnKill(func(cause error) { cut <- cause })
	l.Intercept()
	done := make(chan error, 1)
	go func() { done <- l.Fire(t.Context(), OnRequest) }()
	for f := range rec.states {
		if f.Intercepted {
			break
		}
	}
	if err := l.Kill(nil); err != nil {
		t.Fatal(err)
	}
	if err := <-done; !errors.Is(err, ErrKilled) {
		t.Errorf("Fire returned %v", err)
	}
	if err := <-cut; !errors.Is(err, ErrKilled) {
		t.Errorf("the protocol was told %v", err)
	}
	l.Fail(errors.New("connection reset"))
	l.Finish(t.Context())
	if l.Error.Message != flow.Killed || l.Live {
		t.Errorf("the flow ended with %v, live %v", l.Error, l.Live)
	}
	if err := l.Edit(func(*flow.Flow) {}); !errors.Is(err, ErrNotLive) {
		t.Errorf("an edit after the end gave %v", err)
	}
}

func TestAConversationThatEndsWakesAnInterceptedFlow(t *testing.T) {
	l, rec := live(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	l.Intercept()
	done := make(chan error, 1)
	go func() { done <- l.Fire(ctx, OnRequest) }()
	for f := range rec.states {
		if f.Intercepted {
			break
		}
	}
	cancel(ErrShutdown)
	if err := <-done; !errors.Is(err, ErrShutdown) {
		t.Errorf("Fire returned %v", err)
	}
}
