package tlsmitm_test

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"sync/atomic"
	"testing"

	"mitm-appliance/flow"
	"mitm-appliance/proxycore"
)

// countingConn counts what would be system calls.
type countingConn struct {
	*net.TCPConn
	reads, writes atomic.Int64
}

func (c *countingConn) Read(b []byte) (int, error) {
	c.reads.Add(1)
	return c.TCPConn.Read(b)
}

func (c *countingConn) Write(b []byte) (int, error) {
	c.writes.Add(1)
	return c.TCPConn.Write(b)
}

// counted is connect with our end of the client's connection counted.
func (l *lab) counted(target flow.Address) (*tls.Conn, *countingConn) {
	l.t.Helper()
	client, ours := tcpPair(l.t)
	conn := &countingConn{TCPConn: ours}
	l.serve.Add(1)
	go func() {
		defer l.serve.Done()
		l.core.Serve(context.Background(), proxycore.Inbound{
			Network: "tcp", Target: target, Client: &flow.Client{},
			Accept: func(context.Context) (proxycore.Conn, error) { return conn, nil },
		})
	}()
	c := tls.Client(client, l.clientConfig("example.test"))
	check(l.t, c.Handshake())
	return c, conn
}

func TestFewSystemCalls(t *testing.T) {
	l := newLab(t, labConfig{})
	c, conn := l.counted(l.echo(l.serverConfig("example.test")))
	ping := func(size int) {
		message := make([]byte, size)
		copy(message, "GET / HTTP/1.1\r\n\r\n")
		_, err := c.Write(message)
		check(t, err)
		_, err = io.ReadFull(c, message)
		check(t, err)
	}
	_, err := io.WriteString(c, "GET / HTTP/1.1\r\n\r\n")
	check(t, err)
	line(t, c)
	_, err = io.ReadFull(c, make([]byte, 18))
	check(t, err)

	ping(900) // buffers grow
	reads, writes := conn.reads.Load(), conn.writes.Load()
	const pings = 20
	for range pings {
		ping(900)
	}
	if r, w := conn.reads.Load()-reads, conn.writes.Load()-writes; r > pings+1 || w != pings {
		t.Errorf("%d small exchanges took %d reads and %d writes", pings, r, w)
	}
}

func TestLargeWritesAreBatched(t *testing.T) {
	const size = 100 << 10
	body := make([]byte, size)
	l := newLab(t, labConfig{http1: proxycore.HandlerFunc(func(_ context.Context, s *proxycore.Session) error {
		_, err := s.Conn.Write(body)
		return err
	})})
	c, conn := l.counted(l.echo(l.serverConfig("example.test")))
	before := conn.writes.Load()
	_, err := io.WriteString(c, "GET / HTTP/1.1\r\n\r\n")
	check(t, err)
	got, err := io.ReadAll(c)
	if err != nil || len(got) != size {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if n := conn.writes.Load() - before; n > 3 { // two batches and close_notify
		t.Errorf("%d bytes took %d writes", size, n)
	}
}

func TestEndIsAnnounced(t *testing.T) {
	// OpenSSL's clients take a stream without close_notify for truncated. In TLS 1.2 an alert's record
	// shows what it is.
	l := newLab(t, labConfig{http1: proxycore.HandlerFunc(func(_ context.Context, s *proxycore.Session) error {
		_, err := io.WriteString(s.Conn, "HTTP/1.0 200 OK\r\n\r\n")
		return err
	})})
	raw := &tap{Conn: l.inbound(l.echo(l.serverConfig("example.test")))}
	cfg := l.clientConfig("example.test")
	cfg.MaxVersion = tls.VersionTLS12
	c := tls.Client(raw, cfg)
	_, err := io.WriteString(c, "GET / HTTP/1.1\r\n\r\n")
	check(t, err)
	_, err = io.ReadAll(c)
	check(t, err)
	last := byte(0)
	for b := raw.read.Bytes(); len(b) >= 5; b = b[5+int(b[3])<<8+int(b[4]):] {
		last = b[0]
	}
	if last != 21 {
		t.Errorf("the last record has type %d", last)
	}
}
