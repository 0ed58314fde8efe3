package proxycore

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"mitm-appliance/flow"
)

// Session is one layer of one conversation: the stream of this layer and what is known about both
// ends. Next makes the session of the layer inside. It belongs to the serving goroutine.
type Session struct {
	core *Core
	root *root
	log  *slog.Logger

	// Conn is the stream of this layer, with what was peeked of it still to be read.
	Conn *PeekConn
	// Network is "tcp" or "udp".
	Network string
	// Target is where the client wants to go. It is zero while an explicit proxy has not been told.
	Target flow.Address
	// Secure says that the client spoke TLS to this layer, so that the server is expected to (TLS-04).
	Secure bool
	// SNI is the name that the client asked for in TLS; "" when it named none.
	SNI string
	// Protocol names what the first bytes looked like: "tls", "ssh", ...; "" when unknown.
	Protocol string
	// Groups are the key exchange groups that the client offered in TLS, as IANA numbers; nil without
	// TLS. A connection to the server that it meant offers no stronger or weaker kind.
	Groups []uint16
	// ALPN is what was agreed on with the client in the enclosing TLS.
	ALPN string
	// Server is a connection to Target that an outer layer has opened; nil when none. Whoever uses it
	// takes it with TakeServer.
	Server *ServerConn
	// ServerErr is why an outer layer could not open Server; a protocol that can, tells the client
	// (TLS-02: a 502).
	ServerErr error
	// Depth counts the layers around this one.
	Depth int
}

// root is what all layers of a conversation share.
type root struct {
	client   atomic.Pointer[flow.Client]
	cancel   context.CancelCauseFunc
	active   atomic.Int64 // time of the last activity, Unix nanoseconds
	busy     atomic.Int32 // hooks or pauses that suspend the idle timeout
	attached sync.WaitGroup
	conn     Conn
	network  string
	flows    atomic.Int32 // live ones

	mu      sync.Mutex
	idle    *time.Timer // see watchIdle; nil for UDP
	ended   bool
	servers map[*ServerConn]struct{}
	failed  map[Route]error // HTTP-52
}

func newSession(c *Core, cancel context.CancelCauseFunc, in Inbound) *Session {
	client := *in.Client
	now := time.Now()
	if client.Start.IsZero() {
		client.Start = now
	}
	if client.ID.IsZero() {
		client.ID = flow.NewID(client.Start)
	}
	if client.Transport == "" {
		client.Transport = in.Network
	}
	s := &Session{core: c, root: &root{cancel: cancel, network: in.Network}, Network: in.Network, Target: in.Target}
	s.root.client.Store(&client)
	s.root.active.Store(now.UnixNano())
	s.log = c.cfg.Logger.With("client", client.Peer, "mode", client.Mode)
	return s
}

// Core returns the core that serves this conversation.
func (s *Session) Core() *Core { return s.core }

// Options returns the core's options.
func (s *Session) Options() *Options { return s.core.cfg.Options }

// Hooks returns the current addon list.
func (s *Session) Hooks() *Hooks { return s.core.Hooks() }

// Logger returns a logger that carries the client's address.
func (s *Session) Logger() *slog.Logger { return s.log }

// Client returns the client as it is known now. The value is immutable.
func (s *Session) Client() *flow.Client { return s.root.client.Load() }

// UpdateClient replaces the client by a changed copy: a handshake that finished, an address that
// became known. Flows that were opened before keep the old one.
func (s *Session) UpdateClient(change func(*flow.Client)) {
	c := *s.Client()
	change(&c)
	s.root.client.Store(&c)
}

// Open begins a flow of this conversation. The protocol fills in the data of its kind, fires hooks
// on it and calls Finish exactly once.
func (s *Session) Open(kind flow.Kind) *LiveFlow {
	now := time.Now()
	f := &flow.Flow{ID: flow.NewID(now), Kind: kind, Client: s.Client(), Created: now, Live: true}
	if s.Server != nil {
		f.Server = s.Server.Info()
	}
	s.root.flows.Add(1)
	return &LiveFlow{Flow: f, Session: s}
}

// Touch notes that the conversation is not idle. Reads and writes of Session.Conn count by
// themselves; a relay that bypasses it calls Touch.
func (s *Session) Touch() { s.root.active.Store(time.Now().UnixNano()) }

// Suspend keeps the idle timeout from running until the returned function is called: while a hook
// or a person decides (CONN-17).
func (s *Session) Suspend() (resume func()) {
	s.root.busy.Add(1)
	return func() {
		s.Touch()
		s.root.busy.Add(-1)
	}
}

// Cut ends the conversation with cause, from any goroutine.
func (s *Session) Cut(cause error) { s.root.cancel(cause) }

// errEnded is the cause of a conversation that ended by itself.
var errEnded = errors.New("conversation ended")

