//go:build linux

package e2e

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"mitm-appliance/flow"
	"mitm-appliance/internal/lab"
)

// stillServes checks that others are served while or after somebody misbehaves.
func (w *world) stillServes() {
	w.t.Helper()
	for _, u := range []string{"http://" + lab.Web + "/", "https://" + lab.Web + "/"} {
		if out, err := w.curl(u); err != nil || out != "Hello from "+lab.Web+".\n" {
			w.t.Errorf("a good client is not served: %v, %q", err, out)
		}
	}
}

// openFiles is how many file descriptors the appliance has.
func (w *world) openFiles() int {
	w.t.Helper()
	list, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", w.app.PID()))
	if err != nil {
		w.t.Fatal(err)
	}
	return len(list)
}

// settled waits until the appliance has as few descriptors as before, with some room for what it keeps.
func (w *world) settled(before int) {
	w.t.Helper()
	const room = 8
	for end := time.Now().Add(patience); w.openFiles() > before+room; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			w.t.Fatalf("%d descriptors are open, %d were before", w.openFiles(), before)
		}
	}
}

// clientHello is the first flight of a TLS client.
func clientHello(t testing.TB, name string) []byte {
	t.Helper()
	near, far := net.Pipe()
	defer near.Close()
	go func() {
		_ = tls.Client(far, &tls.Config{ServerName: name}).Handshake() // ends with near
		_ = far.Close()
	}()
	head := make([]byte, 5)
	if _, err := io.ReadFull(near, head); err != nil {
		t.Fatal(err)
	}
	body := make([]byte, binary.BigEndian.Uint16(head[3:]))
	if _, err := io.ReadFull(near, body); err != nil {
		t.Fatal(err)
	}
	return append(head, body...)
}

// TestHandshakesThatBreak: clients that reset or leave at any byte of their hello cost nothing that
// stays.
func TestHandshakesThatBreak(t *testing.T) {
	w := start(t, "-m", "transparent:"+lab.LAN)
	w.stillServes()
	before := w.openFiles()
	hello := clientHello(t, lab.Web)
	var clients sync.WaitGroup
	slots := make(chan struct{}, 32)
	for n := 0; n <= len(hello); n += 3 {
		for _, linger := range []int{0, -1} { // reset, and orderly end
			slots <- struct{}{}
			clients.Go(func() {
				defer func() { <-slots }()
				c, err := w.Laptop.Dial(w.ctx, "tcp", addr(lab.Web4, 443))
				if err != nil {
					t.Error(err)
					return
				}
				_, _ = c.Write(hello[:n])
				_ = c.(*net.TCPConn).SetLinger(linger)
				_ = c.Close()
			})
		}
	}
	clients.Wait()
	w.settled(before)
	w.stillServes()
	w.stop()
}

// TestGarbage: what begins like nothing, or like something and goes on otherwise, is relayed or refused,
// and the appliance lives.
func TestGarbage(t *testing.T) {
	w := start(t, "-m", "transparent:"+lab.LAN, "-m", "regular@8080")
	random := make([]byte, 4096)
	src := rand.NewChaCha8([32]byte{7})
	_, _ = src.Read(random)
	hello := clientHello(t, lab.Web)
	broken := bytes.Clone(hello)
	broken[len(broken)/2] ^= 0xff
	starts := [][]byte{
		random,
		{0},
		{0x16},
		{0x16, 3, 1},
		{0x16, 3, 1, 0xff, 0xff},
		broken, append(hello[:60:60], random...), hello[:len(hello)-1],
		[]byte("GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
		[]byte("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"), []byte("GET /\x00 HTTP/1.1\r\nHost: x\r\n\r\n"),
		[]byte("GET " + strings.Repeat("/", 1<<20)), []byte("GET / HTTP/1.1\r\nA: " + strings.Repeat("b", 1<<20)),
		[]byte("POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffffffffff\r\n"),
		[]byte("CONNECT : HTTP/1.1\r\n\r\n"), []byte("CONNECT [::1:99999 HTTP/1.1\r\n\r\n"), []byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + string(random)),
		[]byte("SSH-2.0-\xff\xfe\r\n"), []byte("\r\n\r\n\r\n\r\n"),
		{5, 1, 0},
	}
	var clients sync.WaitGroup
	for i, first := range starts {
		for _, to := range []string{addr(lab.Web4, 80), addr(lab.Web6, 443), addr(lab.Web4, lab.EchoPort), addr(lab.GatewayLAN4, 8080)} {
			clients.Go(func() {
				c, err := w.Laptop.Dial(w.ctx, "tcp", to)
				if err != nil {
					t.Error(err)
					return
				}
				defer c.Close()
				_ = c.SetDeadline(time.Now().Add(patience))
				_, _ = c.Write(first) // it may be refused before all is there
				_ = c.(*net.TCPConn).CloseWrite()
				if _, err := io.Copy(io.Discard, c); errors.Is(err, os.ErrDeadlineExceeded) {
					t.Errorf("start %d to %s: no end after %v", i, to, patience)
				}
			})
		}
	}
	for range 200 { // datagrams to everywhere
		n := rand.IntN(1400)
		for _, to := range []string{addr(lab.Web4, 443), addr(lab.DNS4, 53), addr(lab.Web6, lab.EchoPort)} {
			if c, err := w.Laptop.Dial(w.ctx, "udp", to); err == nil {
				_, _ = c.Write(random[rand.IntN(1000):][:n])
				_ = c.Close()
			}
		}
	}
	clients.Wait()
	w.stillServes()
	w.stop()
}

