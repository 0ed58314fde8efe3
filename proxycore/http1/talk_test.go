package http1_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"mitm-appliance/flow"
	"mitm-appliance/option"
	"mitm-appliance/proxycore"
	"mitm-appliance/proxycore/exchange"
	"mitm-appliance/proxycore/http1"
)

// patience is how long anything in a test may take: generous, as the machine may be busy.
const patience = 20 * time.Second

// talk is a conversation through a core: the test plays the client and the server, and reads like a
// list of who says what. HOST in a text stands for the server's address.
type talk struct {
	t       testing.TB
	core    *proxycore.Core
	opts    *option.Registry
	ln      *net.TCPListener
	host    string
	client  *net.TCPConn
	server  *net.TCPConn
	hooks   *hooks
	kept    *kept
	served  chan struct{}
	handler proxycore.Handler
	logs    *bytes.Buffer
}

type setup struct {
	transparent bool // the client's target is the server; else an explicit proxy
	eager       bool
	options     []string
	limits      http1.Config
	prefix      int64
	patience    time.Duration
	raw         proxycore.Handler
	serverErr   error
}

// begin starts a core, a listening server and a client connection.
func begin(t testing.TB, with setup) *talk {
	t.Helper()
	ln, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	k := &talk{t: t, ln: ln, host: ln.Addr().String(), hooks: &hooks{}, kept: &kept{}, logs: &bytes.Buffer{}}
	k.start(with)
	t.Cleanup(k.end)
	return k
}

func (k *talk) start(with setup) {
	k.t.Helper()
	k.opts = option.New()
	coreOpts, exOpts := proxycore.DeclareOptions(k.opts), exchange.DeclareOptions(k.opts)
	if err := k.opts.SetText(append([]string{"connection_strategy=lazy"}, with.options...)...); err != nil {
		k.t.Fatal(err)
	}
	if with.eager {
		_ = k.opts.SetText("connection_strategy=eager")
	}
	framing := http1.New(with.limits)
	if with.raw == nil {
		with.raw = proxycore.HandlerFunc(relay)
	}
	svc := exchange.New(exchange.Config{
		Options: exOpts, NewServer: framing.NewServer(exOpts), Raw: with.raw, Prefix: with.prefix, Patience: with.patience,
	})
	h := framing.Handler(svc)
	k.handler = h
	var logger *slog.Logger
	if _, bench := k.t.(*testing.B); !bench {
		logger = slog.New(slog.NewTextHandler(&lockedWriter{w: k.logs}, nil))
	}
	k.core = proxycore.New(proxycore.Config{
		Options: coreOpts, Recorder: k.kept, Logger: logger, GraceTimeout: time.Millisecond,
		Protocols: proxycore.Protocols{HTTP1: h, TCP: with.raw, Pass: with.raw},
	})
	k.core.SetAddons(k.hooks)
	first := proxycore.HandlerFunc(func(ctx context.Context, s *proxycore.Session) error {
		s.ServerErr = with.serverErr
		return h.Serve(ctx, s)
	})
	k.connect(with, first)
}

// connect opens a client connection and serves it.
func (k *talk) connect(with setup, first proxycore.Handler) {
	k.t.Helper()
	in, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		k.t.Fatal(err)
	}
	defer in.Close()
	client, err := net.DialTCP("tcp", nil, in.Addr().(*net.TCPAddr))
	if err != nil {
		k.t.Fatal(err)
	}
	accepted, err := in.AcceptTCP()
	if err != nil {
		k.t.Fatal(err)
	}
	inbound := proxycore.Inbound{
		Network: "tcp", Client: &flow.Client{Mode: "test"}, First: first,
		Accept: func(context.Context) (proxycore.Conn, error) { return accepted, nil },
		Reject: func(error) { accepted.Close() },
	}
	if with.transparent {
		inbound.Target = flow.AddressOf(netip.MustParseAddrPort(k.host))
	}
	k.client, k.served = client, make(chan struct{})
	go func() {
		defer close(k.served)
		k.core.Serve(context.Background(), inbound)
	}()
}

// end closes what the test left open and makes sure that the core lets go of everything.
func (k *talk) end() {
	k.client.Close()
	if k.server != nil {
		k.server.Close()
	}
	k.ln.Close()
	select {
	case <-k.served:
	case <-time.After(patience):
		k.t.Error("the conversation did not end after both sides were closed")
	}
	k.core.Shutdown(context.Background())
}

