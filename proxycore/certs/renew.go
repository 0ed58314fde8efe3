package certs

import (
	"crypto"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
)

// Renew replaces the CA in cfg.Dir by one that is valid for ten years from now, with
// the same subject. With the same key, devices that trust the old certificate accept new
// leaves until that one expires; with a new key they need the new certificate at once. The
// old file is kept beside the new one under a name with its serial number; all
// public files are written anew. Only self-signed CAs can be renewed here.
func Renew(cfg Config, withNewKey bool) (*CA, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	unlock, err := lockDir(cfg)
	if err != nil {
		return nil, err
	}
	defer unlock()
	b, err := loadBundle(cfg)
	if err != nil {
		return nil, err
	}
	old := &CA{Certificate: b.certs[0], Chain: b.certs[1:], key: b.key}
	if !old.selfSigned() || len(old.Chain) > 0 {
		return nil, fmt.Errorf("the ca was issued by %q: have it renewed there and replace %s", old.Certificate.Issuer, cfg.path(FileCA))
	}
	encrypted := isEncrypted(b.keyPEM)
	if encrypted && withNewKey {
		return nil, errors.New("a new key would not be encrypted as the present one is: make a ca with openssl and put it into the confdir")
	}
	keyPEM := b.keyPEM
	if withNewKey || !encrypted {
		keyPEM = nil
	}
	ca, err := reissue(cfg, old, withNewKey)
	if err != nil {
		return nil, err
	}
	if err := keepOld(cfg, old); err != nil {
		return nil, err
	}
	if err := writePrivateFiles(cfg, ca, keyPEM); err != nil {
		return nil, err
	}
	return ca, rewritePublicFiles(cfg, ca)
}

// reissue signs a new certificate with the old subject and kind of key.
func reissue(cfg Config, old *CA, withNewKey bool) (*CA, error) {
	key := old.key
	if withNewKey {
		var err error
		if key, err = newKeyLike(cfg, old); err != nil {
			return nil, err
		}
	}
	fresh, err := newCA(cfg, key, cfg.Now())
	if err != nil {
		return nil, err
	}
	template := *fresh.Certificate
	template.RawSubject = old.Certificate.RawSubject
	if !withNewKey && len(old.Certificate.SubjectKeyId) > 0 {
		template.SubjectKeyId = old.Certificate.SubjectKeyId
		template.AuthorityKeyId = old.Certificate.AuthorityKeyId
	}
	return signCA(&template, key)
}

// newKeyLike keeps the kind of key unless the configuration names another one.
func newKeyLike(cfg Config, old *CA) (crypto.Signer, error) {
	block, err := keyBlock(old.key)
	if err != nil {
		return nil, err
	}
	wasRSA := block.Type == "RSA PRIVATE KEY"
	return newKey(cfg.KeyType == KeyECDSA || cfg.KeyType == KeyDefault && !wasRSA, cfg.KeyBits)
}

func isEncrypted(block *pem.Block) bool {
	return block.Type == "ENCRYPTED PRIVATE KEY" || block.Headers["DEK-Info"] != ""
}

// keepOld links the present CA file to a name of its own.
func keepOld(cfg Config, old *CA) error {
	data, err := readLimited(cfg.path(FileCA))
	if err != nil {
		return fmt.Errorf("keep the old ca: %w", err)
	}
	return writeFile(cfg, fmt.Sprintf("mitmproxy-ca.%s.old.pem", old.Certificate.SerialNumber), data, 0o600)
}

func rewritePublicFiles(cfg Config, ca *CA) error {
	for _, name := range []string{FileCertPEM, FileCertCER, FileCertP12} {
		if err := os.Remove(cfg.path(name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("replace public ca file: %w", err)
		}
	}
	writePublicFiles(cfg, ca)
	return nil
}
