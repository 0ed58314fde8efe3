package proxycore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"mitm-appliance/flow"
	"mitm-appliance/proxycore/sniff"
)

// choose looks at the first bytes of s.Conn and returns the handler for them (NL-01..11). A nil
// handler with a nil error means that the client left without a word.
func (s *Session) choose(ctx context.Context) (Handler, error) {
	for asked := -1; ; {
		seen := sizeOf(s.Conn.Peeked())
		if seen != asked { // first, and whenever there is more to look at
			if h := s.askAddons(ctx); h != nil {
				return h, nil
			}
			asked = seen
		}
		h, more := s.decide(nil, false)
		if !more {
			return s.known(h)
		}
		err := s.awaitBytes()
		switch {
		case err == nil:
		case s.core.stopping.Load() && errors.Is(err, os.ErrDeadlineExceeded):
			return nil, nil
		case errors.Is(err, errServerFirst):
			h, _ = s.decide(s.Server.peeked(), true)
			return s.known(h)
		case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, ErrPeekLimit), errors.Is(err, io.EOF) && seen > 0:
			h, _ = s.decide(nil, true)
			return s.known(h)
		case errors.Is(err, io.EOF):
			return nil, nil
		default:
			return nil, err
		}
	}
}

func (s *Session) askAddons(ctx context.Context) Handler {
	h := s.Hooks()
	if len(h.nextLayer) == 0 {
		return nil
	}
	data := &NextLayerData{Session: s, Peeked: s.Conn.Peeked()}
	h.NextLayer(ctx, data)
	return data.Handler
}

var errQUIC = errors.New("QUIC is refused so that the client falls back to TCP")

func (s *Session) known(h Handler) (Handler, error) {
	if h == nil {
		if s.Network == "udp" {
			s.refuse()
			return nil, errQUIC
		}
		return nil, errors.New("proxycore: no handler for this protocol is available")
	}
	return h, nil
}

// refuse tells the client of a UDP conversation that nobody listens, where the transport can.
func (s *Session) refuse() {
	if r, ok := s.root.conn.(interface{ Reject() }); ok {
		r.Reject()
	}
}

// decide is the decision table. more means: ask again with more bytes. final says that there will
// be none in time.
func (s *Session) decide(server []byte, final bool) (h Handler, more bool) {
	p := &s.core.cfg.Protocols
	peeked := s.Conn.Peeked()
	hints := sniff.Hints{Port: s.Target.Port, Server: server, ALPN: s.ALPN, Final: final}
	if s.Network == "udp" {
		return s.decideUDP(p, peeked, hints)
	}
	return s.decideTCP(p, peeked, hints)
}

func (s *Session) decideTCP(p *Protocols, peeked [][]byte, hints sniff.Hints) (Handler, bool) {
	var first []byte
	if len(peeked) > 0 {
		first = peeked[0]
	}
	proto := sniff.TCP(first, hints)
	if proto == sniff.NeedMore {
		return nil, true
	}
	s.note(proto)
	ignored, more := s.ignored(proto, peeked)
	switch {
	case more && !hints.Final:
		return nil, true
	case ignored:
		return s.passThrough(p), false
	case proto == sniff.TLS && p.TLS != nil:
		return p.TLS, false
	case s.forcedRaw(s.Options().tcp):
		return p.TCP, false
	}
	return s.clearTCP(p, proto), false
}

// clearTCP is the handler of what a TCP conversation says in the clear.
func (s *Session) clearTCP(p *Protocols, proto sniff.Protocol) Handler {
	switch {
	case proto == sniff.HTTP1 && p.HTTP1 != nil:
		return p.HTTP1
	case proto == sniff.HTTP2 && p.HTTP2 != nil:
		return p.HTTP2
	case proto == sniff.DNS && p.DNS != nil:
		return p.DNS
	case proto == sniff.Unknown && p.HTTP1 != nil && !s.Options().RawTCP.Get():
		return p.HTTP1
	}
	return p.TCP
}

func (s *Session) decideUDP(p *Protocols, peeked [][]byte, hints sniff.Hints) (Handler, bool) {
	if len(peeked) == 0 {
		return nil, true
	}
	proto := sniff.UDP(peeked[0], hints)
	s.note(proto)
	ignored, more := s.ignored(proto, peeked)
	switch {
	case more && len(peeked) < maxHelloDatagrams:
		return nil, true
	case ignored:
		return s.passThrough(p), false
	case proto == sniff.DTLS && p.DTLS != nil:
		return p.DTLS, false
	case s.forcedRaw(s.Options().udp):
		return p.UDP, false
	case proto == sniff.QUIC:
		if !s.Options().HTTP3.Get() {
			return nil, false
		}
		return p.QUIC, false
	case proto == sniff.DNS && p.DNS != nil:
		return p.DNS, false
	}
	return p.UDP, false
}

func (s *Session) note(p sniff.Protocol) {
	if p != sniff.Unknown {
		s.Protocol = p.String()
	}
}

// maxHelloDatagrams is how many datagrams of a DTLS or QUIC handshake are held back to find the name
// in it.
const maxHelloDatagrams = 8

