package certs

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// AddCustom loads a certificate of the user's own and serves it from now on
// (CERT-18 to CERT-20). Spec is "[domain=]path": the PEM file holds the leaf, optionally a
// chain, and the private key, which may also be the CA's. It is registered for the
// domain (default "*", all names; a leading wildcard is allowed), its CN and every name it
// holds. A later one replaces an earlier one of the same name.
func (s *Store) AddCustom(spec, passphrase string) error {
	domain, path, ok := strings.Cut(spec, "=")
	if !ok {
		domain, path = "*", spec
	}
	if domain != "*" {
		canonical, ok := canonicalName(domain)
		if !ok {
			return fmt.Errorf("certs entry %q: %q is no host name: write [domain=]path", spec, domain)
		}
		domain = canonical
	}
	path, err := expandHome(path)
	if err != nil {
		return err
	}
	cert, err := s.loadCustom(path, passphrase)
	if err != nil {
		return err
	}
	names := append([]string{cert.Leaf.Subject.CommonName}, cert.Leaf.DNSNames...)
	for _, ip := range cert.Leaf.IPAddresses {
		names = append(names, ip.String())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, name := range canonicalNames(names, maxNames, maxNameBytes) {
		s.custom[name] = cert
	}
	s.custom[domain] = cert
	return nil
}

func (s *Store) loadCustom(path, passphrase string) (*tls.Certificate, error) {
	data, err := readLimited(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("certificate file does not exist: %w", err)
	case err != nil:
		return nil, fmt.Errorf("read certificate file: %w", err)
	}
	b, err := parseBundle(data, passphrase)
	if err == nil && len(b.certs) == 0 {
		err = errors.New("no certificate found")
	}
	if err != nil {
		return nil, fmt.Errorf("invalid certificate format for %s: %w", path, err)
	}
	leaf := b.certs[0]
	switch {
	case b.key != nil && !publicKeysEqual(b.key.Public(), leaf.PublicKey):
		return nil, fmt.Errorf("private and public keys in %s do not match: put the leaf certificate first, and its own key into the file", path)
	case b.key == nil && !publicKeysEqual(s.cfg.CA.key.Public(), leaf.PublicKey):
		return nil, fmt.Errorf("unable to find private key in %s: append the certificate's key to the file", path)
	case b.key == nil:
		b.key = s.cfg.CA.key
	}
	if b.chainErr != nil {
		s.cfg.Logger.Warn("certificate chain cannot be read, only the leaf is sent", "path", path, "err", b.chainErr)
		b.certs = b.certs[:1]
	}
	if leaf.IsCA {
		s.cfg.Logger.Warn("certs names a ca certificate, which is sent as a server's own: to sign with it put it into the confdir as "+FileCA, "path", path)
	}
	return &tls.Certificate{Certificate: rawChain(b.certs), PrivateKey: b.key, Leaf: leaf}, nil
}

func rawChain(certs []*x509.Certificate) [][]byte {
	chain := make([][]byte, len(certs))
	for i, c := range certs {
		chain[i] = c.Raw
	}
	return chain
}

// expandHome replaces a leading "~/" by the user's home directory.
func expandHome(path string) (string, error) {
	rest, ok := strings.CutPrefix(path, "~/")
	if !ok {
		return path, nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", fmt.Errorf("expand %s: %w", path, err)
	}
	return filepath.Join(home, rest), nil
}