func (k *talk) text(s string) string { return strings.ReplaceAll(s, "HOST", k.host) }

func (k *talk) clientSends(s string) {
	k.t.Helper()
	if _, err := io.WriteString(k.client, k.text(s)); err != nil {
		k.t.Fatalf("client cannot send: %v", err)
	}
}

func (k *talk) serverSends(s string) {
	k.t.Helper()
	if _, err := io.WriteString(k.server, k.text(s)); err != nil {
		k.t.Fatalf("server cannot send: %v", err)
	}
}

func (k *talk) clientGets(s string) {
	k.t.Helper()
	k.gets("client", k.client, s)
}

func (k *talk) serverGets(s string) {
	k.t.Helper()
	if k.server == nil {
		k.accept()
	}
	k.gets("server", k.server, s)
}

// accept waits for a new connection to the server.
func (k *talk) accept() {
	k.t.Helper()
	_ = k.ln.SetDeadline(time.Now().Add(patience))
	c, err := k.ln.AcceptTCP()
	if err != nil {
		k.t.Fatalf("nobody connects to the server: %v\n%s", err, k.logs)
	}
	k.server = c
}

func (k *talk) gets(who string, c net.Conn, want string) {
	k.t.Helper()
	want = k.text(want)
	_ = c.SetReadDeadline(time.Now().Add(patience))
	buf := make([]byte, len(want))
	n, err := io.ReadFull(c, buf)
	if got := string(buf[:n]); got != want {
		if err == nil {
			more := make([]byte, 4096)
			_ = c.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
			m, _ := c.Read(more)
			got += string(more[:m])
		}
		k.t.Fatalf("%s got (%v)\n%q\nwant\n%q", who, err, got, want)
	}
}

// clientEnds checks that nothing more comes and the connection is closed in order.
func (k *talk) clientEnds() {
	k.t.Helper()
	k.ends("client", k.client)
}

func (k *talk) serverEnds() {
	k.t.Helper()
	k.ends("server", k.server)
	k.server.Close()
	k.server = nil
}

func (k *talk) ends(who string, c net.Conn) {
	k.t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(patience))
	rest, err := io.ReadAll(c)
	if err != nil || len(rest) > 0 {
		k.t.Fatalf("%s got %q and %v, want the end", who, rest, err)
	}
}

// clientCut checks that the connection is reset, whatever came before.
func (k *talk) cut(who string, c net.Conn) {
	k.t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(patience))
	if _, err := io.Copy(io.Discard, c); err == nil || errors.Is(err, context.DeadlineExceeded) {
		k.t.Fatalf("%s got %v, want a reset", who, err)
	}
}

// clientPage reads an error page and returns its body.
func (k *talk) clientPage(status string) string {
	k.t.Helper()
	_ = k.client.SetReadDeadline(time.Now().Add(patience))
	all, err := io.ReadAll(k.client)
	if err != nil || !bytes.HasPrefix(all, []byte("HTTP/1.1 "+status+"\r\n")) {
		k.t.Fatalf("client got %q and %v, want a page %q", all, err, status)
	}
	head, body, _ := strings.Cut(string(all), "\r\n\r\n")
	for _, field := range []string{"Connection: close", "Server: mitm-appliance", fmt.Sprintf("Content-Length: %d", len(body))} {
		if !strings.Contains(head, field) {
			k.t.Errorf("page lacks %q:\n%s", field, head)
		}
	}
	return body
}

// finished waits for the conversation's end, so that flows and hooks are complete.
func (k *talk) finished() {
	k.t.Helper()
	k.client.Close()
	select {
	case <-k.served:
	case <-time.After(patience):
		k.t.Fatal("the conversation does not end")
	}
}

// wantHooks waits until the hooks are as listed, separated by spaces.
func (k *talk) wantHooks(want string) {
	k.t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		got := k.hooks.list()
		if got == want {
			return
		}
		if time.Now().After(end) || len(got) > len(want) {
			k.t.Fatalf("hooks\n%s\nwant\n%s", got, want)
		}
	}
}

