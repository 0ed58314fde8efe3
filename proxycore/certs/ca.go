package certs

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1" // RFC 5280 key identifiers are SHA-1, nothing rests on it
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"
	"sync"
	"time"
)

const (
	day      = 24 * time.Hour
	backdate = 2 * day // tolerates clients whose clock is behind

	// DefaultName is the CN and O of a CA that is created here.
	DefaultName = "mitm-appliance"
)

// KeyType selects the kind of key of a CA or a leaf.
type KeyType uint8

// The key types. The zero value is KeyDefault: RSA for a CA, ECDSA for a leaf.
const (
	KeyDefault KeyType = iota
	KeyRSA             // 2048 bits unless configured otherwise
	KeyECDSA           // P-256
)

// Problems of a CA that Check reports.
var (
	ErrExpired     = errors.New("the ca certificate has expired")
	ErrNotYetValid = errors.New("the ca certificate is not valid yet")
	ErrNotCA       = errors.New("the certificate may not sign others")
)

// CA is a certificate with its private key. It is safe for concurrent use.
type CA struct {
	Certificate *x509.Certificate
	Chain       []*x509.Certificate // further certificates of the CA file, towards the root

	key crypto.Signer

	crlMu   sync.Mutex
	crl     []byte
	crlTime time.Time
}

// newCA makes a self-signed CA (CERT-03). A nil key is generated.
func newCA(cfg Config, key crypto.Signer, now time.Time) (*CA, error) {
	if key == nil {
		var err error
		if key, err = newKey(cfg.KeyType == KeyECDSA, cfg.KeyBits); err != nil {
			return nil, err
		}
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: cfg.Name, Organization: []string{cfg.Name}},
		NotBefore:             now.Add(-backdate).UTC(),
		NotAfter:              now.Add(10 * 365 * day).UTC(),
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLen:            -1,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	if template.SubjectKeyId, err = keyIdentifier(key.Public()); err != nil {
		return nil, err
	}
	return signCA(template, key)
}

// signCA self-signs the template.
func signCA(template *x509.Certificate, key crypto.Signer) (*CA, error) {
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("sign ca certificate: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("parse own ca certificate: %w", err)
	}
	return &CA{Certificate: cert, key: key}, nil
}

// Check returns nil if clients that trust the CA can accept its leaves at the given time,
// else an error that wraps ErrExpired, ErrNotYetValid or ErrNotCA and names the cure.
func (ca *CA) Check(now time.Time) error {
	c := ca.Certificate
	switch {
	case now.After(c.NotAfter):
		return fmt.Errorf("%w on %s: renew it, or delete the mitmproxy-ca files and restart; then install the new one on all devices",
			ErrExpired, c.NotAfter.UTC().Format(time.DateOnly))
	case now.Before(c.NotBefore):
		return fmt.Errorf("%w before %s: check this machine's clock", ErrNotYetValid, c.NotBefore.UTC().Format(time.DateTime))
	case !c.IsCA || c.KeyUsage != 0 && c.KeyUsage&x509.KeyUsageCertSign == 0:
		return fmt.Errorf("%w (subject %q): put a ca certificate first in the file", ErrNotCA, c.Subject)
	}
	return nil
}

// selfSigned reports whether the CA is a root, which clients have and need not be sent.
func (ca *CA) selfSigned() bool {
	return bytes.Equal(ca.Certificate.RawIssuer, ca.Certificate.RawSubject)
}

// clientChain returns what is sent behind a leaf: nothing for a plain root,
// else the CA and the rest of its file (CERT-06, CERT-21).
func (ca *CA) clientChain() [][]byte {
	if len(ca.Chain) == 0 && ca.selfSigned() {
		return nil
	}
	chain := [][]byte{ca.Certificate.Raw}
	for _, c := range ca.Chain {
		chain = append(chain, c.Raw)
	}
	return chain
}

// keyID is the identifier that leaves point to as their authority's key.
func (ca *CA) keyID() ([]byte, error) {
	if id := ca.Certificate.SubjectKeyId; len(id) > 0 {
		return id, nil
	}
	return keyIdentifier(ca.Certificate.PublicKey)
}

// newKey generates an ECDSA P-256 key or an RSA key of the given size.
func newKey(ecdsaKey bool, rsaBits int) (crypto.Signer, error) {
	if ecdsaKey {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return nil, fmt.Errorf("generate ecdsa key: %w", err)
		}
		return key, nil
	}
	key, err := rsa.GenerateKey(rand.Reader, rsaBits)
	if err != nil {
		return nil, fmt.Errorf("generate rsa key: %w", err)
	}
	return key, nil
}

// newSerial returns a random positive serial number of up to 128 bits.
func newSerial() (*big.Int, error) {
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 128))
	if err != nil {
		return nil, fmt.Errorf("generate serial number: %w", err)
	}
	return n.Add(n, big.NewInt(1)), nil
}

// keyIdentifier is method 1 of RFC 5280, section 4.2.1.2: the SHA-1 of the key bits.
func keyIdentifier(public crypto.PublicKey) ([]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return nil, fmt.Errorf("compute key identifier: %w", err)
	}
	var info struct {
		Algorithm pkix.AlgorithmIdentifier
		Key       asn1.BitString
	}
	if _, err := asn1.Unmarshal(der, &info); err != nil {
		return nil, fmt.Errorf("compute key identifier: %w", err)
	}
	sum := sha1.Sum(info.Key.Bytes) // see the import
	return sum[:], nil
}

// publicKeysEqual reports whether both are the same key of a supported kind.
func publicKeysEqual(a, b crypto.PublicKey) bool {
	key, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && key.Equal(b)
}
