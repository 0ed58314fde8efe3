package certs

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestRenew(t *testing.T) {
	for _, withNewKey := range []bool{false, true} {
		dir := t.TempDir()
		cfg := Config{Dir: dir, Name: "my gateway", KeyType: KeyECDSA, Now: at(time.Now().Add(-9 * 365 * day))}
		old, err := LoadOrCreate(cfg)
		if err != nil {
			t.Fatal(err)
		}
		fresh, err := Renew(Config{Dir: dir}, withNewKey)
		if err != nil {
			t.Fatal(err)
		}
		if same := publicKeysEqual(fresh.Certificate.PublicKey, old.Certificate.PublicKey); same == withNewKey {
			t.Errorf("new key %v: the key stayed: %v", withNewKey, same)
		}
		if !bytes.Equal(fresh.Certificate.RawSubject, old.Certificate.RawSubject) || !fresh.Certificate.NotAfter.After(time.Now().Add(9*365*day)) {
			t.Errorf("subject %v, valid to %v", fresh.Certificate.Subject, fresh.Certificate.NotAfter)
		}
		if err := fresh.Check(time.Now()); err != nil {
			t.Error(err)
		}
		leaf := get(t, testStore(t, StoreConfig{CA: fresh}), Request{Names: []string{"a.example"}})
		verify(t, fresh, leaf, "a.example")
		if !withNewKey {
			verify(t, old, leaf, "a.example") // a device that has only the old certificate
		}
		loaded, err := LoadOrCreate(Config{Dir: dir})
		if err != nil || !bytes.Equal(loaded.DER(), fresh.DER()) {
			t.Fatalf("load after renewing: %v", err)
		}
		for _, name := range []string{FileCertPEM, FileCertCER} {
			if !bytes.Equal(readFile(t, filepath.Join(dir, name)), fresh.PEM()) {
				t.Errorf("%s is stale", name)
			}
		}
		kept := filepath.Join(dir, "mitmproxy-ca."+old.Certificate.SerialNumber.String()+".old.pem")
		if info, err := os.Stat(kept); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("old ca: %v", err)
		}
	}
}

func TestRenewKeepsThePassphrase(t *testing.T) {
	key := writeTemp(t, "key.pem", []byte(openssl(t, "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256")))
	cert := openssl(t, "req", "-x509", "-key", key, "-subj", "/CN=own ca", "-days", "99")
	encrypted := openssl(t, "pkcs8", "-topk8", "-in", key, "-passout", "pass:secret")
	cfg := Config{Dir: t.TempDir(), Passphrase: "secret"}
	file := filepath.Join(cfg.Dir, FileCA)
	if err := os.WriteFile(file, []byte(encrypted+cert), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Renew(cfg, true); err == nil || !strings.Contains(err.Error(), "encrypted") {
		t.Errorf("new key beside an encrypted one: %v", err)
	}
	if _, err := Renew(cfg, false); err != nil {
		t.Fatal(err)
	}
	if text := string(readFile(t, file)); !strings.HasPrefix(text, encrypted) || strings.Contains(text, cert) {
		t.Errorf("%s is now:\n%s", FileCA, text)
	}
	if _, err := LoadOrCreate(cfg); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(cfg.Dir, FileCAP12)); err == nil {
		t.Errorf("the key was exported to %s", FileCAP12)
	}
}
