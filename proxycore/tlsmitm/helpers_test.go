package tlsmitm_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"mitm-appliance/flow"
	"mitm-appliance/option"
	"mitm-appliance/proxycore"
	"mitm-appliance/proxycore/certs"
	"mitm-appliance/proxycore/tlsmitm"
)

const patience = 20 * time.Second // for anything that should come at once

// authority is a CA of the test's own "Internet".
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t testing.TB, name string) *authority {
	t.Helper()
	key := newKey(t)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	check(t, err)
	cert, err := x509.ParseCertificate(der)
	check(t, err)
	return &authority{cert, key}
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(t, err)
	return key
}

func (a *authority) issue(t testing.TB, change func(*x509.Certificate), names ...string) tls.Certificate {
	t.Helper()
	key := newKey(t)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{Organization: []string{"Upstream Ltd"}},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	for _, n := range names {
		if ip, err := netip.ParseAddr(n); err == nil {
			template.IPAddresses = append(template.IPAddresses, ip.AsSlice())
		} else {
			template.DNSNames = append(template.DNSNames, n)
		}
	}
	if change != nil {
		change(template)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	check(t, err)
	leaf, err := x509.ParseCertificate(der)
	check(t, err)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

func (a *authority) pem() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw})
}

// lab is a core with a Handler, a server behind it, and what they told.
type lab struct {
	t       testing.TB
	core    *proxycore.Core
	handler *tlsmitm.Handler
	reg     *option.Registry
	ca      *certs.CA // ours, which clients trust
	inet    *authority
	log     *logBuffer
	hooks   *hookLog
	serve   sync.WaitGroup

	mu       sync.Mutex
	sessions []seen
}

// seen is what the protocol inside TLS found.
type seen struct {
	secure    bool
	sni, alpn string
	serverErr error
	client    *flow.Client
	server    *flow.Server
	dialErr   error
}

type labConfig struct {
	options []string
	tls     tlsmitm.Config
	addons  []any
	http1   proxycore.Handler
}

func newLab(t testing.TB, cfg labConfig) *lab {
	t.Helper()
	l := &lab{t: t, reg: option.New(), inet: newAuthority(t, "Test Internet CA"), log: &logBuffer{}, hooks: &hookLog{}}
	rootFile := filepath.Join(t.TempDir(), "internet.pem")
	check(t, os.WriteFile(rootFile, l.inet.pem(), 0o600))
	logger := slog.New(slog.NewTextHandler(l.log, &slog.HandlerOptions{Level: slog.LevelInfo}))
	core, opts := proxycore.DeclareOptions(l.reg), tlsmitm.DeclareOptions(l.reg)
	check(t, l.reg.SetText(append([]string{"ssl_verify_upstream_trusted_ca=" + rootFile}, cfg.options...)...))
	ca, err := certs.LoadOrCreate(certs.Config{Dir: t.TempDir(), KeyType: certs.KeyECDSA})
	check(t, err)
	store, err := certs.NewStore(certs.StoreConfig{CA: ca})
	check(t, err)
	l.ca = ca
	cfg.tls.Options, cfg.tls.Store = opts, func() *certs.Store { return store }
	l.handler, err = tlsmitm.New(cfg.tls)
	check(t, err)
	inside := proxycore.HandlerFunc(l.inside)
	pass := proxycore.HandlerFunc(relay)
	http1 := cfg.http1
	if http1 == nil {
		http1 = inside
	}
	l.core = proxycore.New(proxycore.Config{
		Logger: logger, Options: core, Secure: l.handler.Secure, SniffTimeout: patience, GraceTimeout: 50 * time.Millisecond,
		Protocols: proxycore.Protocols{TLS: l.handler, HTTP1: http1, TCP: inside, Pass: pass},
	})
	l.core.SetAddons(append([]any{l.hooks}, cfg.addons...)...)
	t.Cleanup(func() {
		l.core.Shutdown(context.Background())
		l.serve.Wait()
	})
	return l
}

