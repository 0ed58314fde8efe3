package tlsmitm

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"time"

	"mitm-appliance/proxycore"
	"mitm-appliance/proxycore/sniff"
)

// HandshakeError is a TLS handshake that failed, in words for people: for the log, the error of a
// flow, and the 502 page. It has been logged and the tls_failed hook has run: it is a
// proxycore.ErrReported.
type HandshakeError struct {
	Server bool   // with the server, else with the client
	Host   string // who it was about
	Reason string // what is wrong
	Cure   string // what to do about it; "" when nothing sensible can be said
	Err    error  // the cause
}

func (e *HandshakeError) Error() string {
	if e.Cure == "" {
		return e.Reason
	}
	return e.Reason + "; " + e.Cure
}

func (e *HandshakeError) Unwrap() error { return e.Err }

// Is makes the error a proxycore.ErrReported.
func (e *HandshakeError) Is(target error) bool { return target == proxycore.ErrReported }

// The alerts that are told apart (RFC 8446, section 6).
const (
	alertHandshakeFailure    = 40
	alertBadCertificate      = 42
	alertCertificateUnknown  = 46
	alertUnknownCA           = 48
	alertAccessDenied        = 49
	alertProtocolVersion     = 70
	alertUnrecognizedName    = 112
	alertCertificateRequired = 116
	alertNoApplicationProto  = 120
	lastAlert                = 121
)

// remoteAlert finds the TLS alert that the peer sent. crypto/tls has no public type for it, only the same text.
func remoteAlert(err error) (code tls.AlertError, ok bool) {
	var op *net.OpError
	if !errors.As(err, &op) || op.Op != "remote error" {
		return 0, false
	}
	for code = range lastAlert + 1 {
		if code.Error() == op.Err.Error() {
			return code, true
		}
	}
	return 0, false
}

// isClosed reports whether the peer went away.
func isClosed(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed) ||
		errors.Is(err, io.ErrClosedPipe) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

func isTimeout(err error) bool { return errors.Is(err, os.ErrDeadlineExceeded) }

func alertText(code tls.AlertError) string { return strings.TrimPrefix(code.Error(), "tls: ") }

// detail is an error without crypto/tls's prefixes.
func detail(err error) string {
	return strings.TrimPrefix(strings.TrimPrefix(err.Error(), "remote error: "), "tls: ")
}

const distrustCure = "install the CA certificate on the client, or let connections to the host pass with ignore_hosts"

// clientFailure explains why the handshake with a client failed (TLS-35). offered is the client's
// highest version.
func clientFailure(err error, host string, offered uint16, l leg) *HandshakeError {
	e := &HandshakeError{Host: host, Err: err}
	code, alerted := remoteAlert(err)
	switch {
	case alerted && isDistrust(code):
		e.Reason = fmt.Sprintf("client does not trust our certificate for %s (%s)", host, alertText(code))
		e.Cure = distrustCure
	case isTimeout(err):
		e.Reason = fmt.Sprintf("client did not finish the handshake for %s in time", host)
	case isClosed(err):
		e.Reason = fmt.Sprintf("client disconnected during the handshake for %s", host)
		e.Cure = "if this happens again and again, the client may not trust our certificate: " + distrustCure
	case offered != 0 && offered < l.min || alerted && code == alertProtocolVersion:
		e.Reason = fmt.Sprintf("client and proxy have no TLS version in common: the client speaks %s at most", VersionName(offered))
		e.Cure = "tls_version_client_min is " + VersionName(l.min)
	case strings.Contains(err.Error(), "no cipher suite supported"):
		e.Reason = "client and proxy have no cipher suite in common"
		e.Cure = "change ciphers_client, or let connections to the host pass with ignore_hosts"
	default:
		e.Reason = fmt.Sprintf("client may not trust our certificate for %s (%s)", host, detail(err))
		e.Cure = distrustCure
	}
	return e
}

// isDistrust reports the alerts of clients that reject a certificate.
func isDistrust(code tls.AlertError) bool {
	return code >= alertBadCertificate && code <= alertCertificateUnknown || code == alertUnknownCA
}

