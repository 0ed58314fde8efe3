package tlsmitm

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"mitm-appliance/flow"
	"mitm-appliance/proxycore"
	"mitm-appliance/proxycore/certs"
	"mitm-appliance/proxycore/sniff"
)

// Config is what a Handler is built from.
type Config struct {
	Options *Options            // required
	Store   func() *certs.Store // the current source of certificates; required
	KeyLog  io.Writer           // gets the secrets of both sides in NSS format (TLS-39); nil for none
	HTTP2   bool                // somebody here speaks HTTP/2, so that it may be agreed on
	Logger  *slog.Logger        // for what concerns no single conversation; nil discards

	ClientTimeout time.Duration // for a client's hello, and again for the rest of its handshake; 0 means 60 s
	ServerTimeout time.Duration // for a handshake with a server; 0 means 30 s
}

// Handler intercepts TLS. It is the proxycore.Handler for streams that begin with a ClientHello, and
// its Secure is proxycore.Config.Secure. It is safe for concurrent use.
type Handler struct {
	cfg     Config
	tickets tickets
	batches *sync.Pool
	mu      sync.Mutex // makes configs
	configs atomic.Pointer[configs]
}

// configs are the templates that each connection's tls.Config is cloned from.
type configs struct {
	*settings
	clientLeg, serverLeg *tls.Config
	sessions             tls.ClientSessionCache
	serverCiphers        []string // names of what servers are offered
}

var _ proxycore.Handler = (*Handler)(nil)

