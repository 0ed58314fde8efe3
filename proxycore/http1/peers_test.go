package http1_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// proxy listens as an explicit proxy and serves what comes.
func proxy(t testing.TB, options ...string) (addr string, k *talk) {
	t.Helper()
	k = begin(t, setup{options: options, eager: true})
	return listen(t, k.core, k.handler), k
}

// TestNetHTTP sends random traffic between Go's own client and server.
func TestNetHTTP(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(echo))
	defer server.Close()
	addr, k := proxy(t, "stream_large_bodies=300k")
	transport := &http.Transport{Proxy: http.ProxyURL(&url.URL{Scheme: "http", Host: addr})}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport, Timeout: patience}
	var workers sync.WaitGroup
	for w := range 4 {
		workers.Go(func() {
			random := rand.New(rand.NewPCG(1, uint64(w)))
			for i := range 60 {
				if err := oneEcho(client, server.URL, random); err != nil {
					t.Errorf("worker %d, request %d: %v", w, i, err)
					return
				}
			}
		})
	}
	workers.Wait()
	transport.CloseIdleConnections()
	if !t.Failed() {
		k.flow(4*60 - 1)
	}
}

// echo sends a body back as it comes, with its sum in a trailer.
func echo(w http.ResponseWriter, r *http.Request) {
	if n := r.Header.Get("X-Length"); n != "" {
		w.Header().Set("Content-Length", n)
	} else {
		w.Header().Set("Trailer", "X-Sum")
	}
	_ = http.NewResponseController(w).EnableFullDuplex()
	sum := sha256.New()
	_, _ = io.Copy(w, io.TeeReader(r.Body, sum))
	if r.Header.Get("X-Length") == "" {
		w.Header().Set("X-Sum", fmt.Sprintf("%x", sum.Sum(nil)))
	}
}

func oneEcho(client *http.Client, base string, random *rand.Rand) error {
	size := random.IntN(1 << (4 + random.IntN(18)))
	body := make([]byte, size)
	for i := range body {
		body[i] = byte(random.Uint32())
	}
	var reader io.Reader = bytes.NewReader(body)
	announced := random.IntN(2) == 0
	if !announced {
		reader = io.MultiReader(reader) // hides the length
	}
	req, err := http.NewRequest("POST", base+"/echo", reader)
	if err != nil {
		return err
	}
	if announced {
		req.Header.Set("X-Length", fmt.Sprint(size))
	}
	if random.IntN(4) == 0 {
		req.Header.Set("Expect", "100-continue")
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	got, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if !bytes.Equal(got, body) {
		return fmt.Errorf("sent %d bytes, got %d others back", len(body), len(got))
	}
	if sum := fmt.Sprintf("%x", sha256.Sum256(body)); !announced && size > 0 && resp.Trailer.Get("X-Sum") != sum {
		return fmt.Errorf("trailer %q, want %q", resp.Trailer.Get("X-Sum"), sum)
	}
	return nil
}

// TestCurl through an explicit proxy: plain, by CONNECT, with a proxied upload, and HTTP/1.0.
func TestCurl(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n, _ := io.Copy(io.Discard, r.Body)
		fmt.Fprintf(w, "%s %s %d", r.Method, r.URL.Path, n)
	}))
	defer server.Close()
	addr, _ := proxy(t)
	file := filepath.Join(t.TempDir(), "upload")
	if err := os.WriteFile(file, make([]byte, 3<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{server.URL + "/a"}, "GET /a 0"},
		{[]string{server.URL + "/a", server.URL + "/b"}, "GET /a 0GET /b 0"},
		{[]string{"-p", server.URL + "/tunnel"}, "GET /tunnel 0"},
		{[]string{"-0", server.URL + "/old"}, "GET /old 0"},
		{[]string{"-T", file, server.URL + "/up"}, "PUT /up 3145728"},
		{[]string{"-T", file, "-H", "Transfer-Encoding: chunked", server.URL + "/up"}, "PUT /up 3145728"},
		{[]string{"--data-binary", "@" + file, server.URL + "/post"}, "POST /post 3145728"},
		{[]string{"-I", "-o", "/dev/null", "-w", "%{http_code}", server.URL + "/"}, "200"},
	} {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		out, err := exec.CommandContext(ctx, "curl", append([]string{"-sS", "--noproxy", "", "-x", "http://" + addr}, c.args...)...).CombinedOutput()
		cancel()
		if err != nil || string(out) != c.want {
			t.Errorf("curl %v: %q, %v; want %q", c.args, out, err, c.want)
		}
	}
}

// TestNginx as the server: keep-alive that it ends by itself, its error pages, ranges and gzip.
func TestNginx(t *testing.T) {
	nginx, err := exec.LookPath("nginx")
	if err != nil {
		nginx = "/usr/sbin/nginx"
	}
	dir := t.TempDir()
	port := closedPort(t)
	config := fmt.Sprintf(`daemon off; master_process off; error_log %[1]s/error.log; pid %[1]s/pid;
events {}
http { access_log off; client_body_temp_path %[1]s/b; proxy_temp_path %[1]s/p; fastcgi_temp_path %[1]s/f; uwsgi_temp_path %[1]s/u; scgi_temp_path %[1]s/s;
 keepalive_requests 3; gzip on; gzip_min_length 1; gzip_types *;
 server { listen %[2]s; root %[1]s; client_max_body_size 1k; } }`, dir, port)
	if err := os.WriteFile(filepath.Join(dir, "conf"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "page.txt"), bytes.Repeat([]byte("page "), 1000), 0o644); err != nil {
		t.Fatal(err)
	}
	_ = os.Chmod(dir, 0o755)
	cmd := exec.Command(nginx, "-c", filepath.Join(dir, "conf"), "-p", dir)
	if err := cmd.Start(); err != nil {
		t.Fatalf("nginx is needed for this test: %v", err)
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	waitFor(t, port)

	addr, _ := proxy(t)
	transport := &http.Transport{Proxy: http.ProxyURL(&url.URL{Scheme: "http", Host: addr})}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport, Timeout: patience}
	for i := range 10 { // more than nginx serves on one connection
		resp, err := client.Get("http://" + port + "/page.txt")
		if err != nil {
			t.Fatalf("request %d: %v", i, err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || len(body) != 5000 {
			t.Errorf("request %d: %d bytes, %v", i, len(body), err)
		}
	}
	resp, err := client.Post("http://"+port+"/page.txt", "text/plain", strings.NewReader(strings.Repeat("x", 5<<20)))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusRequestEntityTooLarge {
		t.Errorf("an upload that nginx refuses early ends with %s", resp.Status)
	}
}

func waitFor(t *testing.T, addr string) {
	t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if c, err := net.Dial("tcp", addr); err == nil {
			c.Close()
			return
		}
	}
	t.Fatalf("nobody listens on %s", addr)
}
