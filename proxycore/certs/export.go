package certs

import (
	"crypto"
	"crypto/md5" // OpenSSL's old subject hash is defined with it
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"encoding/pem"
	"fmt"

	"software.sslmate.com/src/go-pkcs12"
)

// PEM returns the CA certificate as PEM text.
func (ca *CA) PEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.Certificate.Raw})
}

// DER returns the CA certificate as DER bytes. They must not be changed.
func (ca *CA) DER() []byte { return ca.Certificate.Raw }

// P12 returns the certificate alone as PKCS#12 with an empty password.
func (ca *CA) P12() ([]byte, error) {
	entry := pkcs12.TrustStoreEntry{Cert: ca.Certificate, FriendlyName: ca.Certificate.Subject.CommonName}
	data, err := pkcs12.LegacyDES.EncodeTrustStoreEntries([]pkcs12.TrustStoreEntry{entry}, "")
	if err != nil {
		return nil, fmt.Errorf("encode certificate as pkcs#12: %w", err)
	}
	return data, nil
}

// PrivateP12 returns key and certificate as PKCS#12, in the form that the most
// software reads. Its encryption is weak: keep it as secret as the key.
func (ca *CA) PrivateP12(password string) ([]byte, error) {
	data, err := pkcs12.LegacyDES.Encode(ca.key, ca.Certificate, ca.Chain, password)
	if err != nil {
		return nil, fmt.Errorf("encode ca as pkcs#12: %w", err)
	}
	return data, nil
}

// Fingerprint returns the SHA-256 of the certificate in lower-case hex.
func (ca *CA) Fingerprint() string {
	sum := sha256.Sum256(ca.Certificate.Raw)
	return hex.EncodeToString(sum[:])
}

// SubjectHashOld returns what "openssl x509 -subject_hash_old" prints: eight hex
// digits, the name of the file (plus ".0") in Android's system store (CERT-24).
func (ca *CA) SubjectHashOld() string {
	sum := md5.Sum(ca.Certificate.RawSubject) // see the import
	return fmt.Sprintf("%08x", binary.LittleEndian.Uint32(sum[:]))
}

// keyBlock encodes a private key without encryption: RSA as PKCS#1 (CERT-04), others as PKCS#8.
func keyBlock(key crypto.Signer) (*pem.Block, error) {
	if k, ok := key.(*rsa.PrivateKey); ok {
		return &pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(k)}, nil
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode private key: %w", err)
	}
	return &pem.Block{Type: "PRIVATE KEY", Bytes: der}, nil
}