// attach takes over the accepted connection: it is cut when ctx ends, and when it is idle too long.
func (s *Session) attach(ctx context.Context, conn Conn) {
	s.root.conn = conn
	s.core.track(s.root)
	s.Conn = NewPeekConn(conn, s.Network)
	s.Conn.touch = s.Touch
	s.root.attached.Add(1)
	context.AfterFunc(ctx, func() {
		defer s.root.attached.Done()
		if !errors.Is(context.Cause(ctx), errEnded) {
			s.cutAll()
		}
	})
	if s.Network == "tcp" {
		s.root.active.Store(time.Now().UnixNano())
		s.watchIdle()
	}
}

// cutAll makes every blocked Read and Write of the conversation fail.
func (s *Session) cutAll() {
	Abort(s.root.conn)
	s.root.mu.Lock()
	defer s.root.mu.Unlock()
	for c := range s.root.servers {
		Abort(c.raw)
	}
}

// ErrIdle is the cause of conversations that tcp_timeout ended.
var ErrIdle = errors.New("closing connection due to inactivity")

// watchIdle re-arms one timer per conversation; busy conversations cost it one wake-up per timeout. end
// stops it.
func (s *Session) watchIdle() {
	s.root.mu.Lock()
	defer s.root.mu.Unlock()
	s.root.idle = time.AfterFunc(s.idleTimeout(), s.checkIdle)
}

func (s *Session) idleTimeout() time.Duration {
	return time.Duration(s.Options().TCPTimeout.Get()) * time.Second
}

func (s *Session) checkIdle() {
	left := s.idleTimeout() - time.Since(s.lastActive())
	if left <= 0 && s.root.busy.Load() == 0 {
		s.log.Info("closing connection due to inactivity")
		s.Cut(ErrIdle)
		return
	}
	s.root.mu.Lock()
	defer s.root.mu.Unlock()
	if !s.root.ended {
		s.root.idle.Reset(max(left, time.Second))
	}
}

// lastActive is when bytes last moved on either side.
func (s *Session) lastActive() time.Time {
	last := time.Unix(0, s.root.active.Load())
	if ask := s.core.cfg.LastActive; ask != nil {
		if t := ask(s.root.conn); t.After(last) {
			last = t
		}
	}
	return last
}

// end closes what is left and tells the addons: the client first, then its servers (CONN-14).
func (s *Session) end(ctx context.Context) {
	if s.root.conn != nil {
		s.core.untrack(s.root)
		_ = s.root.conn.Close() // its peer is gone or has been told already
	}
	s.UpdateClient(func(c *flow.Client) { c.End = time.Now() })
	s.log.Info("client disconnect")
	data := &ClientData{Client: s.Client()}
	fire(s.Hooks(), "client_disconnected", s.Hooks().clientDisc,
		func(a ClientDisconnectedHook) error { return a.ClientDisconnected(ctx, data) })
	s.root.mu.Lock()
	s.root.ended = true
	if s.root.idle != nil {
		s.root.idle.Stop()
	}
	left := make([]*ServerConn, 0, len(s.root.servers))
	for c := range s.root.servers {
		left = append(left, c)
	}
	s.root.mu.Unlock()
	for _, c := range left {
		_ = c.Close()
	}
	s.root.cancel(errEnded)
	s.root.attached.Wait()
}

func (s *Session) serveFirst(ctx context.Context, first Handler) error {
	if first == nil {
		return s.Next(ctx, s.Conn)
	}
	return first.Serve(ctx, s)
}

// maxDepth bounds TLS in CONNECT in TLS in CONNECT …, which a client could nest for ever.
const maxDepth = 8

// Layer returns the session of a layer inside s, whose stream is conn, without serving it.
func (s *Session) Layer(conn Conn) *Session {
	inner := *s
	inner.Conn = NewPeekConn(conn, s.Network)
	inner.Depth++
	return &inner
}

// Next chooses the protocol of the stream conn inside this layer and serves it to its end. It
// returns what the chosen handler returned.
func (s *Session) Next(ctx context.Context, conn Conn) error {
	inner := s
	if s.Conn != conn {
		inner = s.Layer(conn)
	}
	return inner.serve(ctx)
}

func (s *Session) serve(ctx context.Context) error {
	if s.Depth > maxDepth {
		return fmt.Errorf("proxycore: more than %d layers inside one connection", maxDepth)
	}
	h, err := s.choose(ctx)
	if err != nil || h == nil {
		return err
	}
	return h.Serve(ctx, s)
}

// SetDeadlineIn is Conn.SetReadDeadline by distance; zero removes it.
func SetDeadlineIn(c net.Conn, d time.Duration) error {
	if d == 0 {
		return c.SetReadDeadline(time.Time{})
	}
	return c.SetReadDeadline(time.Now().Add(d))
}
