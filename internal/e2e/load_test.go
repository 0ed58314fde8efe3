//go:build linux

package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"mitm-appliance/flow"
	"mitm-appliance/internal/lab"
	"mitm-appliance/internal/netnstest"
)

// browser is an HTTP client on a host, with keep-alive connections, that trusts the appliance.
func (w *world) browser(h *netnstest.Host) *http.Client {
	w.t.Helper()
	pem, err := os.ReadFile(w.app.CA())
	if err != nil {
		w.t.Fatal(err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		w.t.Fatal("the appliance's CA is no certificate")
	}
	transport := &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: roots}, MaxIdleConnsPerHost: 100,
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			_, port, err := net.SplitHostPort(address)
			if err != nil {
				return nil, err
			}
			return h.Dial(ctx, network, net.JoinHostPort(lab.Web4, port))
		},
	}
	w.t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: patience}
}

// TestNothingRecordedIsLost stops the appliance under load: every answer that a client has got is in
// the file, once.
func TestNothingRecordedIsLost(t *testing.T) {
	const clients, least = 20, 500
	w := start(t, "-m", "transparent:"+lab.LAN)
	browser := w.browser(w.Laptop)
	var mu sync.Mutex
	got := map[string]bool{}
	var all sync.WaitGroup
	enough := make(chan struct{})
	ctx, leave := context.WithCancel(w.ctx)
	defer leave()
	for c := range clients {
		all.Go(func() {
			for n := 0; ; n++ {
				path := fmt.Sprintf("/bytes/%d?client=%d", 1000+n, c)
				request, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+lab.Web+path, nil)
				if err != nil {
					t.Error(err)
					return
				}
				answer, err := browser.Do(request)
				if err != nil {
					return // the appliance has stopped
				}
				body, err := io.ReadAll(answer.Body)
				_ = answer.Body.Close()
				if err != nil || answer.StatusCode != http.StatusOK || len(body) != 1000+n {
					return
				}
				mu.Lock()
				got[path] = true
				if len(got) == least {
					close(enough)
				}
				mu.Unlock()
			}
		})
	}
	select {
	case <-enough:
	case <-w.ctx.Done():
		t.Fatalf("only %d answers", len(got))
	}
	flows := w.stop()
	leave() // who still waits for an answer, waits in vain
	all.Wait()
	recorded := map[string]int{}
	for _, f := range flows {
		if f.HTTP != nil && f.HTTP.Response != nil {
			recorded[f.HTTP.Request.Path]++
		}
	}
	for path := range got {
		if recorded[path] != 1 {
			t.Errorf("%s is in the file %d times, want once", path, recorded[path])
		}
	}
	t.Logf("%d answers, %d flows", len(got), len(flows))
}

// TestUploads: bodies arrive as they were sent, whatever the framing.
func TestUploads(t *testing.T) {
	w := start(t, "-m", "transparent:"+lab.LAN)
	body := bytes.Repeat([]byte("0123456789abcdef"), 200_000)
	sum := sha256.Sum256(body)
	file := filepath.Join(t.TempDir(), "body")
	if err := os.WriteFile(file, body, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, args := range map[string][]string{
		"length":   {"--data-binary", "@" + file},
		"chunked":  {"-H", "Transfer-Encoding: chunked", "--data-binary", "@" + file},
		"expect":   {"-H", "Expect: 100-continue", "--data-binary", "@" + file},
		"HTTP/1.0": {"--http1.0", "--no-alpn", "--data-binary", "@" + file},
		"nothing":  {"-X", "POST", "-H", "Content-Length: 0"},
	} {
		want := sum
		if name == "nothing" {
			want = sha256.Sum256(nil)
		}
		for _, scheme := range []string{"http", "https"} {
			args := append([]string{"-H", "Content-Type: application/octet-stream", "-H", "X-Name: " + name}, args...)
			out, err := w.curl(append(args, scheme+"://"+lab.Web+"/echo")...)
			if err != nil || sha256.Sum256([]byte(out)) != want {
				t.Errorf("%s over %s: %v, %d bytes come back", name, scheme, err, len(out))
			}
		}
	}
	for _, f := range w.stop() {
		if f.HTTP == nil {
			continue
		}
		name, _ := f.HTTP.Request.Header.Lookup("x-name")
		if name != "nothing" && sha256.Sum256(f.HTTP.Request.Body.Data) != sum {
			t.Errorf("%s: %d bytes of the request were recorded, want %d", name, len(f.HTTP.Request.Body.Data), len(body))
		}
	}
}

// TestLocalCaptureDies: eBPF lets go when the process does, and the next appliance takes over.
func TestLocalCaptureDies(t *testing.T) {
	w := open(t)
	program := lab.Program{Args: []string{"-m", "local:curl"}}
	visit := func(ca string) error {
		out, err := w.Command(w.ctx, w.Gateway, "curl", "-sS", "--max-time", "20", "--cacert", ca, "https://"+lab.Web4Only+"/").CombinedOutput()
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	}
	for range 2 {
		w.launch(program)
		if err := visit(w.app.CA()); err != nil {
			t.Errorf("captured: %v", err)
		}
		w.app.Kill()
		if err := visit(w.CA); err != nil {
			t.Errorf("after its death: %v", err)
		}
	}
}

// TestPhoneSurvivesARestart: the tunnel comes back by itself after the server died.
func TestPhoneSurvivesARestart(t *testing.T) {
	w := open(t)
	path := built.path(t)
	dir, err := w.Prepare(w.ctx, path)
	if err != nil {
		t.Fatal(err)
	}
	program := lab.Program{Dir: dir, Args: []string{"-m", "wireguard"}}
	w.launch(program)
	if err := w.JoinPhone(w.ctx, path, dir); err != nil {
		t.Fatal(err)
	}
	visit := func() (string, error) {
		out, err := w.Command(w.ctx, w.Phone, "curl", "-sS", "--max-time", "40", "--cacert", w.app.CA(), "https://"+lab.Web+"/").CombinedOutput()
		return string(out), err
	}
	if out, err := visit(); err != nil {
		t.Fatal(err, out)
	}
	w.app.Kill()
	w.launch(program)
	begin := time.Now()
	eventually(t, "the phone to make a new handshake", func() bool { // 15 s, by WireGuard's timers
		out, err := visit()
		return err == nil && strings.HasPrefix(out, "Hello")
	})
	t.Logf("it took %v", time.Since(begin).Round(time.Millisecond))
	oneFlow(t, w.stop(), func(f *flow.Flow) bool { return f.HTTP != nil && f.Client.Tunnel == lab.PhoneName })
}
