package tlsmitm_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"mitm-appliance/flow"
	"mitm-appliance/proxycore"
)

// cutConn resets the connection after so many bytes were written to it.
type cutConn struct {
	net.Conn
	left int
}

func (c *cutConn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b[:min(len(b), c.left)])
	c.left -= n
	if c.left == 0 && err == nil {
		t := c.Conn.(*net.TCPConn)
		_ = t.SetLinger(0)
		_ = t.Close()
		err = net.ErrClosed
	}
	return n, err
}

// TestResetAtEveryByte cuts the connection after each byte that one side sends in a handshake. Whatever
// happens, the conversation ends, and each handshake that began is told about once.
func TestResetAtEveryByte(t *testing.T) {
	before := runtime.NumGoroutine()
	t.Run("cuts", func(t *testing.T) {
		for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
			t.Run("client "+fmt.Sprint(version), func(t *testing.T) { resetClient(t, version) })
			t.Run("server "+fmt.Sprint(version), func(t *testing.T) { resetServer(t, version) })
		}
	})
	deadline := time.Now().Add(patience)
	for runtime.NumGoroutine() > before && time.Now().Before(deadline) {
		time.Sleep(5 * time.Millisecond)
	}
	if now := runtime.NumGoroutine(); now > before {
		stacks := make([]byte, 1<<16)
		t.Errorf("%d goroutines are left of %d:\n%s", now, before, stacks[:runtime.Stack(stacks, true)])
	}
}

func resetClient(t *testing.T, version uint16) {
	l := newLab(t, labConfig{})
	target := l.echo(l.serverConfig("example.test"))
	done := false
	for cut := 1; !done; cut += cutStep {
		mine := l.clientConfig("example.test")
		mine.MaxVersion, mine.CurvePreferences = version, []tls.CurveID{tls.X25519} // a short hello
		raw := l.inbound(target)
		c := &cutConn{Conn: raw, left: cut}
		done = tls.Client(c, mine).Handshake() == nil
		raw.Close()
		if cut > 4000 {
			t.Fatal("the handshake never succeeds")
		}
	}
	l.settle()
	balance(t, l, "client")
}

func resetServer(t *testing.T, version uint16) {
	l := newLab(t, labConfig{})
	cfg := l.serverConfig("example.test")
	cfg.MaxVersion, cfg.SessionTicketsDisabled, cfg.CurvePreferences = version, true, []tls.CurveID{tls.X25519}
	var cut atomic.Int64
	var wg sync.WaitGroup
	target := l.server(func(c net.Conn) {
		defer wg.Done()
		t := tls.Server(&cutConn{Conn: c, left: int(cut.Load())}, cfg)
		if t.Handshake() == nil {
			_, _ = io.Copy(t, t)
		}
	})
	for done := false; !done; {
		cut.Add(cutStep)
		wg.Add(1)
		c, err := l.connect(target, l.clientConfig("example.test"))
		check(t, err) // the client is served whatever its server does
		_, err = io.WriteString(c, "GET / HTTP/1.1\r\n\r\n")
		check(t, err)
		answer := make([]byte, 3)
		_, err = io.ReadFull(c, answer)
		done = err == nil && string(answer) == "GET"
		c.Close()
		wg.Wait()
		if cut.Load() > 4000 {
			t.Fatal("the handshake never succeeds")
		}
	}
	l.settle()
	balance(t, l, "server")
}

func balance(t *testing.T, l *lab, side string) {
	t.Helper()
	count := map[string]int{}
	for _, name := range strings.Fields(l.hooks.String()) {
		count[name]++
	}
	started, ended := count["tls_start_"+side], count["tls_established_"+side]+count["tls_failed_"+side]
	if side == "client" { // fails before it starts when the hello is cut
		if ended-started < 50/cutStep {
			t.Errorf("only %d handshakes were cut inside the hello", ended)
		}
		return
	}
	if started != ended || count["tls_failed_server"] < 50/cutStep {
		t.Errorf("%d handshakes began, %d ended: %v", started, ended, count)
	}
}

// connectProxy is an explicit proxy for one CONNECT.
func connectProxy(ctx context.Context, s *proxycore.Session) error {
	head := make([]byte, 0, 256)
	for !strings.HasSuffix(string(head), "\r\n\r\n") {
		one := make([]byte, 1)
		if _, err := s.Conn.Read(one); err != nil {
			return err
		}
		head = append(head, one[0])
	}
	host, port := flow.SplitHostPort(strings.Fields(string(head))[1])
	if _, err := io.WriteString(s.Conn, "HTTP/1.1 200 OK\r\n\r\n"); err != nil {
		return err
	}
	inner := s.Layer(s.Conn)
	inner.Target, inner.Secure, inner.ALPN, inner.SNI = flow.Address{Host: host, Port: port}, false, "", ""
	return inner.Next(ctx, inner.Conn)
}

