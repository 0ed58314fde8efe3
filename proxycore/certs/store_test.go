package certs

import (
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestLeaf(t *testing.T) {
	dir := t.TempDir()
	ca, err := LoadOrCreate(Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	s := testStore(t, StoreConfig{CA: ca})
	for keyType, usage := range map[KeyType]string{KeyECDSA: "Digital Signature\n", KeyRSA: "Digital Signature, Key Encipherment\n"} {
		cert := get(t, s, Request{
			Names: []string{"www.example.com", "*.example.com", "192.0.2.7", "2001:db8::1"}, KeyType: keyType,
			Organization: "Example & Söhne", CRL: "http://crl.example.net/ca.crl?x=y",
		})
		for _, name := range []string{"www.example.com", "other.example.com", "192.0.2.7", "2001:db8::1"} {
			verify(t, ca, cert, name)
		}
		path := writeTemp(t, "leaf.pem", pemOf(cert))
		openssl(t, "verify", "-x509_strict", "-purpose", "sslserver", "-verify_hostname", "www.example.com",
			"-CAfile", filepath.Join(dir, FileCertPEM), path)
		text := openssl(t, "x509", "-in", path, "-noout", "-text", "-nameopt", "utf8")
		for _, want := range []string{
			usage, "TLS Web Server Authentication\n", "CN=www.example.com", "O=Example & Söhne",
			"DNS:www.example.com, DNS:*.example.com, IP Address:192.0.2.7, IP Address:2001:DB8:0:0:0:0:0:1",
			"URI:http://crl.example.net/mitmproxy-" + ca.Certificate.SerialNumber.String() + ".crl",
			"X509v3 Subject Key Identifier", "X509v3 Authority Key Identifier",
		} {
			if !strings.Contains(text, want) {
				t.Errorf("leaf text lacks %q:\n%s", want, text)
			}
		}
		leaf := cert.Leaf
		if leaf.IsCA || string(leaf.AuthorityKeyId) != string(ca.Certificate.SubjectKeyId) || string(leaf.SubjectKeyId) == string(ca.Certificate.SubjectKeyId) {
			t.Errorf("is ca %v, authority key %x, subject key %x", leaf.IsCA, leaf.AuthorityKeyId, leaf.SubjectKeyId)
		}
		if life := leaf.NotAfter.Sub(leaf.NotBefore); life >= 200*day || time.Since(leaf.NotBefore) < backdate-time.Minute {
			t.Errorf("valid for %v from %v", life, leaf.NotBefore)
		}
		if len(cert.Certificate) != 1 {
			t.Errorf("chain has %d certificates, want the leaf alone", len(cert.Certificate))
		}
	}
}

func pemOf(cert *tls.Certificate) []byte { return (&CA{Certificate: cert.Leaf}).PEM() }

func TestHandshakes(t *testing.T) {
	ca := testCA(t)
	s := testStore(t, StoreConfig{CA: ca})
	roots := x509.NewCertPool()
	roots.AddCert(ca.Certificate)
	tests := []struct {
		name    string
		keyType KeyType
		client  *tls.Config
	}{
		{"modern", KeyDefault, &tls.Config{}},
		{"modern with rsa", KeyRSA, &tls.Config{}},
		{"1.2 ecdsa only", KeyECDSA, &tls.Config{MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256}}},
		{"1.2 rsa only", KeyRSA, &tls.Config{MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256}}},
	}
	for _, test := range tests {
		client := test.client.Clone()
		client.RootCAs, client.ServerName = roots, "a.example"
		cert := get(t, s, Request{Names: []string{"a.example"}, KeyType: test.keyType})
		state, err := handshake(t, cert, client)
		if err != nil {
			t.Errorf("%s: %v", test.name, err)
			continue
		}
		_, isRSA := state.PeerCertificates[0].PublicKey.(*rsa.PublicKey)
		if isRSA != (test.keyType == KeyRSA) {
			t.Errorf("%s: key is %T", test.name, state.PeerCertificates[0].PublicKey)
		}
	}
}