// PassThrough returns the handler that relays s.Conn as it is: without a flow, or with one when
// show_ignored_hosts is on (NL-02).
func (s *Session) PassThrough() Handler { return s.passThrough(&s.core.cfg.Protocols) }

func (s *Session) passThrough(p *Protocols) Handler {
	if !s.Options().ShowIgnored.Get() {
		return p.Pass
	}
	if s.Network == "udp" {
		return p.UDP
	}
	return p.TCP
}

// ignored applies ignore_hosts and allow_hosts (NL-13..17). more says that the client's first message
// is not complete and might name the host.
func (s *Session) ignored(proto sniff.Protocol, peeked [][]byte) (ignored, more bool) {
	ignore, allow := s.Options().ignore.get(), s.Options().allow.get()
	if len(ignore) == 0 && len(allow) == 0 || s.Target.IsZero() {
		return false, false
	}
	names, more := s.names(proto, peeked)
	if len(names) == 0 {
		return false, more
	}
	if len(allow) > 0 && !anyMatch(allow, names) {
		return !more, more
	}
	if anyMatch(ignore, names) {
		return true, false
	}
	return false, more
}

// forcedRaw applies tcp_hosts or udp_hosts (NL-07).
func (s *Session) forcedRaw(hosts *patterns) bool {
	exprs := hosts.get()
	if len(exprs) == 0 || s.Target.IsZero() {
		return false
	}
	return anyMatch(exprs, s.targetNames())
}

func (s *Session) targetNames() []string {
	names := []string{s.Target.String()}
	if s.SNI != "" {
		names = append(names, flow.JoinHostPort(s.SNI, s.Target.Port))
	}
	if s.Server != nil {
		if peer := s.Server.Info().Peer; peer.IsValid() {
			names = append(names, peer.String())
		}
	}
	return names
}

// names lists everything that the destination is called (NL-14).
func (s *Session) names(proto sniff.Protocol, peeked [][]byte) (names []string, more bool) {
	names = s.targetNames()
	name, more := firstName(proto, peeked)
	if name != "" {
		host, port := flow.SplitHostPort(name)
		if port == 0 {
			port = s.Target.Port
		}
		names = append(names, flow.JoinHostPort(host, port))
	}
	return names, more
}

var errServerFirst = errors.New("the server spoke first")

// awaitBytes waits until the client sends more. When the client has said nothing for a moment and a
// server connection is there, it also listens to the server, which for protocols such as SSH speaks
// first (NL-23).
func (s *Session) awaitBytes() error {
	if s.Network == "udp" {
		return s.Conn.Fill(time.Now().Add(s.core.cfg.UDPTimeout))
	}
	deadline := time.Now().Add(s.core.cfg.SniffTimeout)
	silent := len(s.Conn.Peeked()) == 0
	if s.Target.IsZero() || silent && s.waitsForClient() {
		deadline = time.Time{} // as long as the connection may live
	}
	if !silent || deadline.IsZero() {
		return s.Conn.Fill(deadline)
	}
	const headStart = 30 * time.Millisecond // most clients speak at once: do not start a second reader for them
	err := s.Conn.Fill(time.Now().Add(headStart))
	if !errors.Is(err, os.ErrDeadlineExceeded) || s.Server == nil {
		if errors.Is(err, os.ErrDeadlineExceeded) {
			err = s.Conn.Fill(deadline)
		}
		return err
	}
	return s.race(deadline)
}

// waitsForClient reports that a silent client is no reason to connect to its server: nobody did so far,
// and the lazy strategy does when something is to be sent. Where servers speak first, it asks them.
func (s *Session) waitsForClient() bool {
	return s.Server == nil && !s.Options().Eager() && !sniff.ServerFirst(s.Target.Port)
}

// race waits for the first byte from either side.
func (s *Session) race(deadline time.Time) error {
	server := NewPeekConn(s.Server.Conn, s.Network)
	s.Server.Conn = server
	client := s.Conn
	past := time.Unix(1, 0)
	_, _ = client.SetReadDeadline(deadline), server.SetReadDeadline(deadline) // a closed one fails to read below
	spoke := make(chan error, 1)
	go func() {
		err := server.fillOnce()
		if err == nil {
			_ = client.SetReadDeadline(past) // wakes the reader below
		}
		spoke <- err
	}()
	clientErr := client.fillOnce()
	_ = server.SetReadDeadline(past) // ends the goroutine above
	serverErr := <-spoke
	_, _ = client.SetReadDeadline(time.Time{}), server.SetReadDeadline(time.Time{})
	switch {
	case clientErr == nil:
		return nil
	case serverErr == nil:
		return errServerFirst
	case errors.Is(serverErr, io.EOF) && errors.Is(clientErr, os.ErrDeadlineExceeded):
		return fmt.Errorf("server closed the connection before anybody spoke: %w", serverErr)
	}
	return clientErr
}

// peeked returns what a server said before the client did.
func (c *ServerConn) peeked() []byte {
	if p, ok := c.Conn.(*PeekConn); ok && len(p.Peeked()) > 0 {
		return p.Peeked()[0]
	}
	return nil
}

func sizeOf(chunks [][]byte) int {
	n := 0
	for _, c := range chunks {
		n += len(c)
	}
	return n
}
