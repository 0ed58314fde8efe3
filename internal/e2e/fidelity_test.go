//go:build linux

package e2e

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"

	"mitm-appliance/flow"
	"mitm-appliance/internal/lab"
	"mitm-appliance/internal/netnstest"
)

// addr is HOST:PORT.
func addr(ip string, port int) string { return net.JoinHostPort(ip, fmt.Sprint(port)) }

// behind runs a test on the laptop behind transparent mode and on the phone in its tunnel.
func behind(t *testing.T, test func(t *testing.T, w *world, client *netnstest.Host)) {
	w := open(t)
	program := built.path(t)
	dir, err := w.Prepare(w.ctx, program)
	if err != nil {
		t.Fatal(err)
	}
	w.launch(lab.Program{Dir: dir, Args: []string{"-m", "transparent:" + lab.LAN, "-m", "wireguard"}})
	if err := w.JoinPhone(w.ctx, program, dir); err != nil {
		t.Fatal(err)
	}
	t.Run("transparent", func(t *testing.T) { test(t, w, w.Laptop) })
	t.Run("wireguard", func(t *testing.T) { test(t, w, w.Phone) })
	w.stop()
}

// TestClientsSeeTheRealNetwork: what the Internet does to a connection is what the client sees, as if
// nobody were between them.
func TestClientsSeeTheRealNetwork(t *testing.T) {
	behind(t, func(t *testing.T, w *world, client *netnstest.Host) {
		for _, ip := range []string{lab.Web4, lab.Web6} {
			begin := time.Now()
			c, err := client.Dial(w.ctx, "tcp", addr(ip, lab.ClosedPort))
			if !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("a closed port of %s: got %v, %v; want a refusal", ip, c, err)
			}
			if took := time.Since(begin); took > 5*time.Second {
				t.Errorf("the refusal of %s took %v", ip, took)
			}
			speaksFirst(t, w.ctx, client, ip)
			udpRefused(t, w.ctx, client, ip)
		}
		for _, ip := range []string{lab.Silent4, lab.Silent6} {
			ctx, cancel := context.WithTimeout(w.ctx, 1500*time.Millisecond)
			c, err := client.Dial(ctx, "tcp", addr(ip, 80))
			cancel()
			var timeout net.Error
			if !errors.As(err, &timeout) || !timeout.Timeout() {
				t.Errorf("the silent %s: got %v, %v; want silence", ip, c, err)
			}
		}
	})
}

// speaksFirst reads the banner of a server that talks before its client.
func speaksFirst(t *testing.T, ctx context.Context, client *netnstest.Host, ip string) {
	t.Helper()
	c, err := client.Dial(ctx, "tcp", addr(ip, lab.SSHPort))
	if err != nil {
		t.Error(err)
		return
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	begin := time.Now()
	got := make([]byte, len(lab.Banner))
	if _, err := io.ReadFull(c, got); err != nil || string(got) != lab.Banner {
		t.Errorf("the banner of %s: got %q, %v", ip, got, err)
	}
	if took := time.Since(begin); took > 2*time.Second {
		t.Errorf("the banner of %s took %v", ip, took)
	}
	if _, err := io.WriteString(c, "SSH-2.0-me\r\n"); err != nil {
		t.Error(err)
	}
	if _, err := io.ReadFull(c, got[:12]); err != nil || string(got[:12]) != "SSH-2.0-me\r\n" {
		t.Errorf("%s after the banner: got %q, %v", ip, got[:12], err)
	}
}

// udpRefused asks a UDP port where nobody listens.
func udpRefused(t *testing.T, ctx context.Context, client *netnstest.Host, ip string) {
	t.Helper()
	c, err := client.Dial(ctx, "udp", addr(ip, lab.ClosedPort))
	if err != nil {
		t.Error(err)
		return
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := c.Write([]byte("anybody?")); err != nil {
		t.Error(err)
	}
	if _, err := c.Read(make([]byte, 10)); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("a closed UDP port of %s: got %v, want a refusal", ip, err)
	}
}

// TestQUICIsRefused: HTTP/3 clients learn at once that there is no QUIC, and fall back to TCP.
func TestQUICIsRefused(t *testing.T) {
	behind(t, func(t *testing.T, w *world, client *netnstest.Host) {
		for _, ip := range []string{lab.Web4, lab.Web6} {
			if err := dialQUIC(w.ctx, w.Gateway, ip); err != nil {
				t.Fatalf("the server speaks no QUIC, so nothing is proved: %v", err)
			}
			begin := time.Now()
			err := dialQUIC(w.ctx, client, ip)
			if !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("QUIC to %s: got %v, want a refusal", ip, err)
			}
			if took := time.Since(begin); took > 3*time.Second {
				t.Errorf("the refusal of %s took %v", ip, took)
			}
		}
	})
}

// dialQUIC makes a QUIC handshake over a connected socket, which hears of refusals.
func dialQUIC(ctx context.Context, h *netnstest.Host, ip string) error {
	c, err := h.Dial(ctx, "udp", addr(ip, 443))
	if err != nil {
		return err
	}
	defer c.Close()
	transport := &quic.Transport{Conn: connected{c}}
	defer transport.Close()
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	q, err := transport.Dial(ctx, c.RemoteAddr(), &tls.Config{
		ServerName: lab.Web, InsecureSkipVerify: true, NextProtos: []string{http3.NextProtoH3},
	}, nil)
	if err == nil {
		_ = q.CloseWithError(0, "")
	}
	return err
}

