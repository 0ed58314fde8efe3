package netstack

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/link/pipe"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
)

const patience = 20 * time.Second

var (
	client4 = netip.MustParseAddr("10.1.2.3")
	client6 = netip.MustParseAddr("fd00::3")
	server4 = netip.MustParseAddrPort("203.0.113.7:80")
	server6 = netip.MustParseAddrPort("[2001:db8::7]:80")
)

// handlerFuncs is a Handler made of functions; a nil one decides nothing.
type handlerFuncs struct {
	tcp func(*TCPRequest)
	udp func(*UDPConn)
}

func (h handlerFuncs) HandleTCP(r *TCPRequest) {
	if h.tcp != nil {
		go h.tcp(r)
	}
}

func (h handlerFuncs) HandleUDP(c *UDPConn) {
	if h.udp != nil {
		go h.udp(c)
	}
}

// world is a Stack under test and a client with a gVisor stack of its own, with
// an in-memory link between them.
type world struct {
	t      *testing.T
	stack  *Stack
	client *stack.Stack
	link   stack.LinkEndpoint // the client's end
}

func newWorld(t *testing.T, cfg Config, h Handler) *world {
	t.Helper()
	near, far := pipe.New("", "", 1500)
	s, err := New(cfg, near, h)
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, stack: s, client: newClient(t, far), link: far}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return w
}

func newClient(t *testing.T, link stack.LinkEndpoint) *stack.Stack {
	t.Helper()
	c := stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, ipv6.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4, icmp.NewProtocol6},
	})
	if err := c.CreateNIC(1, link); err != nil {
		t.Fatal(err)
	}
	for _, a := range []netip.Addr{client4, client6} {
		proto := ipv4.ProtocolNumber
		if a.Is6() {
			proto = ipv6.ProtocolNumber
		}
		if err := c.AddProtocolAddress(1, tcpip.ProtocolAddress{
			Protocol:          proto,
			AddressWithPrefix: tcpip.AddrFromSlice(a.AsSlice()).WithPrefix(),
		}, stack.AddressProperties{}); err != nil {
			t.Fatal(err)
		}
	}
	c.SetRouteTable([]tcpip.Route{{Destination: header.IPv4EmptySubnet, NIC: 1}, {Destination: header.IPv6EmptySubnet, NIC: 1}})
	t.Cleanup(c.Destroy)
	return c
}

func full(a netip.AddrPort) (tcpip.FullAddress, tcpip.NetworkProtocolNumber) {
	proto := ipv4.ProtocolNumber
	if a.Addr().Is6() {
		proto = ipv6.ProtocolNumber
	}
	return tcpip.FullAddress{NIC: 1, Addr: tcpip.AddrFromSlice(a.Addr().AsSlice()), Port: a.Port()}, proto
}

func (w *world) dial(to netip.AddrPort) *gonet.TCPConn {
	w.t.Helper()
	c, err := w.tryDial(to, patience)
	if err != nil {
		w.t.Fatalf("dial %v: %v", to, err)
	}
	return c
}

func (w *world) tryDial(to netip.AddrPort, timeout time.Duration) (*gonet.TCPConn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	addr, proto := full(to)
	c, err := gonet.DialContextTCP(ctx, w.client, addr, proto)
	if err == nil {
		w.t.Cleanup(func() { c.Close() })
		_ = c.SetDeadline(time.Now().Add(patience))
	}
	return c, err
}

func (w *world) dialUDP(to netip.AddrPort) *gonet.UDPConn {
	w.t.Helper()
	addr, proto := full(to)
	c, err := gonet.DialUDP(w.client, nil, &addr, proto)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(patience))
	return c
}

// accepted runs f with every connection. The end of a test may meet one in its
// handshake.
func accepted(t *testing.T, f func(*TCPConn)) handlerFuncs {
	return handlerFuncs{tcp: func(r *TCPRequest) {
		c, err := r.Accept()
		if err != nil {
			if !errors.Is(err, syscall.ECONNABORTED) && !errors.Is(err, ErrClosed) {
				t.Errorf("accept: %v", err)
			}
			return
		}
		defer c.Close()
		f(c)
	}}
}

// eventually waits for a condition that another goroutine brings about.
func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !f(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never happened: %s", what)
		}
	}
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	rand.New(rand.NewSource(int64(n))).Read(b)
	return b
}