// TestStalls: hundreds of clients that stop in the middle of something hinder nobody.
func TestStalls(t *testing.T) {
	w := start(t, "-m", "transparent:"+lab.LAN)
	w.stillServes()
	before := w.openFiles()
	hello := clientHello(t, lab.Web)
	for i := range 300 {
		c, err := w.Laptop.Dial(w.ctx, "tcp", addr(lab.Web4, []int{443, 80, lab.EchoPort}[i%3]))
		if err != nil {
			t.Fatal(err)
		}
		start := [][]byte{hello[:len(hello)/2], []byte("GET / HTTP/1.1\r\nHost: sl"), {}}[i%3]
		if _, err := c.Write(start); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
	}
	reader, err := w.Laptop.Dial(w.ctx, "tcp", addr(lab.Web4, 80)) // asks for much and reads nothing
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	if _, err := io.WriteString(reader, "GET /bytes/100000000 HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	w.stillServes()
	if w.openFiles() < before+200 {
		t.Errorf("only %d descriptors: the clients do not stall, so nothing is proved", w.openFiles())
	}
	begin := time.Now()
	w.stop()
	if took := time.Since(begin); took > 12*time.Second {
		t.Errorf("the end took %v", took)
	}
}

// TestHalfClose: each side may stop talking and go on listening, in each order.
func TestHalfClose(t *testing.T) {
	w := open(t)
	err := errors.Join(
		w.ServeTCP(w.Internet, ":9001", func(c net.Conn) { // reads to the end, then answers
			all, _ := io.ReadAll(c)
			_, _ = fmt.Fprintf(c, "%d bytes", len(all))
		}),
		w.ServeTCP(w.Internet, ":9002", func(c net.Conn) { // talks and closes its side, then reads
			_, _ = io.WriteString(c, "bye")
			_ = c.(*net.TCPConn).CloseWrite()
			all, _ := io.ReadAll(c)
			if len(all) != 100_000 {
				t.Errorf("the server that closed first got %d bytes, want 100000", len(all))
			}
		}),
		w.ServeTCP(w.Internet, ":9003", func(c net.Conn) { // resets at the first byte
			_, _ = c.Read(make([]byte, 1))
			_ = c.(*net.TCPConn).SetLinger(0)
		}),
	)
	if err != nil {
		t.Fatal(err)
	}
	w.launch(lab.Program{Args: []string{"-m", "transparent:" + lab.LAN}})
	dial := func(port int) *net.TCPConn {
		c, err := w.Laptop.Dial(w.ctx, "tcp", addr(lab.Web6, port))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		_ = c.SetDeadline(time.Now().Add(patience))
		return c.(*net.TCPConn)
	}
	long := bytes.Repeat([]byte("x"), 100_000)

	c := dial(9001) // the client first
	if _, err := c.Write(long); err != nil {
		t.Fatal(err)
	}
	_ = c.CloseWrite()
	if got, err := io.ReadAll(c); err != nil || string(got) != "100000 bytes" {
		t.Errorf("after the client's half-close: got %q, %v", got, err)
	}

	c = dial(9002) // the server first
	if got, err := io.ReadAll(c); err != nil || string(got) != "bye" {
		t.Errorf("after the server's half-close: got %q, %v", got, err)
	}
	if _, err := c.Write(long); err != nil {
		t.Errorf("after the server's half-close: %v", err)
	}
	_ = c.Close()

	c = dial(9003)
	if _, err := c.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if n, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the server's reset arrives as %d, %v", n, err)
	}
	flows := w.stop()
	for port, want := range map[uint16]string{9001: "", 9002: "", 9003: "reset"} {
		f := oneFlow(t, flows, func(f *flow.Flow) bool { return f.Client.Local.Port() == port })
		if got := fmt.Sprint(f.Error); (f.Error == nil) != (want == "") || f.Error != nil && !strings.Contains(f.Error.Message, want) {
			t.Errorf("port %d: the flow's error is %s, want %q", port, got, want)
		}
	}
}

