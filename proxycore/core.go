package proxycore

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"mitm-appliance/flow"
)

// Handler serves one protocol on s.Conn until the conversation ends. It returns nil at a normal end
// and otherwise why it could not go on; it need not close s.Conn.
type Handler interface {
	Serve(ctx context.Context, s *Session) error
}

// HandlerFunc is a function as a Handler.
type HandlerFunc func(ctx context.Context, s *Session) error

// Serve calls f.
func (f HandlerFunc) Serve(ctx context.Context, s *Session) error { return f(ctx, s) }

// Inbound is one conversation that wants to be served.
type Inbound struct {
	Network string       // "tcp" or "udp"
	Client  *flow.Client // ID, Transport, Start and Local are filled in when zero
	Target  flow.Address // where the client wants to go; zero for explicit proxies
	First   Handler      // protocol of the outermost layer; nil: chosen by the first bytes

	// Accept finishes the client's handshake. It is called once, or Reject is: with an eager strategy
	// only after the server answered, so that the client sees the network as it is.
	Accept func(context.Context) (Conn, error)
	// Reject refuses the client; cause decides how (refused: RST; unreachable: silence). May be nil.
	Reject func(cause error)

	// Waiting ends when the client gives up before Accept; nil: never known. It stops an eager
	// connection attempt.
	Waiting context.Context

	// LazyUpstream keeps an eager strategy from connecting before Accept: for conversations whose
	// handler decides about the server by itself.
	LazyUpstream bool
}

// Protocols are the handlers that Session.Next chooses from. A nil one is not available: its streams
// are relayed raw, and QUIC is refused so that clients fall back to TCP.
type Protocols struct {
	TLS, DTLS, QUIC Handler
	HTTP1, HTTP2    Handler
	DNS             Handler
	TCP, UDP        Handler // raw relays with a flow
	Pass            Handler // raw relay without a flow
}

// Config is what a Core is built from.
type Config struct {
	Logger    *slog.Logger
	Options   *Options
	Protocols Protocols
	Recorder  Recorder // nil records nothing

	// Secure does the TLS handshake with a server; see Session.Dial. Required for TLS routes.
	Secure func(ctx context.Context, s *Session, c *ServerConn, r Route) error
	// Control is applied to every socket to a server before it connects, with the resolved address.
	// Its error refuses the connection: the guard against loops and against the control plane.
	Control func(network, address string, c syscall.RawConn) error
	// Resolver looks up server names; nil uses Go's with Control applied to its sockets.
	Resolver *net.Resolver

	// LastActive tells when bytes last moved on a connection whose reads and writes bypass the core
	// (splice and its like); nil or a zero time: unknown.
	LastActive func(net.Conn) time.Time

	ConnectTimeout time.Duration // for one connection to a server; 0 means 30 s
	SniffTimeout   time.Duration // waiting for a client's first bytes before the server may speak; 0 means 3 s
	UDPTimeout     time.Duration // silence that ends a UDP conversation; 0 means 60 s
	GraceTimeout   time.Duration // for conversations to end by themselves in Shutdown; 0 means 2 s
}

func (c *Config) defaults() {
	set := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	set(&c.ConnectTimeout, 30*time.Second)
	set(&c.SniffTimeout, 3*time.Second)
	set(&c.UDPTimeout, 60*time.Second)
	set(&c.GraceTimeout, 2*time.Second)
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
}

// Core serves conversations. Make one with New; all methods are safe for concurrent use.
type Core struct {
	cfg    Config
	dialer net.Dialer
	hooks  atomic.Pointer[Hooks]

	ctx    context.Context // ends all conversations
	cancel context.CancelCauseFunc

	stopping atomic.Bool // Shutdown was called: an expired read means that the conversation is to end

	mu      sync.Mutex
	closing bool
	open    map[*root]struct{} // conversations that were accepted
	live    sync.WaitGroup
	count   atomic.Int64
}

// ErrShutdown is the cause of conversations that end because the appliance does.
var ErrShutdown = errors.New("the appliance is shutting down")

// New returns a Core without addons.
func New(cfg Config) *Core {
	cfg.defaults()
	c := &Core{cfg: cfg, open: map[*root]struct{}{}}
	c.ctx, c.cancel = context.WithCancelCause(context.Background())
	c.dialer = net.Dialer{Timeout: cfg.ConnectTimeout, Control: cfg.Control, Resolver: cfg.Resolver}
	if cfg.Resolver == nil {
		lookup := net.Dialer{Timeout: 5 * time.Second, Control: cfg.Control}
		c.dialer.Resolver = &net.Resolver{PreferGo: true, Dial: lookup.DialContext}
	}
	c.SetAddons()
	return c
}