func TestTLSInTLS(t *testing.T) {
	var l *lab
	l = newLab(t, labConfig{http1: proxycore.HandlerFunc(func(ctx context.Context, s *proxycore.Session) error {
		if s.Target.IsZero() {
			if s.SNI != "" || !s.Secure {
				t.Errorf("inside the outer TLS: SNI %q, secure %v", s.SNI, s.Secure)
			}
			return connectProxy(ctx, s)
		}
		return l.inside(ctx, s)
	})})
	target := l.echo(l.serverConfig("example.test"))
	outerCfg := l.clientConfig("proxy.test")
	outerCfg.NextProtos = []string{"h2", "http/1.1"}
	outer := tls.Client(l.inbound(flow.Address{}), outerCfg)
	_, err := fmt.Fprintf(outer, "CONNECT %s HTTP/1.1\r\n\r\n", target)
	check(t, err)
	if got := outer.ConnectionState().NegotiatedProtocol; got != "http/1.1" {
		t.Errorf("the outer layer speaks %q", got)
	}
	line(t, outer)
	line(t, outer)
	c := tls.Client(outer, l.clientConfig("example.test"))
	_, err = io.WriteString(c, "GET / HTTP/1.1\r\n\r\n")
	check(t, err)
	if got := line(t, c); got != "hello example.test " {
		t.Errorf("server said %q", got)
	}
	s := l.session(0)
	if s.client.TLS.SNI != "example.test" || len(s.client.TLS.ALPNOffers) != 0 || s.sni != "example.test" {
		t.Errorf("client facts are not those of the inner handshake: %+v", s.client.TLS)
	}
	check(t, c.CloseWrite())
	if rest, err := io.ReadAll(c); err != nil || string(rest) != "GET / HTTP/1.1\r\n\r\n" {
		t.Errorf("echo %q, %v", rest, err)
	}
	c.Close()
	l.settle()
}

func TestConcurrentConnections(t *testing.T) {
	l := newLab(t, labConfig{})
	target := l.echo(l.serverConfig("*.example.test", "127.0.0.1"))
	var clients sync.WaitGroup
	for i := range 12 {
		clients.Add(1)
		go func() {
			defer clients.Done()
			for j := range 5 {
				name := fmt.Sprintf("h%d.example.test", (i+j)%4)
				c, err := l.connect(target, l.clientConfig(name))
				if err != nil {
					t.Errorf("%s: %v", name, err)
					return
				}
				fmt.Fprintf(c, "GET /%d HTTP/1.1\r\n\r\n", i)
				r := bufio.NewReader(c)
				hello, _ := r.ReadString('\n')
				get, err := r.ReadString('\n')
				if hello != "hello "+name+" \n" || get != fmt.Sprintf("GET /%d HTTP/1.1\r\n", i) {
					t.Errorf("%s: %q %q %v", name, hello, get, err)
				}
				c.Close()
			}
		}()
	}
	for _, insecure := range []string{"true", "false", "true"} { // new settings under load
		if err := l.reg.SetText("ssl_insecure=" + insecure); err != nil {
			t.Error(err)
		}
	}
	clients.Wait()
	l.settle()
}

func TestLargeTransfers(t *testing.T) {
	l := newLab(t, labConfig{})
	c, err := l.connect(l.echo(l.serverConfig("example.test")), l.clientConfig("example.test"))
	check(t, err)
	const size = 3 << 20
	go func() {
		_, _ = io.WriteString(c, "GET / HTTP/1.1\r\n\r\n")
		_, _ = c.Write([]byte(strings.Repeat("0123456789abcdef", size/16)))
		_ = c.CloseWrite()
	}()
	line(t, c)
	got, err := io.ReadAll(c)
	if err != nil || len(got) != size+18 || string(got[18:]) != strings.Repeat("0123456789abcdef", size/16) {
		t.Errorf("got %d bytes back, %v", len(got), err)
	}
}

func TestAbortResets(t *testing.T) {
	l := newLab(t, labConfig{http1: proxycore.HandlerFunc(func(_ context.Context, s *proxycore.Session) error {
		proxycore.Abort(s.Conn)
		return nil
	})})
	c, err := l.connect(l.echo(l.serverConfig("example.test")), l.clientConfig("example.test"))
	check(t, err)
	_, err = io.WriteString(c, "GET / HTTP/1.1\r\n\r\n")
	check(t, err)
	if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("reading after an abort: %v", err)
	}
}

func TestFragmentedHello(t *testing.T) {
	l := newLab(t, labConfig{})
	target := l.echo(l.serverConfig("example.test"))
	for _, step := range []int{1, 7, 100} {
		c := tls.Client(&dribble{Conn: l.inbound(target), step: step}, l.clientConfig("example.test"))
		_, err := io.WriteString(c, "GET / HTTP/1.1\r\n\r\n")
		check(t, err)
		if got := line(t, c); got != "hello example.test " {
			t.Errorf("step %d: %q", step, got)
		}
	}
}

// dribble splits the first handshake record into records of step bytes, each written alone (TLS-09).
type dribble struct {
	net.Conn
	step int
	done bool
}

func (d *dribble) Write(b []byte) (int, error) {
	if d.done {
		return d.Conn.Write(b)
	}
	d.done = true
	for message := b[5:]; len(message) > 0; {
		n := min(len(message), d.step)
		record := append([]byte{22, 3, 1, 0, byte(n)}, message[:n]...)
		if _, err := d.Conn.Write(record); err != nil {
			return 0, err
		}
		message = message[n:]
	}
	return len(b), nil
}

func TestShutdownEndsStalledHandshakes(t *testing.T) {
	hellos := make(chan struct{}, 1)
	for name, target := range map[string]func(*lab) flow.Address{
		"client": func(l *lab) flow.Address { return l.echo(l.serverConfig("example.test")) },
		"server": func(l *lab) flow.Address {
			return l.server(func(c net.Conn) {
				hellos <- struct{}{}
				_, _ = io.Copy(io.Discard, c)
			})
		},
	} {
		t.Run(name, func(t *testing.T) { // both time limits are longer than the test's patience
			l := newLab(t, labConfig{})
			c := l.inbound(target(l))
			hello := clientHello(t, l.clientConfig("example.test"))
			if name == "client" {
				hello = hello[:50]
			}
			_, err := c.Write(hello)
			check(t, err)
			if name == "server" {
				<-hellos
			}
			for deadline := time.Now().Add(patience); !strings.Contains(l.hooks.String(), "next_layer"); time.Sleep(time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatal("the conversation never began")
				}
			}
			l.core.Shutdown(context.Background())
			l.settle()
		})
	}
}
