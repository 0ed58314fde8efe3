package tlsmitm_test

import (
	"context"
	"encoding/pem"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"mitm-appliance/flow"
	"mitm-appliance/proxycore"
)

// program finds a real client. On a machine where nothing may be skipped, a missing one is a failure.
func program(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	switch {
	case err == nil:
	case os.Getenv("MITM_ROOT_TESTS") == "require":
		t.Fatalf("%s is not installed", name)
	default:
		t.Skipf("%s is not installed", name)
	}
	return path
}

// gateway listens, and hands what it accepts to the core as if it were meant for target.
func (l *lab) gateway(target flow.Address) flow.Address {
	l.t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	check(l.t, err)
	l.serve.Add(1)
	go func() {
		defer l.serve.Done()
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			l.serve.Add(1)
			go func() {
				defer l.serve.Done()
				l.core.Serve(context.Background(), proxycore.Inbound{
					Network: "tcp", Target: target,
					Client: &flow.Client{Connection: flow.Connection{
						Peer: c.RemoteAddr().(*net.TCPAddr).AddrPort(), Local: c.LocalAddr().(*net.TCPAddr).AddrPort(),
					}},
					Accept: func(context.Context) (proxycore.Conn, error) { return c.(*net.TCPConn), nil },
					Reject: func(error) { c.Close() },
				})
			}()
		}
	}()
	l.t.Cleanup(func() { ln.Close() })
	return flow.AddressOf(ln.Addr().(*net.TCPAddr).AddrPort())
}

func run(t *testing.T, stdin string, name string, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func (l *lab) caFile() string {
	l.t.Helper()
	file := filepath.Join(l.t.TempDir(), "ca.pem")
	check(l.t, os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: l.ca.Certificate.Raw}), 0o600))
	return file
}

// website answers HTTPS with the name that it was asked for, and ends the body with the connection.
func (l *lab) website() flow.Address {
	l.t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	check(l.t, err)
	srv := &http.Server{
		ReadHeaderTimeout: patience, TLSConfig: l.serverConfig("example.test"),
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			c, _, err := w.(http.Hijacker).Hijack()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, "HTTP/1.0 200 OK\r\n\r\n"+r.TLS.ServerName+strings.Repeat("x", 200<<10))
			c.Close()
		}),
	}
	go func() { _ = srv.ServeTLS(ln, "", "") }()
	l.t.Cleanup(func() { srv.Close() })
	return flow.AddressOf(ln.Addr().(*net.TCPAddr).AddrPort())
}

func TestCurl(t *testing.T) {
	curl := program(t, "curl")
	l := newLab(t, labConfig{})
	gate := l.gateway(l.website())
	url := "https://example.test:" + strings.TrimPrefix(gate.String(), "127.0.0.1:") + "/"
	to := "example.test:" + strings.TrimPrefix(gate.String(), "127.0.0.1:") + ":127.0.0.1"
	for _, extra := range [][]string{{"--tlsv1.3"}, {"--tls-max", "1.2"}, {"--http1.1"}} {
		args := append([]string{"-sS", "--cacert", l.caFile(), "--resolve", to, url}, extra...)
		out, err := run(t, "", curl, args...)
		if err != nil || !strings.HasPrefix(out, "example.test") || len(out) != 200<<10+len("example.test") {
			t.Errorf("curl %v: %v, %d bytes: %.200s", extra, err, len(out), out)
		}
	}
	out, err := run(t, "", curl, "-sS", "--resolve", to, url)
	if err == nil {
		t.Errorf("curl accepted an unknown CA: %.200s", out)
	}
	deadline := time.Now().Add(patience)
	for !strings.Contains(l.log.String(), "client does not trust our certificate for example.test (unknown certificate authority)") {
		if time.Now().After(deadline) {
			t.Fatalf("log:\n%s", l.log)
		}
		time.Sleep(time.Millisecond)
	}
}

