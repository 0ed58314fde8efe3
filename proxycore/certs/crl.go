package certs

import (
	"crypto/rand"
	"crypto/x509"
	"fmt"
	"math/big"
	"net/url"
	"time"
)

// CRLPath returns the path, with its leading slash, below which every host
// seems to serve this CA's revocation list (CERT-13, CERT-14).
func (ca *CA) CRLPath() string {
	return fmt.Sprintf("/mitmproxy-%s.crl", ca.Certificate.SerialNumber)
}

// CRL returns an empty revocation list in DER (content type
// application/pkix-crl), made anew each day and valid for five. It fails if the
// CA may not sign revocation lists.
func (ca *CA) CRL(now time.Time) ([]byte, error) {
	ca.crlMu.Lock()
	defer ca.crlMu.Unlock()
	if age := now.Sub(ca.crlTime); ca.crl != nil && age >= 0 && age < day {
		return ca.crl, nil
	}
	crl, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{
		Number:     big.NewInt(now.Unix()), // must grow (RFC 5280, section 5.2.3)
		ThisUpdate: now.Add(-backdate).UTC(),
		NextUpdate: now.Add(7*day - backdate).UTC(),
	}, ca.Certificate, ca.key)
	if err != nil {
		return nil, fmt.Errorf("sign revocation list: %w", err)
	}
	ca.crl, ca.crlTime = crl, now
	return crl, nil
}

// crlURL returns the distribution point for a leaf whose upstream certificate
// names the given one, or "" if that cannot be imitated.
func (ca *CA) crlURL(upstream string) string {
	const longest = 512
	if upstream == "" || len(upstream) > longest {
		return ""
	}
	u, err := url.Parse(upstream)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") {
		return ""
	}
	if _, ok := canonicalName(u.Hostname()); !ok {
		return ""
	}
	return (&url.URL{Scheme: u.Scheme, Host: u.Host, Path: ca.CRLPath()}).String()
}
