package wg

import (
	"crypto/ecdh"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
)

const keySize = 32

// PublicKey is an X25519 public key; the zero value means "none".
type PublicKey [keySize]byte

// SecretKey is an X25519 private key or a preshared key; the zero value means
// "none". It prints as "(secret)", so that it cannot slip into a log; use
// Base64 where the key itself is wanted.
type SecretKey [keySize]byte

// GeneratePrivateKey returns a new X25519 private key.
func GeneratePrivateKey() (SecretKey, error) {
	key, err := GeneratePresharedKey()
	// The bits X25519 ignores (RFC 7748 section 5) are set as "wg genkey" does.
	key[0] &= 248
	key[31] = key[31]&127 | 64
	return key, err
}

// GeneratePresharedKey returns 32 random bytes.
func GeneratePresharedKey() (SecretKey, error) {
	var key SecretKey
	if _, err := rand.Read(key[:]); err != nil {
		return SecretKey{}, fmt.Errorf("generate key: %w", err)
	}
	return key, nil
}

// ParsePublicKey reads the base64 form that "wg pubkey" prints.
func ParsePublicKey(text string) (PublicKey, error) {
	b, err := parseKey(text)
	return PublicKey(b), err
}

// ParseSecretKey reads the base64 form that "wg genkey" and "wg genpsk" print.
func ParseSecretKey(text string) (SecretKey, error) {
	b, err := parseKey(text)
	return SecretKey(b), err
}

func parseKey(text string) (key [keySize]byte, err error) {
	b, err := base64.StdEncoding.DecodeString(text)
	if err != nil || len(b) != keySize {
		return key, errors.New("a key is 44 characters of base64, as \"wg genkey\" prints it")
	}
	return [keySize]byte(b), nil
}

// Public returns the public key of a private key.
func (k SecretKey) Public() PublicKey {
	// NewPrivateKey fails on a wrong length only.
	private, err := ecdh.X25519().NewPrivateKey(k[:])
	if err != nil {
		return PublicKey{}
	}
	return PublicKey(private.PublicKey().Bytes())
}

// IsZero reports whether the key is absent.
func (k PublicKey) IsZero() bool { return k == PublicKey{} }

// IsZero reports whether the key is absent.
func (k SecretKey) IsZero() bool { return k == SecretKey{} }

// String returns the base64 form.
func (k PublicKey) String() string { return base64.StdEncoding.EncodeToString(k[:]) }

// Base64 returns the key itself.
func (k SecretKey) Base64() string { return base64.StdEncoding.EncodeToString(k[:]) }

// String hides the key.
func (SecretKey) String() string { return "(secret)" }

// GoString hides the key.
func (SecretKey) GoString() string { return "(secret)" }

// MarshalText returns the base64 form, for the configuration file.
func (k PublicKey) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// MarshalText returns the key itself, for the configuration file.
func (k SecretKey) MarshalText() ([]byte, error) { return []byte(k.Base64()), nil }

// UnmarshalText reads the base64 form.
func (k *PublicKey) UnmarshalText(text []byte) (err error) {
	*k, err = ParsePublicKey(string(text))
	return err
}

// UnmarshalText reads the base64 form.
func (k *SecretKey) UnmarshalText(text []byte) (err error) {
	*k, err = ParseSecretKey(string(text))
	return err
}

// hexKey is the form of wireguard-go's configuration protocol.
func hexKey(key [keySize]byte) string { return hex.EncodeToString(key[:]) }
