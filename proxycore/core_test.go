package proxycore_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
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

// world is a core with scripted protocols, a server on loopback, and a diary of what happened.
type world struct {
	t       *testing.T
	core    *proxycore.Core
	options *option.Registry
	server  net.Listener

	mu    sync.Mutex
	diary []string
}

func (w *world) note(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.diary = append(w.diary, fmt.Sprintf(format, args...))
}

func (w *world) expect(want ...string) {
	w.t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	if !slices.Equal(w.diary, want) {
		w.t.Errorf("what happened:\n\t%s\nwant:\n\t%s", strings.Join(w.diary, "\n\t"), strings.Join(want, "\n\t"))
	}
}

// handler notes its name and answers with it.
func (w *world) handler(name string) proxycore.Handler {
	return proxycore.HandlerFunc(func(_ context.Context, s *proxycore.Session) error {
		w.note("serve %s", name)
		_, err := io.WriteString(s.Conn, name)
		return err
	})
}

func (w *world) ClientConnected(_ context.Context, d *proxycore.ClientData) error {
	w.note("client_connected")
	return nil
}

func (w *world) ClientDisconnected(context.Context, *proxycore.ClientData) error {
	w.note("client_disconnected")
	return nil
}

func (w *world) ServerConnect(context.Context, *proxycore.ServerData) error {
	w.note("server_connect")
	return nil
}

func (w *world) ServerConnected(context.Context, *proxycore.ServerData) error {
	w.note("server_connected")
	return nil
}

func (w *world) ServerDisconnected(context.Context, *proxycore.ServerData) error {
	w.note("server_disconnected")
	return nil
}

func (w *world) ServerConnectError(_ context.Context, d *proxycore.ServerData) error {
	w.note("server_connect_error")
	return nil
}

func (w *world) NextLayer(context.Context, *proxycore.NextLayerData) error {
	w.note("next_layer")
	return nil
}

func newWorld(t *testing.T, change func(*proxycore.Config)) *world {
	w := &world{t: t, options: option.New()}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w.server = ln
	t.Cleanup(func() { _ = ln.Close() })
	cfg := proxycore.Config{
		Options: proxycore.DeclareOptions(w.options), SniffTimeout: 100 * time.Millisecond, GraceTimeout: 50 * time.Millisecond,
		Protocols: proxycore.Protocols{
			TLS: w.handler("TLS"), HTTP1: w.handler("HTTP1"), DNS: w.handler("DNS"),
			TCP: w.handler("TCP"), UDP: w.handler("UDP"), Pass: w.handler("pass"),
		},
	}
	if change != nil {
		change(&cfg)
	}
	w.core = proxycore.New(cfg)
	w.core.SetAddons(w)
	return w
}

func (w *world) target() flow.Address {
	return flow.AddressOf(w.server.Addr().(*net.TCPAddr).AddrPort())
}

// connect serves one end of a TCP connection and returns the other, and a channel that is closed when
// the conversation has ended.
func (w *world) connect(target flow.Address) (client *net.TCPConn, ended chan struct{}) {
	w.t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		w.t.Fatal(err)
	}
	defer ln.Close()
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		w.t.Fatal(err)
	}
	served, err := ln.Accept()
	if err != nil {
		w.t.Fatal(err)
	}
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	ended = make(chan struct{})
	go func() {
		defer close(ended)
		w.core.Serve(context.Background(), proxycore.Inbound{
			Network: "tcp", Target: target,
			Client: &flow.Client{Connection: flow.Connection{Peer: netip.MustParseAddrPort("192.0.2.1:1234")}, Mode: "test"},
			Accept: func(context.Context) (proxycore.Conn, error) {
				w.note("accept")
				return served.(*net.TCPConn), nil
			},
			Reject: func(cause error) {
				w.note("reject refused=%v", proxycore.IsRefused(cause))
				_ = served.Close()
			},
		})
	}()
	return c.(*net.TCPConn), ended
}

func answer(t *testing.T, c net.Conn) string {
	t.Helper()
	b, err := io.ReadAll(c)
	if err != nil && !errors.Is(err, syscall.ECONNRESET) {
		t.Fatal(err)
	}
	return string(b)
}

func TestEagerConnectsToTheServerBeforeTheClientIsAccepted(t *testing.T) {
	w := newWorld(t, nil)
	c, ended := w.connect(w.target())
	fmt.Fprint(c, "GET / HTTP/1.1\r\n\r\n")
	if got := answer(t, c); got != "HTTP1" {
		t.Errorf("served by %q", got)
	}
	<-ended
	w.expect("client_connected", "server_connect", "server_connected", "accept", "next_layer", "next_layer",
		"serve HTTP1", "client_disconnected", "server_disconnected")
}

