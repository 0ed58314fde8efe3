package tlsmitm_test

import (
	"crypto/tls"
	"io"
	"testing"
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
