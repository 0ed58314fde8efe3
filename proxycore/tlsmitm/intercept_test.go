package tlsmitm_test

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"mitm-appliance/proxycore"
)

// helloFunc is an addon.
type helloFunc func(*proxycore.ClientHelloData)

func (f helloFunc) TLSClientHello(_ context.Context, d *proxycore.ClientHelloData) error {
	f(d)
	return nil
}

func TestIgnoredConnectionPassesUntouched(t *testing.T) {
	for _, strategy := range []string{"eager", "lazy"} {
		t.Run(strategy, func(t *testing.T) {
			var hello []byte
			ignore := helloFunc(func(d *proxycore.ClientHelloData) {
				hello = bytes.Clone(d.Session.Conn.Peeked()[0])
				d.Ignore = true
			})
			l := newLab(t, labConfig{options: []string{"connection_strategy=" + strategy}, addons: []any{ignore}})
			cfg := l.serverConfig("example.test")
			cfg.NextProtos = []string{"h2"}
			received := make(chan []byte, 1)
			target := l.server(func(c net.Conn) {
				tap := &tap{Conn: c}
				t := tls.Server(tap, cfg)
				_ = t.Handshake()
				received <- tap.read.Bytes()
				_, _ = io.Copy(t, t)
			})
			mine := &tls.Config{ServerName: "example.test", RootCAs: x509.NewCertPool(), NextProtos: []string{"h2"}}
			mine.RootCAs.AddCert(l.inet.cert) // the server's own CA, not ours
			c, err := l.connect(target, mine)
			check(t, err)
			if got := c.ConnectionState(); !bytes.Equal(got.PeerCertificates[0].Raw, cfg.Certificates[0].Certificate[0]) || got.NegotiatedProtocol != "h2" {
				t.Errorf("client sees %v, %q", got.PeerCertificates[0].Subject, got.NegotiatedProtocol)
			}
			if got := <-received; !bytes.HasPrefix(got, hello) {
				t.Error("the server received another ClientHello than the client sent")
			}
			c.Close()
			l.settle()
			if got := l.hooks.String(); strings.Contains(got, "tls_start") {
				t.Errorf("hooks %s", got)
			}
			if len(l.sessions) != 0 {
				t.Error("a protocol was served inside")
			}
		})
	}
}

// tap keeps what was read.
type tap struct {
	net.Conn
	read bytes.Buffer
}

func (t *tap) Read(b []byte) (int, error) {
	n, err := t.Conn.Read(b)
	t.read.Write(b[:n])
	return n, err
}

func TestAddonAsksForServerFirst(t *testing.T) {
	for _, first := range []bool{true, false} {
		l := newLab(t, labConfig{
			addons:  []any{helloFunc(func(d *proxycore.ClientHelloData) { d.ServerFirst = first })},
			options: []string{"connection_strategy=lazy"},
		})
		c, err := l.connect(l.echo(l.serverConfig("example.test")), l.clientConfig("example.test"))
		check(t, err)
		c.Close()
		l.settle()
		if got := strings.Contains(l.hooks.String(), "tls_established_server tls_start_client"); got != first {
			t.Errorf("ServerFirst %v: hooks %s", first, l.hooks)
		}
	}
}

// editor changes what handshakes use.
type editor struct{ client, server func(*proxycore.TLSData) }

func (e editor) TLSStartClient(_ context.Context, d *proxycore.TLSData) error {
	if e.client != nil {
		e.client(d)
	}
	return nil
}

func (e editor) TLSStartServer(_ context.Context, d *proxycore.TLSData) error {
	if e.server != nil {
		e.server(d)
	}
	return nil
}

func TestAddonEditsTheHandshakes(t *testing.T) {
	l := newLab(t, labConfig{addons: []any{editor{
		client: func(d *proxycore.TLSData) { d.Config.MaxVersion = tls.VersionTLS12 },
		server: func(d *proxycore.TLSData) { d.Config.ServerName = "edited.test" },
	}}})
	c, err := l.connect(l.echo(l.serverConfig("edited.test")), l.clientConfig("example.test"))
	check(t, err)
	_, err = io.WriteString(c, "GET / HTTP/1.1\r\n\r\n")
	check(t, err)
	if got := line(t, c); got != "hello edited.test " {
		t.Errorf("server said %q", got)
	}
	if s := l.session(0); s.server.TLS.SNI != "edited.test" || s.client.TLS.Version != "TLSv1.2" {
		t.Errorf("client %+v, server %+v", s.client.TLS, s.server.TLS)
	}
}