func TestLazyDoesNotConnect(t *testing.T) {
	w := newWorld(t, nil)
	if err := w.options.SetText("connection_strategy=lazy"); err != nil {
		t.Fatal(err)
	}
	c, ended := w.connect(w.target())
	fmt.Fprint(c, "GET / HTTP/1.1\r\n\r\n")
	answer(t, c)
	<-ended
	w.expect("client_connected", "accept", "next_layer", "next_layer", "serve HTTP1", "client_disconnected")
}

func TestLazyWaitsForASilentClientUnlessServersSpeakFirst(t *testing.T) {
	for _, c := range []struct {
		port uint16
		want string
	}{{4711, "HTTP1"}, {22, "TCP"}} {
		w := newWorld(t, func(cfg *proxycore.Config) { cfg.SniffTimeout = time.Nanosecond })
		if err := w.options.SetText("connection_strategy=lazy"); err != nil {
			t.Fatal(err)
		}
		conn, ended := w.connect(flow.Address{Host: "192.0.2.2", Port: c.port})
		time.Sleep(100 * time.Millisecond) // the client's silence
		_, _ = io.WriteString(conn, "GET / HTTP/1.1\r\n\r\n")
		if got := answer(t, conn); got != c.want {
			t.Errorf("port %d is served by %q, want %q", c.port, got, c.want)
		}
		<-ended
	}
}

func TestARefusedServerIsARefusedClient(t *testing.T) {
	w := newWorld(t, nil)
	target := w.target()
	_ = w.server.Close()
	c, ended := w.connect(target)
	<-ended
	w.expect("client_connected", "server_connect", "server_connect_error", "reject refused=true", "client_disconnected")
	answer(t, c)
}

func TestTheFirstBytesChooseTheProtocol(t *testing.T) {
	hello := "\x16\x03\x01\x00\x04\x01\x00\x00\x00"
	for _, c := range []struct {
		name, options, client, want string
	}{
		{"HTTP", "", "GET / HTTP/1.1\r\n", "HTTP1"},
		{"TLS", "", hello, "TLS"},
		{"garbage", "", "\x00\x01\x02\x03garbage that is long enough", "TCP"},
		{"garbage without rawtcp", "rawtcp=false", "\x00\x01\x02\x03garbage that is long enough", "HTTP1"},
		{"a slow client", "", "", "TCP"},
		{"ignored by address", "ignore_hosts=127.0.0.1", "GET / HTTP/1.1\r\nHost: x\r\n\r\n", "pass"},
		{"ignored by Host", "ignore_hosts=^secret", "GET / HTTP/1.1\r\nHost: secret.example\r\n\r\n", "pass"},
		{"not ignored", "ignore_hosts=^secret", "GET / HTTP/1.1\r\nHost: open.example\r\n\r\n", "HTTP1"},
		{"not allowed", "allow_hosts=^open", "GET / HTTP/1.1\r\nHost: secret.example\r\n\r\n", "pass"},
		{"allowed", "allow_hosts=^open", "GET / HTTP/1.1\r\nHost: open.example\r\n\r\n", "HTTP1"},
		{"raw by address", "tcp_hosts=127.0.0.1", "GET / HTTP/1.1\r\nHost: x\r\n\r\n", "TCP"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, nil)
			if c.options != "" {
				if err := w.options.SetText(c.options); err != nil {
					t.Fatal(err)
				}
			}
			conn, ended := w.connect(w.target())
			_, _ = io.WriteString(conn, c.client)
			if got := answer(t, conn); got != c.want {
				t.Errorf("served by %q, want %q", got, c.want)
			}
			<-ended
		})
	}
}

func TestAServerThatSpeaksFirstIsRelayed(t *testing.T) {
	w := newWorld(t, func(c *proxycore.Config) {
		c.SniffTimeout = 20 * time.Second // the answer must not have to wait for it
		c.Protocols.TCP = proxycore.HandlerFunc(func(_ context.Context, s *proxycore.Session) error {
			server := s.TakeServer(proxycore.Route{Address: s.Target})
			greeting := make([]byte, 8)
			n, err := server.Read(greeting)
			fmt.Fprintf(s.Conn, "%s: %s", s.Protocol, greeting[:n])
			return err
		})
	})
	go func() {
		c, err := w.server.Accept()
		if err == nil {
			fmt.Fprint(c, "SSH-2.0-")
		}
	}()
	c, ended := w.connect(w.target())
	if got := answer(t, c); got != "ssh: SSH-2.0-" {
		t.Errorf("got %q", got)
	}
	<-ended
}

