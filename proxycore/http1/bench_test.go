package http1_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"

	"mitm-appliance/flow"
	"mitm-appliance/option"
	"mitm-appliance/proxycore"
	"mitm-appliance/proxycore/exchange"
	"mitm-appliance/proxycore/http1"
)

// BenchmarkExchange is one recorded keep-alive exchange in memory: no sockets, no scheduler, so what
// is measured is ours.
func BenchmarkExchange(b *testing.B) {
	for _, size := range []int{0, 1 << 10, 100 << 10} {
		b.Run(fmt.Sprintf("response=%d", size), func(b *testing.B) { benchMemory(b, size) })
	}
}

const browserGet = "GET /index.html?x=1 HTTP/1.1\r\nHost: example.com\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:130.0) Gecko/20100101 Firefox/130.0\r\n" +
	"Accept: text/html,application/xhtml+xml\r\nAccept-Language: en-US,en;q=0.5\r\nAccept-Encoding: gzip, deflate, br\r\nCookie: session=0123456789abcdef\r\nConnection: keep-alive\r\n\r\n"

func responseOf(size int) string {
	return fmt.Sprintf("HTTP/1.1 200 OK\r\nServer: nginx\r\nDate: Mon, 23 Nov 2026 08:00:00 GMT\r\nContent-Type: text/html\r\nContent-Length: %d\r\n"+
		"Last-Modified: Mon, 23 Nov 2026 07:00:00 GMT\r\nConnection: keep-alive\r\nETag: \"abc\"\r\nAccept-Ranges: bytes\r\n\r\n", size) + strings.Repeat("x", size)
}

func benchMemory(b *testing.B, size int) {
	b.ReportAllocs()
	b.SetBytes(int64(size))
	client, server := inMemory(b, b.N, browserGet, responseOf(size), b.ResetTimer)
	b.StopTimer()
	b.ReportMetric(float64(client.writes)/float64(b.N), "writes/op")
	b.ReportMetric(float64(server.writes)/float64(b.N), "upstreamWrites/op")
}

// TestCosts keeps small exchanges cheap: one write each way, and few allocations.
func TestCosts(t *testing.T) {
	const n, most = 2000, 20
	post := "POST / HTTP/1.1\r\nHost: example.com\r\nContent-Length: 1000\r\n\r\n" + strings.Repeat("x", 1000)
	var before, after runtime.MemStats
	client, server := inMemory(t, n, post, responseOf(1000), func() { runtime.ReadMemStats(&before) })
	runtime.ReadMemStats(&after)
	if client.writes != n || server.writes != n {
		t.Errorf("%d exchanges took %d writes to the client and %d to the server", n, client.writes, server.writes)
	}
	if allocs := (after.Mallocs - before.Mallocs) / n; allocs > most && !raceDetector {
		t.Errorf("an exchange takes %d allocations, want at most %d", allocs, most)
	}
}

// inMemory runs n recorded keep-alive exchanges without sockets.
func inMemory(t testing.TB, n int, request, response string, begun func()) (client, server *scripted) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	reg := option.New()
	coreOpts, exOpts := proxycore.DeclareOptions(reg), exchange.DeclareOptions(reg)
	framing := http1.New(http1.Config{})
	svc := exchange.New(exchange.Config{Options: exOpts, NewServer: framing.NewServer(exOpts)})
	h := framing.Handler(svc)
	core := proxycore.New(proxycore.Config{Options: coreOpts, Recorder: last{new(*flow.Flow)}})
	target := flow.Address{Host: "127.0.0.1", Port: uint16(ln.Addr().(*net.TCPAddr).Port)}
	client = &scripted{piece: []byte(request), left: n}
	server = &scripted{piece: []byte(response), left: n}
	first := proxycore.HandlerFunc(func(ctx context.Context, s *proxycore.Session) error {
		sc, err := s.Dial(ctx, proxycore.Route{Address: target}) // a real one, whose stream is replaced
		if err != nil {
			return err
		}
		sc.Conn, s.Server = server, sc
		begun()
		return h.Serve(ctx, s)
	})
	core.Serve(context.Background(), proxycore.Inbound{
		Network: "tcp", Client: &flow.Client{}, Target: target, First: first, LazyUpstream: true,
		Accept: func(context.Context) (proxycore.Conn, error) { return client, nil },
	})
	if client.writes < n {
		t.Fatalf("%d answers to %d requests", client.writes, n)
	}
	return client, server
}

// scripted reads the same piece again and again and counts what is written.
type scripted struct {
	piece  []byte
	r      bytes.Reader
	left   int
	writes int
}

func (s *scripted) Read(p []byte) (int, error) {
	if s.r.Len() == 0 {
		if s.left == 0 {
			return 0, io.EOF
		}
		s.left--
		s.r.Reset(s.piece)
	}
	return s.r.Read(p)
}
func (s *scripted) Write(p []byte) (int, error)      { s.writes++; return len(p), nil }
func (s *scripted) Close() error                     { return nil }
func (s *scripted) CloseWrite() error                { return nil }
func (s *scripted) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (s *scripted) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
func (s *scripted) SetDeadline(time.Time) error      { return nil }
func (s *scripted) SetReadDeadline(time.Time) error  { return nil }
func (s *scripted) SetWriteDeadline(time.Time) error { return nil }

// last keeps only the newest flow: recording without the store's costs.
type last struct{ f **flow.Flow }

func (l last) Record(f *flow.Flow, _ *proxycore.LiveFlow) { *l.f = f }

// BenchmarkLoopback is the same through the kernel: client, core and server in one process.
func BenchmarkLoopback(b *testing.B) {
	for _, size := range []int{1 << 10, 100 << 10} {
		b.Run(fmt.Sprintf("response=%d", size), func(b *testing.B) {
			k := begin(b, setup{transparent: true})
			k.accept2()
			request, response := []byte(browserGet), []byte(responseOf(size))
			go func() {
				buf := make([]byte, 64<<10)
				for {
					if _, err := k.server.Read(buf); err != nil {
						return
					}
					if _, err := k.server.Write(response); err != nil {
						return
					}
				}
			}()
			answer := make([]byte, len(response))
			b.ReportAllocs()
			b.ResetTimer()
			for range b.N {
				_, _ = k.client.Write(request)
				if _, err := io.ReadFull(k.client, answer); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// accept2 opens the server connection by a first exchange.
func (k *talk) accept2() {
	k.clientSends(get)
	k.serverGets(get)
	k.serverSends("HTTP/1.1 204 \r\n\r\n")
	k.clientGets("HTTP/1.1 204 \r\n\r\n")
	_, _ = k.client.SetReadDeadline(time.Time{}), k.server.SetReadDeadline(time.Time{})
}