func TestAddonTakesTheConfig(t *testing.T) {
	l := newLab(t, labConfig{addons: []any{editor{client: func(d *proxycore.TLSData) { d.Config = nil }}}})
	if _, err := l.connect(l.echo(l.serverConfig("example.test")), l.clientConfig("example.test")); err == nil {
		t.Error("the handshake succeeded")
	}
	l.settle()
	if got := l.hooks.String(); !strings.HasSuffix(got, "tls_start_client tls_failed_client") {
		t.Errorf("hooks %s", got)
	}
}

func TestLeafWithoutSNI(t *testing.T) {
	l := newLab(t, labConfig{options: []string{"upstream_cert=false"}})
	mine := l.clientConfig("192.0.2.7") // the address that the client meant to reach; crypto/tls sends no SNI for it
	c, err := l.connect(l.echo(l.serverConfig("127.0.0.1")), mine)
	check(t, err)
	c.Close()
	if strings.Contains(l.hooks.String(), "tls_start_server") {
		t.Error("with upstream_cert off the server was asked all the same")
	}
}

func TestRSAOnlyClient(t *testing.T) {
	l := newLab(t, labConfig{})
	target := l.echo(l.serverConfig("example.test"))
	for name, suites := range map[string][]uint16{
		"RSA":         {tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256},
		"RSA kex":     {tls.TLS_RSA_WITH_AES_128_GCM_SHA256},
		"3DES":        {tls.TLS_RSA_WITH_3DES_EDE_CBC_SHA},
		"ECDSA (not)": {tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256},
	} {
		mine := l.clientConfig("example.test")
		mine.MaxVersion, mine.CipherSuites = tls.VersionTLS12, suites
		c, err := l.connect(target, mine)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		leaf := c.ConnectionState().PeerCertificates[0]
		if want := !strings.Contains(name, "not"); (leaf.PublicKeyAlgorithm == x509.RSA) != want {
			t.Errorf("%s: certificate has a key of kind %s", name, leaf.PublicKeyAlgorithm)
		}
		c.Close()
	}
}

func TestCiphersWithoutECDSA(t *testing.T) {
	l := newLab(t, labConfig{options: []string{"ciphers_client=ECDHE-RSA-AES256-GCM-SHA384"}})
	mine := l.clientConfig("example.test")
	mine.MaxVersion = tls.VersionTLS12
	c, err := l.connect(l.echo(l.serverConfig("example.test")), mine)
	check(t, err)
	_, err = io.WriteString(c, "GET / HTTP/1.1\r\n\r\n")
	check(t, err)
	if got := l.session(0).client.TLS.Cipher; got != "ECDHE-RSA-AES256-GCM-SHA384" {
		t.Errorf("cipher %s", got)
	}
}

func TestResumption(t *testing.T) {
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		l := newLab(t, labConfig{})
		cfg := l.serverConfig("example.test", "other.test")
		cfg.MaxVersion = version
		target := l.echo(cfg)
		cache := tls.NewLRUClientSessionCache(8)
		talk := func(sni string, i int) seen {
			mine := l.clientConfig(sni)
			mine.MaxVersion = version
			mine.ClientSessionCache = fixedKey{cache} // offers each host's ticket to every other one
			mine.InsecureSkipVerify = true
			c, err := l.connect(target, mine)
			check(t, err)
			_, err = io.WriteString(c, "GET / HTTP/1.1\r\n\r\n")
			check(t, err)
			line(t, c)
			check(t, c.CloseWrite())
			_, err = io.ReadAll(c)
			check(t, err)
			return l.session(i)
		}
		first, second, third := talk("example.test", 0), talk("example.test", 1), talk("other.test", 2)
		if first.client.TLS.Resumed || first.server.TLS.Resumed {
			t.Error("first connection was resumed")
		}
		if !second.client.TLS.Resumed || !second.server.TLS.Resumed {
			t.Errorf("%x: second connection: client resumed %v, server %v", version, second.client.TLS.Resumed, second.server.TLS.Resumed)
		}
		if len(second.server.TLS.Certificates) != 1 || !bytes.Equal(second.server.TLS.Certificates[0], cfg.Certificates[0].Certificate[0]) {
			t.Error("resumption lost the server's certificate")
		}
		if !bytes.Equal(first.client.Leaf, second.client.Leaf) {
			t.Error("leaf changed")
		}
		if third.client.TLS.Resumed {
			t.Error("a ticket for one host was good for another")
		}
		if third.server.TLS.Resumed {
			t.Error("a server's session was resumed under another name")
		}
	}
}

// fixedKey is a cache of one entry for all names.
type fixedKey struct{ tls.ClientSessionCache }

func (f fixedKey) Get(string) (*tls.ClientSessionState, bool) { return f.ClientSessionCache.Get("x") }

func (f fixedKey) Put(_ string, state *tls.ClientSessionState) { f.ClientSessionCache.Put("x", state) }

