package tlsmitm_test

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"mitm-appliance/flow"
	"mitm-appliance/proxycore"
	"mitm-appliance/proxycore/tlsmitm"
)

func TestServerVerification(t *testing.T) {
	l := newLab(t, labConfig{})
	other := newAuthority(t, "Nobody's CA")
	selfSigned := func() tls.Certificate {
		lone := newAuthority(t, "example.test")
		lone.cert.DNSNames = []string{"example.test"}
		der, err := x509.CreateCertificate(rand.Reader, lone.cert, lone.cert, lone.key.Public(), lone.key)
		check(t, err)
		return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: lone.key}
	}
	for _, tt := range []struct {
		name string
		cert tls.Certificate
		sni  string
		want string // "" is a success
	}{
		{"good", l.inet.issue(t, nil, "example.test"), "example.test", ""},
		{"wildcard", l.inet.issue(t, nil, "*.test"), "example.test", ""},
		{"address without SNI", l.inet.issue(t, nil, "127.0.0.1"), "", ""},
		{
			"address not in certificate", l.inet.issue(t, nil, "example.test"), "",
			"name mismatch: the certificate is for example.test, not for 127.0.0.1",
		},
		{
			"other name", l.inet.issue(t, nil, "a.test", "b.test"), "example.test",
			"name mismatch: the certificate is for a.test, b.test, not for example.test",
		},
		{"partial wildcard", l.inet.issue(t, nil, "ex*.test"), "example.test", "name mismatch"},
		{
			"common name only", l.inet.issue(t, func(c *x509.Certificate) { c.Subject.CommonName = "example.test" }), "example.test",
			"name mismatch: the certificate is for nobody (its common name \"example.test\" does not count)",
		},
		{"expired", l.inet.issue(t, func(c *x509.Certificate) {
			c.NotAfter = time.Date(2020, 2, 3, 4, 5, 6, 0, time.UTC)
			c.NotBefore = c.NotAfter.Add(-time.Hour)
		}, "example.test"), "example.test", "certificate expired on 2020-02-03 04:05 UTC, issued by CN=Test Internet CA"},
		{
			"not yet valid", l.inet.issue(t, func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Minute) }, "example.test"),
			"example.test", "certificate is not valid before",
		},
		{"unknown authority", other.issue(t, nil, "example.test"), "example.test", "unknown authority CN=Nobody's CA"},
		{"self-signed", selfSigned(), "example.test", "self-signed certificate"},
		{"for clients only", l.inet.issue(t, func(c *x509.Certificate) {
			c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
		}, "example.test"), "example.test", "incompatible key usage"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			target := l.echo(&tls.Config{Certificates: []tls.Certificate{tt.cert}})
			for _, insecure := range []string{"false", "true"} {
				check(t, l.reg.SetText("ssl_insecure="+insecure))
				mine := l.clientConfig(tt.sni)
				if tt.sni == "" {
					mine.ServerName = "127.0.0.1" // not sent
				}
				failed := len(l.hooks.failures())
				c, err := l.connect(target, mine)
				check(t, err) // also when the server failed: the client is told inside
				_, err = io.WriteString(c, "GET / HTTP/1.1\r\n\r\n")
				check(t, err)
				answer := make([]byte, 400)
				n, err := c.Read(answer)
				check(t, err)
				c.Close()
				ok := strings.HasPrefix(string(answer[:n]), "hello")
				if wantOK := tt.want == "" || insecure == "true"; ok != wantOK {
					t.Fatalf("insecure %s: client got %q", insecure, answer[:n])
				}
				if ok {
					continue
				}
				errs := l.hooks.failures()[failed:]
				var he *tlsmitm.HandshakeError
				if len(errs) != 1 || !errors.As(errs[0], &he) || !he.Server {
					t.Fatalf("tls_failed_server: %v", errs)
				}
				if !strings.HasPrefix(he.Reason, "certificate verify failed: ") || !strings.Contains(he.Reason, tt.want) {
					t.Errorf("reason %q, want %q", he.Reason, tt.want)
				}
				if !strings.Contains(he.Error(), "ssl_insecure") || !strings.Contains(l.log.String(), "verify failed") {
					t.Errorf("error %q, log %s", he, l.log)
				}
			}
		})
	}
}

// spy keeps the server of the last failed handshake.
type spy struct{ server *flow.Server }

func (s *spy) TLSFailedServer(_ context.Context, d *proxycore.TLSData) error {
	s.server = d.Server
	return nil
}

func TestRefusedCertificateStaysVisible(t *testing.T) {
	seen := &spy{}
	l := newLab(t, labConfig{addons: []any{seen}})
	cert := newAuthority(t, "Nobody's CA").issue(t, nil, "example.test")
	c, err := l.connect(l.echo(&tls.Config{Certificates: []tls.Certificate{cert}}), l.clientConfig("example.test"))
	check(t, err)
	c.Close()
	l.settle()
	s := seen.server
	if s == nil || len(s.TLS.Certificates) != 1 || string(s.TLS.Certificates[0]) != string(cert.Certificate[0]) || s.Error == "" {
		t.Errorf("server %+v", s)
	}
}

