package proxycore

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"mitm-appliance/flow"
)

// Route is a way to a server. Two equal routes may share a connection (HTTP-09).
type Route struct {
	Network string // "" means "tcp"
	Address flow.Address
	TLS     bool
	SNI     string // name for TLS; "" means the client's SNI for the conversation's own target, else Address.Host
	ALPN    string // protocols to offer, comma separated; "" offers what the client offered
}

// ServerConn is a connection to a server, owned by one conversation. Close it, or leave it to the
// end of the conversation.
type ServerConn struct {
	Conn        // what protocols use: the TLS stream once Secure has run
	Route Route // how it was asked for, before hooks changed it
	raw   Conn  // the transport
	s     *Session
	info  atomic.Pointer[flow.Server]
	once  sync.Once
}

// Info returns the server as it is known now. The value is immutable.
func (c *ServerConn) Info() *flow.Server { return c.info.Load() }

// Update replaces the server's facts by a changed copy.
func (c *ServerConn) Update(change func(*flow.Server)) {
	next := *c.info.Load()
	change(&next)
	c.info.Store(&next)
}

// Transport returns the connection below TLS, for relays and aborts.
func (c *ServerConn) Transport() Conn { return c.raw }

// Abort resets the transport and closes the connection.
func (c *ServerConn) Abort() {
	Abort(c.raw)
	_ = c.Close()
}

// Close ends the connection and runs server_disconnected, once.
func (c *ServerConn) Close() error {
	var err error
	c.once.Do(func() {
		c.s.root.mu.Lock()
		delete(c.s.root.servers, c)
		c.s.root.mu.Unlock()
		err = c.Conn.Close()
		if c.Conn != c.raw {
			_ = c.raw.Close() // TLS has closed it already, a failed handshake has not
		}
		c.Update(func(i *flow.Server) { i.End = time.Now() })
		c.s.log.Debug("server disconnect", "server", c.Info().Address)
		h := c.s.Hooks()
		data := &ServerData{Client: c.s.Client(), Server: c.Info()}
		fire(h, "server_disconnected", h.serverDisc,
			func(a ServerDisconnectedHook) error { return a.ServerDisconnected(context.Background(), data) })
	})
	return err
}

// Dial opens a connection to a server: server_connect, the transport, server_connected or
// server_connect_error, and with r.TLS the TLS handshake. The connection closes with the conversation
// at the latest. A route that failed keeps failing for this conversation without a new attempt
// (HTTP-52). Errors say what to tell a client: "connection refused", a DNS failure, a bad certificate.
func (s *Session) Dial(ctx context.Context, r Route) (*ServerConn, error) {
	if r.Network == "" {
		r.Network = "tcp"
	}
	s.root.mu.Lock()
	err := s.root.failed[r]
	s.root.mu.Unlock()
	if err != nil {
		return nil, err
	}
	c, err := s.dial(ctx, r)
	s.remember(ctx, r, err)
	return c, err
}

// remember keeps a failure, so that the route is not tried again in this conversation.
func (s *Session) remember(ctx context.Context, r Route, err error) {
	if err == nil || ctx.Err() != nil {
		return
	}
	s.root.mu.Lock()
	defer s.root.mu.Unlock()
	if s.root.failed == nil {
		s.root.failed = map[Route]error{}
	}
	if len(s.root.failed) < maxFailed {
		s.root.failed[r] = err
	}
}

// maxFailed bounds the memory of failures in one conversation.
const maxFailed = 64

func (s *Session) dial(ctx context.Context, r Route) (*ServerConn, error) {
	c, err := s.connect(ctx, r)
	if err != nil {
		return nil, err
	}
	if !r.TLS {
		return c, nil
	}
	if err := s.core.cfg.Secure(ctx, s, c, r); err != nil {
		_ = c.Close()
		return nil, err
	}
	return c, nil
}

// SecureServer runs the TLS handshake on a connection that was opened without it. On an error the
// connection is of no further use, and Dial will fail along r with the same error.
func (s *Session) SecureServer(ctx context.Context, c *ServerConn, r Route) error {
	r.Network = networkOf(r)
	c.Route = r
	err := s.core.cfg.Secure(ctx, s, c, r)
	s.remember(ctx, r, err)
	return err
}