// New returns a Handler. The error says which option is wrong.
func New(cfg Config) (*Handler, error) {
	if cfg.Options == nil || cfg.Store == nil {
		return nil, errors.New("tlsmitm: Options and Store are required")
	}
	if cfg.ClientTimeout == 0 {
		cfg.ClientTimeout = 60 * time.Second
	}
	if cfg.ServerTimeout == 0 {
		cfg.ServerTimeout = 30 * time.Second
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	h := &Handler{cfg: cfg, batches: newBatchPool()}
	_, err := h.current()
	return h, err
}

// current returns the templates for the options as they are now. New options begin without sessions to
// resume, because what those were verified against may have changed.
func (h *Handler) current() (*configs, error) {
	set, err := h.cfg.Options.settings()
	if err != nil {
		return nil, err
	}
	if c := h.configs.Load(); c != nil && c.settings == set {
		return c, nil
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if c := h.configs.Load(); c != nil && c.settings == set {
		return c, nil
	}
	c := &configs{
		settings: set, clientLeg: set.client.config(), serverLeg: set.server.config(),
		sessions: tls.NewLRUClientSessionCache(maxServerSessions),
	}
	c.clientLeg.KeyLogWriter, c.serverLeg.KeyLogWriter = h.cfg.KeyLog, h.cfg.KeyLog
	if set.requestCert {
		c.clientLeg.ClientAuth = tls.RequestClientCert
	}
	c.serverLeg.RootCAs = set.roots
	c.serverCiphers = cipherNames(append(tls13Ciphers(), set.server.ciphers...))
	h.warn(set)
	h.configs.Store(c)
	return c, nil
}

// warn says which of the settings weaken connections (TLS-44).
func (h *Handler) warn(set *settings) {
	for side, l := range map[string]leg{"client": set.client, "server": set.server} {
		if l.min < tls.VersionTLS12 {
			h.cfg.Logger.Warn("insecure TLS versions are allowed", "option", "tls_version_"+side+"_min", "version", VersionName(l.min))
		}
	}
	if set.insecure {
		h.cfg.Logger.Warn("the certificates of servers are not verified", "option", "ssl_insecure")
	}
}

// Serve intercepts the TLS stream s.Conn. While s.Target is unknown the stream is the outer TLS of an
// explicit proxy (REG-02, TLS-31), which no server is asked about.
func (h *Handler) Serve(ctx context.Context, s *proxycore.Session) error {
	cur, err := h.current()
	if err != nil {
		return err
	}
	hello, err := h.readHello(s)
	if err != nil {
		return h.failClient(ctx, s, helloFailure(err, s))
	}
	noteHello(s, hello)
	speakable := h.speakable(s, hello.ALPN)
	data := &proxycore.ClientHelloData{Session: s, Hello: hello}
	if !s.Target.IsZero() {
		eager := s.Options().Eager() && h.cfg.Options.UpstreamCert.Get()
		data.ServerFirst = eager || len(hello.ALPN) > 0 && !speakable
	}
	s.Hooks().ClientHello(ctx, data)
	if data.Ignore {
		return s.PassThrough().Serve(ctx, s)
	}
	s.SNI, s.ALPN, s.Groups = hello.SNI, "", hello.Groups
	if data.ServerFirst {
		h.serverFirst(ctx, s)
	}
	conn, err := h.handshakeClient(ctx, s, cur, hello)
	if err != nil {
		return err
	}
	defer conn.Close() // close_notify, for those who wait for the end of the stream
	inner := s.Layer(conn)
	inner.Secure, inner.ALPN = true, conn.ConnectionState().NegotiatedProtocol
	if s.Target.IsZero() {
		inner.SNI = "" // the name of the proxy, not of what is inside
	}
	return inner.Next(ctx, inner.Conn)
}

// readHello waits for the whole ClientHello and leaves its bytes in s.Conn (TLS-09).
func (h *Handler) readHello(s *proxycore.Session) (*sniff.ClientHello, error) {
	deadline := time.Now().Add(h.cfg.ClientTimeout)
	for need := 1; ; {
		var seen []byte
		if p := s.Conn.Peeked(); len(p) > 0 {
			seen = p[0]
		}
		if len(seen) >= need {
			hello, more, err := sniff.ParseTLS(seen)
			if err != nil || hello != nil {
				return hello, err
			}
			need = max(more, len(seen)+1)
		}
		if err := s.Conn.Fill(deadline); err != nil {
			return nil, err
		}
	}
}

// noteHello makes the client's TLS facts those of this handshake, also when an outer one had its
// own (TLS-07).
func noteHello(s *proxycore.Session, hello *sniff.ClientHello) {
	facts := &flow.TLS{
		SNI: hello.SNI, ALPNOffers: hello.ALPN, Ciphers: cipherNames(hello.CipherSuites),
		JA3: hello.JA3Hash(), JA4: hello.JA4(), ECH: hello.ECH,
	}
	s.UpdateClient(func(c *flow.Client) { c.TLS, c.Leaf = facts, nil })
}

// serverFirst finishes the handshake with the server, on the connection that is there already or on a new
// one, and leaves it in s.Server, or the failure in s.ServerErr.
func (h *Handler) serverFirst(ctx context.Context, s *proxycore.Session) {
	route := proxycore.Route{Network: "tcp", Address: s.Target, TLS: true}
	if s.ServerErr != nil || s.Server != nil && s.Server.Route.TLS {
		return
	}
	var err error
	if c := s.TakeServer(proxycore.Route{Address: s.Target}); c != nil {
		if err = s.SecureServer(ctx, c, route); err != nil {
			_ = c.Close() // of no further use
		} else {
			s.Server = c
		}
	} else {
		s.Server, err = s.Dial(ctx, route)
	}
	if err != nil {
		s.ServerErr = err
		s.Logger().Info("client is served although its server is not available; with connection_strategy=lazy servers are only asked when needed",
			"server", s.Target, "err", err)
	}
}

// upstream returns the server's certificates, as far as a handshake has shown them.
func upstream(s *proxycore.Session) []*x509.Certificate {
	if s.Server == nil {
		return nil
	}
	if c, ok := s.Server.Conn.(*Conn); ok {
		return c.ConnectionState().PeerCertificates
	}
	return nil
}

// failClient logs and reports a failed handshake with the client (TLS-35..37).
func (h *Handler) failClient(ctx context.Context, s *proxycore.Session, e *HandshakeError) error {
	level := slog.LevelWarn
	if isClosed(e.Err) {
		level = slog.LevelInfo
	}
	s.Logger().Log(ctx, level, "client TLS handshake failed", "err", e)
	s.UpdateClient(func(c *flow.Client) { c.Error = e.Error() })
	s.Hooks().TLSEndClient(ctx, &proxycore.TLSData{Session: s, Client: s.Client(), Server: serverInfo(s), Err: e})
	return e
}

func serverInfo(s *proxycore.Session) *flow.Server {
	if s.Server == nil {
		return nil
	}
	return s.Server.Info()
}