func TestSubjectAndNames(t *testing.T) {
	long := strings.Repeat("a", 60) + ".example"
	tests := []struct {
		name  string
		names []string
		cn    string
		dns   string
		ips   string
	}{
		{"usual", []string{"A.Example.", "a.example"}, "a.example", "[a.example]", "[]"},
		{"address", []string{"[2001:db8::1]", "::ffff:192.0.2.1"}, "2001:db8::1", "[]", "[2001:db8::1 192.0.2.1]"},
		{"too long for a cn", []string{long, "b.example"}, "", "[" + long + " b.example]", "[]"},
		{"63 letters", []string{strings.Repeat("b", 63)}, strings.Repeat("b", 63), "[" + strings.Repeat("b", 63) + "]", "[]"},
		{"bad ones dropped", []string{"Acme Corp", "", "*", "f*.example", "*.*.example", "a\x00b.example", "a..b", "-ok-.example", "bücher.example", "a.example\r\n"}, "-ok-.example", "[-ok-.example]", "[]"},
	}
	s := testStore(t, StoreConfig{})
	for _, test := range tests {
		leaf := get(t, s, Request{Names: test.names}).Leaf
		if leaf.Subject.CommonName != test.cn || fmt.Sprint(leaf.DNSNames) != test.dns || fmt.Sprint(leaf.IPAddresses) != test.ips {
			t.Errorf("%s: CN %q, DNS %v, IP %v", test.name, leaf.Subject.CommonName, leaf.DNSNames, leaf.IPAddresses)
		}
		for _, e := range leaf.Extensions {
			if e.Id.String() == "2.5.29.17" && e.Critical != (test.cn == "") {
				t.Errorf("%s: SAN critical is %v", test.name, e.Critical)
			}
		}
	}
	if _, err := s.Get(Request{Names: []string{"", "*"}}); !errors.Is(err, ErrNoNames) {
		t.Errorf("no valid name: %v, want ErrNoNames", err)
	}
}

func TestHostileUpstreamFacts(t *testing.T) {
	s := testStore(t, StoreConfig{})
	names := make([]string, 3000)
	for i := range names {
		names[i] = fmt.Sprintf("%d.%s.example", i, strings.Repeat("x", i%60+1))
	}
	upstream := &x509.Certificate{DNSNames: names}
	upstream.Subject.CommonName = "Some \x00 Company"
	upstream.Subject.Organization = []string{strings.Repeat("o", 65)}
	for _, crl := range []string{"ldap://x/y", "http://", "http://a b/", "http://h\x00/", "file:///etc/passwd", strings.Repeat("http://a/", 100)} {
		upstream.CRLDistributionPoints = []string{crl}
		leaf := get(t, s, RequestFor(upstream, "asked.example", netip.Addr{}, "host.example")).Leaf
		if len(leaf.DNSNames) > maxNames || leaf.VerifyHostname("asked.example") != nil || leaf.VerifyHostname("host.example") != nil {
			t.Errorf("%d names; asked for: %v", len(leaf.DNSNames), leaf.VerifyHostname("asked.example"))
		}
		if len(leaf.Subject.Organization) > 0 || len(leaf.CRLDistributionPoints) > 0 {
			t.Errorf("crl %q: organization %q, crl %q", crl, leaf.Subject.Organization, leaf.CRLDistributionPoints)
		}
		if len(leaf.Raw) > 64<<10 {
			t.Errorf("leaf has %d bytes", len(leaf.Raw))
		}
	}
}

func TestRequestFor(t *testing.T) {
	upstream := &x509.Certificate{DNSNames: []string{"*.example.com", "example.com"}, CRLDistributionPoints: []string{"http://c/"}}
	upstream.Subject.CommonName = "www.example.com"
	upstream.Subject.Organization = []string{"Example"}
	local := netip.MustParseAddr("192.0.2.9")
	tests := []struct {
		name     string
		upstream *x509.Certificate
		sni      string
		local    netip.Addr
		host     string
		want     string
	}{
		{"all", upstream, "api.example.com", local, "host.example", "www.example.com *.example.com example.com api.example.com host.example"},
		{"no sni", nil, "", local, "host.example", "192.0.2.9 host.example"},
		{"sni only", nil, "api.example.com", local, "", "api.example.com"},
		{"host is the address", nil, "", local, "192.0.2.9", "192.0.2.9"},
	}
	for _, test := range tests {
		r := RequestFor(test.upstream, test.sni, test.local, test.host)
		if got := strings.Join(canonicalNames(r.Names, maxNames, maxNameBytes), " "); got != test.want {
			t.Errorf("%s: names %q, want %q", test.name, got, test.want)
		}
		if test.upstream != nil && (r.Organization != "Example" || r.CRL != "http://c/") {
			t.Errorf("%s: organization %q, crl %q", test.name, r.Organization, r.CRL)
		}
	}
}