// flow waits for the i-th finished flow.
func (k *talk) flow(i int) *flow.Flow {
	k.t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if fs := k.kept.finished(); len(fs) > i {
			return fs[i]
		}
	}
	k.t.Fatalf("there is no flow %d; %d are finished", i, len(k.kept.finished()))
	return nil
}

// hooks is an addon that lists what it saw and may act.
type hooks struct {
	mu  sync.Mutex
	saw []string
	end map[flow.ID][]string // the terminal hooks of each flow
	act map[string]func(*proxycore.LiveFlow)
}

func (h *hooks) on(name string, act func(*proxycore.LiveFlow)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.act == nil {
		h.act = map[string]func(*proxycore.LiveFlow){}
	}
	h.act[name] = act
}

func (h *hooks) note(name string, l *proxycore.LiveFlow) error {
	h.mu.Lock()
	h.saw = append(h.saw, name)
	if name == "response" || name == "error" {
		if h.end == nil {
			h.end = map[flow.ID][]string{}
		}
		h.end[l.ID] = append(h.end[l.ID], name)
	}
	act := h.act[name]
	h.mu.Unlock()
	if act != nil && l != nil {
		act(l)
	}
	return nil
}

func (h *hooks) list() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return strings.Join(h.saw, " ")
}

func (h *hooks) ends() map[flow.ID][]string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return maps.Clone(h.end)
}

func (h *hooks) RequestHeaders(_ context.Context, l *proxycore.LiveFlow) error {
	return h.note("requestheaders", l)
}

func (h *hooks) Request(_ context.Context, l *proxycore.LiveFlow) error { return h.note("request", l) }

func (h *hooks) ResponseHeaders(_ context.Context, l *proxycore.LiveFlow) error {
	return h.note("responseheaders", l)
}

func (h *hooks) Response(_ context.Context, l *proxycore.LiveFlow) error {
	return h.note("response", l)
}
func (h *hooks) Error(_ context.Context, l *proxycore.LiveFlow) error { return h.note("error", l) }
func (h *hooks) HTTPConnect(_ context.Context, l *proxycore.LiveFlow) error {
	return h.note("http_connect", l)
}

func (h *hooks) HTTPConnected(_ context.Context, l *proxycore.LiveFlow) error {
	return h.note("http_connected", l)
}

func (h *hooks) HTTPConnectError(_ context.Context, l *proxycore.LiveFlow) error {
	return h.note("http_connect_error", l)
}

func (h *hooks) ServerConnect(_ context.Context, _ *proxycore.ServerData) error {
	return h.note("server_connect", nil)
}

func (h *hooks) ServerConnected(_ context.Context, _ *proxycore.ServerData) error {
	return h.note("server_connected", nil)
}

// kept is a recorder.
type kept struct {
	mu    sync.Mutex
	flows []*flow.Flow
	lives []*proxycore.LiveFlow
}

func (k *kept) Record(f *flow.Flow, l *proxycore.LiveFlow) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for i := range k.flows {
		if k.flows[i].ID == f.ID {
			k.flows[i] = f
			return
		}
	}
	k.flows, k.lives = append(k.flows, f), append(k.lives, l)
}

func (k *kept) finished() []*flow.Flow {
	k.mu.Lock()
	defer k.mu.Unlock()
	var out []*flow.Flow
	for _, f := range k.flows {
		if !f.Live {
			out = append(out, f)
		}
	}
	return out
}

// live returns the i-th flow that was recorded.
func (k *talk) live(i int) *proxycore.LiveFlow {
	k.t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(time.Millisecond) {
		k.kept.mu.Lock()
		lives := k.kept.lives
		k.kept.mu.Unlock()
		if len(lives) > i {
			return lives[i]
		}
	}
	k.t.Fatalf("flow %d was never recorded", i)
	return nil
}

// relay is the raw handler of the tests: both directions, half-close included.
func relay(ctx context.Context, s *proxycore.Session) error {
	server := s.Server
	if server == nil {
		var err error
		if server, err = s.Dial(ctx, proxycore.Route{Address: s.Target}); err != nil {
			return err
		}
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = io.Copy(s.Conn, server)
		_ = s.Conn.CloseWrite()
	}()
	_, err := io.Copy(server, s.Conn)
	_ = server.CloseWrite()
	<-done
	return err
}

type lockedWriter struct {
	mu sync.Mutex
	w  io.Writer
}

func (l *lockedWriter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}