func TestTCPCarriesMegabytesBothWays(t *testing.T) {
	for _, server := range []netip.AddrPort{server4, server6} {
		t.Run(server.String(), func(t *testing.T) {
			up, down := randomBytes(5<<20), randomBytes(7<<20)
			got := make(chan []byte, 1)
			w := newWorld(t, Config{}, accepted(t, func(c *TCPConn) {
				var wg sync.WaitGroup
				wg.Go(func() {
					if _, err := c.Write(down); err != nil {
						t.Errorf("write: %v", err)
					}
					if err := c.CloseWrite(); err != nil {
						t.Errorf("close write: %v", err)
					}
				})
				b, err := io.ReadAll(c)
				if err != nil {
					t.Errorf("read: %v", err)
				}
				wg.Wait()
				got <- b
			}))
			c := w.dial(server)
			go func() {
				_, _ = c.Write(up)
				_ = c.CloseWrite()
			}()
			b, err := io.ReadAll(c)
			if err != nil {
				t.Fatal(err)
			}
			if sha256.Sum256(b) != sha256.Sum256(down) {
				t.Errorf("client got %d bytes, not the %d that were sent", len(b), len(down))
			}
			if b := <-got; sha256.Sum256(b) != sha256.Sum256(up) {
				t.Errorf("handler got %d bytes, not the %d that were sent", len(b), len(up))
			}
		})
	}
}

func TestTCPAddressesAreTheOriginalOnes(t *testing.T) {
	for _, server := range []netip.AddrPort{server4, server6} {
		type pair struct{ source, destination, remote, local string }
		seen := make(chan pair, 1)
		w := newWorld(t, Config{}, handlerFuncs{tcp: func(r *TCPRequest) {
			c, err := r.Accept()
			if err != nil {
				t.Error(err)
				return
			}
			seen <- pair{r.Source().String(), r.Destination().String(), c.RemoteAddr().String(), c.LocalAddr().String()}
			c.Close()
		}})
		client := w.dial(server).LocalAddr().String()
		want := pair{client, server.String(), client, server.String()}
		if got := <-seen; got != want {
			t.Errorf("got %v, want %v", got, want)
		}
	}
}

func TestRejectIsConnectionRefused(t *testing.T) {
	w := newWorld(t, Config{}, handlerFuncs{tcp: func(r *TCPRequest) { r.Reject() }})
	for _, server := range []netip.AddrPort{server4, server6} {
		_, err := w.tryDial(server, patience)
		if err == nil || !strings.Contains(err.Error(), "refused") {
			t.Errorf("dial %v: got %v, want connection refused", server, err)
		}
	}
	eventually(t, "both rejections counted", func() bool { return w.stack.Stats().TCP.Rejected == 2 })
}

// The client's gVisor knows no ICMPv6 "address unreachable"; the kernel's part
// of this test is in package tun.
func TestUnreachableIsNoRoute(t *testing.T) {
	w := newWorld(t, Config{}, handlerFuncs{tcp: func(r *TCPRequest) { r.Unreachable() }})
	_, err := w.tryDial(server4, patience)
	if err == nil || !strings.Contains(err.Error(), "no route to host") && !strings.Contains(err.Error(), "unreachable") {
		t.Errorf("got %v, want host unreachable", err)
	}
}

func TestDropIsSilence(t *testing.T) {
	asked := make(chan struct{}, 100)
	w := newWorld(t, Config{}, handlerFuncs{tcp: func(r *TCPRequest) { r.Drop(); asked <- struct{}{} }})
	_, err := w.tryDial(server4, 300*time.Millisecond)
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want a timeout", err)
	}
	<-asked
	eventually(t, "nothing half-open", func() bool { return w.stack.Stats().TCP.HalfOpen == 0 })
}

