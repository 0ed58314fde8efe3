package tlsmitm

import (
	"context"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"time"

	"mitm-appliance/flow"
	"mitm-appliance/proxycore"
	"mitm-appliance/proxycore/certs"
	"mitm-appliance/proxycore/sniff"
)

// handshakeClient plays the server for s.Conn.
func (h *Handler) handshakeClient(ctx context.Context, s *proxycore.Session, cur *configs, hello *sniff.ClientHello) (*Conn, error) {
	host := hostOf(s)
	leaf, err := h.leaf(s, cur, hello)
	if err != nil {
		return nil, h.failClient(ctx, s, &HandshakeError{
			Host: host, Err: err,
			Reason: fmt.Sprintf("no certificate for %s could be made: %v", host, err),
		})
	}
	cfg := cur.clientLeg.Clone()
	cfg.Certificates = []tls.Certificate{*leaf}
	if proto := h.clientALPN(s, hello.ALPN); proto != "" {
		cfg.NextProtos = []string{proto}
	}
	h.tickets.apply(cfg, host)
	data := &proxycore.TLSData{Session: s, Client: s.Client(), Server: serverInfo(s), Config: cfg}
	s.Hooks().TLSStartClient(ctx, data)
	if data.Config == nil {
		return nil, h.failClient(ctx, s, &HandshakeError{Host: host, Err: errNoConfig, Reason: errNoConfig.Error()})
	}
	below := &transport{Conn: s.Conn, pool: h.batches}
	conn := newConn(tls.Server(below, data.Config), below, nil)
	if err := conn.handshake(h.cfg.ClientTimeout); err != nil {
		return nil, h.failClient(ctx, s, clientFailure(err, host, hello.MaxVersion(), cur.client))
	}
	conn.explain = func(err error) error { return lateRefusal(s, err, host) }
	established(s, conn, leaf)
	s.Hooks().TLSEndClient(ctx, &proxycore.TLSData{Session: s, Client: s.Client(), Server: serverInfo(s)})
	return conn, nil
}

// errNoConfig is TLS-11.
var errNoConfig = errors.New("an addon took the TLS configuration away, failing connection")

// leaf returns the certificate to show (CERT-11).
func (h *Handler) leaf(s *proxycore.Session, cur *configs, hello *sniff.ClientHello) (*tls.Certificate, error) {
	chain := upstream(s)
	var request certs.Request
	if len(chain) > 0 && h.cfg.Options.UpstreamCert.Get() {
		request = certs.RequestFor(chain[0], hello.SNI, s.Client().Local.Addr(), s.Target.Host)
	} else {
		request = certs.RequestFor(nil, hello.SNI, s.Client().Local.Addr(), s.Target.Host)
	}
	if !verifiesECDSA(hello, cur.client) {
		request.KeyType = certs.KeyRSA
	}
	leaf, err := h.cfg.Store().Get(request)
	if err == nil && cur.upstreamCA {
		leaf = certs.WithChain(leaf, chain)
	}
	return leaf, err
}

// verifiesECDSA reports whether the handshake can be signed with ECDSA: the client can verify it, and
// below TLS 1.3 there is a suite for it in our own list too.
func verifiesECDSA(hello *sniff.ClientHello, l leg) bool {
	if !hello.SupportsECDSA(l.max) {
		return false
	}
	version := hello.MaxVersion()
	if l.max != 0 {
		version = min(version, l.max)
	}
	if version >= tls.VersionTLS13 {
		return true
	}
	return slices.ContainsFunc(l.ciphers, func(id uint16) bool {
		return isECDSA(id) && slices.Contains(hello.CipherSuites, id)
	})
}

func isECDSA(id uint16) bool {
	switch id {
	case 0xc007, 0xc009, 0xc00a, 0xc023, 0xc02b, 0xc02c, 0xcca9: // those of them that Go has
		return true
	}
	return false
}

// established notes what the finished handshake with the client showed (TLS-12).
func established(s *proxycore.Session, conn *Conn, leaf *tls.Certificate) {
	state := conn.ConnectionState()
	facts := *s.Client().TLS
	addFacts(&facts, state)
	s.UpdateClient(func(c *flow.Client) { c.TLS, c.Leaf = &facts, leaf.Certificate[0] })
}

func addFacts(facts *flow.TLS, state tls.ConnectionState) {
	facts.Version = VersionName(state.Version)
	facts.Cipher = CipherName(state.CipherSuite)
	facts.ALPN = state.NegotiatedProtocol
	facts.Resumed = state.DidResume
	facts.Established = time.Now()
	if len(state.PeerCertificates) > 0 {
		facts.Certificates = make([][]byte, len(state.PeerCertificates))
		for i, cert := range state.PeerCertificates {
			facts.Certificates[i] = cert.Raw
		}
	}
}

// lateRefusal explains the alert of a client that finishes the handshake before it looks at the
// certificate (TLS-35).
func lateRefusal(s *proxycore.Session, err error, host string) error {
	code, ok := remoteAlert(err)
	if !ok {
		return err
	}
	if isDistrust(code) {
		e := clientFailure(err, host, 0, leg{})
		s.Logger().Warn("client refused the certificate after the handshake", "err", e)
		return e
	}
	return fmt.Errorf("client ended TLS with an alert: %s: %w", alertText(code), err)
}

// hostOf names what the client wants, for people (TLS-35).
func hostOf(s *proxycore.Session) string {
	switch {
	case s.SNI != "":
		return s.SNI
	case s.Target.Host != "":
		return s.Target.Host
	case s.Client().Local.IsValid():
		return s.Client().Local.Addr().String()
	}
	return "the proxy"
}

// helloFailure explains a ClientHello that did not come (TLS-08).
func helloFailure(err error, s *proxycore.Session) *HandshakeError {
	if errors.Is(err, sniff.ErrMalformed) || errors.Is(err, sniff.ErrTooLarge) || errors.Is(err, proxycore.ErrPeekLimit) {
		var seen []byte
		if p := s.Conn.Peeked(); len(p) > 0 {
			seen = p[0]
		}
		const shown = 64
		return &HandshakeError{
			Host: hostOf(s), Err: err,
			Reason: fmt.Sprintf("cannot parse ClientHello: %s (%v)", hex.EncodeToString(seen[:min(len(seen), shown)]), err),
		}
	}
	return clientFailure(err, hostOf(s), 0, leg{})
}