// inside plays the protocol inside TLS: it notes its session and relays to the server.
func (l *lab) inside(ctx context.Context, s *proxycore.Session) error {
	note := seen{secure: s.Secure, sni: s.SNI, alpn: s.ALPN, serverErr: s.ServerErr, client: s.Client()}
	server, err := upstreamOf(ctx, s)
	if err == nil {
		note.server = server.Info()
	}
	note.dialErr = err
	l.mu.Lock()
	l.sessions = append(l.sessions, note)
	l.mu.Unlock()
	if err != nil {
		_, err = io.WriteString(s.Conn, "502 "+err.Error())
		return err
	}
	return splice(s.Conn, server)
}

func upstreamOf(ctx context.Context, s *proxycore.Session) (*proxycore.ServerConn, error) {
	route := proxycore.Route{Address: s.Target, TLS: s.Secure}
	if s.ServerErr != nil {
		return nil, s.ServerErr
	}
	if c := s.TakeServer(route); c != nil {
		return c, nil
	}
	return s.Dial(ctx, route)
}

// relay is a pass-through.
func relay(ctx context.Context, s *proxycore.Session) error {
	server := s.TakeServer(proxycore.Route{Address: s.Target})
	if server == nil {
		var err error
		if server, err = s.Dial(ctx, proxycore.Route{Address: s.Target}); err != nil {
			return err
		}
	}
	return splice(s.Conn, server)
}

func splice(client, server proxycore.Conn) error {
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = io.Copy(server, client)
		_ = server.CloseWrite()
	}()
	_, err := io.Copy(client, server)
	_ = client.CloseWrite()
	<-done
	return err
}

// inbound hands one end of a loopback connection to the core and returns the other one.
func (l *lab) inbound(target flow.Address) *net.TCPConn { return l.accept(target, false) }

func (l *lab) inboundLazily(target flow.Address) *net.TCPConn { return l.accept(target, true) }

func (l *lab) accept(target flow.Address, lazily bool) *net.TCPConn {
	l.t.Helper()
	client, ours := tcpPair(l.t)
	in := proxycore.Inbound{
		Network: "tcp", Target: target, LazyUpstream: lazily,
		Client: &flow.Client{Connection: flow.Connection{
			Peer: ours.RemoteAddr().(*net.TCPAddr).AddrPort(), Local: netip.MustParseAddrPort("192.0.2.7:443"),
		}},
		Accept: func(context.Context) (proxycore.Conn, error) { return ours, nil },
		Reject: func(error) { _ = ours.Close() },
	}
	l.serve.Add(1)
	go func() {
		defer l.serve.Done()
		l.core.Serve(context.Background(), in)
	}()
	return client
}

func tcpPair(t testing.TB) (a, b *net.TCPConn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	defer ln.Close()
	dialled, err := net.Dial("tcp", ln.Addr().String())
	check(t, err)
	accepted, err := ln.Accept()
	check(t, err)
	a, b = dialled.(*net.TCPConn), accepted.(*net.TCPConn)
	t.Cleanup(func() { a.Close(); b.Close() })
	check(t, a.SetDeadline(time.Now().Add(patience)))
	return a, b
}

// server runs handle for each connection; nil echoes after TLS with cfg.
func (l *lab) server(handle func(net.Conn)) flow.Address {
	l.t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	check(l.t, err)
	var running sync.WaitGroup
	running.Add(1)
	go func() {
		defer running.Done()
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			running.Add(1)
			go func() {
				defer running.Done()
				defer c.Close()
				_ = c.SetDeadline(time.Now().Add(patience))
				handle(c)
			}()
		}
	}()
	l.t.Cleanup(func() { ln.Close(); running.Wait() })
	return flow.AddressOf(ln.Addr().(*net.TCPAddr).AddrPort())
}

