package relay

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"mitm-appliance/flow"
	"mitm-appliance/option"
	"mitm-appliance/proxycore"
)

// scene is a client, a relay and a server on loopback.
type scene struct {
	t       *testing.T
	core    *proxycore.Core
	options *option.Registry
	server  net.Listener
	packets net.PacketConn
	ended   chan struct{}

	mu    sync.Mutex
	final *flow.Flow
	live  *proxycore.LiveFlow
	hooks []string
	edit  func(*proxycore.LiveFlow)
}

func (s *scene) Record(f *flow.Flow, l *proxycore.LiveFlow) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.final, s.live = f, l
}

func (s *scene) see(name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.hooks) == 0 || s.hooks[len(s.hooks)-1] != name {
		s.hooks = append(s.hooks, name)
	}
	return nil
}

func (s *scene) TCPStart(context.Context, *proxycore.LiveFlow) error { return s.see("tcp_start") }
func (s *scene) TCPEnd(context.Context, *proxycore.LiveFlow) error   { return s.see("tcp_end") }
func (s *scene) TCPError(context.Context, *proxycore.LiveFlow) error { return s.see("tcp_error") }
func (s *scene) UDPStart(context.Context, *proxycore.LiveFlow) error { return s.see("udp_start") }
func (s *scene) UDPEnd(context.Context, *proxycore.LiveFlow) error   { return s.see("udp_end") }
func (s *scene) UDPError(context.Context, *proxycore.LiveFlow) error { return s.see("udp_error") }

// editor is the part of a scene that listens to messages, so that scenes without one take the fast path.
type editor struct{ *scene }

func (e editor) TCPMessage(_ context.Context, l *proxycore.LiveFlow) error {
	e.edit(l)
	return e.see("tcp_message")
}

func newScene(t *testing.T, settings ...string) *scene {
	s := &scene{t: t, options: option.New(), ended: make(chan struct{})}
	core, relay := proxycore.DeclareOptions(s.options), DeclareOptions(s.options)
	if err := s.options.SetText(settings...); err != nil {
		t.Fatal(err)
	}
	s.core = proxycore.New(proxycore.Config{
		Options: core, Recorder: s,
		Protocols: proxycore.Protocols{TCP: TCP{relay}, UDP: UDP{relay}, Pass: Pass{}},
	})
	s.core.SetAddons(s)
	var err error
	if s.server, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.server.Close() })
	return s
}

// connect returns the client's and the server's end of a relayed TCP connection.
func (s *scene) connect(h proxycore.Handler) (client, server *net.TCPConn) {
	s.t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		s.t.Fatal(err)
	}
	defer ln.Close()
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		s.t.Fatal(err)
	}
	inner, err := ln.Accept()
	if err != nil {
		s.t.Fatal(err)
	}
	go func() {
		defer close(s.ended)
		s.core.Serve(context.Background(), proxycore.Inbound{
			Network: "tcp", Client: &flow.Client{}, First: h,
			Target: flow.AddressOf(s.server.Addr().(*net.TCPAddr).AddrPort()),
			Accept: func(context.Context) (proxycore.Conn, error) { return inner.(*net.TCPConn), nil },
		})
	}()
	far, err := s.server.Accept()
	if err != nil {
		s.t.Fatal(err)
	}
	for _, conn := range []net.Conn{c, far} {
		_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
		s.t.Cleanup(func() { _ = conn.Close() })
	}
	return c.(*net.TCPConn), far.(*net.TCPConn)
}

func (s *scene) expectHooks(want ...string) {
	s.t.Helper()
	<-s.ended
	s.mu.Lock()
	defer s.mu.Unlock()
	if !slices.Equal(s.hooks, want) {
		s.t.Errorf("hooks %v, want %v", s.hooks, want)
	}
}

func readAll(t *testing.T, c net.Conn) string {
	t.Helper()
	b, err := io.ReadAll(c)
	if err != nil {
		t.Fatalf("after %d bytes: %v", len(b), err)
	}
	return string(b)
}