// connected is a connected socket as quic-go wants it.
type connected struct{ net.Conn }

func (c connected) ReadFrom(b []byte) (int, net.Addr, error) {
	n, err := c.Read(b)
	return n, c.RemoteAddr(), err
}

func (c connected) WriteTo(b []byte, _ net.Addr) (int, error) { return c.Write(b) }

// TestIgnoredHostsKeepTheirCertificate: what ignore_hosts names passes undecrypted and unrecorded.
func TestIgnoredHostsKeepTheirCertificate(t *testing.T) {
	w := start(t, "-m", "transparent:"+lab.LAN, "--ignore-hosts", `^www\.lab\.test:443$`)
	for _, family := range []string{"-4", "-6"} {
		out, err := w.curl(family, "--cacert", w.CA, "https://"+lab.Web+"/")
		if err != nil || !strings.Contains(out, "Hello from") {
			t.Errorf("with the server's own CA: %v, %s", err, out)
		}
		if out, err := w.curl(family, "https://"+lab.Web+"/"); err == nil {
			t.Errorf("the appliance's CA vouched for a connection that it must not touch: %s", out)
		}
	}
	if out, err := w.curl("http://" + lab.Web + "/"); err != nil {
		t.Errorf("port 80 is not ignored: %v, %s", err, out)
	}
	flows := w.stop()
	oneFlow(t, flows, func(f *flow.Flow) bool { return f.HTTP != nil })
}

// TestUntrustedServer: a certificate that nobody vouches for becomes an error page that says so.
func TestUntrustedServer(t *testing.T) {
	w := start(t, "-m", "transparent:"+lab.LAN)
	out, err := w.curl("-w", "%{http_code}", "https://"+lab.Untrusted+"/")
	if err != nil || !strings.HasSuffix(out, "502") || !strings.Contains(out, "certificate") {
		t.Errorf("got %v and %q; want a 502 page about the certificate", err, out)
	}
	f := oneFlow(t, w.stop(), url("https://"+lab.Untrusted+"/"))
	if f.Error == nil || !strings.Contains(f.Error.Message, "certificate") {
		t.Errorf("the flow's error is %v; want the reason", f.Error)
	}
}

// TestInsecureOnRequest: -k turns verification off.
func TestInsecureOnRequest(t *testing.T) {
	w := start(t, "-m", "transparent:"+lab.LAN, "-k")
	if out, err := w.curl("https://" + lab.Untrusted + "/"); err != nil || out != "Hello from "+lab.Untrusted+".\n" {
		t.Errorf("got %q, %v", out, err)
	}
}

// TestNamesThatDoNotExist: the proxy's own look-up fails in words.
func TestNamesThatDoNotExist(t *testing.T) {
	w := start(t, "-m", "regular@8080")
	proxy := "http://" + addr(lab.GatewayLAN4, 8080)
	out, err := w.curl("-x", proxy, "-w", "%{http_code}", "http://nowhere.lab.test/")
	if err != nil || !strings.HasSuffix(out, "502") || !strings.Contains(out, "nowhere.lab.test") {
		t.Errorf("HTTP: got %q, %v; want a 502 that names the host", out, err)
	}
	if out, err := w.curl("-x", proxy, "https://nowhere.lab.test/"); err == nil {
		t.Errorf("HTTPS: got %q; want an error", out)
	}
	flows := w.stop()
	f := oneFlow(t, flows, url("http://nowhere.lab.test/"))
	if f.Error == nil || !strings.Contains(f.Error.Message, "nowhere.lab.test") {
		t.Errorf("the flow's error is %v; want one that names the host", f.Error)
	}
}

// TestLargeDownload: 200 MB through interception neither fill the memory nor change.
func TestLargeDownload(t *testing.T) {
	const size, most = 200_000_000, 400 << 20
	w := start(t, "-m", "transparent:"+lab.LAN, "--set", "stream_large_bodies=1m")
	url200 := fmt.Sprintf("https://%s/bytes/%d", lab.Web, size)
	out, err := w.curl("-o", "/dev/null", "-w", "%{size_download} %{http_code}", url200)
	if err != nil || out != fmt.Sprintf("%d 200", size) {
		t.Errorf("got %q, %v", out, err)
	}
	if peak := peakRSS(t, w.app.PID()); peak > most {
		t.Errorf("the appliance took %d MiB, want at most %d", peak>>20, most>>20)
	} else {
		t.Logf("peak memory: %d MiB", peak>>20)
	}
	f := oneFlow(t, w.stop(), url(url200))
	if f.HTTP.Response.Body.Size != size {
		t.Errorf("the flow counts %d bytes, want %d", f.HTTP.Response.Body.Size, size)
	}
}

// peakRSS is the most memory that a process has ever held, in bytes.
func peakRSS(t testing.TB, pid int) int64 { return statusField(t, pid, "VmHWM") << 10 }

// statusField is a number from /proc/PID/status.
func statusField(t testing.TB, pid int, name string) (n int64) {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		if value, ok := strings.CutPrefix(line, name+":"); ok {
			if _, err := fmt.Sscan(value, &n); err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatalf("%s is not in the status of process %d", name, pid)
	return 0
}