// SetAddons replaces the addon list; conversations use the new one from their next hook on.
func (c *Core) SetAddons(addons ...any) { c.hooks.Store(NewHooks(c.cfg.Logger, addons...)) }

// Hooks returns the current addon list.
func (c *Core) Hooks() *Hooks { return c.hooks.Load() }

// Options returns the core's options.
func (c *Core) Options() *Options { return c.cfg.Options }

// Logger returns the logger that the core was given.
func (c *Core) Logger() *slog.Logger { return c.cfg.Logger }

// Live is the number of open conversations.
func (c *Core) Live() int { return int(c.count.Load()) }

// Serve runs one conversation to its end on the calling goroutine. ctx is the mode's: when it ends,
// so does the conversation.
func (c *Core) Serve(ctx context.Context, in Inbound) {
	c.mu.Lock()
	if c.closing {
		c.mu.Unlock()
		in.reject(ErrShutdown)
		return
	}
	c.live.Add(1)
	c.mu.Unlock()
	c.count.Add(1)
	defer c.live.Done()
	defer c.count.Add(-1)

	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(errEnded)
	stop := context.AfterFunc(c.ctx, func() { cancel(context.Cause(c.ctx)) })
	defer stop()
	c.converse(ctx, cancel, in)
}

func (in *Inbound) reject(cause error) {
	if in.Reject != nil {
		in.Reject(cause)
	}
}

func (c *Core) converse(ctx context.Context, cancel context.CancelCauseFunc, in Inbound) {
	s := newSession(c, cancel, in)
	s.log.Info("client connect")
	data := &ClientData{Client: s.Client()}
	fire(c.Hooks(), "client_connected", c.Hooks().clientConn,
		func(a ClientConnectedHook) error { return a.ClientConnected(ctx, data) })
	defer s.end(ctx)
	if data.Refuse != nil {
		s.log.Info("client kill connection", "err", data.Refuse)
		in.reject(data.Refuse)
		return
	}
	if err := s.connectEagerly(ctx, &in); err != nil {
		s.log.Info("client refused", "target", s.Target, "err", err)
		in.reject(err)
		return
	}
	conn, err := in.Accept(ctx)
	if err != nil {
		s.log.Info("client went away before it was accepted", "err", err)
		return
	}
	s.attach(ctx, conn)
	if err := s.serveFirst(ctx, in.First); err != nil && !isQuiet(err) {
		s.log.Info("conversation failed", "err", err)
	}
}

// ErrReported is what errors are (errors.Is) whose handler has logged them already, with more to say
// than the core could.
var ErrReported = errors.New("proxycore: reported already")

// isQuiet is true for ends that are nobody's fault and already visible as "client disconnect".
func isQuiet(err error) bool {
	return errors.Is(err, ErrReported) || errors.Is(err, net.ErrClosed) || errors.Is(err, ErrKilled) || errors.Is(err, ErrShutdown) ||
		errors.Is(err, context.Canceled) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// Shutdown refuses new conversations, ends idle ones at once and the others as they become idle, cuts
// what is left after GraceTimeout (or when ctx ends), and returns when all have ended.
func (c *Core) Shutdown(ctx context.Context) {
	c.stopping.Store(true)
	c.mu.Lock()
	c.closing = true
	c.mu.Unlock()
	ended := make(chan struct{})
	go func() {
		c.live.Wait()
		close(ended)
	}()
	grace := time.NewTimer(c.cfg.GraceTimeout)
	defer grace.Stop()
	sweep := time.NewTicker(20 * time.Millisecond)
	defer sweep.Stop()
	for running := true; running; {
		c.endIdle()
		select {
		case <-sweep.C:
		case <-ended:
			running = false
		case <-grace.C:
			running = false
		case <-ctx.Done():
			running = false
		}
	}
	c.cancel(ErrShutdown)
	<-ended
}

// endIdle lets conversations without a flow see the end of their client, so that they close in order;
// a UDP flow is nothing to wait for either.
func (c *Core) endIdle() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for r := range c.open {
		if r.flows.Load() == 0 || r.network == "udp" {
			_ = r.conn.SetReadDeadline(time.Unix(1, 0)) // a connection that is gone needs no end
		}
	}
}

func (c *Core) track(r *root) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.open[r] = struct{}{}
}

func (c *Core) untrack(r *root) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.open, r)
}