func TestBothSidesTalkAndCloseInTurn(t *testing.T) {
	s := newScene(t)
	c, srv := s.connect(TCP{DeclareOptions(option.New())})
	fmt.Fprint(c, "hello ")
	buf := make([]byte, 6)
	if _, err := io.ReadFull(srv, buf); err != nil || string(buf) != "hello " {
		t.Fatalf("the server got %q, %v", buf, err)
	}
	fmt.Fprint(c, "server")
	_ = c.CloseWrite()
	if got := readAll(t, srv); got != "server" {
		t.Errorf("the server got %q", got)
	}
	fmt.Fprint(srv, "and hello client") // the other half is still open
	_ = srv.Close()
	if got := readAll(t, c); got != "and hello client" {
		t.Errorf("the client got %q", got)
	}
	s.expectHooks("tcp_start", "tcp_end")
	f := s.final
	if f.Live || f.Error != nil || f.Stream.Sent != 12 || f.Stream.Received != 16 {
		t.Errorf("recorded flow: live %v, error %v, %d up, %d down", f.Live, f.Error, f.Stream.Sent, f.Stream.Received)
	}
	var texts []string
	for _, m := range f.Stream.Messages {
		texts = append(texts, fmt.Sprintf("%v %s", m.FromClient, m.Data))
	}
	if want := []string{"true hello ", "true server", "false and hello client"}; !slices.Equal(texts, want) {
		t.Errorf("messages %q, want %q", texts, want)
	}
}

func TestTheServerMayCloseFirst(t *testing.T) {
	s := newScene(t)
	c, srv := s.connect(TCP{DeclareOptions(option.New())})
	_ = srv.CloseWrite()
	if got := readAll(t, c); got != "" {
		t.Errorf("the client got %q", got)
	}
	fmt.Fprint(c, "still here")
	_ = c.CloseWrite()
	if got := readAll(t, srv); got != "still here" {
		t.Errorf("the server got %q", got)
	}
	s.expectHooks("tcp_start", "tcp_end")
}

func TestAResetReachesTheOtherSide(t *testing.T) {
	for _, who := range []string{"client", "server"} {
		t.Run(who, func(t *testing.T) {
			s := newScene(t)
			a, b := s.connect(TCP{DeclareOptions(option.New())})
			if who == "server" {
				a, b = b, a
			}
			fmt.Fprint(b, "x") // a reset before the relay stands would be a refusal
			if _, err := io.ReadFull(a, make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
			proxycore.Abort(a)
			if _, err := b.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("the other side saw %v, want a reset", err)
			}
			s.expectHooks("tcp_start", "tcp_error")
			if s.final.Error == nil {
				t.Error("the flow says nothing about the reset")
			}
		})
	}
}

func TestBulkIsUnharmedAndRecordingIsBounded(t *testing.T) {
	const limit, size = 100_000, 8 << 20
	s := newScene(t, fmt.Sprintf("stream_store_limit=%d", limit))
	opts := option.New()
	o := DeclareOptions(opts)
	if err := opts.SetText(fmt.Sprintf("stream_store_limit=%d", limit)); err != nil {
		t.Fatal(err)
	}
	c, srv := s.connect(TCP{o})
	data := bytes.Repeat([]byte("0123456789abcdef"), size/16)
	go func() {
		_, _ = c.Write(data)
		_ = c.CloseWrite()
	}()
	if got := readAll(t, srv); got != string(data) {
		t.Fatalf("%d of %d bytes arrived, or changed", len(got), size)
	}
	_ = srv.Close()
	s.expectHooks("tcp_start", "tcp_end")
	stored := 0
	for _, m := range s.final.Stream.Messages {
		stored += len(m.Data)
	}
	if stored != limit || s.final.Stream.Sent != size {
		t.Errorf("stored %d bytes of %d counted; want %d of %d", stored, s.final.Stream.Sent, limit, size)
	}
}

