package tlsmitm_test

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"testing"

	"mitm-appliance/proxycore"
)

// BenchmarkConnection is one intercepted connection with a handshake on each side, against the same
// client and server without anything between them.
func BenchmarkConnection(b *testing.B) {
	l := newLab(b, labConfig{})
	cfg := l.serverConfig("example.test")
	target := l.echo(cfg)
	talk := func(b *testing.B, c *tls.Conn) {
		_, err := io.WriteString(c, "GET / HTTP/1.1\r\n\r\n")
		check(b, err)
		line(b, c)
		c.Close()
	}
	b.Run("intercepted", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			c, err := l.connect(target, l.clientConfig("example.test"))
			check(b, err)
			talk(b, c)
		}
	})
	b.Run("client side only", func(b *testing.B) { // what a proxy costs that keeps its connections to servers
		alone := newLab(b, labConfig{
			options: []string{"upstream_cert=false", "connection_strategy=lazy"},
			http1: proxycore.HandlerFunc(func(_ context.Context, s *proxycore.Session) error {
				_, err := io.WriteString(s.Conn, "hello\n")
				return err
			}),
		})
		b.ReportAllocs()
		for b.Loop() {
			c, err := alone.connect(target, alone.clientConfig("example.test"))
			check(b, err)
			talk(b, c)
		}
	})
	b.Run("direct", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			mine := l.clientConfig("example.test")
			mine.RootCAs.AddCert(l.inet.cert)
			c, err := tls.Dial("tcp", target.String(), mine)
			check(b, err)
			talk(b, c)
		}
	})
}

// BenchmarkStream moves bulk data from a server to a client, through the handler and without it.
func BenchmarkStream(b *testing.B) {
	const size = 64 << 20
	l := newLab(b, labConfig{})
	cfg := l.serverConfig("example.test")
	block := make([]byte, 128<<10)
	target := l.server(func(c net.Conn) {
		t := tls.Server(c, cfg)
		if _, err := t.Read(make([]byte, 64)); err != nil {
			return
		}
		for range size / len(block) {
			if _, err := t.Write(block); err != nil {
				return
			}
		}
		_ = t.CloseWrite()
	})
	fetch := func(b *testing.B, c *tls.Conn) {
		_, err := io.WriteString(c, "GET / HTTP/1.1\r\n\r\n")
		check(b, err)
		n, err := io.Copy(io.Discard, c)
		if n != size {
			b.Fatalf("%d bytes, %v", n, err)
		}
		c.Close()
	}
	b.Run("intercepted", func(b *testing.B) {
		b.SetBytes(size)
		for b.Loop() {
			c, err := l.connect(target, l.clientConfig("example.test"))
			check(b, err)
			fetch(b, c)
		}
	})
	b.Run("direct", func(b *testing.B) {
		b.SetBytes(size)
		for b.Loop() {
			mine := l.clientConfig("example.test")
			mine.RootCAs.AddCert(l.inet.cert)
			c, err := tls.Dial("tcp", target.String(), mine)
			check(b, err)
			fetch(b, c)
		}
	})
}