func TestCacheHitsAndKeys(t *testing.T) {
	s := testStore(t, StoreConfig{})
	base := Request{Names: []string{"a.example", "b.example"}}
	first := get(t, s, base)
	if get(t, s, Request{Names: []string{"A.example.", "b.example"}, KeyType: KeyECDSA}) != first {
		t.Error("the same request was minted again")
	}
	for _, other := range []Request{
		{Names: []string{"b.example", "a.example"}},
		{Names: base.Names, KeyType: KeyRSA},
		{Names: base.Names, Organization: "O"},
		{Names: base.Names, CRL: "http://c.example/"},
	} {
		if get(t, s, other) == first {
			t.Errorf("%+v got the leaf of %+v", other, base)
		}
	}
	if s.Len() != 5 {
		t.Errorf("%d entries, want 5", s.Len())
	}
}

func TestCacheIsBoundedAndKeepsTheRecent(t *testing.T) {
	s := testStore(t, StoreConfig{MaxEntries: 3})
	name := func(i int) Request { return Request{Names: []string{fmt.Sprintf("n%d.example", i)}} }
	kept := get(t, s, name(0))
	for i := 1; i < 10; i++ {
		get(t, s, name(i))
		if get(t, s, name(0)) != kept {
			t.Fatal("the most used leaf was evicted")
		}
		if s.Len() > 3 {
			t.Fatalf("%d entries, want at most 3", s.Len())
		}
	}
}

func TestCacheRefreshes(t *testing.T) {
	var clock sync.Mutex
	now := time.Now()
	s := testStore(t, StoreConfig{Now: func() time.Time { clock.Lock(); defer clock.Unlock(); return now }})
	first := get(t, s, Request{Names: []string{"a.example"}})
	now = now.Add(refreshAfter - time.Minute)
	if get(t, s, Request{Names: []string{"a.example"}}) != first {
		t.Error("a fresh leaf was replaced")
	}
	now = now.Add(2 * time.Minute)
	if get(t, s, Request{Names: []string{"a.example"}}) == first {
		t.Error("a stale leaf was served")
	}
	now = s.cfg.CA.Certificate.NotAfter.Add(-time.Hour)
	last := get(t, s, Request{Names: []string{"a.example"}})
	if !last.Leaf.NotAfter.Equal(s.cfg.CA.Certificate.NotAfter) {
		t.Errorf("leaf ends %v, its ca %v", last.Leaf.NotAfter, s.cfg.CA.Certificate.NotAfter)
	}
}

func TestParallelRequestsMintOnce(t *testing.T) {
	s := testStore(t, StoreConfig{})
	got := make([]*tls.Certificate, 100)
	var group sync.WaitGroup
	for i := range got {
		group.Go(func() { got[i], _ = s.Get(Request{Names: []string{"a.example"}, KeyType: KeyRSA}) })
	}
	group.Wait()
	for _, cert := range got {
		if cert == nil || cert != got[0] {
			t.Fatal("parallel requests for one name got different leaves")
		}
	}
}

func TestFailedMintIsNotKept(t *testing.T) {
	ca := testCA(t)
	s := testStore(t, StoreConfig{CA: ca})
	good := ca.key
	other, err := newKey(true, 0)
	if err != nil {
		t.Fatal(err)
	}
	ca.key = other // does not belong to the certificate: signing fails its own check
	if _, err := s.Get(Request{Names: []string{"a.example"}}); err == nil || s.Len() != 0 {
		t.Errorf("error %v, %d entries", err, s.Len())
	}
	ca.key = good
	verify(t, ca, get(t, s, Request{Names: []string{"a.example"}}), "a.example")
}

func TestSerialsAndKeys(t *testing.T) {
	ca := testCA(t)
	s := testStore(t, StoreConfig{CA: ca})
	seen := make(map[string]bool)
	for i := range 50 {
		cert := get(t, s, Request{Names: []string{fmt.Sprintf("n%d.example", i)}})
		seen[cert.Leaf.SerialNumber.String()] = true
		if cert.PrivateKey.(*ecdsa.PrivateKey) != s.ecdsaKey.(*ecdsa.PrivateKey) {
			t.Fatal("leaf has a key of its own")
		}
		if publicKeysEqual(cert.Leaf.PublicKey, ca.Certificate.PublicKey) {
			t.Fatal("leaf has the key of the ca")
		}
	}
	if len(seen) != 50 {
		t.Errorf("%d different serial numbers of 50", len(seen))
	}
}

