package tlsmitm_test

import (
	"crypto/tls"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"mitm-appliance/option"
	"mitm-appliance/proxycore/certs"
	"mitm-appliance/proxycore/tlsmitm"
)

func TestOptionErrors(t *testing.T) {
	dir := t.TempDir()
	empty := filepath.Join(dir, "empty.pem")
	check(t, os.WriteFile(empty, nil, 0o600))
	for _, tt := range []struct{ set, want string }{
		{"ciphers_client=ECDHE-RSA-AES128-GCM-SHA256:NOPE", `no cipher suite is called "NOPE"`},
		{"ciphers_client=TLS_AES_128_GCM_SHA256", "belongs to TLS 1.3"},
		{"ciphers_server=DHE-RSA-AES128-GCM-SHA256", "is available (DHE"},
		{"ciphers_server=AES128-SHA:!AES128-SHA", "is available"},
		{"tls_ecdh_curve_client=secp192", "valid are: X25519, prime256v1"},
		{"tls_version_server_max=SSL3", "SSL 3.0 is not spoken"},
		{"tls_version_client_min=TLS9", "must be one of"},
		{"tls_version_client_max=TLS1_1", "tls_version_client_max (TLS1_1) is below tls_version_client_min (TLS1_2)"},
		{"client_certs=" + filepath.Join(dir, "missing.pem"), "no such file"},
		{"client_certs=" + empty, "is not in PEM format"},
		{"ssl_verify_upstream_trusted_ca=" + empty, "holds no PEM certificate"},
		{"ssl_verify_upstream_trusted_confdir=" + dir, "holds a PEM certificate"},
		{"key_size=1024", "2048"},
	} {
		r := option.New()
		o := tlsmitm.DeclareOptions(r)
		err := r.SetText(tt.set)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", tt.set, err, tt.want)
		}
		if _, err := tlsmitm.New(tlsmitm.Config{Options: o, Store: func() *certs.Store { return nil }}); err != nil {
			t.Errorf("%s: the rejected change stayed: %v", tt.set, err)
		}
	}
}

func TestOptionsAccepted(t *testing.T) {
	const defaults = "ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256:DHE-RSA-AES128-GCM-SHA256:DHE-RSA-CHACHA20-POLY1305:" +
		"ECDHE-RSA-AES256-SHA384:AES256-SHA256:AES128-SHA:DES-CBC3-SHA:@SECLEVEL=0"
	for _, set := range []string{
		"ciphers_client=" + defaults, "ciphers_server=DEFAULT:!AES128-SHA", "ciphers_server=TLS_RSA_WITH_AES_128_CBC_SHA",
		"ciphers_client=HIGH:!aNULL:!MD5", "tls_ecdh_curve_client=prime256v1", "tls_ecdh_curve_server=x25519",
		"tls_version_client_min=UNBOUNDED", "tls_version_client_min=SSL3", "tls_version_client_max=TLS1_3",
	} {
		r := option.New()
		tlsmitm.DeclareOptions(r)
		if err := r.SetText(set); err != nil {
			t.Errorf("%s: %v", set, err)
		}
	}
}

func TestOptionsReachTheHandshakes(t *testing.T) {
	l := newLab(t, labConfig{options: []string{
		"tls_version_client_max=TLS1_2", "tls_version_server_max=TLS1_2", "ciphers_client=ECDHE-ECDSA-CHACHA20-POLY1305",
		"ciphers_server=ECDHE-ECDSA-AES256-GCM-SHA384", "tls_ecdh_curve_client=P-384", "tls_ecdh_curve_server=P-521",
	}})
	cfg := l.serverConfig("example.test")
	offered := make(chan tls.ClientHelloInfo, 1)
	cfg.GetConfigForClient = func(h *tls.ClientHelloInfo) (*tls.Config, error) {
		offered <- *h
		return nil, nil
	}
	c, err := l.connect(l.echo(cfg), l.clientConfig("example.test"))
	check(t, err)
	_, _ = c.Write([]byte("GET / HTTP/1.1\r\n\r\n"))
	s := l.session(0)
	if s.client.TLS.Cipher != "ECDHE-ECDSA-CHACHA20-POLY1305" || s.client.TLS.Version != "TLSv1.2" ||
		s.server.TLS.Cipher != "ECDHE-ECDSA-AES256-GCM-SHA384" || s.server.TLS.Version != "TLSv1.2" {
		t.Errorf("client %+v, server %+v", s.client.TLS, s.server.TLS)
	}
	if h := <-offered; len(h.SupportedCurves) != 1 || h.SupportedCurves[0] != tls.CurveP521 {
		t.Errorf("the server was offered curves %v", h.SupportedCurves)
	}
	if state := c.ConnectionState(); state.CurveID != tls.CurveP384 {
		t.Errorf("with the client %v was agreed on", state.CurveID)
	}
}