// refuse answers a ClientHello with a fatal alert.
func refuse(alert byte) func(net.Conn) {
	return func(c net.Conn) {
		_, _ = c.Read(make([]byte, 4096))
		_, _ = c.Write([]byte{21, 3, 3, 0, 2, 2, alert})
	}
}

func TestServerFailures(t *testing.T) {
	for _, tt := range []struct {
		name    string
		server  func(net.Conn)
		options []string
		want    string
	}{
		{"speaks HTTP", func(c net.Conn) {
			_, _ = c.Read(make([]byte, 4096))
			_, _ = io.WriteString(c, "HTTP/1.1 400 Bad Request\r\n\r\n")
		}, nil, "the remote server does not speak TLS"},
		{"closes", func(c net.Conn) { _, _ = c.Read(make([]byte, 4096)) }, nil, "connection closed by the server"},
		{"resets", func(c net.Conn) {
			_, _ = c.Read(make([]byte, 4096))
			_ = c.(*net.TCPConn).SetLinger(0)
		}, nil, "connection closed by the server"},
		{"stalls", func(c net.Conn) { _, _ = io.Copy(io.Discard, c) }, nil, "the server did not finish the TLS handshake in time"},
		{"protocol version alert", refuse(70), nil, "no TLS version in common; tls_version_server_min is TLSv1.2"},
		{"handshake failure alert", refuse(40), nil, "refused the TLS handshake: handshake failure; it may want"},
		{"unrecognized name", refuse(112), nil, "unrecognized name"},
		{"unknown ca", refuse(48), nil, "does not accept our client certificate"},
		{"garbage record", func(c net.Conn) {
			_, _ = c.Read(make([]byte, 4096))
			_, _ = c.Write([]byte{22, 3, 3, 0, 4, 99, 0, 0, 0})
		}, nil, "TLS handshake failed: "},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := newLab(t, labConfig{options: tt.options, tls: tlsmitm.Config{ServerTimeout: 500 * time.Millisecond}})
			c, err := l.connect(l.server(tt.server), l.clientConfig("example.test"))
			check(t, err)
			_, err = io.WriteString(c, "GET / HTTP/1.1\r\n\r\n")
			check(t, err)
			if answer, err := io.ReadAll(c); err != nil || !strings.Contains(string(answer), tt.want) {
				t.Errorf("client was told %q, %v; want %q", answer, err, tt.want)
			}
			l.settle()
			if got := l.hooks.String(); !strings.Contains(got, "tls_start_server tls_failed_server tls_start_client tls_established_client") {
				t.Errorf("hooks %s", got)
			}
		})
	}
}

func TestOldServerNamesTheOption(t *testing.T) {
	l := newLab(t, labConfig{})
	cfg := l.serverConfig("example.test")
	cfg.MinVersion, cfg.MaxVersion = tls.VersionTLS10, tls.VersionTLS11
	c, err := l.connect(l.echo(cfg), l.clientConfig("example.test"))
	check(t, err)
	_, err = io.WriteString(c, "GET / HTTP/1.1\r\n\r\n")
	check(t, err)
	if answer, _ := io.ReadAll(c); !strings.Contains(string(answer), "tls_version_server_min is TLSv1.2") {
		t.Errorf("client was told %q", answer)
	}
}

func TestRefusedServer(t *testing.T) {
	// With LazyUpstream nobody connects before the client is accepted, so the failure shows inside.
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	target := flow.AddressOf(ln.Addr().(*net.TCPAddr).AddrPort())
	ln.Close()
	l := newLab(t, labConfig{})
	c := tls.Client(l.inboundLazily(target), l.clientConfig("example.test"))
	_, err = io.WriteString(c, "GET / HTTP/1.1\r\n\r\n")
	check(t, err)
	if answer, _ := io.ReadAll(c); !strings.Contains(string(answer), "502") || !strings.Contains(string(answer), "refused") {
		t.Errorf("client was told %q", answer)
	}
}

