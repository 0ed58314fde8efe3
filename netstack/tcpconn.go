package netstack

import (
	"bytes"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// TCPConn is an accepted connection. Its LocalAddr is the address that the
// client asked for, its RemoteAddr the client. Errors are those of package net:
// *net.OpError around net.ErrClosed, os.ErrDeadlineExceeded, syscall.ECONNRESET,
// ETIMEDOUT, EPIPE, or a bare io.EOF after the client's FIN.
//
// An idle TCPConn holds no buffer. To relay to a kernel socket use io.Copy,
// which finds WriteTo and ReadFrom.
type TCPConn struct {
	stack *Stack
	local netip.AddrPort
	peer  netip.AddrPort
	ep    tcpip.Endpoint
	queue waiter.Queue
	entry waiter.Entry

	readMu  sync.Mutex // one Read or WriteTo at a time
	readTo  tcpip.SliceWriter
	writeMu sync.Mutex // one Write or ReadFrom at a time
	payload bytes.Reader

	in, out gate

	closed   atomic.Bool
	lingerMu sync.Mutex
	linger   *time.Timer
	gone     bool // no longer counted as live
}

var _ net.Conn = (*TCPConn)(nil)

func newTCPConn(r *TCPRequest) *TCPConn {
	c := &TCPConn{stack: r.stack, local: r.Destination(), peer: r.Source()}
	c.in.init()
	c.out.init()
	return c
}

// start takes over an established endpoint.
func (c *TCPConn) start(ep tcpip.Endpoint) {
	c.ep = ep
	options := ep.SocketOptions()
	options.SetDelayOption(false)
	idle := tcpip.KeepaliveIdleOption(c.stack.cfg.KeepAliveIdle)
	interval := tcpip.KeepaliveIntervalOption(c.stack.cfg.KeepAliveInterval)
	// These cannot fail: gVisor accepts any value for them.
	_ = ep.SetSockOpt(&idle)
	_ = ep.SetSockOpt(&interval)
	_ = ep.SetSockOptInt(tcpip.KeepaliveCountOption, c.stack.cfg.KeepAliveCount)
	options.SetKeepAlive(true)
	c.entry.Init((*tcpEvents)(c), waiter.ReadableEvents|waiter.WritableEvents|waiter.EventErr|waiter.EventHUp)
	c.queue.EventRegister(&c.entry)
}

// tcpEvents keeps gVisor's callback out of TCPConn's method set.
type tcpEvents TCPConn

// NotifyEvent is called by gVisor with its locks held.
func (e *tcpEvents) NotifyEvent(mask waiter.EventMask) {
	c := (*TCPConn)(e)
	ended := mask&(waiter.EventErr|waiter.EventHUp) != 0
	if ended || mask&waiter.ReadableEvents != 0 {
		c.in.wake()
	}
	if ended || mask&waiter.WritableEvents != 0 {
		c.out.wake()
	}
	if ended && c.closed.Load() {
		c.retire(false)
	}
}

// Read reads what has arrived, blocking until there is something.
func (c *TCPConn) Read(b []byte) (int, error) {
	c.readMu.Lock()
	defer c.readMu.Unlock()
	for {
		mark, err := c.readable()
		if err != nil {
			return 0, c.fail("read", err)
		}
		if len(b) == 0 {
			return 0, nil
		}
		c.readTo = b
		res, terr := c.ep.Read(&c.readTo, tcpip.ReadOptions{})
		c.readTo = nil
		switch terr.(type) {
		case nil:
			c.ep.ModerateRecvBuf(res.Count)
			return res.Count, nil
		case *tcpip.ErrWouldBlock:
			c.in.wait(mark)
		default:
			return 0, c.fail("read", translate(terr))
		}
	}
}

// readable returns the mark to wait with for data.
func (c *TCPConn) readable() (uint64, error) {
	if c.closed.Load() {
		return 0, net.ErrClosed
	}
	return c.in.ready()
}

func (c *TCPConn) writable() (uint64, error) {
	if c.closed.Load() {
		return 0, net.ErrClosed
	}
	return c.out.ready()
}

// Write blocks until all of b is in the send buffer.
func (c *TCPConn) Write(b []byte) (int, error) {
	c.writeMu.Lock()
	defer c.writeMu.Unlock()
	return c.write(b)
}

func (c *TCPConn) write(b []byte) (int, error) {
	done := 0
	for {
		mark, err := c.writable()
		if err != nil {
			return done, c.fail("write", err)
		}
		if done == len(b) {
			return done, nil
		}
		c.payload.Reset(b[done:])
		n, terr := c.ep.Write(&c.payload, tcpip.WriteOptions{})
		c.payload.Reset(nil)
		done += int(n)
		switch terr.(type) {
		case nil:
			if done == len(b) {
				return done, nil
			}
		case *tcpip.ErrWouldBlock:
			c.out.wait(mark)
		default:
			return done, c.fail("write", translate(terr))
		}
	}
}

// fail wraps an error of Read or Write. A local Close looks to gVisor like an
// end of the stream or a broken pipe.
func (c *TCPConn) fail(op string, err error) error {
	if c.closed.Load() {
		err = net.ErrClosed
	}
	return opError(op, "tcp", c.LocalAddr(), c.RemoteAddr(), err)
}

// CloseWrite sends a FIN after what was written. Reading goes on.
func (c *TCPConn) CloseWrite() error {
	if c.closed.Load() {
		return c.fail("close", net.ErrClosed)
	}
	if err := c.ep.Shutdown(tcpip.ShutdownWrite); err != nil {
		return c.fail("close", translate(err))
	}
	return nil
}

// Close ends both directions: blocked calls return net.ErrClosed at once, what
// was written is still delivered in the background, for at most
// Config.LingerTimeout. Unread data makes it an RST, as in the kernel.
func (c *TCPConn) Close() error { return c.close(false) }

// Abort closes the connection with an RST and throws unsent data away.
func (c *TCPConn) Abort() { _ = c.close(true) }

func (c *TCPConn) close(abort bool) error {
	if c.closed.Swap(true) {
		return c.fail("close", net.ErrClosed)
	}
	c.in.setDeadline(time.Time{})
	c.out.setDeadline(time.Time{})
	if abort {
		c.ep.SocketOptions().SetLinger(tcpip.LingerOption{Enabled: true})
	}
	c.lingerMu.Lock()
	c.linger = time.AfterFunc(c.stack.cfg.LingerTimeout, func() { c.retire(true) })
	c.lingerMu.Unlock()
	c.ep.Close()
	c.in.wake()
	c.out.wake()
	c.retire(false)
	return nil
}

// retire takes a closed connection out of the count of live ones when TCP has
// nothing left to deliver, or by force.
func (c *TCPConn) retire(force bool) {
	switch tcp.EndpointState(c.ep.State()) {
	case tcp.StateTimeWait, tcp.StateClose, tcp.StateError:
	default:
		if !force {
			return
		}
		c.ep.Abort()
	}
	c.lingerMu.Lock()
	defer c.lingerMu.Unlock()
	if c.gone || c.linger == nil {
		return
	}
	c.gone = true
	c.linger.Stop()
	c.stack.count.tcpLive.Add(-1)
}

// LocalAddr returns the address that the client asked for, a *net.TCPAddr.
func (c *TCPConn) LocalAddr() net.Addr { return net.TCPAddrFromAddrPort(c.local) }

// RemoteAddr returns the client's address, a *net.TCPAddr.
func (c *TCPConn) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(c.peer) }

// SetDeadline sets both deadlines. The zero time means none.
func (c *TCPConn) SetDeadline(t time.Time) error {
	return c.setDeadlines(t, &c.in, &c.out)
}

// SetReadDeadline sets the deadline of Read and of WriteTo's reading.
func (c *TCPConn) SetReadDeadline(t time.Time) error { return c.setDeadlines(t, &c.in) }

// SetWriteDeadline sets the deadline of Write and of ReadFrom's writing.
func (c *TCPConn) SetWriteDeadline(t time.Time) error { return c.setDeadlines(t, &c.out) }

func (c *TCPConn) setDeadlines(t time.Time, gates ...*gate) error {
	if c.closed.Load() {
		return c.fail("set", net.ErrClosed)
	}
	for _, g := range gates {
		g.setDeadline(t)
	}
	return nil
}