// serverFailure explains why the handshake with a server failed (TLS-33, TLS-34).
func serverFailure(err error, host string, l leg) *HandshakeError {
	e := &HandshakeError{Server: true, Host: host, Err: err}
	var unverified *tls.CertificateVerificationError
	var header tls.RecordHeaderError
	code, alerted := remoteAlert(err)
	switch {
	case errors.As(err, &unverified):
		e.Reason = "certificate verify failed: " + verifyText(unverified, host)
		e.Cure = verifyCure(unverified)
	case errors.As(err, &header) && header.Conn != nil:
		e.Reason = "the remote server does not speak TLS"
		if name := sniff.Banner(header.RecordHeader[:], 0); name != sniff.Unknown && name != sniff.NeedMore {
			e.Reason += " but " + name.String()
		}
	case alerted:
		e.Reason, e.Cure = serverAlert(code, l)
	case strings.Contains(err.Error(), "unsupported protocol version"):
		e.Reason, e.Cure = serverAlert(alertProtocolVersion, l)
	case isTimeout(err):
		e.Reason = "the server did not finish the TLS handshake in time"
	case isClosed(err):
		e.Reason = "connection closed by the server during the TLS handshake"
	default:
		e.Reason = "TLS handshake failed: " + detail(err)
	}
	return e
}

func serverAlert(code tls.AlertError, l leg) (reason, cure string) {
	reason = "the server refused the TLS handshake: " + alertText(code)
	switch code {
	case alertProtocolVersion:
		reason = "the server and the proxy have no TLS version in common"
		cure = "tls_version_server_min is " + VersionName(l.min)
		if l.max != 0 {
			cure += ", tls_version_server_max is " + VersionName(l.max)
		}
	case alertHandshakeFailure:
		cure = "it may want another cipher suite (ciphers_server), an older version (tls_version_server_min) or a client certificate (client_certs)"
	case alertCertificateRequired:
		cure = "give it a client certificate with client_certs"
	case alertBadCertificate, alertUnknownCA, alertCertificateUnknown, alertAccessDenied:
		cure = "it does not accept our client certificate (client_certs)"
	case alertUnrecognizedName:
		cure = "it does not know the name it was asked for"
	case alertNoApplicationProto:
		cure = "it speaks none of the protocols that the client offered"
	}
	return reason, cure
}

// verifyText says what is wrong with a server's certificate, and whose it is.
func verifyText(err *tls.CertificateVerificationError, host string) string {
	var invalid x509.CertificateInvalidError
	var name x509.HostnameError
	var unknown x509.UnknownAuthorityError
	switch {
	case errors.As(err.Err, &invalid) && invalid.Reason == x509.Expired:
		return datesText(invalid.Cert)
	case errors.As(err.Err, &name):
		return fmt.Sprintf("name mismatch: the certificate is for %s, not for %s, issued by %s",
			certNames(name.Certificate), host, issuerName(name.Certificate))
	case errors.As(err.Err, &unknown) && len(err.UnverifiedCertificates) > 0:
		return authorityText(err.UnverifiedCertificates)
	}
	return strings.TrimPrefix(err.Err.Error(), "x509: ")
}

func datesText(cert *x509.Certificate) string {
	const day = "2006-01-02 15:04 MST"
	if now := time.Now(); now.Before(cert.NotBefore) {
		return fmt.Sprintf("certificate is not valid before %s, issued by %s", cert.NotBefore.UTC().Format(day), issuerName(cert))
	}
	return fmt.Sprintf("certificate expired on %s, issued by %s", cert.NotAfter.UTC().Format(day), issuerName(cert))
}

func authorityText(sent []*x509.Certificate) string {
	leaf := sent[0]
	if leaf.CheckSignatureFrom(leaf) == nil || string(leaf.RawIssuer) == string(leaf.RawSubject) {
		return fmt.Sprintf("self-signed certificate %s", issuerName(leaf))
	}
	last := sent[len(sent)-1]
	text := fmt.Sprintf("unknown authority %s", issuerName(last))
	if len(sent) == 1 {
		text += " (or the server leaves out an intermediate certificate)"
	}
	return text
}

func verifyCure(err *tls.CertificateVerificationError) string {
	var unknown x509.UnknownAuthorityError
	var roots x509.SystemRootsError
	if errors.As(err.Err, &unknown) || errors.As(err.Err, &roots) {
		return "trust it with ssl_verify_upstream_trusted_ca, or switch verification off with ssl_insecure (-k)"
	}
	return "switch verification off with ssl_insecure (-k)"
}

func issuerName(cert *x509.Certificate) string {
	if name := cert.Issuer.String(); name != "" {
		return name
	}
	return "nobody"
}

// certNames lists the first names of a certificate.
func certNames(cert *x509.Certificate) string {
	names := append([]string{}, cert.DNSNames...)
	for _, ip := range cert.IPAddresses {
		names = append(names, ip.String())
	}
	const shown = 5
	switch {
	case len(names) == 0:
		return fmt.Sprintf("nobody (its common name %q does not count)", cert.Subject.CommonName)
	case len(names) > shown:
		return fmt.Sprintf("%s and %d more", strings.Join(names[:shown], ", "), len(names)-shown)
	}
	return strings.Join(names, ", ")
}
