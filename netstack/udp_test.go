package netstack

import (
	"bytes"
	"errors"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
)

var (
	dns4 = netip.MustParseAddrPort("203.0.113.9:53")
	udp4 = netip.MustParseAddrPort("203.0.113.9:5000")
	udp6 = netip.MustParseAddrPort("[2001:db8::9]:5000")
)

func echoUDP(c *UDPConn) {
	defer c.Close()
	buf := make([]byte, 65536)
	for {
		n, err := c.Read(buf)
		if err != nil {
			return
		}
		if _, err := c.Write(buf[:n]); err != nil {
			return
		}
	}
}

func TestUDPDatagramsOfEachSize(t *testing.T) {
	w := newWorld(t, Config{}, handlerFuncs{udp: echoUDP})
	for _, server := range []netip.AddrPort{udp4, udp6} {
		c := w.dialUDP(server)
		for _, size := range []int{0, 1, 1200, 1472, 1473, 9000, 60000} {
			data := randomBytes(size)
			if _, err := c.Write(data); err != nil {
				t.Fatal(err)
			}
			buf := make([]byte, 65536)
			n, err := c.Read(buf)
			if err != nil || !bytes.Equal(buf[:n], data) {
				t.Errorf("%v: sent %d bytes, got %d back, %v", server, size, n, err)
			}
		}
	}
	eventually(t, "all counted", func() bool {
		st := w.stack.Stats().UDP
		return st.Sessions == 2 && st.DatagramsIn == 14 && st.DatagramsOut == 14 && st.Queued == 0
	})
}

func TestUDPAddressesAndErrors(t *testing.T) {
	sessions := make(chan *UDPConn, 1)
	w := newWorld(t, Config{}, handlerFuncs{udp: func(c *UDPConn) { sessions <- c }})
	client := w.dialUDP(udp4)
	_, _ = client.Write([]byte("hello"))
	c := <-sessions
	if c.Destination() != udp4 || c.LocalAddr().String() != udp4.String() ||
		c.Source().String() != client.LocalAddr().String() || c.RemoteAddr().String() != client.LocalAddr().String() {
		t.Errorf("addresses: %v %v %v %v", c.Source(), c.Destination(), c.LocalAddr(), c.RemoteAddr())
	}
	short := make([]byte, 2)
	if n, err := c.Read(short); n != 2 || err != nil || string(short) != "he" {
		t.Errorf("short read: %d %q %v", n, short, err)
	}
	if _, err := c.Write(make([]byte, 65508)); !errors.Is(err, syscall.EMSGSIZE) {
		t.Errorf("too long: %v", err)
	}
	_ = c.SetReadDeadline(time.Now().Add(time.Millisecond))
	if _, err := c.Read(short); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("deadline: %v", err)
	}
	_ = c.SetReadDeadline(time.Time{})
	client.Close()
	if _, err := c.Write([]byte("anybody there?")); err != nil {
		t.Error(err)
	}
	if _, err := c.Read(short); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("the client's port is closed: %v", err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if _, err := c.Read(short); !errors.Is(err, os.ErrClosed) && !strings.Contains(err.Error(), "closed") {
		t.Errorf("after close: %v", err)
	}
	if err := c.Close(); err == nil {
		t.Error("a second close succeeded")
	}
}

// That the client sees "connection refused" is tested with the kernel's UDP, in
// package tun: gVisor's tells its user nothing of it.
func TestUDPReject(t *testing.T) {
	t.Run("unread", func(t *testing.T) { testUDPReject(t, func(*UDPConn) {}) })
	t.Run("read", func(t *testing.T) { testUDPReject(t, func(c *UDPConn) { _, _ = c.Read(make([]byte, 10)) }) })
}

func testUDPReject(t *testing.T, before func(*UDPConn)) {
	w := newWorld(t, Config{}, handlerFuncs{udp: func(c *UDPConn) {
		before(c)
		c.Reject()
		c.Reject() // harmless
	}})
	for _, server := range []netip.AddrPort{udp4, udp6} {
		_, _ = w.dialUDP(server).Write([]byte("x"))
	}
	eventually(t, "both rejected", func() bool {
		st := w.stack.Stats()
		return st.Unreachables == 2 && st.UDP.Rejected == 2 && st.UDP.Live == 0 && st.UDP.Queued == 0
	})
	eventually(t, "the client was told", func() bool {
		st := w.client.Stats().ICMP
		return st.V4.PacketsReceived.DstUnreachable.Value() == 1 && st.V6.PacketsReceived.DstUnreachable.Value() == 1
	})
}

func TestUDPIdleSessionsEnd(t *testing.T) {
	ended := make(chan error, 2)
	w := newWorld(t, Config{UDPTimeout: time.Hour, DNSTimeout: 20 * time.Millisecond}, handlerFuncs{udp: func(c *UDPConn) {
		defer c.Close()
		buf := make([]byte, 10)
		for {
			if _, err := c.Read(buf); err != nil {
				ended <- err
				return
			}
		}
	}})
	for _, server := range []netip.AddrPort{udp4, dns4} {
		_, _ = w.dialUDP(server).Write([]byte("x"))
	}
	if err := <-ended; !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	if st := w.stack.Stats().UDP; st.Live != 1 || st.IdleTimeouts != 1 {
		t.Errorf("counted %+v, want the DNS session to be over and the other not", st)
	}
}

// A session that nobody reads, and many sessions, hold bounded memory.
func TestUDPBudgets(t *testing.T) {
	const buffer = 20_000
	w := newWorld(t, Config{UDPBuffer: buffer, UDPBufferTotal: 2 * buffer, MaxUDP: 5, MaxUDPPerClient: 4},
		handlerFuncs{udp: func(*UDPConn) {}})
	for range 7 {
		c := w.dialUDP(udp4)
		for range 100 {
			_, _ = c.Write(make([]byte, 1000))
		}
	}
	st := w.stack.Stats().UDP
	if st.Live != 4 || st.OverPerClient != 300 || st.Queued > 2*buffer || st.OverBuffer == 0 {
		t.Errorf("counted %+v", st)
	}
}
