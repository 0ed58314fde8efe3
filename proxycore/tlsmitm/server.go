package tlsmitm

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"slices"

	"mitm-appliance/flow"
	"mitm-appliance/proxycore"
)

// Secure does the TLS handshake with a server, for proxycore.Config.Secure. The server's certificate
// is verified against the platform's certificate authorities and those that options add, unless
// ssl_insecure is on. A failure is a *HandshakeError, logged already.
func (h *Handler) Secure(ctx context.Context, s *proxycore.Session, c *proxycore.ServerConn, r proxycore.Route) error {
	cur, err := h.current()
	if err != nil {
		return err
	}
	cfg, err := h.serverConfig(s, cur, c, r)
	if err != nil {
		return err
	}
	c.Update(func(i *flow.Server) {
		i.TLS = &flow.TLS{SNI: cfg.ServerName, ALPNOffers: cfg.NextProtos, Ciphers: cur.serverCiphers}
	})
	data := &proxycore.TLSData{Session: s, Client: s.Client(), Server: c.Info(), Config: cfg}
	s.Hooks().TLSStartServer(ctx, data)
	if data.Config == nil {
		return h.failServer(ctx, s, c, &HandshakeError{Server: true, Host: cfg.ServerName, Err: errNoConfig, Reason: errNoConfig.Error()})
	}
	below := &transport{Conn: c.Conn, pool: h.batches}
	conn := newConn(tls.Client(below, data.Config), below, serverAlertText(cur.server))
	if err := conn.handshake(h.cfg.ServerTimeout); err != nil {
		return h.failServer(ctx, s, c, serverFailure(err, data.Config.ServerName, cur.server))
	}
	facts := *c.Info().TLS
	addFacts(&facts, conn.ConnectionState())
	facts.SNI, facts.ALPNOffers = data.Config.ServerName, data.Config.NextProtos
	c.Update(func(i *flow.Server) { i.TLS = &facts })
	c.Conn = conn
	s.Hooks().TLSEndServer(ctx, &proxycore.TLSData{Session: s, Client: s.Client(), Server: c.Info()})
	return nil
}

// serverConfig is what one handshake begins with, before hooks.
func (h *Handler) serverConfig(s *proxycore.Session, cur *configs, c *proxycore.ServerConn, r proxycore.Route) (*tls.Config, error) {
	address := c.Info().Address
	cfg := cur.serverLeg.Clone()
	cfg.ServerName = serverName(s, c, r) // crypto/tls does not send an IP address, but verifies it (TLS-06)
	cfg.NextProtos = h.offers(s, r)
	cfg.InsecureSkipVerify = unverified(cur, cfg.ServerName)
	if cfg.CurvePreferences == nil && len(s.Groups) > 0 {
		cfg.CurvePreferences = mirroredGroups(s.Groups)
	}
	cert, err := cur.clientCertFor(cfg.ServerName, address.Host)
	if err != nil {
		return nil, fmt.Errorf("client certificate for %s: %w", cfg.ServerName, err)
	}
	prefix := address.String() + "\n"
	if cert != nil {
		id := sha256.Sum256(cert.Certificate[0])
		prefix += string(id[:])
		// Whoever configured it wants it sent, also when the server lists other authorities, as OpenSSL does.
		cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil }
		cfg.Renegotiation = tls.RenegotiateOnceAsClient
	}
	if cur.insecure {
		cfg.Renegotiation = tls.RenegotiateFreelyAsClient
	}
	cfg.ClientSessionCache = serverSessions{cur.sessions, prefix}
	return cfg, nil
}

// mirroredGroups are the key exchange groups to offer to the server of a client: all classical ones, and
// those post-quantum hybrids that the client offered itself. The server then sees about what it would
// see without us, and a client that does without a hybrid does not pay for ours.
func mirroredGroups(client []uint16) []tls.CurveID {
	groups := []tls.CurveID{tls.X25519, tls.CurveP256, tls.CurveP384, tls.CurveP521}
	for _, hybrid := range []tls.CurveID{tls.X25519MLKEM768, tls.SecP256r1MLKEM768, tls.SecP384r1MLKEM1024} {
		if slices.Contains(client, uint16(hybrid)) {
			groups = append(groups, hybrid)
		}
	}
	return groups
}

// unverified decides whether the certificate of a server goes unverified. It is the one place that a
// permission for a single host would be asked.
func unverified(cur *configs, _ string) bool { return cur.insecure }

// serverName is the name to ask the server for, and to verify (TLS-06).
func serverName(s *proxycore.Session, c *proxycore.ServerConn, r proxycore.Route) string {
	switch {
	case r.SNI != "":
		return r.SNI
	case s.SNI != "" && r.Address == s.Target:
		return s.SNI
	}
	return c.Info().Address.Host
}

// failServer logs and reports a failed handshake with a server (TLS-36, TLS-37). The certificates that
// were refused stay visible on the server.
func (h *Handler) failServer(ctx context.Context, s *proxycore.Session, c *proxycore.ServerConn, e *HandshakeError) error {
	s.Logger().Warn("server TLS handshake failed", "server", c.Info().Address, "err", e)
	facts := *c.Info().TLS
	var unverified *tls.CertificateVerificationError
	if errors.As(e.Err, &unverified) {
		for _, cert := range unverified.UnverifiedCertificates {
			facts.Certificates = append(facts.Certificates, cert.Raw)
		}
	}
	c.Update(func(i *flow.Server) { i.TLS, i.Error = &facts, e.Error() })
	s.Hooks().TLSEndServer(ctx, &proxycore.TLSData{Session: s, Client: s.Client(), Server: c.Info(), Err: e})
	return e
}

// serverAlertText explains alerts that come after the handshake: with TLS 1.3 that is when a server
// misses a client certificate.
func serverAlertText(l leg) func(error) error {
	return func(err error) error {
		code, ok := remoteAlert(err)
		if !ok {
			return err
		}
		reason, cure := serverAlert(code, l)
		if cure != "" {
			reason += "; " + cure
		}
		return fmt.Errorf("%s: %w", reason, err)
	}
}