func TestResumptionDoesNotWeakenVerification(t *testing.T) {
	l := newLab(t, labConfig{options: []string{"ssl_insecure=true"}})
	cfg := l.serverConfig("wrong.test")
	target := l.echo(cfg)
	talk := func() string {
		c, err := l.connect(target, l.clientConfig("example.test"))
		check(t, err)
		_, err = io.WriteString(c, "GET / HTTP/1.1\r\n\r\n")
		check(t, err)
		buf := make([]byte, 100)
		n, err := io.ReadAtLeast(c, buf, 5)
		check(t, err)
		c.Close()
		return string(buf[:n])
	}
	talk()
	if got := talk(); !strings.HasPrefix(got, "hello") || !l.session(1).server.TLS.Resumed {
		t.Fatalf("with -k: %q", got)
	}
	check(t, l.reg.SetText("ssl_insecure=false"))
	if got := talk(); !strings.HasPrefix(got, "502 certificate verify failed") {
		t.Errorf("after -k was switched off the client got %q", got)
	}
}

func TestKeyLog(t *testing.T) {
	var log logBuffer
	cfg := labConfig{}
	cfg.tls.KeyLog = &log
	l := newLab(t, cfg)
	c, err := l.connect(l.echo(l.serverConfig("example.test")), l.clientConfig("example.test"))
	check(t, err)
	c.Close()
	l.settle()
	randoms := map[string]int{}
	for _, entry := range strings.Split(strings.TrimSpace(log.String()), "\n") {
		fields := strings.Fields(entry)
		if len(fields) != 3 || len(fields[1]) != 64 || len(fields[2]) != 64 && len(fields[2]) != 96 {
			t.Fatalf("line %q", entry)
		}
		randoms[fields[1]]++
	}
	if len(randoms) != 2 {
		t.Errorf("secrets of %d handshakes, want both sides:\n%s", len(randoms), log.String())
	}
}

func TestClientCertificates(t *testing.T) {
	dir := t.TempDir()
	l := newLab(t, labConfig{})
	cert := l.inet.issue(t, func(c *x509.Certificate) { c.Subject.CommonName = "us" }, "us.test")
	writePair(t, filepath.Join(dir, "example.test.pem"), cert)
	writePair(t, filepath.Join(dir, "single.pem"), cert)
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		cfg := l.serverConfig("example.test", "bare.test")
		cfg.ClientAuth, cfg.MaxVersion = tls.RequireAnyClientCert, version
		got := make(chan string, 8)
		cfg.VerifyConnection = func(s tls.ConnectionState) error {
			got <- s.PeerCertificates[0].Subject.CommonName
			return nil
		}
		target := l.echo(cfg)
		for _, tt := range []struct {
			option, sni string
			ok          bool
		}{
			{filepath.Join(dir, "single.pem"), "example.test", true},
			{dir, "example.test", true},
			{dir, "bare.test", false},
			{"", "example.test", false},
		} {
			if tt.option == "" {
				check(t, l.reg.Set(map[string]any{"client_certs": (*string)(nil)}))
			} else {
				check(t, l.reg.SetText("client_certs="+tt.option))
			}
			c, err := l.connect(target, l.clientConfig(tt.sni))
			check(t, err)
			_, err = io.WriteString(c, "GET / HTTP/1.1\r\n\r\n")
			check(t, err)
			answer := make([]byte, 300)
			n, _ := c.Read(answer)
			c.Close()
			if ok := strings.HasPrefix(string(answer[:n]), "hello"); ok != tt.ok {
				t.Errorf("%x %q %s: client got %q", version, tt.option, tt.sni, answer[:n])
			}
			if tt.ok && <-got != "us" {
				t.Errorf("%q: another certificate was shown", tt.option)
			}
		}
	}
}

func writePair(t testing.TB, path string, cert tls.Certificate) {
	t.Helper()
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	check(t, err)
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Certificate[0]})
	text = append(text, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})...)
	check(t, os.WriteFile(path, text, 0o600))
}

func TestMissingClientCertificateIsExplained(t *testing.T) {
	// With TLS 1.3 the server complains only after our handshake is done.
	var failed error
	inside := proxycore.HandlerFunc(func(ctx context.Context, s *proxycore.Session) error {
		c, err := upstreamOf(ctx, s)
		if err == nil {
			_, err = c.Read(make([]byte, 1))
		}
		failed = err
		return nil
	})
	l := newLab(t, labConfig{http1: inside})
	cfg := l.serverConfig("example.test")
	cfg.ClientAuth = tls.RequireAnyClientCert
	c, err := l.connect(l.echo(cfg), l.clientConfig("example.test"))
	check(t, err)
	_, err = io.WriteString(c, "GET / HTTP/1.1\r\n\r\n")
	check(t, err)
	l.settle()
	if failed == nil || !strings.Contains(failed.Error(), "give it a client certificate with client_certs") {
		t.Errorf("reading said %v", failed)
	}
}