func TestAnAddonCanRefuseAClientAndChooseAProtocol(t *testing.T) {
	w := newWorld(t, nil)
	w.core.SetAddons(refuser{})
	c, ended := w.connect(flow.Address{})
	<-ended
	answer(t, c)
	w.expect("reject refused=false")

	w = newWorld(t, nil)
	w.core.SetAddons(chooser{w.handler("mine")})
	c, ended = w.connect(flow.Address{})
	if got := answer(t, c); got != "mine" {
		t.Errorf("served by %q", got)
	}
	<-ended
}

type refuser struct{}

func (refuser) ClientConnected(_ context.Context, d *proxycore.ClientData) error {
	d.Refuse = errors.New("not today")
	return nil
}

type chooser struct{ h proxycore.Handler }

func (c chooser) NextLayer(_ context.Context, d *proxycore.NextLayerData) error {
	d.Handler = c.h
	return nil
}

func TestAnIdleConversationEnds(t *testing.T) {
	w := newWorld(t, func(c *proxycore.Config) {
		c.Protocols.TCP = proxycore.HandlerFunc(func(_ context.Context, s *proxycore.Session) error {
			_, err := s.Conn.Read(make([]byte, 1))
			w := s.Conn
			_, _ = w.Read(make([]byte, 1))
			return err
		})
	})
	if err := w.options.SetText("tcp_timeout=1"); err != nil {
		t.Fatal(err)
	}
	c, ended := w.connect(w.target())
	begin := time.Now()
	_, err := c.Read(make([]byte, 1))
	if err == nil || errors.Is(err, io.EOF) {
		t.Errorf("the idle client saw %v, want a reset", err)
	}
	<-ended
	if d := time.Since(begin); d < time.Second || d > 8*time.Second {
		t.Errorf("ended after %s", d)
	}
}

func TestShutdownCutsWhatDoesNotEnd(t *testing.T) {
	serving := make(chan struct{})
	w := newWorld(t, func(c *proxycore.Config) {
		c.Protocols.HTTP1 = proxycore.HandlerFunc(func(_ context.Context, s *proxycore.Session) error {
			close(serving)
			_, err := io.Copy(io.Discard, s.Conn)
			return err
		})
	})
	c, ended := w.connect(w.target())
	fmt.Fprint(c, "GET / HTTP/1.1\r\n")
	<-serving
	w.core.Shutdown(t.Context())
	if w.core.Live() != 0 {
		t.Errorf("%d conversations live after Shutdown", w.core.Live())
	}
	<-ended
	_, ended = w.connect(w.target())
	<-ended // refused at once
}

func TestNestingHasALimit(t *testing.T) {
	var depth int
	var got error
	w := newWorld(t, func(c *proxycore.Config) {
		c.Protocols.HTTP1 = proxycore.HandlerFunc(func(ctx context.Context, s *proxycore.Session) error {
			depth = s.Depth
			inner := proxycore.NewPeekConn(s.Conn.Conn, "tcp")
			inner.Unread([]byte("GET / HTTP/1.1\r\n\r\n"))
			got = s.Next(ctx, inner)
			return got
		})
	})
	c, ended := w.connect(w.target())
	fmt.Fprint(c, "GET / HTTP/1.1\r\n\r\n")
	<-ended
	answer(t, c)
	if got == nil || depth < 4 || depth > 16 {
		t.Errorf("nested %d layers deep, then %v", depth, got)
	}
}

func TestShutdownEndsIdleConversationsAtOnceAndInOrder(t *testing.T) {
	serving := make(chan struct{})
	w := newWorld(t, func(c *proxycore.Config) {
		c.GraceTimeout = time.Minute
		c.Protocols.HTTP1 = proxycore.HandlerFunc(func(ctx context.Context, s *proxycore.Session) error {
			l := s.Open(flow.KindHTTP)
			l.HTTP = &flow.HTTP{}
			close(serving)
			time.Sleep(100 * time.Millisecond) // an exchange that is not over when the appliance stops
			fmt.Fprint(s.Conn, "answer")
			l.Finish(ctx)
			_, _ = io.Copy(io.Discard, s.Conn) // keep-alive
			return nil
		})
	})
	c, ended := w.connect(w.target())
	fmt.Fprint(c, "GET / HTTP/1.1\r\n")
	<-serving
	begin := time.Now()
	w.core.Shutdown(t.Context())
	if d := time.Since(begin); d > 10*time.Second {
		t.Errorf("an idle conversation was waited for: %s", d)
	}
	<-ended
	if got, err := io.ReadAll(c); string(got) != "answer" || err != nil {
		t.Errorf("the client got %q, %v; want the whole answer and an end in order", got, err)
	}
}
