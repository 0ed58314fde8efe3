package certs

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/des" // existing key files use it
	"crypto/pbkdf2"
	"crypto/sha1" // the default PRF of PBKDF2
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"hash"
)

const maxIterations = 10_000_000 // a few seconds; OpenSSL's default is 2048

// encryptedKey is EncryptedPrivateKeyInfo (RFC 5958, section 3).
type encryptedKey struct {
	Algorithm struct {
		ID         asn1.ObjectIdentifier
		Parameters asn1.RawValue
	}
	Data []byte
}

// pbes2Params and pbkdf2Params are of RFC 8018, appendix A.4 and A.2.
type pbes2Params struct {
	KDF struct {
		ID         asn1.ObjectIdentifier
		Parameters pbkdf2Params
	}
	Cipher struct {
		ID asn1.ObjectIdentifier
		IV []byte
	}
}

type pbkdf2Params struct {
	Salt       []byte
	Iterations int
	KeyLength  int                      `asn1:"optional"`
	PRF        pkix.AlgorithmIdentifier `asn1:"optional"`
}

// decryptPKCS8 decrypts an ENCRYPTED PRIVATE KEY as OpenSSL writes it by default:
// PBES2 with PBKDF2 and a CBC cipher.
func decryptPKCS8(der []byte, passphrase string) ([]byte, error) {
	var info encryptedKey
	if _, err := asn1.Unmarshal(der, &info); err != nil {
		return nil, fmt.Errorf("parse encrypted private key: %w", err)
	}
	if id := info.Algorithm.ID.String(); id != "1.2.840.113549.1.5.13" {
		return nil, unsupported("encryption scheme", id)
	}
	var params pbes2Params
	if _, err := asn1.Unmarshal(info.Algorithm.Parameters.FullBytes, &params); err != nil {
		return nil, unsupported("key derivation", err.Error())
	}
	if id := params.KDF.ID.String(); id != "1.2.840.113549.1.5.12" {
		return nil, unsupported("key derivation", id)
	}
	newCipher, keyLength, err := pbesCipher(params.Cipher.ID)
	if err != nil {
		return nil, err
	}
	key, err := deriveKey(params.KDF.Parameters, passphrase, keyLength)
	if err != nil {
		return nil, err
	}
	block, err := newCipher(key)
	if err != nil {
		return nil, fmt.Errorf("decrypt private key: %w", err)
	}
	return decryptCBC(block, params.Cipher.IV, info.Data)
}

func unsupported(what, name string) error {
	return fmt.Errorf("%s %s of the private key is not supported: convert it with openssl pkey -aes256", what, name)
}

func pbesCipher(id asn1.ObjectIdentifier) (newCipher func([]byte) (cipher.Block, error), keyLength int, err error) {
	switch id.String() {
	case "2.16.840.1.101.3.4.1.2":
		return aes.NewCipher, 16, nil
	case "2.16.840.1.101.3.4.1.22":
		return aes.NewCipher, 24, nil
	case "2.16.840.1.101.3.4.1.42":
		return aes.NewCipher, 32, nil
	case "1.2.840.113549.3.7":
		return des.NewTripleDESCipher, 24, nil
	}
	return nil, 0, unsupported("cipher", id.String())
}

func deriveKey(p pbkdf2Params, passphrase string, keyLength int) ([]byte, error) {
	if p.Iterations < 1 || p.Iterations > maxIterations {
		return nil, unsupported("iteration count", fmt.Sprint(p.Iterations))
	}
	var prf func() hash.Hash
	switch id := p.PRF.Algorithm.String(); id {
	case "", "1.2.840.113549.2.7":
		prf = sha1.New
	case "1.2.840.113549.2.9":
		prf = sha256.New
	case "1.2.840.113549.2.10":
		prf = sha512.New384
	case "1.2.840.113549.2.11":
		prf = sha512.New
	default:
		return nil, unsupported("pseudo-random function", id)
	}
	key, err := pbkdf2.Key(prf, passphrase, p.Salt, p.Iterations, keyLength)
	if err != nil {
		return nil, fmt.Errorf("derive key from passphrase: %w", err)
	}
	return key, nil
}

// decryptCBC decrypts and checks the padding (RFC 8018, section 6.1.1), whose
// failure is how a wrong passphrase shows.
func decryptCBC(block cipher.Block, iv, data []byte) ([]byte, error) {
	size := block.BlockSize()
	if len(iv) != size || len(data) == 0 || len(data)%size != 0 {
		return nil, errors.New("decrypt private key: damaged data")
	}
	plain := make([]byte, len(data))
	cipher.NewCBCDecrypter(block, iv).CryptBlocks(plain, data)
	padding := int(plain[len(plain)-1])
	if padding == 0 || padding > size {
		return nil, ErrPassphrase
	}
	for _, b := range plain[len(plain)-padding:] {
		if int(b) != padding {
			return nil, ErrPassphrase
		}
	}
	return plain[:len(plain)-padding], nil
}
