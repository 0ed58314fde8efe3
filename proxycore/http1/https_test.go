package http1_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"mitm-appliance/flow"
	"mitm-appliance/option"
	"mitm-appliance/proxycore"
	"mitm-appliance/proxycore/certs"
	"mitm-appliance/proxycore/exchange"
	"mitm-appliance/proxycore/http1"
	"mitm-appliance/proxycore/tlsmitm"
)

// intercepting is an explicit proxy that decrypts TLS, before a server of Go's own.
type intercepting struct {
	server *httptest.Server
	client *http.Client
	kept   *kept
	conns  atomic.Int64 // connections that the server accepted
}

func intercept(t testing.TB, recorder proxycore.Recorder, h http.Handler) *intercepting {
	t.Helper()
	i := &intercepting{kept: &kept{}}
	if recorder == nil {
		recorder = i.kept
	}
	i.server = httptest.NewUnstartedServer(h)
	i.server.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			i.conns.Add(1)
		}
	}
	i.server.StartTLS()
	t.Cleanup(i.server.Close)
	core, trusted := interceptingCore(t, recorder, i.server.Certificate())
	addr := listen(t, core.core, core.handler)
	transport := &http.Transport{
		Proxy:           http.ProxyURL(&url.URL{Scheme: "http", Host: addr}),
		TLSClientConfig: &tls.Config{RootCAs: trusted}, MaxIdleConnsPerHost: 100,
	}
	t.Cleanup(transport.CloseIdleConnections)
	i.client = &http.Client{Transport: transport, Timeout: patience}
	return i
}

type coreAndHandler struct {
	core    *proxycore.Core
	handler proxycore.Handler
}

func interceptingCore(t testing.TB, recorder proxycore.Recorder, root *x509.Certificate) (coreAndHandler, *x509.CertPool) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(t.TempDir(), "root.pem")
	must(os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: root.Raw}), 0o600))
	reg := option.New()
	coreOpts, exOpts, tlsOpts := proxycore.DeclareOptions(reg), exchange.DeclareOptions(reg), tlsmitm.DeclareOptions(reg)
	must(reg.SetText("ssl_verify_upstream_trusted_ca=" + file))
	ca, err := certs.LoadOrCreate(certs.Config{Dir: t.TempDir(), KeyType: certs.KeyECDSA})
	must(err)
	store, err := certs.NewStore(certs.StoreConfig{CA: ca})
	must(err)
	th, err := tlsmitm.New(tlsmitm.Config{Options: tlsOpts, Store: func() *certs.Store { return store }})
	must(err)
	framing := http1.New(http1.Config{})
	h := framing.Handler(exchange.New(exchange.Config{Options: exOpts, NewServer: framing.NewServer(exOpts)}))
	core := proxycore.New(proxycore.Config{
		Options: coreOpts, Secure: th.Secure, Recorder: recorder, GraceTimeout: time.Millisecond,
		Protocols: proxycore.Protocols{TLS: th, HTTP1: h},
	})
	trusted := x509.NewCertPool()
	trusted.AddCert(ca.Certificate)
	return coreAndHandler{core, h}, trusted
}

// listen serves an explicit proxy until the test ends.
func listen(t testing.TB, core *proxycore.Core, h proxycore.Handler) string {
	t.Helper()
	ln, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	var served sync.WaitGroup
	served.Go(func() {
		for {
			conn, err := ln.AcceptTCP()
			if err != nil {
				return
			}
			served.Go(func() {
				core.Serve(context.Background(), proxycore.Inbound{
					Network: "tcp", Client: &flow.Client{}, First: h,
					Accept: func(context.Context) (proxycore.Conn, error) { return conn, nil },
				})
			})
		}
	})
	t.Cleanup(func() {
		ln.Close()
		core.Shutdown(context.Background())
		served.Wait()
	})
	return ln.Addr().String()
}

// TestHTTPS is TestNetHTTP inside TLS on both sides.
func TestHTTPS(t *testing.T) {
	i := intercept(t, nil, http.HandlerFunc(echo))
	var workers sync.WaitGroup
	for w := range 4 {
		workers.Go(func() {
			random := rand.New(rand.NewPCG(2, uint64(w)))
			for n := range 25 {
				if err := oneEcho(i.client, i.server.URL, random); err != nil {
					t.Errorf("worker %d, request %d: %v", w, n, err)
					return
				}
			}
		})
	}
	workers.Wait()
	for _, f := range i.kept.finished() {
		if f.HTTP.Request.Scheme != "https" || f.Server == nil || f.Server.TLS == nil || f.Client.TLS == nil || f.Error != nil {
			t.Fatalf("recorded %+v", f)
		}
	}
}

// TestHTTPSKeepsServer: one connection of a client is one connection to the server, also when it was
// idle for long enough to be looked at, with TLS 1.3's session tickets waiting in it.
func TestHTTPSKeepsServer(t *testing.T) {
	i := intercept(t, nil, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "ok") }))
	for range 3 {
		resp, err := i.client.Post(i.server.URL, "text/plain", strings.NewReader("x")) // looked at each time
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
	}
	if n := i.conns.Load(); n != 1 {
		t.Errorf("%d connections to the server for one of the client", n)
	}
}

// TestHTTPSStale: the server closed its idle connection with close_notify; a POST must not be lost.
func TestHTTPSStale(t *testing.T) {
	i := intercept(t, nil, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "ok") }))
	for range 3 {
		resp, err := i.client.Post(i.server.URL, "text/plain", strings.NewReader("x"))
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			t.Fatalf("got %s", resp.Status)
		}
		i.server.CloseClientConnections() // the idle one to us; the client's to us stays
		time.Sleep(20 * time.Millisecond)
	}
	if n := i.conns.Load(); n != 3 {
		t.Errorf("%d connections to the server, want one per request", n)
	}
}

// TestHTTPSClientLeaves: noticed through TLS as well.
func TestHTTPSClientLeaves(t *testing.T) {
	entered, left := make(chan struct{}), make(chan struct{})
	i := intercept(t, nil, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		close(entered)
		<-r.Context().Done() // our connection to it is cut
		close(left)
	}))
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		<-entered
		cancel()
	}()
	req, _ := http.NewRequestWithContext(ctx, "GET", i.server.URL, nil)
	if resp, err := i.client.Do(req); err == nil {
		resp.Body.Close()
		t.Fatal("the request ended without an error")
	}
	select {
	case <-left:
	case <-time.After(patience):
		t.Fatal("the server never hears that the client has left")
	}
}

// BenchmarkHTTPS is a keep-alive request through TLS on both sides, over loopback, recorded.
func BenchmarkHTTPS(b *testing.B) {
	for _, size := range []int{1 << 10, 100 << 10} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			body := make([]byte, size)
			i := intercept(b, last{new(*flow.Flow)}, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Length", fmt.Sprint(size))
				_, _ = w.Write(body)
			}))
			b.ReportAllocs()
			for b.Loop() {
				resp, err := i.client.Get(i.server.URL)
				if err != nil {
					b.Fatal(err)
				}
				_, _ = io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
			}
		})
	}
}