func TestOpenSSLClient(t *testing.T) {
	openssl := program(t, "openssl")
	l := newLab(t, labConfig{options: []string{"tls_version_client_min=TLS1"}})
	cfg := l.serverConfig("example.test")
	cfg.NextProtos = []string{"imap"}
	gate := l.gateway(l.echo(cfg))
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"-tls1_3"}, "Protocol version: TLSv1.3"},
		{[]string{"-tls1_2", "-cipher", "ECDHE-RSA-AES256-GCM-SHA384"}, "Ciphersuite: ECDHE-RSA-AES256-GCM-SHA384"},
		{[]string{"-tls1_2", "-cipher", "AES128-SHA"}, "Ciphersuite: AES128-SHA"},
		{[]string{"-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-GCM-SHA256"}, "Ciphersuite: ECDHE-ECDSA-AES128-GCM-SHA256"},
		{[]string{"-tls1", "-cipher", "ECDHE-ECDSA-AES128-SHA@SECLEVEL=0"}, "Protocol version: TLSv1"},
		{[]string{"-curves", "P-521"}, "Verification: OK"},
		{[]string{"-sigalgs", "RSA-PSS+SHA256"}, "Verification: OK"},
		{[]string{"-alpn", "imap"}, "Verification: OK"},
	} {
		args := append([]string{
			"s_client", "-brief", "-connect", gate.String(), "-servername", "example.test", "-verify_hostname", "example.test",
			"-verify_return_error", "-CAfile", l.caFile(),
		}, tt.args...)
		out, err := run(t, "GET / HTTP/1.1\r\n\r\n", openssl, args...)
		if err != nil || !strings.Contains(out, tt.want) || !strings.Contains(out, "Verification: OK") {
			t.Errorf("openssl %v: %v\n%s", tt.args, err, out)
		}
	}
	out, err := run(t, "", openssl, "s_client", "-connect", gate.String(), "-tls1_2", "-cipher", "DHE-RSA-AES128-GCM-SHA256", "-servername", "example.test")
	if err == nil || !strings.Contains(out, "handshake failure") {
		t.Errorf("a client with DHE only: %v\n%s", err, out)
	}
}

func TestOpenSSLServer(t *testing.T) {
	openssl := program(t, "openssl")
	l := newLab(t, labConfig{})
	key := filepath.Join(t.TempDir(), "server.pem")
	out, err := run(t, "", openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", key+".crt", "-days", "2",
		"-subj", "/CN=example.test", "-addext", "subjectAltName=DNS:example.test")
	if err != nil {
		t.Fatal(out)
	}
	check(t, l.reg.SetText("ssl_verify_upstream_trusted_ca="+key+".crt"))
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"-tls1_3"}, "HTTP/1.0 200 ok"},
		{[]string{"-tls1_2", "-cipher", "ECDHE-RSA-AES256-GCM-SHA384"}, "HTTP/1.0 200 ok"},
		{[]string{"-tls1_2", "-cipher", "AES128-SHA"}, "HTTP/1.0 200 ok"}, // RSA key exchange
		{[]string{"-tls1_2", "-cipher", "DHE-RSA-AES128-GCM-SHA256"}, "refused the TLS handshake: handshake failure; it may want another cipher suite"},
		{[]string{"-tls1", "-cipher", "ALL@SECLEVEL=0"}, "no TLS version in common; tls_version_server_min is TLSv1.2"},
	} {
		t.Run(strings.Join(tt.args, " "), func(t *testing.T) {
			target := l.opensslServer(openssl, append([]string{"-cert", key + ".crt", "-key", key}, tt.args...)...)
			c, err := l.connect(target, l.clientConfig("example.test"))
			check(t, err)
			_, err = io.WriteString(c, "GET / HTTP/1.0\r\n\r\n")
			check(t, err)
			if answer, _ := io.ReadAll(c); !strings.Contains(string(answer), tt.want) {
				t.Errorf("client got %.300q, want %q", answer, tt.want)
			}
		})
	}
}

// opensslServer runs openssl s_server -www until the test ends.
func (l *lab) opensslServer(openssl string, args ...string) flow.Address {
	l.t.Helper()
	cmd := exec.Command(openssl, append([]string{"s_server", "-accept", "127.0.0.1:0", "-www"}, args...)...)
	out, err := cmd.StdoutPipe()
	check(l.t, err)
	check(l.t, cmd.Start())
	l.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	for {
		_, address, found := strings.Cut(line(l.t, out), "ACCEPT ")
		if found {
			host, port := flow.SplitHostPort(address)
			return flow.Address{Host: host, Port: port}
		}
	}
}
