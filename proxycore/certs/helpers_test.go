package certs

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// openssl runs the tool and returns what it printed.
func openssl(t testing.TB, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "openssl", args...)
	var errText bytes.Buffer
	cmd.Stderr = &errText
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("openssl %s: %v\n%s%s", strings.Join(args, " "), err, out, errText.String())
	}
	return string(out)
}

// testCA creates a CA with an ECDSA key, which is quick to make, in a new directory.
func testCA(t testing.TB) *CA {
	t.Helper()
	ca, err := LoadOrCreate(Config{Dir: t.TempDir(), KeyType: KeyECDSA})
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func testStore(t testing.TB, cfg StoreConfig) *Store {
	t.Helper()
	if cfg.CA == nil {
		cfg.CA = testCA(t)
	}
	s, err := NewStore(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// get is Get that must succeed.
func get(t testing.TB, s *Store, r Request) *tls.Certificate {
	t.Helper()
	cert, err := s.Get(r)
	if err != nil {
		t.Fatalf("Get(%v): %v", r.Names, err)
	}
	return cert
}

// verify fails the test unless a client that trusts the CA accepts the certificate for the name.
func verify(t testing.TB, ca *CA, cert *tls.Certificate, name string) {
	t.Helper()
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(ca.Certificate)
	for _, der := range cert.Certificate[1:] {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		between.AddCert(c)
	}
	if _, err := cert.Leaf.Verify(x509.VerifyOptions{DNSName: name, Roots: roots, Intermediates: between}); err != nil {
		t.Errorf("verify %q: %v", name, err)
	}
}

// handshake connects a client to a server with the certificate and returns the client's view.
func handshake(t testing.TB, cert *tls.Certificate, client *tls.Config) (tls.ConnectionState, error) {
	t.Helper()
	a, b := net.Pipe()
	defer a.Close()
	served := make(chan struct{})
	go func() {
		defer close(served)
		defer b.Close()
		_ = tls.Server(b, &tls.Config{Certificates: []tls.Certificate{*cert}, MinVersion: tls.VersionTLS10}).HandshakeContext(t.Context()) // the client reports
	}()
	c := tls.Client(a, client)
	err := c.HandshakeContext(t.Context())
	state := c.ConnectionState()
	a.Close()
	<-served
	return state, err
}

// logTo returns a logger that writes text into the buffer.
func logTo(b *bytes.Buffer) *slog.Logger { return slog.New(slog.NewTextHandler(b, nil)) }

func writeTemp(t testing.TB, name string, parts ...[]byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, bytes.Join(parts, nil), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func readFile(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func at(moment time.Time) func() time.Time { return func() time.Time { return moment } }
