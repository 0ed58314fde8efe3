package certs

import (
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
)

const (
	maxPEMFile  = 1 << 20 // bytes
	maxPEMCerts = 100
)

// ErrPassphrase means that a private key is encrypted and the passphrase is
// missing or wrong.
var ErrPassphrase = errors.New("wrong or missing passphrase for the private key: set cert_passphrase")

// bundle is the content of a PEM file: certificates in their order, and at most one key.
type bundle struct {
	certs    []*x509.Certificate
	chainErr error         // why certificates behind the first one were left out
	key      crypto.Signer // nil if there is none
	keyPEM   *pem.Block    // the block of the key as it was
}

// readLimited reads a file of at most maxPEMFile bytes.
func readLimited(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err // names operation and path itself
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxPEMFile+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxPEMFile {
		return nil, fmt.Errorf("%s is larger than %d bytes: not a certificate file", path, maxPEMFile)
	}
	return data, nil
}

// parseBundle reads certificates and the first private key from PEM text. Other blocks
// and text around them are ignored. The first certificate must be good;
// a bad one behind it ends the chain (CERT-20).
func parseBundle(data []byte, passphrase string) (*bundle, error) {
	b := &bundle{}
	for {
		var block *pem.Block
		if block, data = pem.Decode(data); block == nil {
			return b, nil
		}
		switch block.Type {
		case "CERTIFICATE", "X509 CERTIFICATE", "TRUSTED CERTIFICATE":
			if err := b.addCertificate(block.Bytes); err != nil {
				return nil, err
			}
		case "RSA PRIVATE KEY", "EC PRIVATE KEY", "PRIVATE KEY", "ENCRYPTED PRIVATE KEY":
			if b.key != nil {
				continue
			}
			key, err := parseKey(block, passphrase)
			if err != nil {
				return nil, err
			}
			b.key, b.keyPEM = key, block
		}
	}
}

func (b *bundle) addCertificate(der []byte) error {
	if b.chainErr != nil {
		return nil //nolint:nilerr // the certificates before it are of use, and its holder tells
	}
	if len(b.certs) == maxPEMCerts {
		b.chainErr = fmt.Errorf("more than %d certificates", maxPEMCerts)
		return nil
	}
	cert, err := x509.ParseCertificate(der)
	switch {
	case err != nil && len(b.certs) == 0:
		return fmt.Errorf("parse certificate: %w", err)
	case err != nil:
		b.chainErr = fmt.Errorf("parse certificate %d of the chain: %w", len(b.certs)+1, err)
	default:
		b.certs = append(b.certs, cert)
	}
	return nil
}

// parseKey reads a PKCS#1, SEC 1 or PKCS#8 key, encrypted in OpenSSL's old way
// (DEK-Info header) or by PKCS#5 PBES2, or not at all.
func parseKey(block *pem.Block, passphrase string) (crypto.Signer, error) {
	der := block.Bytes
	var err error
	switch {
	case x509.IsEncryptedPEMBlock(block): //nolint:staticcheck // weak, but existing files are like this
		if passphrase == "" {
			return nil, ErrPassphrase
		}
		if der, err = x509.DecryptPEMBlock(block, []byte(passphrase)); err != nil { //nolint:staticcheck // see above
			return nil, fmt.Errorf("%w (%w)", ErrPassphrase, err)
		}
	case block.Type == "ENCRYPTED PRIVATE KEY":
		if passphrase == "" {
			return nil, ErrPassphrase
		}
		if der, err = decryptPKCS8(der, passphrase); err != nil {
			return nil, err
		}
	}
	key, err := parseKeyDER(block.Type, der)
	if err != nil {
		return nil, fmt.Errorf("parse private key: %w", err)
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("private key of type %T cannot sign: use an RSA or ECDSA key", key)
	}
	return signer, nil
}

func parseKeyDER(kind string, der []byte) (any, error) {
	switch kind {
	case "RSA PRIVATE KEY":
		return x509.ParsePKCS1PrivateKey(der)
	case "EC PRIVATE KEY":
		return x509.ParseECPrivateKey(der)
	}
	return x509.ParsePKCS8PrivateKey(der)
}