// echo is a TLS server that says "hello NAME\n" with what it agreed on, then echoes.
func (l *lab) echo(cfg *tls.Config) flow.Address {
	return l.server(func(c net.Conn) {
		t := tls.Server(c, cfg)
		if t.Handshake() != nil {
			return
		}
		s := t.ConnectionState()
		_, _ = io.WriteString(t, "hello "+s.ServerName+" "+s.NegotiatedProtocol+"\n")
		_, _ = io.Copy(t, t)
		_ = t.CloseWrite()
	})
}

func (l *lab) serverConfig(names ...string) *tls.Config {
	return &tls.Config{Certificates: []tls.Certificate{l.inet.issue(l.t, nil, names...)}}
}

func (l *lab) clientConfig(sni string) *tls.Config {
	pool := x509.NewCertPool()
	pool.AddCert(l.ca.Certificate)
	return &tls.Config{RootCAs: pool, ServerName: sni}
}

// connect does the client's handshake.
func (l *lab) connect(target flow.Address, cfg *tls.Config) (*tls.Conn, error) {
	c := tls.Client(l.inbound(target), cfg)
	return c, c.Handshake()
}

func (l *lab) session(i int) seen {
	l.t.Helper()
	deadline := time.Now().Add(patience)
	for time.Now().Before(deadline) {
		l.mu.Lock()
		n := len(l.sessions)
		var s seen
		if i < n {
			s = l.sessions[i]
		}
		l.mu.Unlock()
		if i < n {
			return s
		}
		time.Sleep(time.Millisecond)
	}
	l.t.Fatalf("session %d never began; log:\n%s", i, l.log)
	return seen{}
}

// settle waits until all conversations have ended.
func (l *lab) settle() {
	l.t.Helper()
	done := make(chan struct{})
	go func() { l.serve.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(patience):
		l.t.Fatalf("conversations do not end; log:\n%s", l.log)
	}
}

func line(t testing.TB, r io.Reader) string {
	t.Helper()
	var b strings.Builder
	one := make([]byte, 1)
	for {
		if _, err := io.ReadFull(r, one); err != nil {
			t.Fatalf("after %q: %v", b.String(), err)
		}
		if one[0] == '\n' {
			return b.String()
		}
		b.WriteByte(one[0])
	}
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// hookLog writes down the hooks in their order.
type hookLog struct {
	mu    sync.Mutex
	names []string
	errs  []error
}

func (h *hookLog) add(name string, err error) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.names = append(h.names, name)
	if err != nil {
		h.errs = append(h.errs, err)
	}
	return nil
}

func (h *hookLog) String() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return strings.Join(h.names, " ")
}

func (h *hookLog) failures() []error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]error{}, h.errs...)
}

func (h *hookLog) ServerConnect(context.Context, *proxycore.ServerData) error {
	return h.add("server_connect", nil)
}

func (h *hookLog) ServerConnected(context.Context, *proxycore.ServerData) error {
	return h.add("server_connected", nil)
}

func (h *hookLog) NextLayer(_ context.Context, d *proxycore.NextLayerData) error {
	if len(d.Peeked) == 0 { // asked again with bytes
		return nil
	}
	return h.add("next_layer", nil)
}

func (h *hookLog) TLSClientHello(context.Context, *proxycore.ClientHelloData) error {
	return h.add("tls_clienthello", nil)
}

func (h *hookLog) TLSStartClient(context.Context, *proxycore.TLSData) error {
	return h.add("tls_start_client", nil)
}

func (h *hookLog) TLSStartServer(context.Context, *proxycore.TLSData) error {
	return h.add("tls_start_server", nil)
}

func (h *hookLog) TLSEstablishedClient(context.Context, *proxycore.TLSData) error {
	return h.add("tls_established_client", nil)
}

func (h *hookLog) TLSEstablishedServer(context.Context, *proxycore.TLSData) error {
	return h.add("tls_established_server", nil)
}

func (h *hookLog) TLSFailedClient(_ context.Context, d *proxycore.TLSData) error {
	return h.add("tls_failed_client", d.Err)
}

func (h *hookLog) TLSFailedServer(_ context.Context, d *proxycore.TLSData) error {
	return h.add("tls_failed_server", d.Err)
}