func TestRequestIsDecidedOnce(t *testing.T) {
	results := make(chan error, 1)
	w := newWorld(t, Config{}, handlerFuncs{tcp: func(r *TCPRequest) {
		c, err := r.Accept()
		if err != nil {
			results <- err
			return
		}
		defer c.Close()
		r.Reject()
		r.Drop()
		r.Unreachable()
		if _, err := r.Accept(); !errors.Is(err, ErrDecided) {
			results <- errors.New("second accept, want ErrDecided: " + fmt.Sprint(err))
			return
		}
		if r.Source().Addr() != client4 || r.Destination() != server4 {
			results <- fmt.Errorf("addresses changed: %v %v", r.Source(), r.Destination())
			return
		}
		if r.Context().Err() == nil {
			results <- errors.New("context of a decided request has not ended")
			return
		}
		_, err = c.Write([]byte("x"))
		results <- err
	}})
	c := w.dial(server4)
	if err := <-results; err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		t.Errorf("the connection did not survive the later calls: %v", err)
	}
	if st := w.stack.Stats().TCP; st.Accepted != 1 || st.Rejected != 0 || st.Dropped != 0 {
		t.Errorf("counted %+v", st)
	}
}

func TestConcurrentDecisions(t *testing.T) {
	w := newWorld(t, Config{}, handlerFuncs{tcp: func(r *TCPRequest) {
		var wg sync.WaitGroup
		for _, f := range []func(){r.Reject, r.Drop, r.Unreachable, r.Reject, func() {
			if c, err := r.Accept(); err == nil {
				c.Abort()
			}
		}} {
			wg.Go(f)
		}
		wg.Wait()
	}})
	for range 50 {
		if c, err := w.tryDial(server4, 50*time.Millisecond); err == nil {
			c.Close()
		}
	}
	eventually(t, "nothing half-open", func() bool { return w.stack.Stats().TCP.HalfOpen == 0 })
}

func TestUndecidedRequestExpires(t *testing.T) {
	cause := make(chan error, 100)
	w := newWorld(t, Config{AcceptTimeout: 50 * time.Millisecond}, handlerFuncs{tcp: func(r *TCPRequest) {
		<-r.Context().Done()
		cause <- context.Cause(r.Context())
		if _, err := r.Accept(); !errors.Is(err, ErrDecided) {
			t.Errorf("accept: %v, want ErrDecided", err)
		}
	}})
	_, _ = w.tryDial(server4, 200*time.Millisecond)
	if err := <-cause; !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("cause %v", err)
	}
	if st := w.stack.Stats().TCP; st.Expired == 0 || st.HalfOpen != 0 {
		t.Errorf("counted %+v", st)
	}
}

// In each order of closing, both sides see the other's last byte and its end.
func TestHalfClose(t *testing.T) {
	t.Run("client first", func(t *testing.T) {
		w := newWorld(t, Config{}, accepted(t, func(c *TCPConn) {
			b, err := io.ReadAll(c)
			if err != nil {
				t.Errorf("read: %v", err)
			}
			if _, err := c.Write(append(b, '!')); err != nil {
				t.Errorf("write after the client's FIN: %v", err)
			}
		}))
		c := w.dial(server4)
		_, _ = c.Write([]byte("question"))
		_ = c.CloseWrite()
		if b, err := io.ReadAll(c); string(b) != "question!" || err != nil {
			t.Errorf("got %q, %v", b, err)
		}
	})
	t.Run("handler first", func(t *testing.T) {
		got := make(chan string, 1)
		w := newWorld(t, Config{}, accepted(t, func(c *TCPConn) {
			_, _ = c.Write([]byte("greeting"))
			_ = c.CloseWrite()
			if _, err := c.Write([]byte("x")); !errors.Is(err, syscall.EPIPE) {
				t.Errorf("write after CloseWrite: %v, want EPIPE", err)
			}
			b, _ := io.ReadAll(c)
			got <- string(b)
		}))
		c := w.dial(server4)
		if b, err := io.ReadAll(c); string(b) != "greeting" || err != nil {
			t.Errorf("got %q, %v", b, err)
		}
		_, _ = c.Write([]byte("answer"))
		_ = c.CloseWrite()
		if s := <-got; s != "answer" {
			t.Errorf("handler got %q", s)
		}
	})
}

func TestAbortIsReset(t *testing.T) {
	w := newWorld(t, Config{}, accepted(t, func(c *TCPConn) {
		_, _ = c.Read(make([]byte, 1))
		c.Abort()
	}))
	c := w.dial(server4)
	_, _ = c.Write([]byte("x"))
	if _, err := io.ReadAll(c); err == nil || !strings.Contains(err.Error(), "reset") {
		t.Errorf("client read: %v, want connection reset", err)
	}
	eventually(t, "nothing live", func() bool { return w.stack.Stats().TCP.Live == 0 })
}