// connect opens the transport.
func (s *Session) connect(ctx context.Context, r Route) (*ServerConn, error) {
	now := time.Now()
	info := &flow.Server{
		Connection: flow.Connection{ID: flow.NewID(now), Transport: r.Network, Start: now},
		Address:    r.Address,
	}
	h := s.Hooks()
	data := &ServerData{Client: s.Client(), Server: info}
	fire(h, "server_connect", h.serverDial, func(a ServerConnectHook) error { return a.ServerConnect(ctx, data) })
	raw, err := s.open(ctx, info, data.Refuse, r.Network)
	if err != nil {
		failed := *info
		failed.Error = err.Error()
		data = &ServerData{Client: data.Client, Server: &failed}
		s.log.Info("server connect failed", "server", info.Address, "err", err)
		fire(h, "server_connect_error", h.serverErr, func(a ServerConnectErrorHook) error { return a.ServerConnectError(ctx, data) })
		return nil, err
	}
	up := *info
	up.Peer, up.Local = addrPort(raw.RemoteAddr()), addrPort(raw.LocalAddr())
	if r.Network == "tcp" {
		up.TCPSetup = time.Now()
	}
	c := &ServerConn{Conn: raw, raw: raw, s: s, Route: r}
	c.info.Store(&up)
	s.root.mu.Lock()
	if s.root.servers == nil {
		s.root.servers = map[*ServerConn]struct{}{}
	}
	s.root.servers[c] = struct{}{}
	s.root.mu.Unlock()
	s.log.Debug("server connect", "server", up.Address, "peer", up.Peer)
	data = &ServerData{Client: data.Client, Server: &up}
	fire(h, "server_connected", h.serverConn, func(a ServerConnectedHook) error { return a.ServerConnected(ctx, data) })
	return c, nil
}

func (s *Session) open(ctx context.Context, info *flow.Server, refuse error, network string) (Conn, error) {
	switch {
	case refuse != nil:
		return nil, fmt.Errorf("connection killed: %w", refuse)
	case info.Address.IsZero():
		return nil, errors.New("request destination unknown: unable to figure out where this request should be forwarded to")
	case info.Via != "":
		return nil, fmt.Errorf("no way to reach the upstream proxy %s: this mode connects directly", info.Via)
	}
	d := s.core.dialer
	if local := s.Options().ConnectAddr.Text(); local != "" {
		d.LocalAddr = localAddr(network, local)
	}
	conn, err := d.DialContext(ctx, network, info.Address.String())
	if err != nil {
		return nil, err
	}
	if t, ok := conn.(*net.TCPConn); ok {
		return t, nil
	}
	udp, ok := conn.(*net.UDPConn)
	if !ok {
		_ = conn.Close()
		return nil, fmt.Errorf("proxycore: cannot dial network %q", network)
	}
	return datagramConn{udp}, nil
}

func localAddr(network, ip string) net.Addr {
	addr := netip.MustParseAddr(ip) // the option's rule parsed it
	if network == "udp" {
		return net.UDPAddrFromAddrPort(netip.AddrPortFrom(addr, 0))
	}
	return net.TCPAddrFromAddrPort(netip.AddrPortFrom(addr, 0))
}

// datagramConn is a connected UDP socket as a Conn.
type datagramConn struct{ *net.UDPConn }

// CloseWrite does nothing: UDP has no end.
func (datagramConn) CloseWrite() error { return nil }

func addrPort(a net.Addr) netip.AddrPort {
	switch t := a.(type) {
	case *net.TCPAddr:
		ap := t.AddrPort()
		return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
	case *net.UDPAddr:
		ap := t.AddrPort()
		return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
	}
	return netip.AddrPort{}
}

// connectEagerly opens the server connection before the client is accepted, so that a refusal
// reaches the client as a refusal (rules of the path: lazy accept).
func (s *Session) connectEagerly(ctx context.Context, in *Inbound) error {
	if in.Network != "tcp" || in.LazyUpstream || s.Target.IsZero() || !s.Options().Eager() {
		return nil
	}
	if in.Waiting != nil {
		var cancel context.CancelFunc
		ctx, cancel = context.WithCancel(ctx)
		defer cancel()
		defer context.AfterFunc(in.Waiting, cancel)()
	}
	c, err := s.Dial(ctx, Route{Address: s.Target})
	if err != nil {
		return err
	}
	s.Server = c
	return nil
}

// TakeServer hands over the connection that an outer layer opened, if it leads along r; the caller
// owns it from then on.
func (s *Session) TakeServer(r Route) *ServerConn {
	c := s.Server
	if c == nil || c.Route.Address != r.Address || c.Route.TLS != r.TLS || c.Route.Network != networkOf(r) {
		return nil
	}
	s.Server = nil
	return c
}

func networkOf(r Route) string {
	if r.Network == "" {
		return "tcp"
	}
	return r.Network
}

// IsRefused reports whether a Dial error means that the server is there and does not want the
// connection, which a client should see as RST; other failures look like silence.
func IsRefused(err error) bool {
	return errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ECONNRESET)
}
