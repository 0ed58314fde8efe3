package certs

import (
	"bytes"
	"encoding/pem"
	"path/filepath"
	"strings"
	"testing"
)

// keyText returns a store's ECDSA leaf key as PEM.
func keyText(t *testing.T, s *Store) []byte {
	t.Helper()
	block, err := keyBlock(s.ecdsaKey)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(block)
}

func TestCustomLookup(t *testing.T) {
	other := testStore(t, StoreConfig{})
	file := func(names ...string) string {
		return writeTemp(t, "cert.pem", pemOf(get(t, other, Request{Names: names})), keyText(t, other), other.cfg.CA.PEM())
	}
	s := testStore(t, StoreConfig{})
	for _, spec := range []string{
		"*.wild.example=" + file("one.example", "*.two.example", "192.0.2.1"),
		"Exact.Wild.Example=" + file("exact.example"),
	} {
		if err := s.AddCustom(spec, ""); err != nil {
			t.Fatal(err)
		}
	}
	tests := []struct {
		names []string
		want  string // CN of the certificate that is served
	}{
		{[]string{"one.example"}, "one.example"},
		{[]string{"ONE.example."}, "one.example"},
		{[]string{"sub.one.example"}, "sub.one.example"},
		{[]string{"x.two.example"}, "one.example"},
		{[]string{"y.x.two.example"}, "one.example"},
		{[]string{"192.0.2.1"}, "one.example"},
		{[]string{"192.0.2.2"}, "192.0.2.2"},
		{[]string{"deep.sub.wild.example"}, "one.example"},
		{[]string{"exact.wild.example"}, "exact.example"},
		{[]string{"other.example", "a.wild.example"}, "one.example"},
		{[]string{"other.example"}, "other.example"},
	}
	for _, test := range tests {
		if got := get(t, s, Request{Names: test.names}).Leaf.Subject.CommonName; got != test.want {
			t.Errorf("%v got %q, want %q", test.names, got, test.want)
		}
	}
	if err := s.AddCustom(file("all.example"), ""); err != nil {
		t.Fatal(err)
	}
	for _, names := range [][]string{{"other.example"}, nil} {
		cert := get(t, s, Request{Names: names})
		if cert.Leaf.Subject.CommonName != "all.example" || len(cert.Certificate) != 2 {
			t.Errorf("%v got %q with %d certificates", names, cert.Leaf.Subject.CommonName, len(cert.Certificate))
		}
	}
}

func TestCustomWithTheCAsKey(t *testing.T) {
	ca := testCA(t)
	s := testStore(t, StoreConfig{CA: ca})
	cert, err := ca.mint([]string{"shared.example"}, Request{}, ca.key, s.cfg.Now())
	if err != nil {
		t.Fatal(err)
	}
	if err := s.AddCustom(writeTemp(t, "cert.pem", pemOf(cert)), ""); err != nil {
		t.Fatal(err)
	}
	if got := get(t, s, Request{Names: []string{"x.example"}}); got.PrivateKey != ca.key {
		t.Error("the key of the ca is not used")
	}
}

func TestCustomErrors(t *testing.T) {
	var log bytes.Buffer
	s := testStore(t, StoreConfig{Logger: logTo(&log)})
	cert := pemOf(get(t, s, Request{Names: []string{"a.example"}}))
	broken := []byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
	caKey, err := keyBlock(s.cfg.CA.key)
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name, spec string
		want, log  string
	}{
		{"missing", filepath.Join(t.TempDir(), "none.pem"), "certificate file does not exist", ""},
		{"directory", t.TempDir(), "read certificate file", ""},
		{"garbage", writeTemp(t, "x", []byte("garbage")), "invalid certificate format", ""},
		{"broken", writeTemp(t, "x", broken), "invalid certificate format", ""},
		{"no key", writeTemp(t, "x", cert), "unable to find private key", ""},
		{"wrong key", writeTemp(t, "x", cert, keyText(t, testStore(t, StoreConfig{}))), "do not match", ""},
		{"bad domain", "a b=" + writeTemp(t, "x", cert, keyText(t, s)), "no host name", ""},
		{"broken chain", writeTemp(t, "x", cert, keyText(t, s), broken), "", "only the leaf is sent"},
		{"ca certificate", writeTemp(t, "x", s.cfg.CA.PEM(), pem.EncodeToMemory(caKey)), "", "put it into the confdir"},
	}
	for _, test := range tests {
		log.Reset()
		err := s.AddCustom(test.spec, "")
		if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: error %v, want %q", test.name, err, test.want)
		}
		if !strings.Contains(log.String(), test.log) {
			t.Errorf("%s: log %q, want %q", test.name, log.String(), test.log)
		}
	}
}