func TestClientResetIsSeen(t *testing.T) {
	result, ready := make(chan error, 1), make(chan struct{})
	w := newWorld(t, Config{}, accepted(t, func(c *TCPConn) {
		close(ready)
		_, err := io.ReadAll(c)
		result <- err
	}))
	w.dial(server4)
	<-ready // or the handshake would be what is reset
	abortClients(w.client)
	err := <-result
	var op *net.OpError
	if !errors.Is(err, syscall.ECONNRESET) || !errors.As(err, &op) {
		t.Errorf("got %v (%T), want a net.OpError with ECONNRESET", err, err)
	}
}

func abortClients(s *stack.Stack) {
	for _, e := range s.RegisteredEndpoints() {
		e.Abort()
	}
}

func TestCloseDeliversWhatWasWritten(t *testing.T) {
	data := randomBytes(900 << 10)
	w := newWorld(t, Config{}, accepted(t, func(c *TCPConn) {
		if n, err := c.Write(data); n != len(data) || err != nil {
			t.Errorf("wrote %d, %v", n, err)
		}
	}))
	c := w.dial(server4)
	b, err := io.ReadAll(c)
	if err != nil || !bytes.Equal(b, data) {
		t.Errorf("got %d bytes, %v", len(b), err)
	}
	if live := w.stack.Stats().TCP.Live; live != 1 {
		t.Errorf("%d live before the client's FIN, want 1", live)
	}
	c.Close()
	eventually(t, "nothing live", func() bool { return w.stack.Stats().TCP.Live == 0 })
}

// A client that never reads cannot keep a closed connection forever.
func TestLingerIsBounded(t *testing.T) {
	w := newWorld(t, Config{LingerTimeout: 100 * time.Millisecond}, accepted(t, func(c *TCPConn) {
		_ = c.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
		if _, err := c.Write(make([]byte, 32<<20)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("write to a stalled client: %v", err)
		}
	}))
	w.dial(server4)
	eventually(t, "accepted", func() bool { return w.stack.Stats().TCP.Accepted == 1 })
	eventually(t, "nothing live", func() bool { return w.stack.Stats().TCP.Live == 0 })
}

func TestCloseStopsEverything(t *testing.T) {
	before := runtime.NumGoroutine()
	func() {
		near, far := pipe.New("", "", 1500)
		ended := make(chan error, 3)
		undecided := make(chan struct{}, 1)
		s, err := New(Config{}, near, handlerFuncs{
			tcp: func(r *TCPRequest) {
				if r.Destination().Port() != 80 {
					undecided <- struct{}{}
					<-r.Context().Done()
					ended <- context.Cause(r.Context())
					return
				}
				c, err := r.Accept()
				if err != nil {
					t.Error(err)
					return
				}
				_, _ = c.Write([]byte("x"))
				_, err = io.ReadAll(c)
				ended <- err
				c.Close()
			},
			udp: func(c *UDPConn) {
				_, _ = c.Read(nil)
				_, _ = c.Write([]byte("x"))
				_, err := c.Read(nil)
				ended <- err
				c.Close()
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		w := &world{t: t, stack: s, client: newClient(t, far)}
		defer w.client.Destroy()
		c, u := w.dial(server4), w.dialUDP(server4)
		_, _ = u.Write([]byte("x"))
		for _, conn := range []net.Conn{c, u} {
			if _, err := conn.Read(make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
		}
		var dialer sync.WaitGroup
		dialer.Go(func() { _, _ = w.tryDial(netip.MustParseAddrPort("203.0.113.7:81"), time.Second) })
		<-undecided
		s.Close()
		s.Close() // again, to no effect
		for range 3 {
			if err := <-ended; err == nil {
				t.Error("a handler saw a clean end")
			}
		}
		dialer.Wait()
		if st := s.Stats(); st.TCP.Live != 0 || st.TCP.HalfOpen != 0 || st.UDP.Live != 0 || st.UDP.Queued != 0 {
			t.Errorf("left over: %+v", st)
		}
		c.Close()
		u.Close()
	}()
	var now int
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if now = runtime.NumGoroutine(); now <= before {
			return
		}
	}
	buf := make([]byte, 1<<20)
	t.Errorf("%d goroutines, %d before\n%s", now, before, buf[:runtime.Stack(buf, true)])
}