func TestTrustedDirectory(t *testing.T) {
	other := newAuthority(t, "Company CA")
	dir := t.TempDir()
	check(t, os.WriteFile(filepath.Join(dir, "5a4f1f1f.0"), other.pem(), 0o600))
	check(t, os.WriteFile(filepath.Join(dir, "README"), []byte("not PEM"), 0o600))
	l := newLab(t, labConfig{options: []string{"ssl_verify_upstream_trusted_confdir=" + dir}})
	for _, a := range []*authority{other, l.inet} { // the directory adds to the file, and both to the platform's
		c, err := l.connect(l.echo(&tls.Config{Certificates: []tls.Certificate{a.issue(t, nil, "example.test")}}), l.clientConfig("example.test"))
		check(t, err)
		c.Close()
	}
	l.settle()
	if errs := l.hooks.failures(); len(errs) != 0 {
		t.Error(errs)
	}
}

func TestCipherNames(t *testing.T) {
	for id, want := range map[uint16]string{
		0x1301: "TLS_AES_128_GCM_SHA256", 0xc02f: "ECDHE-RSA-AES128-GCM-SHA256", 0x009e: "DHE-RSA-AES128-GCM-SHA256",
		0x000a: "DES-CBC3-SHA", 0x0a0a: "0x0a0a",
	} {
		if got := tlsmitm.CipherName(id); got != want {
			t.Errorf("%04x is %q, want %q", id, got, want)
		}
	}
	for _, list := range [][]*tls.CipherSuite{tls.CipherSuites(), tls.InsecureCipherSuites()} {
		for _, s := range list {
			if strings.HasPrefix(tlsmitm.CipherName(s.ID), "0x") {
				t.Errorf("%s has no OpenSSL name", s.Name)
			}
		}
	}
}

func TestAuthorityFollowsOptions(t *testing.T) {
	r := option.New()
	confdir := r.String("confdir", t.TempDir(), "Directory.")
	o := tlsmitm.DeclareOptions(r)
	a, err := tlsmitm.OpenAuthority(tlsmitm.AuthorityConfig{Registry: r, Options: o, ConfDir: confdir})
	check(t, err)
	first := a.CA()
	custom := filepath.Join(t.TempDir(), "custom.pem")
	cert := newAuthority(t, "Custom CA").issue(t, nil, "custom.test")
	writePair(t, custom, cert)
	check(t, r.SetText("certs=custom.test="+custom))
	got, err := a.Store().Get(certs.Request{Names: []string{"custom.test"}})
	check(t, err)
	if string(got.Certificate[0]) != string(cert.Certificate[0]) {
		t.Error("the custom certificate is not used")
	}
	if a.CA().Fingerprint() != first.Fingerprint() {
		t.Error("the CA changed with certs")
	}
	if err := r.SetText("certs=" + custom + ".missing"); err == nil || !strings.Contains(err.Error(), "does not exist") {
		t.Errorf("missing file: %v", err)
	}
	if got, err := a.Store().Get(certs.Request{Names: []string{"custom.test"}}); err != nil || string(got.Certificate[0]) != string(cert.Certificate[0]) {
		t.Error("a rejected change took the old certificates away")
	}
	check(t, r.SetText("confdir="+t.TempDir()))
	if a.CA().Fingerprint() == first.Fingerprint() {
		t.Error("the CA did not change with confdir")
	}
}

func FuzzCiphers(f *testing.F) {
	f.Add("ECDHE-RSA-AES128-GCM-SHA256:!aNULL:@SECLEVEL=0,+AES128-SHA")
	f.Add("!")
	f.Add("-:-")
	f.Fuzz(func(t *testing.T, list string) {
		r := option.New()
		o := tlsmitm.DeclareOptions(r)
		if r.Set(map[string]any{"ciphers_client": &list}) != nil {
			return
		}
		if _, err := tlsmitm.New(tlsmitm.Config{Options: o, Store: func() *certs.Store { return nil }}); err != nil {
			t.Errorf("%q was accepted, but %v", list, err)
		}
	})
}
