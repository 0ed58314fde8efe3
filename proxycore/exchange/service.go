package exchange

import (
	"context"
	"errors"
	"net/http"
	"sync"
	"time"

	"mitm-appliance/flow"
	"mitm-appliance/proxycore"
)

// Config is what a Service is built from.
type Config struct {
	Options *Options
	// NewServer speaks HTTP on a connection to a server, in the version that its ALPN says.
	NewServer func(*proxycore.Session, *proxycore.ServerConn) Server
	// Raw takes over after 101 Switching Protocols: it relays Session.Conn and Session.Server. nil
	// refuses such answers.
	Raw proxycore.Handler
	// ALPN is what servers are offered in TLS; "" means "http/1.1".
	ALPN string
	// Name is what we call ourselves in the Server field of our own answers; "" means "mitm-appliance".
	Name string
	// Patience is how long a body without announced length is collected before it is streamed, as it may
	// be one without end; 0 means 5 s.
	Patience time.Duration
	// Prefix is how many bytes of a streamed body a flow keeps; 0 means 64 KiB.
	Prefix int64
	// StoreLimit bounds what store_streamed_bodies keeps of one body; 0 means 64 MiB.
	StoreLimit int64
}

// Service runs exchanges. It is safe for concurrent use.
type Service struct {
	cfg     Config
	buffers sync.Pool // *[]byte of copySize
}

// New returns a Service.
func New(cfg Config) *Service {
	if cfg.ALPN == "" {
		cfg.ALPN = "http/1.1"
	}
	if cfg.Name == "" {
		cfg.Name = "mitm-appliance"
	}
	if cfg.Patience == 0 {
		cfg.Patience = 5 * time.Second
	}
	if cfg.Prefix == 0 {
		cfg.Prefix = 64 << 10
	}
	if cfg.StoreLimit == 0 {
		cfg.StoreLimit = 64 << 20
	}
	return &Service{cfg: cfg}
}

// Options returns the settings of exchanges, which framings share.
func (v *Service) Options() *Options { return v.cfg.Options }

// Page makes the answer to something that is no request at all.
func (v *Service) Page(cause error) *flow.Response {
	f := asFailure(cause)
	return Page(v.cfg.Name, f.Status, http.StatusText(f.Status), f)
}

// Conversation is a client's exchanges one after another, or for HTTP/2 and later beside each other,
// with the server connections that they share (HTTP-09).
type Conversation struct {
	svc *Service
	s   *proxycore.Session

	mu   sync.Mutex
	idle []idleServer // oldest first
}

// Converse begins a conversation. Connections to servers that wait for more requests close with s,
// after its client's (HOOK-21).
func (v *Service) Converse(s *proxycore.Session) *Conversation { return &Conversation{svc: v, s: s} }

// Serve runs one exchange: h.Request is filled in by the framing, and invalid is what is wrong with
// it. more says that the client's connection can carry another exchange; without it, a response that
// was begun and not ended has to be cut by the framing. The error is nil unless a protocol that took
// over the stream failed.
func (c *Conversation) Serve(ctx context.Context, cl Client, h *flow.HTTP, invalid error) (more bool, err error) {
	req := &h.Request
	if invalid == nil {
		if req.Method == http.MethodConnect && c.s.Target.IsZero() {
			return c.tunnel(ctx, cl, h)
		}
		invalid = c.address(req)
	}
	if errors.Is(invalid, errNoDestination) {
		c.s.Logger().Info("request without destination", "method", req.Method, "path", req.Path)
		_ = cl.Respond(req, c.svc.Page(invalid)) // the client is told what it did; whether it listens is its affair
		return false, nil
	}
	x := &exchange{conv: c, svc: c.svc, client: cl, http: h, invalid: invalid}
	x.l = c.s.Open(flow.KindHTTP)
	x.l.HTTP = h
	x.l.OnKill(cl.Abort)
	x.mu.Lock()
	more = x.serve(ctx)
	x.mu.Unlock()
	if x.next != nil {
		return false, x.next(ctx)
	}
	return more, nil
}
