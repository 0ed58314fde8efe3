package certs

import (
	"crypto"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"time"
	"unicode"
	"unicode/utf8"
)

// leafLifetime counts from the backdated start. Clients refuse more than 200
// days from March 2026 on (CA/Browser Forum ballot SC-081).
const leafLifetime = 199 * day

// ErrNoNames means that a request holds no valid name or address.
var ErrNoNames = errors.New("no valid host name or address for a certificate")

// mint issues a leaf (CERT-09, CERT-10) for canonical names.
func (ca *CA) mint(names []string, r Request, key crypto.Signer, now time.Time) (*tls.Certificate, error) {
	template, err := ca.leafTemplate(names, r, key, now)
	if err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.Certificate, key.Public(), ca.key)
	if err != nil {
		return nil, fmt.Errorf("sign certificate for %s: %w", names[0], err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("parse own certificate for %s: %w", names[0], err)
	}
	return &tls.Certificate{
		Certificate: append([][]byte{der}, ca.clientChain()...),
		PrivateKey:  key,
		Leaf:        leaf,
	}, nil
}

func (ca *CA) leafTemplate(names []string, r Request, key crypto.Signer, now time.Time) (*x509.Certificate, error) {
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	subjectID, err := keyIdentifier(key.Public())
	if err != nil {
		return nil, err
	}
	authorityID, err := ca.keyID()
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber:   serial,
		KeyUsage:       x509.KeyUsageDigitalSignature,
		ExtKeyUsage:    []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		SubjectKeyId:   subjectID,
		AuthorityKeyId: authorityID,
	}
	if r.KeyType == KeyRSA {
		template.KeyUsage |= x509.KeyUsageKeyEncipherment // for TLS 1.2 suites without (EC)DHE
	}
	template.NotBefore, template.NotAfter = ca.leafValidity(now)
	template.DNSNames, template.IPAddresses = splitNames(names)
	if len(names[0]) < 64 { // the upper bound of a common name
		template.Subject.CommonName = names[0]
	}
	if validOrganization(r.Organization) {
		template.Subject = pkix.Name{CommonName: template.Subject.CommonName, Organization: []string{r.Organization}}
	}
	if url := ca.crlURL(r.CRL); url != "" {
		template.CRLDistributionPoints = []string{url}
	}
	return template, nil
}

// leafValidity stays within the CA's own, as long as the CA is valid at all;
// leaves of an expired one still serve clients that do not verify.
func (ca *CA) leafValidity(now time.Time) (from, to time.Time) {
	from = now.Add(-backdate)
	to = from.Add(leafLifetime)
	c := ca.Certificate
	if now.After(c.NotBefore) && from.Before(c.NotBefore) {
		from = c.NotBefore
	}
	if now.Before(c.NotAfter) && to.After(c.NotAfter) {
		to = c.NotAfter
	}
	return from.UTC(), to.UTC()
}

// validOrganization reports whether an O, which the upstream chose, may be copied: 1 to
// 64 printable characters.
func validOrganization(o string) bool {
	if o == "" || !utf8.ValidString(o) || utf8.RuneCountInString(o) > 64 {
		return false
	}
	for _, r := range o {
		if !unicode.IsPrint(r) {
			return false
		}
	}
	return true
}

// WithChain returns a copy of cert that also sends the given certificates, as
// for add_upstream_certs_to_client_chain (CERT-22). Cert is not changed.
func WithChain(cert *tls.Certificate, extra []*x509.Certificate) *tls.Certificate {
	longer := *cert
	longer.Certificate = append([][]byte(nil), cert.Certificate...)
	for _, c := range extra {
		longer.Certificate = append(longer.Certificate, c.Raw)
	}
	return &longer
}
