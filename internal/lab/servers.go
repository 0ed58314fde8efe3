//go:build linux

package lab

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/quic-go/quic-go/http3"

	"mitm-appliance/internal/netnstest"
)

// Names of the Internet's hosts. Each has an IPv4 and an IPv6 address; servers run on all of them.
const (
	Web       = "www.lab.test"       // HTTP, HTTPS, HTTP/3, SSH banner, TCP and UDP echo
	Web4Only  = "www4.lab.test"      // the same by IPv4 only
	Web6Only  = "www6.lab.test"      // the same by IPv6 only
	API       = "api.lab.test"       // the same again, asked for by dig only
	Untrusted = "untrusted.lab.test" // HTTPS with a certificate that nobody trusts
	Silent    = "silent.lab.test"    // takes packets and never answers
)

// Addresses behind the names.
const (
	Web4       = netnstest.Far4
	Web6       = netnstest.Far6
	Untrusted4 = "203.0.113.11"
	Untrusted6 = "2001:db8:1::11"
	DNS4       = "203.0.113.12"
	DNS6       = "2001:db8:1::12"
	Silent4    = netnstest.None4
	Silent6    = netnstest.None6
)

// Ports beside 53, 80 and 443.
const (
	EchoPort   = 7 // TCP and UDP: what comes in goes out
	SSHPort    = 22
	ClosedPort = 81 // nobody listens
)

// Banner is what the SSH server says before the client has said anything.
const Banner = "SSH-2.0-LabSSH_1.0\r\n"

// serve starts the Internet's servers.
func (w *World) serve() error {
	trusted, err := newAuthority("Lab Internet CA")
	if err != nil {
		return err
	}
	rogue, err := newAuthority("Rogue CA")
	if err != nil {
		return err
	}
	w.CA = filepath.Join(w.Dir, "internet-ca.pem")
	if err := os.WriteFile(w.CA, trusted.pem(), 0o644); err != nil {
		return err
	}
	secure := &tls.Config{GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
		if hello.ServerName == Untrusted {
			return rogue.certificate(hello)
		}
		return trusted.certificate(hello)
	}}
	return errors.Join(
		w.serveHTTP(":80", nil), w.serveHTTP(":443", secure),
		w.serveHTTP3(Web4, secure), w.serveHTTP3(Web6, secure),
		w.serveTCP(EchoPort, func(c net.Conn) { _, _ = io.Copy(c, c) }),
		w.serveTCP(SSHPort, func(c net.Conn) {
			_, _ = io.WriteString(c, Banner)
			_, _ = io.Copy(c, c)
		}),
		w.serveUDPEcho(Web4), w.serveUDPEcho(Web6),
		w.serveDNS(DNS4), w.serveDNS(DNS6),
	)
}

// serveHTTP serves HTTP, or HTTPS (1.1 and 2) with a configuration.
func (w *World) serveHTTP(address string, secure *tls.Config) error {
	l, err := w.Internet.Listen("tcp", address)
	if err != nil {
		return err
	}
	server := &http.Server{
		Handler: pages(), ReadHeaderTimeout: time.Minute, TLSConfig: secure.Clone(),
		ErrorLog: log.New(io.Discard, "", 0), // broken handshakes are part of the game
	}
	w.onClose(func() { _ = server.Close() })
	go func() {
		if secure == nil {
			_ = server.Serve(l) // ends with Close
			return
		}
		_ = server.ServeTLS(l, "", "")
	}()
	return nil
}

func (w *World) serveHTTP3(ip string, secure *tls.Config) error {
	c, err := w.Internet.ListenPacket("udp", net.JoinHostPort(ip, "443"))
	if err != nil {
		return err
	}
	server := &http3.Server{Handler: pages(), TLSConfig: http3.ConfigureTLSConfig(secure)}
	w.onClose(func() { _ = server.Close(); _ = c.Close() })
	go func() { _ = server.Serve(c) }()
	return nil
}

// serveTCP runs talk on every connection to a port, then closes it.
func (w *World) serveTCP(port int, talk func(net.Conn)) error {
	return w.ServeTCP(w.Internet, ":"+strconv.Itoa(port), talk)
}

// ServeTCP listens in a host and runs talk, on its own goroutine, with every connection, which is
// closed after it.
func (w *World) ServeTCP(h *netnstest.Host, address string, talk func(net.Conn)) error {
	l, err := h.Listen("tcp", address)
	if err != nil {
		return err
	}
	w.onClose(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				talk(c)
			}()
		}
	}()
	return nil
}

func (w *World) serveUDPEcho(ip string) error {
	c, err := w.Internet.ListenPacket("udp", net.JoinHostPort(ip, strconv.Itoa(EchoPort)))
	if err != nil {
		return err
	}
	w.onClose(func() { _ = c.Close() })
	go func() {
		buf := make([]byte, 65536)
		for {
			n, from, err := c.ReadFrom(buf)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				_, _ = c.WriteTo(buf[:n], from) // lost when it cannot be sent, as on any network
			}
		}
	}()
	return nil
}

// pages is what the web servers show.
func pages() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "Hello from %s.\n", r.Host)
	})
	mux.HandleFunc("POST /echo", func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body) // all of it first: net/http reads no more once it writes
		if err == nil {
			_, _ = w.Write(body)
		}
	})
	mux.HandleFunc("GET /bytes/{n}", func(w http.ResponseWriter, r *http.Request) { // n bytes
		send(w, number(r), number(r))
	})
	mux.HandleFunc("GET /cut/{n}", func(w http.ResponseWriter, r *http.Request) { // half of n bytes, then a reset
		send(w, number(r), number(r)/2)
		reset(w)
	})
	mux.HandleFunc("GET /stall/{n}", func(w http.ResponseWriter, r *http.Request) { // half of n bytes, then nothing
		send(w, number(r), number(r)/2)
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	})
	return mux
}

func number(r *http.Request) int64 {
	n, err := strconv.ParseInt(r.PathValue("n"), 10, 64)
	if err != nil {
		return 0
	}
	return n
}

func send(w http.ResponseWriter, promised, n int64) {
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Length", strconv.FormatInt(promised, 10))
	_, _ = io.CopyN(w, letters{}, n) // ends early when the client leaves
}

// reset cuts the connection without the courtesy of a close.
func reset(w http.ResponseWriter) {
	c, _, err := http.NewResponseController(w).Hijack()
	if err != nil { // HTTP/2
		panic(http.ErrAbortHandler)
	}
	if s, ok := c.(*tls.Conn); ok {
		c = s.NetConn()
	}
	if t, ok := c.(*net.TCPConn); ok {
		_ = t.SetLinger(0)
	}
	_ = c.Close()
}

// letters is an endless body.
type letters struct{}

func (letters) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = 'a' + byte(i%26)
	}
	return len(b), nil
}

// Talk sends text over a new connection and returns the first len(text) bytes that come back.
func Talk(ctx context.Context, h *netnstest.Host, network, address, text string) (string, error) {
	c, err := h.Dial(ctx, network, address)
	if err != nil {
		return "", err
	}
	defer c.Close()
	if deadline, ok := ctx.Deadline(); ok {
		_ = c.SetDeadline(deadline)
	}
	if _, err := io.WriteString(c, text); err != nil {
		return "", err
	}
	got := make([]byte, len(text))
	n, err := io.ReadFull(c, got)
	return string(got[:n]), err
}