func TestWithChain(t *testing.T) {
	ca := testCA(t)
	cert := get(t, testStore(t, StoreConfig{CA: ca}), Request{Names: []string{"a.example"}})
	longer := WithChain(cert, []*x509.Certificate{ca.Certificate, ca.Certificate})
	if len(longer.Certificate) != 3 || len(cert.Certificate) != 1 || longer.Leaf != cert.Leaf {
		t.Errorf("%d and %d certificates", len(longer.Certificate), len(cert.Certificate))
	}
}

func TestCRL(t *testing.T) {
	ca := testCA(t)
	now := time.Now()
	crl, err := ca.CRL(now)
	if err != nil {
		t.Fatal(err)
	}
	list, err := x509.ParseRevocationList(crl)
	if err != nil || list.CheckSignatureFrom(ca.Certificate) != nil || len(list.RevokedCertificateEntries) != 0 {
		t.Fatalf("crl: %v, %d entries", err, len(list.RevokedCertificateEntries))
	}
	if !list.NextUpdate.After(now) || !list.ThisUpdate.Before(now) {
		t.Errorf("valid from %v to %v", list.ThisUpdate, list.NextUpdate)
	}
	if again, _ := ca.CRL(now.Add(time.Hour)); string(again) != string(crl) {
		t.Error("a fresh crl was made again")
	}
	later, err := ca.CRL(now.Add(6 * day))
	if err != nil {
		t.Fatal(err)
	}
	next, err := x509.ParseRevocationList(later)
	if err != nil || next.Number.Cmp(list.Number) <= 0 || !next.NextUpdate.After(now.Add(6*day)) {
		t.Errorf("six days later: %v, number %v after %v", err, next.Number, list.Number)
	}
	text := openssl(t, "crl", "-inform", "DER", "-in", writeTemp(t, "x.crl", crl), "-noout", "-text")
	if !strings.Contains(text, "No Revoked Certificates") {
		t.Errorf("openssl says %s", text)
	}
}

func TestLeafKeyIDWithoutCAKeyID(t *testing.T) {
	ca := testCA(t)
	bare := *ca.Certificate
	bare.SubjectKeyId = nil
	id, err := (&CA{Certificate: &bare}).keyID()
	if err != nil || hex.EncodeToString(id) != hex.EncodeToString(ca.Certificate.SubjectKeyId) {
		t.Errorf("keyID = %x, %v; want %x", id, err, ca.Certificate.SubjectKeyId)
	}
}

func FuzzCanonicalName(f *testing.F) {
	for _, seed := range []string{"a.example", "*.example", "[::1]", "a\x00", "fe80::1%eth0", strings.Repeat("a.", 200)} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, name string) {
		canonical, ok := canonicalName(name)
		if !ok {
			return
		}
		if again, ok := canonicalName(canonical); !ok || again != canonical {
			t.Errorf("%q became %q, then %q, %v", name, canonical, again, ok)
		}
		for _, c := range []byte(canonical) {
			if c <= ' ' || c > '~' {
				t.Errorf("%q holds byte %#x", canonical, c)
			}
		}
		if len(lookupForms(canonical)) > 128 {
			t.Errorf("%q has too many wildcard forms", canonical)
		}
	})
}

func BenchmarkMint(b *testing.B) {
	for _, kind := range []struct {
		name string
		ca   KeyType
		leaf KeyType
	}{{"rsa-ca/ecdsa-leaf", KeyRSA, KeyECDSA}, {"rsa-ca/rsa-leaf", KeyRSA, KeyRSA}, {"ecdsa-ca/ecdsa-leaf", KeyECDSA, KeyECDSA}} {
		b.Run(kind.name, func(b *testing.B) {
			ca, err := LoadOrCreate(Config{Dir: b.TempDir(), KeyType: kind.ca})
			if err != nil {
				b.Fatal(err)
			}
			key, err := newKey(kind.leaf == KeyECDSA, 2048)
			if err != nil {
				b.Fatal(err)
			}
			for b.Loop() {
				if _, err := ca.mint([]string{"a.example"}, Request{KeyType: kind.leaf}, key, time.Now()); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkGetCached(b *testing.B) {
	s := testStore(b, StoreConfig{})
	r := Request{Names: []string{"www.example.com", "*.example.com", "example.com"}}
	for b.Loop() {
		if _, err := s.Get(r); err != nil {
			b.Fatal(err)
		}
	}
}
