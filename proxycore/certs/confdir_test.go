package certs

import (
	"bytes"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestCreate(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new", "confdir")
	ca, err := LoadOrCreate(Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	modes := map[string]os.FileMode{
		"": 0o700, FileCA: 0o600, FileCAP12: 0o600, FileCertPEM: 0o644, FileCertCER: 0o644, FileCertP12: 0o644,
	}
	for name, want := range modes {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if got := info.Mode().Perm(); got != want {
			t.Errorf("mode of %q is %o, want %o", name, got, want)
		}
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 5 {
		t.Errorf("%d files, want 5: %v", len(entries), entries)
	}
	block, rest := pem.Decode(readFile(t, filepath.Join(dir, FileCA)))
	next, _ := pem.Decode(rest)
	if block.Type != "RSA PRIVATE KEY" || next == nil || !bytes.Equal(next.Bytes, ca.DER()) {
		t.Errorf("%s begins with %q and does not go on with the certificate", FileCA, block.Type)
	}

	again, err := LoadOrCreate(Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(again.DER(), ca.DER()) {
		t.Error("the second start made another ca")
	}
}

func TestCreatedCertificateText(t *testing.T) {
	dir := t.TempDir()
	ca, err := LoadOrCreate(Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, FileCertPEM)
	text := openssl(t, "x509", "-in", path, "-noout", "-text")
	for _, want := range []string{
		"Subject: O = mitm-appliance, CN = mitm-appliance", "Signature Algorithm: sha256WithRSAEncryption",
		"Public-Key: (2048 bit)", "X509v3 Basic Constraints: critical", "CA:TRUE\n",
		"X509v3 Key Usage: critical", "Certificate Sign, CRL Sign\n", "TLS Web Server Authentication\n", "X509v3 Subject Key Identifier",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("certificate text lacks %q:\n%s", want, text)
		}
	}
	if strings.Contains(text, "pathlen") {
		t.Errorf("certificate limits the path length:\n%s", text)
	}
	if life := ca.Certificate.NotAfter.Sub(ca.Certificate.NotBefore); life != 10*365*day+backdate {
		t.Errorf("lifetime is %v", life)
	}
	if want := strings.TrimSpace(openssl(t, "x509", "-in", path, "-noout", "-subject_hash_old")); ca.SubjectHashOld() != want {
		t.Errorf("SubjectHashOld = %s, want %s", ca.SubjectHashOld(), want)
	}
	printed := strings.ToLower(strings.ReplaceAll(openssl(t, "x509", "-in", path, "-noout", "-fingerprint", "-sha256"), ":", ""))
	if !strings.Contains(printed, ca.Fingerprint()) {
		t.Errorf("Fingerprint = %s, openssl says %s", ca.Fingerprint(), printed)
	}
	if out := openssl(t, "pkcs12", "-in", filepath.Join(dir, FileCAP12), "-passin", "pass:", "-nodes"); !strings.Contains(out, "PRIVATE KEY") {
		t.Errorf("%s holds no key: %s", FileCAP12, out)
	}
	if out := openssl(t, "pkcs12", "-in", filepath.Join(dir, FileCertP12), "-passin", "pass:", "-nodes"); !strings.Contains(out, "BEGIN CERTIFICATE") || strings.Contains(out, "PRIVATE KEY") {
		t.Errorf("%s holds not just the certificate: %s", FileCertP12, out)
	}
}

func TestConcurrentCreation(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "confdir")
	results := make([]*CA, 8)
	var group sync.WaitGroup
	for i := range results {
		group.Go(func() {
			ca, err := LoadOrCreate(Config{Dir: dir, KeyType: KeyECDSA})
			if err != nil {
				t.Error(err)
			}
			results[i] = ca
		})
	}
	group.Wait()
	if t.Failed() {
		return
	}
	for _, ca := range results {
		if !bytes.Equal(ca.DER(), results[0].DER()) {
			t.Error("two cas were made")
		}
	}
	if left, _ := filepath.Glob(filepath.Join(dir, ".*")); len(left) > 0 {
		t.Errorf("left over: %v", left)
	}
}

func TestCrashLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	left := filepath.Join(dir, "."+FileCA+"-123.tmp")
	if err := os.WriteFile(left, []byte("half a key"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadOrCreate(Config{Dir: dir, KeyType: KeyECDSA}); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(left); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("half a key is still there: %v", err)
	}
}

func TestLoosePermissionsAreRepaired(t *testing.T) {
	tests := []struct {
		dir, file         os.FileMode
		wantDir, wantFile os.FileMode
		warning           string
	}{
		{0o700, 0o600, 0o700, 0o600, ""},
		{0o755, 0o640, 0o755, 0o640, ""},
		{0o700, 0o644, 0o700, 0o640, "open to other users"},
		{0o700, 0o666, 0o700, 0o640, "open to other users"},
		{0o777, 0o600, 0o755, 0o600, "writable for others"},
		{0o777 | os.ModeSticky, 0o600, 0o777, 0o600, ""},
	}
	for _, test := range tests {
		dir := t.TempDir()
		if _, err := LoadOrCreate(Config{Dir: dir, KeyType: KeyECDSA}); err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(dir, FileCA)
		if err := errors.Join(os.Chmod(dir, test.dir), os.Chmod(file, test.file)); err != nil {
			t.Fatal(err)
		}
		var log bytes.Buffer
		if _, err := LoadOrCreate(Config{Dir: dir, Logger: logTo(&log)}); err != nil {
			t.Fatal(err)
		}
		gotDir, _ := os.Stat(dir)
		gotFile, _ := os.Stat(file)
		if gotDir.Mode().Perm() != test.wantDir || gotFile.Mode().Perm() != test.wantFile {
			t.Errorf("%v %v became %v %v", test.dir, test.file, gotDir.Mode(), gotFile.Mode())
		}
		if test.warning == "" && log.Len() > 0 || !strings.Contains(log.String(), test.warning) {
			t.Errorf("%v %v: log is %q", test.dir, test.file, log.String())
		}
	}
}

func TestOwnCA(t *testing.T) {
	tests := []struct {
		name    string
		newKey  []string
		encrypt []string
	}{
		{"pkcs1 rsa", []string{"genrsa", "-traditional", "2048"}, nil},
		{"pkcs8 rsa", []string{"genpkey", "-algorithm", "RSA"}, nil},
		{"sec1 ec with parameters", []string{"ecparam", "-name", "prime256v1", "-genkey"}, nil},
		{"pkcs8 ec p-384", []string{"genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-384"}, nil},
		{"legacy dek-info", []string{"ecparam", "-name", "prime256v1", "-genkey", "-noout"}, []string{"ec", "-aes256"}},
		{"legacy des3", []string{"genrsa", "-traditional", "2048"}, []string{"rsa", "-traditional", "-des3"}},
		{"pbes2 aes-256", []string{"genpkey", "-algorithm", "RSA"}, []string{"pkcs8", "-topk8"}},
		{"pbes2 des3 sha1", []string{"genpkey", "-algorithm", "RSA"}, []string{"pkcs8", "-topk8", "-v2", "des3", "-v2prf", "hmacWithSHA1"}},
		{"pbes2 aes-128 sha512", []string{"genpkey", "-algorithm", "RSA"}, []string{"pkcs8", "-topk8", "-v2", "aes-128-cbc", "-v2prf", "hmacWithSHA512"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			keyText := openssl(t, test.newKey...)
			key := writeTemp(t, "key.pem", []byte(keyText))
			cert := openssl(t, "req", "-x509", "-key", key, "-subj", "/CN=own ca", "-days", "99")
			cfg := Config{Dir: t.TempDir()}
			if test.encrypt != nil {
				keyText = openssl(t, append(test.encrypt, "-in", key, "-passout", "pass:secret")...)
				cfg.Passphrase = "secret"
			}
			file := filepath.Join(cfg.Dir, FileCA)
			if err := os.WriteFile(file, []byte(keyText+cert), 0o600); err != nil {
				t.Fatal(err)
			}
			ca, err := LoadOrCreate(cfg)
			if err != nil {
				t.Fatal(err)
			}
			verify(t, ca, get(t, testStore(t, StoreConfig{CA: ca}), Request{Names: []string{"a.example"}}), "a.example")
			if _, err := os.Stat(filepath.Join(cfg.Dir, FileCAP12)); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the key was exported to %s: %v", FileCAP12, err)
			}
			if !bytes.Equal(readFile(t, file), []byte(keyText+cert)) {
				t.Errorf("%s was changed", FileCA)
			}
			for _, wrong := range []string{"", "wrong"} {
				cfg.Passphrase = wrong
				if _, err := LoadOrCreate(cfg); errors.Is(err, ErrPassphrase) != (test.encrypt != nil) && err == nil {
					t.Errorf("with passphrase %q: %v", wrong, err)
				}
			}
		})
	}
}

func TestChainFile(t *testing.T) {
	root := testCA(t)
	dir := t.TempDir()
	key := filepath.Join(dir, "key.pem")
	keyText := openssl(t, "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256")
	rootBlock, err := keyBlock(root.key)
	if err != nil {
		t.Fatal(err)
	}
	rootCert := writeTemp(t, "root.pem", root.PEM())
	rootKey := writeTemp(t, "rootkey.pem", pem.EncodeToMemory(rootBlock))
	if err := os.WriteFile(key, []byte(keyText), 0o600); err != nil {
		t.Fatal(err)
	}
	cert := openssl(t, "req", "-x509", "-key", key, "-subj", "/CN=between", "-CA", rootCert, "-CAkey", rootKey, "-addext", "basicConstraints=critical,CA:TRUE")
	if err := os.WriteFile(filepath.Join(dir, FileCA), []byte(keyText+cert), 0o600); err != nil {
		t.Fatal(err)
	}
	ca, err := LoadOrCreate(Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	leaf := get(t, testStore(t, StoreConfig{CA: ca}), Request{Names: []string{"a.example"}})
	if len(leaf.Certificate) != 2 {
		t.Errorf("chain has %d certificates, want leaf and issuing ca", len(leaf.Certificate))
	}
	verify(t, root, leaf, "a.example")
	if _, err := Renew(Config{Dir: dir}, false); err == nil || !strings.Contains(err.Error(), "have it renewed there") {
		t.Errorf("renewing a foreign ca: %v", err)
	}
}

func TestBadCAFiles(t *testing.T) {
	one, other := testCA(t), testCA(t)
	block, err := keyBlock(one.key)
	if err != nil {
		t.Fatal(err)
	}
	key := pem.EncodeToMemory(block)
	tests := []struct {
		name, want string
		content    []byte
	}{
		{"empty", "must hold a private key and its certificate", nil},
		{"no key", "must hold a private key and its certificate", one.PEM()},
		{"no certificate", "must hold a private key and its certificate", key},
		{"other key", "do not match", append(key, other.PEM()...)},
		{"broken certificate", "parse certificate", append(key, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"...)},
		{"broken key", "parse private key", []byte("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")},
		{"huge", "larger than", make([]byte, maxPEMFile+1)},
	}
	for _, test := range tests {
		dir := t.TempDir()
		file := filepath.Join(dir, FileCA)
		if err := os.WriteFile(file, test.content, 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := LoadOrCreate(Config{Dir: dir})
		if err == nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), file) {
			t.Errorf("%s: error %v, want %q with the path", test.name, err, test.want)
		}
		if !bytes.Equal(readFile(t, file), test.content) {
			t.Errorf("%s: the file was changed", test.name)
		}
	}
}

func TestCheck(t *testing.T) {
	ca := testCA(t)
	tests := []struct {
		now  time.Time
		want error
	}{
		{time.Now(), nil},
		{ca.Certificate.NotAfter.Add(time.Second), ErrExpired},
		{ca.Certificate.NotBefore.Add(-time.Second), ErrNotYetValid},
	}
	for _, test := range tests {
		if err := ca.Check(test.now); !errors.Is(err, test.want) {
			t.Errorf("Check(%v) = %v, want %v", test.now, err, test.want)
		}
	}
	leaf := get(t, testStore(t, StoreConfig{CA: ca}), Request{Names: []string{"a.example"}})
	if err := (&CA{Certificate: leaf.Leaf}).Check(time.Now()); !errors.Is(err, ErrNotCA) {
		t.Errorf("Check of a leaf = %v, want ErrNotCA", err)
	}
}

func TestExpiredCAStillWorksWithAWarning(t *testing.T) {
	dir := t.TempDir()
	long := time.Now().Add(-12 * 365 * day)
	if _, err := LoadOrCreate(Config{Dir: dir, KeyType: KeyECDSA, Now: at(long)}); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	ca, err := LoadOrCreate(Config{Dir: dir, Logger: logTo(&log)})
	if err != nil || !strings.Contains(log.String(), "expired") || !strings.Contains(log.String(), "renew it") {
		t.Fatalf("error %v, log %q", err, log.String())
	}
	leaf := get(t, testStore(t, StoreConfig{CA: ca}), Request{Names: []string{"a.example"}}).Leaf
	if time.Now().After(leaf.NotAfter) {
		t.Errorf("leaf ended %v", leaf.NotAfter)
	}
}

func TestStalePublicFileIsReported(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, FileCertPEM), testCA(t).PEM(), 0o600); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	if _, err := LoadOrCreate(Config{Dir: dir, KeyType: KeyECDSA, Logger: logTo(&log)}); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(log.String(), "belongs to another ca") {
		t.Errorf("log is %q", log.String())
	}
}

func TestConfigErrors(t *testing.T) {
	for _, cfg := range []Config{{}, {Dir: t.TempDir(), KeyBits: 1024}, {Dir: t.TempDir(), KeyBits: 1 << 20}} {
		if _, err := LoadOrCreate(cfg); err == nil {
			t.Errorf("LoadOrCreate(%+v) succeeded", cfg)
		}
	}
}

func FuzzParseBundle(f *testing.F) {
	ca := testCA(f)
	block, err := keyBlock(ca.key)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(append(pem.EncodeToMemory(block), ca.PEM()...), "")
	f.Add([]byte("-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00000000000000000000000000000000\n\nAAAA\n-----END RSA PRIVATE KEY-----\n"), "x")
	f.Fuzz(func(t *testing.T, data []byte, passphrase string) {
		b, err := parseBundle(data, passphrase)
		if err == nil && b.key != nil && b.key.Public() == nil {
			t.Error("a key without its public half")
		}
	})
}

func FuzzDecryptPKCS8(f *testing.F) {
	key := writeTemp(f, "key.pem", []byte(openssl(f, "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256")))
	text := openssl(f, "pkcs8", "-topk8", "-in", key, "-passout", "pass:secret")
	block, _ := pem.Decode([]byte(text))
	f.Add(block.Bytes, "secret")
	f.Fuzz(func(t *testing.T, der []byte, passphrase string) {
		if plain, err := decryptPKCS8(der, passphrase); err == nil && len(plain) >= len(der) {
			t.Errorf("%d bytes out of %d", len(plain), len(der))
		}
	})
}