func TestClientRefusals(t *testing.T) {
	unknown := x509.NewCertPool()
	for _, tt := range []struct {
		name  string
		cfg   func(*tls.Config)
		want  string
		level string
	}{
		{
			"does not know our CA", func(c *tls.Config) { c.RootCAs = unknown },
			"client does not trust our certificate for example.test (bad certificate); install the CA certificate", "WARN",
		},
		{
			"speaks old TLS only", func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS10, tls.VersionTLS11 },
			"no TLS version in common: the client speaks TLSv1.1 at most; tls_version_client_min is TLSv1.2", "WARN",
		},
		{"has RC4 only", func(c *tls.Config) {
			c.MaxVersion, c.CipherSuites = tls.VersionTLS12, []uint16{tls.TLS_ECDHE_RSA_WITH_RC4_128_SHA}
		}, "no cipher suite in common", "WARN"},
		{"rejects for its own reasons", func(c *tls.Config) {
			c.InsecureSkipVerify = true
			c.VerifyConnection = func(tls.ConnectionState) error { return errors.New("pinned") }
		}, "client does not trust our certificate for example.test (bad certificate)", "WARN"},
	} {
		for _, max := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
			t.Run(tt.name+" "+tlsmitm.VersionName(max), func(t *testing.T) {
				l := newLab(t, labConfig{})
				cfg := l.clientConfig("example.test")
				cfg.MaxVersion = max
				tt.cfg(cfg)
				_, err := l.connect(l.echo(l.serverConfig("example.test")), cfg)
				if err == nil {
					t.Fatal("the client's handshake succeeded")
				}
				l.settle()
				errs := l.hooks.failures()
				if len(errs) != 1 || !strings.Contains(errs[0].Error(), tt.want) {
					t.Fatalf("tls_failed_client: %v, want %q", errs, tt.want)
				}
				if log := l.log.String(); strings.Count(log, "TLS handshake failed") != 1 || !strings.Contains(log, "level="+tt.level) ||
					strings.Contains(log, "conversation failed") {
					t.Errorf("log:\n%s", log)
				}
			})
		}
	}
}

// TestClientAlerts answers the server's flight with an alert in the clear, as OpenSSL does, also in TLS 1.3.
func TestClientAlerts(t *testing.T) {
	for alert, want := range map[byte]string{
		48: "client does not trust our certificate for example.test (unknown certificate authority)",
		42: "client does not trust our certificate for example.test (bad certificate)",
		46: "client does not trust our certificate for example.test (unknown certificate)",
		40: "client may not trust our certificate for example.test (handshake failure)",
	} {
		for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
			l := newLab(t, labConfig{})
			c := l.inbound(l.echo(l.serverConfig("example.test")))
			cfg := l.clientConfig("example.test")
			cfg.MaxVersion = version
			_, err := c.Write(clientHello(t, cfg))
			check(t, err)
			_, err = c.Read(make([]byte, 16<<10))
			check(t, err)
			_, err = c.Write([]byte{21, 3, 3, 0, 2, 2, alert})
			check(t, err)
			l.settle()
			if errs := l.hooks.failures(); len(errs) != 1 || !strings.Contains(errs[0].Error(), want) {
				t.Errorf("%x, alert %d: %v, want %q", version, alert, errs, want)
			}
		}
	}
}

func TestClientLeavesOrStalls(t *testing.T) {
	l := newLab(t, labConfig{tls: tlsmitm.Config{ClientTimeout: 300 * time.Millisecond}})
	hello := clientHello(t, l.clientConfig("example.test"))
	for _, tt := range []struct {
		name string
		send []byte
		then func(*net.TCPConn)
		want string // of tls_failed_client
	}{
		{"half a hello, then the end", hello[:100], func(c *net.TCPConn) { c.Close() }, "client disconnected during the handshake"},
		{"half a hello, then a reset", hello[:100], func(c *net.TCPConn) { _ = c.SetLinger(0); c.Close() }, "client disconnected during the handshake"},
		{"half a hello, then nothing", hello[:100], func(*net.TCPConn) {}, "client did not finish the handshake"},
		{"a hello, then the end", hello, func(c *net.TCPConn) { c.Close() }, "client disconnected during the handshake for example.test"},
		{"a hello, then nothing", hello, func(*net.TCPConn) {}, "client did not finish the handshake for example.test in time"},
		{"no hello", append([]byte{22, 3, 1, 0, 50, 2}, make([]byte, 60)...), func(*net.TCPConn) {}, "cannot parse ClientHello: 1603010032"},
		{"a broken hello", append([]byte{22, 3, 1, 0, 50, 1, 0, 0, 46}, make([]byte, 60)...), func(*net.TCPConn) {}, "cannot parse ClientHello: 16030100320100002e"},
		{"an endless hello", append([]byte{22, 3, 1, 0, 50, 1, 255, 255, 255}, make([]byte, 60)...), func(*net.TCPConn) {}, "too large"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			before := len(l.hooks.failures())
			c := l.inbound(l.echo(l.serverConfig("example.test")))
			_, err := c.Write(tt.send)
			check(t, err)
			tt.then(c)
			l.settle()
			errs := l.hooks.failures()[before:]
			if len(errs) != 1 || !strings.Contains(errs[0].Error(), tt.want) {
				t.Errorf("tls_failed_client: %v, want %q", errs, tt.want)
			}
		})
	}
}

// clientHello returns the bytes that a client begins with.
func clientHello(t testing.TB, cfg *tls.Config) []byte {
	t.Helper()
	a, b := net.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = tls.Client(a, cfg).Handshake()
	}()
	buf := make([]byte, 16<<10)
	n, err := b.Read(buf)
	check(t, err)
	b.Close()
	<-done
	return buf[:n]
}