// TestServersThatVanish: when a server resets or stops in the middle of an answer, no client takes half
// of it for all, and the flow says why.
func TestServersThatVanish(t *testing.T) {
	for _, streamed := range []bool{false, true} {
		t.Run(fmt.Sprintf("streamed %v", streamed), func(t *testing.T) {
			args := []string{"-m", "transparent:" + lab.LAN}
			if streamed {
				args = append(args, "--set", "stream_large_bodies=10k")
			}
			w := start(t, args...)
			for _, scheme := range []string{"http", "https"} {
				site := scheme + "://" + lab.Web
				out, err := w.curl("-o", "/dev/null", "-w", "%{http_code}", site+"/cut/1000000")
				if streamed && err == nil || !streamed && (err != nil || out != "502") {
					t.Errorf("%s: got %v, %s; want a 502 page, or an error once the answer has begun", scheme, err, out)
				}
				if out, err := w.curl("--max-time", "2", "-o", "/dev/null", site+"/stall/1000000"); err == nil {
					t.Errorf("%s: curl took half an answer for a whole one: %s", scheme, out)
				}
			}
			w.stillServes()
			flows := w.stop()
			for _, scheme := range []string{"http", "https"} {
				for _, path := range []string{"/cut/1000000", "/stall/1000000"} {
					f := oneFlow(t, flows, url(scheme+"://"+lab.Web+path))
					if f.Error == nil {
						t.Errorf("%s%s: the flow has no error", scheme, path)
					}
				}
			}
		})
	}
}

// TestFlood: ten times more half-open connections than there is room for. Good clients get their turn,
// memory stays bounded.
func TestFlood(t *testing.T) {
	const budget, most = 4096, 300 << 20
	w := start(t, "-m", "transparent:"+lab.LAN)
	w.stillServes()
	if err := w.Laptop.Do(func() error { return flood(w.ctx, 10*budget) }); err != nil {
		t.Fatal(err)
	}
	w.stillServes()
	if peak := peakRSS(t, w.app.PID()); peak > most {
		t.Errorf("the appliance took %d MiB, want at most %d", peak>>20, most>>20)
	} else {
		t.Logf("peak memory: %d MiB", peak>>20)
	}
	if !strings.Contains(w.app.Log(), "limit") {
		t.Error("the log says nothing of a limit that was reached")
	}
	w.stop()
}

// flood sends SYNs from many addresses of the LAN to a host that never answers.
func flood(ctx context.Context, n int) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_RAW)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	to := &unix.SockaddrInet4{Addr: [4]byte(net.ParseIP(lab.Silent4).To4())}
	for i := range n {
		if err := ctx.Err(); err != nil {
			return err
		}
		src := [4]byte{192, 168, 50, byte(3 + i%250)}
		packet := syn(src, to.Addr, uint16(1024+i/250*7), 80)
		if err := unix.Sendto(fd, packet, 0, to); err != nil && !errors.Is(err, unix.ENOBUFS) {
			return err
		}
	}
	return nil
}

// syn is an IPv4 packet with a TCP SYN (RFC 791, RFC 9293).
func syn(src, dst [4]byte, from, to uint16) []byte {
	p := make([]byte, 40)
	p[0], p[8], p[9] = 0x45, 64, unix.IPPROTO_TCP // the kernel fills in length, id and checksum
	copy(p[12:], src[:])
	copy(p[16:], dst[:])
	tcp := p[20:]
	binary.BigEndian.PutUint16(tcp, from)
	binary.BigEndian.PutUint16(tcp[2:], to)
	binary.BigEndian.PutUint32(tcp[4:], rand.Uint32())
	tcp[12], tcp[13] = 5<<4, 2
	binary.BigEndian.PutUint16(tcp[14:], 65535)
	sum := uint32(unix.IPPROTO_TCP + len(tcp))
	for _, part := range [][]byte{p[12:20], tcp} {
		for i := 0; i < len(part); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(part[i:]))
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(tcp[16:], ^uint16(sum))
	return p
}