func TestHooksEditAndDropMessages(t *testing.T) {
	s := newScene(t)
	s.edit = func(l *proxycore.LiveFlow) {
		m := &l.Stream.Messages[len(l.Stream.Messages)-1]
		switch string(m.Data) {
		case "drop me":
			m.Dropped = true
		default:
			m.Data = bytes.ToUpper(m.Data)
		}
	}
	s.core.SetAddons(s, editor{s})
	c, srv := s.connect(TCP{DeclareOptions(option.New())})
	buf := make([]byte, 64)
	fmt.Fprint(c, "shout")
	if n, err := srv.Read(buf); err != nil || string(buf[:n]) != "SHOUT" {
		t.Fatalf("the server got %q, %v", buf[:n], err)
	}
	fmt.Fprint(srv, "drop me")
	_ = c.CloseWrite()
	readAll(t, srv)
	_ = srv.Close()
	if got := readAll(t, c); got != "" {
		t.Errorf("the client got %q", got)
	}
	s.expectHooks("tcp_start", "tcp_message", "tcp_end")
}

func TestKillCutsAtOnce(t *testing.T) {
	s := newScene(t)
	c, srv := s.connect(TCP{DeclareOptions(option.New())})
	fmt.Fprint(c, "x")
	if _, err := srv.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	s.mu.Lock()
	live := s.live
	s.mu.Unlock()
	if err := live.Kill(nil); err != nil {
		t.Fatal(err)
	}
	for _, conn := range []net.Conn{c, srv} {
		if _, err := conn.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
			t.Errorf("after the kill a side saw %v, want a reset", err)
		}
	}
	s.expectHooks("tcp_start", "tcp_error")
	if s.final.Error == nil || s.final.Error.Message != flow.Killed {
		t.Errorf("the flow's error is %v", s.final.Error)
	}
	if err := live.Kill(nil); !errors.Is(err, proxycore.ErrNotLive) {
		t.Errorf("a second kill gave %v", err)
	}
}

func TestInjectedMessagesArrive(t *testing.T) {
	s := newScene(t)
	c, srv := s.connect(TCP{DeclareOptions(option.New())})
	fmt.Fprint(c, "x")
	if _, err := srv.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	s.mu.Lock()
	live := s.live
	s.mu.Unlock()
	for _, toClient := range []bool{true, false} {
		if err := live.Inject(proxycore.Injection{ToClient: toClient, Data: []byte("injected")}); err != nil {
			t.Fatal(err)
		}
	}
	buf := make([]byte, 8)
	for _, conn := range []net.Conn{c, srv} {
		if _, err := io.ReadFull(conn, buf); err != nil || string(buf) != "injected" {
			t.Errorf("a side got %q, %v", buf, err)
		}
	}
	_, _ = c.Close(), srv.Close()
	<-s.ended
	if n := len(s.final.Stream.Messages); n != 3 || !s.final.Stream.Messages[2].Injected {
		t.Errorf("%d messages recorded: %+v", n, s.final.Stream.Messages)
	}
}

func TestPassLeavesNoFlow(t *testing.T) {
	s := newScene(t)
	c, srv := s.connect(Pass{})
	fmt.Fprint(c, strings.Repeat("secret", 1000))
	_ = c.CloseWrite()
	if got := readAll(t, srv); len(got) != 6000 {
		t.Errorf("the server got %d bytes", len(got))
	}
	_ = srv.Close()
	readAll(t, c)
	s.expectHooks()
	if s.final != nil {
		t.Error("a flow was recorded")
	}
}

func TestAServerThatIsNotThereFailsTheFlow(t *testing.T) {
	s := newScene(t, "connection_strategy=lazy")
	_ = s.server.Close()
	a, b := net.Pipe()
	defer a.Close()
	go func() {
		defer close(s.ended)
		s.core.Serve(context.Background(), proxycore.Inbound{
			Network: "tcp", Client: &flow.Client{}, First: TCP{DeclareOptions(option.New())},
			Target: flow.AddressOf(s.server.Addr().(*net.TCPAddr).AddrPort()),
			Accept: func(context.Context) (proxycore.Conn, error) { return pipe{b}, nil },
		})
	}()
	s.expectHooks("tcp_start", "tcp_error")
	if s.final.Error == nil || !strings.Contains(s.final.Error.Message, "refused") {
		t.Errorf("the flow's error is %v", s.final.Error)
	}
}

type pipe struct{ net.Conn }

func (p pipe) CloseWrite() error { return nil }