func TestRequestedClientCertificate(t *testing.T) {
	l := newLab(t, labConfig{options: []string{"request_client_cert=true"}})
	target := l.echo(l.serverConfig("example.test"))
	cert := l.inet.issue(t, nil, "client.test")
	for i, offered := range [][]tls.Certificate{nil, {cert}} {
		mine := l.clientConfig("example.test")
		mine.Certificates = offered
		c, err := l.connect(target, mine)
		check(t, err)
		_, err = io.WriteString(c, "GET / HTTP/1.1\r\n\r\n")
		check(t, err)
		if got := l.session(i).client.TLS.Certificates; len(got) != len(offered) {
			t.Errorf("%d certificates recorded, want %d", len(got), len(offered))
		}
		c.Close()
	}
}

func TestRequestedCertificateEndsOldSessions(t *testing.T) {
	l := newLab(t, labConfig{})
	target := l.echo(l.serverConfig("example.test"))
	mine := l.clientConfig("example.test")
	mine.ClientSessionCache = tls.NewLRUClientSessionCache(1)
	mine.Certificates = []tls.Certificate{l.inet.issue(t, nil, "client.test")}
	for i, option := range []string{"false", "false", "true"} {
		check(t, l.reg.SetText("request_client_cert="+option))
		c, err := l.connect(target, mine)
		check(t, err)
		_, err = io.WriteString(c, "GET / HTTP/1.1\r\n\r\n")
		check(t, err)
		line(t, c)
		facts := l.session(i).client.TLS
		if want := i == 1; facts.Resumed != want {
			t.Errorf("connection %d: resumed %v", i, facts.Resumed)
		}
		if want := i == 2; (len(facts.Certificates) == 1) != want {
			t.Errorf("connection %d: %d certificates", i, len(facts.Certificates))
		}
		c.Close()
	}
}

func TestUpstreamChainForClients(t *testing.T) {
	l := newLab(t, labConfig{options: []string{"add_upstream_certs_to_client_chain=true"}})
	c, err := l.connect(l.echo(l.serverConfig("example.test")), l.clientConfig("example.test"))
	check(t, err)
	if got := c.ConnectionState().PeerCertificates; len(got) != 2 || got[1].Issuer.CommonName != "Test Internet CA" {
		t.Errorf("client was sent %d certificates", len(got))
	}
	if err := l.reg.SetText("upstream_cert=false"); err == nil {
		t.Error("upstream_cert could be switched off under add_upstream_certs_to_client_chain")
	}
}

func TestLateRefusal(t *testing.T) {
	// A client that finishes the handshake before it looks at the certificate.
	l := newLab(t, labConfig{})
	var secrets logBuffer
	mine := l.clientConfig("example.test")
	mine.InsecureSkipVerify, mine.KeyLogWriter = true, &secrets
	raw := l.inbound(l.echo(l.serverConfig("example.test")))
	c := tls.Client(raw, mine)
	check(t, c.Handshake())
	if c.ConnectionState().CipherSuite != tls.TLS_AES_128_GCM_SHA256 {
		t.Fatal("the test encrypts with AES-128-GCM only")
	}
	_, err := raw.Write(encryptedAlert(t, secrets.String(), 48))
	check(t, err)
	l.settle()
	if got := l.log.String(); !strings.Contains(got, "client does not trust our certificate for example.test (unknown certificate authority)") {
		t.Errorf("log:\n%s", got)
	}
}

// encryptedAlert is the first record that a TLS 1.3 client sends after its handshake (RFC 8446, sections
// 5.2 and 7.3), which crypto/tls has no way to send.
func encryptedAlert(t testing.TB, keyLog string, alert byte) []byte {
	t.Helper()
	_, rest, _ := strings.Cut(keyLog, "CLIENT_TRAFFIC_SECRET_0 ")
	secret, err := hex.DecodeString(strings.Fields(rest)[1])
	check(t, err)
	derive := func(label string, size int) []byte {
		info := append([]byte{0, byte(size), byte(6 + len(label))}, "tls13 "+label+"\x00"...)
		out, err := hkdf.Expand(sha256.New, secret, string(info), size)
		check(t, err)
		return out
	}
	block, err := aes.NewCipher(derive("key", 16))
	check(t, err)
	gcm, err := cipher.NewGCM(block)
	check(t, err)
	header := []byte{23, 3, 3, 0, byte(3 + gcm.Overhead())}
	return gcm.Seal(header, derive("iv", 12), []byte{2, alert, 21}, header)
}
