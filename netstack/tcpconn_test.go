package netstack

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/nettest"

	"gvisor.dev/gvisor/pkg/tcpip/link/pipe"
)

// TestConn runs the standard library's conformance test for net.Conn: deadlines
// of every kind, concurrent calls, and closing under all of them. The client is
// a kernel-like peer that passes it, too, so both roles are ours: the second
// connection is relayed.
func TestConn(t *testing.T) {
	nettest.TestConn(t, func() (c1, c2 net.Conn, stop func(), err error) {
		conns := make(chan *TCPConn, 1)
		near, far := pipe.New("", "", 1500)
		s, err := New(Config{}, near, handlerFuncs{tcp: func(r *TCPRequest) {
			c, err := r.Accept()
			if err != nil {
				t.Errorf("accept: %v", err)
			}
			conns <- c
		}})
		if err != nil {
			return nil, nil, nil, err
		}
		w := &world{t: t, stack: s, client: newClient(t, far)}
		peer := w.dial(server4)
		_ = peer.SetDeadline(time.Time{})
		c := <-conns
		return c, peer, func() {
			c.Close()
			peer.Close()
			s.Close()
		}, nil
	})
}

func TestErrorsAreThoseOfPackageNet(t *testing.T) {
	done := make(chan struct{})
	w := newWorld(t, Config{}, accepted(t, func(c *TCPConn) {
		defer close(done)
		check := func(what string, err, want error) {
			t.Helper()
			var op *net.OpError
			if !errors.Is(err, want) || !errors.As(err, &op) {
				t.Errorf("%s: got %v (%T), want a net.OpError around %v", what, err, err, want)
			}
		}
		_ = c.SetReadDeadline(time.Now().Add(time.Millisecond))
		_, err := c.Read(make([]byte, 1))
		check("read after its deadline", err, os.ErrDeadlineExceeded)
		var timeout net.Error
		if !errors.As(err, &timeout) || !timeout.Timeout() {
			t.Errorf("%v is no timeout", err)
		}
		_ = c.SetReadDeadline(time.Time{})
		time.AfterFunc(10*time.Millisecond, func() { c.Close() })
		_, err = c.Read(make([]byte, 1))
		check("read while closing", err, net.ErrClosed)
		_, err = c.Write([]byte("x"))
		check("write after close", err, net.ErrClosed)
		check("second close", c.Close(), net.ErrClosed)
		check("half close after close", c.CloseWrite(), net.ErrClosed)
		check("deadline after close", c.SetDeadline(time.Time{}), net.ErrClosed)
		c.Abort()
	}))
	w.dial(server4)
	<-done
}

// kernelPair is a connection through the kernel's loopback interface.
func kernelPair(t *testing.T) (a, b *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	dialed, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	other, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []net.Conn{dialed, other} {
		t.Cleanup(func() { c.Close() })
		_ = c.SetDeadline(time.Now().Add(patience))
	}
	return dialed.(*net.TCPConn), other.(*net.TCPConn)
}

// hidden is a connection that is no kernel socket to look at.
type hidden struct{ *net.TCPConn }

// relayTo copies both ways with io.Copy, which must find the fast paths.
func relayTo(c *TCPConn, up net.Conn) {
	var wg sync.WaitGroup
	wg.Go(func() {
		_, _ = io.Copy(up, c)
		_ = up.(interface{ CloseWrite() error }).CloseWrite()
	})
	_, _ = io.Copy(c, up)
	_ = c.CloseWrite()
	wg.Wait()
}

func TestRelayToKernelSocket(t *testing.T) {
	for name, wrap := range map[string]func(*net.TCPConn) net.Conn{
		"kernel socket": func(c *net.TCPConn) net.Conn { return c },
		"wrapped":       func(c *net.TCPConn) net.Conn { return hidden{c} },
	} {
		t.Run(name, func(t *testing.T) {
			up, server := kernelPair(t)
			w := newWorld(t, Config{}, accepted(t, func(c *TCPConn) { relayTo(c, wrap(up)) }))
			c := w.dial(server4)
			question, answer := randomBytes(9<<20+1), randomBytes(11<<20+1)
			var wg sync.WaitGroup
			wg.Go(func() {
				_, _ = c.Write(question)
				_ = c.CloseWrite()
			})
			var got []byte
			wg.Go(func() {
				got, _ = io.ReadAll(server)
				_, _ = server.Write(answer) // after the client's FIN: half-closed
				_ = server.CloseWrite()
			})
			back, err := io.ReadAll(c)
			wg.Wait()
			if err != nil || !bytes.Equal(back, answer) {
				t.Errorf("down: got %d of %d bytes, %v", len(back), len(answer), err)
			}
			if !bytes.Equal(got, question) {
				t.Errorf("up: got %d of %d bytes", len(got), len(question))
			}
		})
	}
}

// Small messages go through one by one: the fast path neither waits for more
// nor loses the byte with which it tells silence from the end.
func TestRelayPingPong(t *testing.T) {
	up, server := kernelPair(t)
	w := newWorld(t, Config{}, accepted(t, func(c *TCPConn) { relayTo(c, up) }))
	c := w.dial(server4)
	for i := range 200 {
		for _, pair := range [][2]net.Conn{{c, server}, {server, c}} {
			want := []byte{byte(i), 1, 2}[:1+i%3]
			if _, err := pair[0].Write(want); err != nil {
				t.Fatal(err)
			}
			got := make([]byte, len(want))
			if _, err := io.ReadFull(pair[1], got); err != nil || !bytes.Equal(got, want) {
				t.Fatalf("message %d: got %v, want %v, %v", i, got, want, err)
			}
		}
	}
}

// A stalled upstream holds the client back and keeps nobody else waiting; the
// connection can still be closed.
func TestRelayToStalledSocket(t *testing.T) {
	up, _ := kernelPair(t)
	result := make(chan error, 1)
	conns := make(chan *TCPConn, 1)
	w := newWorld(t, Config{}, accepted(t, func(c *TCPConn) {
		conns <- c
		_, err := io.Copy(up, c)
		result <- err
	}))
	c := w.dial(server4)
	_ = c.SetWriteDeadline(time.Now().Add(500 * time.Millisecond))
	if n, err := c.Write(make([]byte, 64<<20)); err == nil {
		t.Errorf("nothing held back %d bytes", n)
	}
	relay := <-conns
	if _, err := relay.Write([]byte("x")); err != nil {
		t.Errorf("the other direction: %v", err)
	}
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		t.Errorf("the other direction: %v", err)
	}
	relay.Abort()
	up.Close()
	if err := <-result; err == nil {
		t.Error("the relay ended without an error")
	}
}

func TestRelaySeesResets(t *testing.T) {
	t.Run("of the server", func(t *testing.T) {
		up, server := kernelPair(t)
		result := make(chan error, 1)
		w := newWorld(t, Config{}, accepted(t, func(c *TCPConn) {
			_, err := io.Copy(c, up)
			result <- err
		}))
		w.dial(server4)
		_ = server.SetLinger(0)
		server.Close()
		if err := <-result; !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("got %v, want a reset", err)
		}
	})
	t.Run("of the client", func(t *testing.T) {
		up, _ := kernelPair(t)
		result := make(chan error, 1)
		ready := make(chan struct{})
		w := newWorld(t, Config{}, accepted(t, func(c *TCPConn) {
			close(ready)
			_, err := io.Copy(up, c)
			result <- err
		}))
		w.dial(server4)
		<-ready
		abortClients(w.client)
		if err := <-result; !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("got %v, want a reset", err)
		}
	})
}
