package mode

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"syscall"
	"time"

	"mitm-appliance/flow"
	"mitm-appliance/proxycore"
)

// ListenConfig is what a TCP listener of an explicit mode needs.
type ListenConfig struct {
	Core  *proxycore.Core
	Log   *slog.Logger
	First proxycore.Handler // the protocol of the outermost layer
}

// Listener accepts TCP clients of an explicit mode and serves each on a goroutine of its own.
type Listener struct {
	cfg       ListenConfig
	spec      Spec
	listeners []net.Listener
	accepting sync.WaitGroup
}

// Listen starts the listener of s at s.Host and s.Port; an empty host is all addresses of both
// families. Conversations end with the core, not with the listener.
func Listen(ctx context.Context, s Spec, cfg ListenConfig) (*Listener, error) {
	l := &Listener{cfg: cfg, spec: s}
	ln, err := (&net.ListenConfig{}).Listen(ctx, "tcp", net.JoinHostPort(s.Host, strconv.Itoa(s.Port)))
	if err != nil {
		return nil, bindError(s, err)
	}
	l.listeners = append(l.listeners, ln)
	l.accepting.Go(func() { l.accept(ln) })
	return l, nil
}

// bindError says what to do about an address that is taken (MODE-20).
func bindError(s Spec, err error) error {
	where := net.JoinHostPort(s.Host, strconv.Itoa(s.Port))
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Errorf("%s failed to listen on %s: %w; stop what uses the port, or try --mode %s@%d",
			s.Description(), where, err, s.Name, s.Port+2)
	case errors.Is(err, syscall.EACCES):
		return fmt.Errorf("%s failed to listen on %s: %w; ports below 1024 need root or CAP_NET_BIND_SERVICE",
			s.Description(), where, err)
	}
	return fmt.Errorf("%s failed to listen on %s: %w", s.Description(), where, err)
}

func (l *Listener) accept(ln net.Listener) {
	for backoff := time.Duration(0); ; {
		conn, err := ln.Accept()
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil: // out of descriptors or the like: it may pass
			backoff = min(max(2*backoff, 5*time.Millisecond), time.Second)
			l.cfg.Log.Error("accepting clients failed", "spec", l.spec.Full, "err", err, "retryIn", backoff)
			time.Sleep(backoff)
			continue
		}
		backoff = 0
		go l.cfg.Core.Serve(context.Background(), l.inbound(conn.(*net.TCPConn))) // the core waits for it
	}
}

func (l *Listener) inbound(conn *net.TCPConn) proxycore.Inbound {
	return proxycore.Inbound{
		Network: "tcp",
		Client: &flow.Client{
			Connection: flow.Connection{Transport: "tcp", Peer: unmap(conn.RemoteAddr()), Local: unmap(conn.LocalAddr())},
			Mode:       l.spec.Full,
		},
		First:  l.cfg.First,
		Accept: func(context.Context) (proxycore.Conn, error) { return conn, nil },
		Reject: func(error) { proxycore.Abort(conn) },
	}
}

func unmap(a net.Addr) netip.AddrPort {
	ap := a.(*net.TCPAddr).AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}

// State implements Instance.
func (l *Listener) State() State {
	var st State
	for _, ln := range l.listeners {
		st.Listen = append(st.Listen, ln.Addr().String())
	}
	return st
}

// Stop implements Instance.
func (l *Listener) Stop() {
	for _, ln := range l.listeners {
		_ = ln.Close() // it stops accepting either way
	}
	l.accepting.Wait()
}

// Explicit is the outermost protocol of the regular and upstream modes: an HTTP proxy, or a TLS
// connection to it (REG-01, REG-02).
type Explicit struct {
	TLS   proxycore.Handler // nil: TLS to the proxy itself is not spoken
	HTTP1 proxycore.Handler
}

// Serve implements proxycore.Handler.
func (e Explicit) Serve(ctx context.Context, s *proxycore.Session) error {
	if err := s.Conn.Fill(time.Time{}); err != nil {
		return nil //nolint:nilerr // a client that leaves without a word is no failure
	}
	const tlsHandshake = 0x16 // no HTTP method begins with it
	if first := s.Conn.Peeked(); e.TLS != nil && first[0][0] == tlsHandshake {
		return e.TLS.Serve(ctx, s)
	}
	return e.HTTP1.Serve(ctx, s)
}
