package netstack

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

const (
	maxPacket = 65535
	// datagramOverhead is what an unread datagram costs besides its bytes: the
	// packet's descriptor, its views, the rounding of its buffer.
	datagramOverhead = 768
)

// UDPConn is a session: the datagrams between one client address and one
// address it has sent to. Each Read returns one datagram (what does not fit
// into the buffer is lost, 64 KiB always fits), each Write sends one.
//
// A session ends when the handler closes it, or by itself after
// Config.UDPTimeout (Config.DNSTimeout for port 53) without a datagram in
// either direction: then Read returns os.ErrDeadlineExceeded and Write
// net.ErrClosed. A client that has closed its port makes the next call fail
// with syscall.ECONNREFUSED, once.
type UDPConn struct {
	stack    *Stack
	id       stack.TransportEndpointID
	protocol tcpip.NetworkProtocolNumber
	route    *stack.Route
	idle     time.Duration
	now      time.Time // of the session's start; activity counts from it

	active  atomic.Int64 // last datagram, nanoseconds after now
	pathMTU atomic.Uint32
	closed  atomic.Bool

	in gate

	mu        sync.Mutex
	queue     packetQueue
	used      int    // memory of the queue
	failed    error  // returned by the next call
	ended     error  // why the session is closed, if not by Close
	opening   []byte // quote of the first datagram that was taken, for Reject
	idleTimer *time.Timer
}

var _ net.Conn = (*UDPConn)(nil)

// udpEndpoint keeps gVisor's callbacks out of UDPConn's method set.
type udpEndpoint UDPConn

var _ stack.TransportEndpoint = (*udpEndpoint)(nil)

// HandlePacket implements stack.TransportEndpoint.
func (e *udpEndpoint) HandlePacket(_ stack.TransportEndpointID, pkt *stack.PacketBuffer) {
	c := (*UDPConn)(e)
	if !c.stack.validUDP(pkt) {
		c.stack.ip.Stats().UDP.ChecksumErrors.Increment()
		return
	}
	c.receive(pkt)
}

// HandleError implements stack.TransportEndpoint: an ICMP error for a datagram
// that this session has sent.
func (e *udpEndpoint) HandleError(cause stack.TransportError, _ *stack.PacketBuffer) {
	c := (*UDPConn)(e)
	switch cause.Kind() {
	case stack.PacketTooBigTransportError:
		// gVisor reports the MTU without the IP header.
		c.pathMTU.Store(max(cause.Info(), header.IPv4MinimumMTU-header.IPv4MinimumSize))
	case stack.DestinationPortUnreachableTransportError:
		c.mu.Lock()
		c.failed = syscall.ECONNREFUSED
		c.mu.Unlock()
		c.in.wake()
	}
}

// Abort implements stack.TransportEndpoint.
func (e *udpEndpoint) Abort() {
	c := (*UDPConn)(e)
	c.fail(ErrClosed)
	_ = c.Close()
}

// Wait implements stack.TransportEndpoint.
func (e *udpEndpoint) Wait() {}

// receive queues a datagram, or drops it if the reader is too slow.
func (c *UDPConn) receive(pkt *stack.PacketBuffer) {
	s := c.stack
	s.count.udpIn.Add(1)
	c.touch()
	cost := pkt.Data().Size() + datagramOverhead
	c.mu.Lock()
	if c.closed.Load() {
		c.mu.Unlock()
		return
	}
	if c.used+cost > s.cfg.UDPBuffer || s.count.udpQueued.Load()+int64(cost) > int64(s.cfg.UDPBufferTotal) {
		c.mu.Unlock()
		s.overLimit(&s.count.udpOverBuffer, "UDPBuffer", c.id)
		return
	}
	c.used += cost
	s.count.udpQueued.Add(int64(cost))
	c.queue.push(pkt.IncRef())
	first := c.queue.len() == 1
	c.mu.Unlock()
	if first {
		c.in.wake()
	}
}

// take removes the oldest datagram, nil if there is none. The caller owns a
// reference.
func (c *UDPConn) take() *stack.PacketBuffer {
	pkt := c.queue.pop()
	if pkt != nil {
		cost := pkt.Data().Size() + datagramOverhead
		c.used -= cost
		c.stack.count.udpQueued.Add(-int64(cost))
	}
	return pkt
}

// Source returns the client's address.
func (c *UDPConn) Source() netip.AddrPort { return addrPort(c.id.RemoteAddress, c.id.RemotePort) }

// Destination returns the address that the client sends to.
func (c *UDPConn) Destination() netip.AddrPort { return addrPort(c.id.LocalAddress, c.id.LocalPort) }

// LocalAddr returns Destination as a *net.UDPAddr.
func (c *UDPConn) LocalAddr() net.Addr { return net.UDPAddrFromAddrPort(c.Destination()) }

// RemoteAddr returns Source as a *net.UDPAddr.
func (c *UDPConn) RemoteAddr() net.Addr { return net.UDPAddrFromAddrPort(c.Source()) }

// Read returns the next datagram. An empty datagram is 0, nil.
func (c *UDPConn) Read(b []byte) (int, error) {
	for {
		mark, err := c.in.ready()
		if err != nil {
			return 0, c.wrap("read", err)
		}
		c.mu.Lock()
		pkt, err := c.take(), c.errorLocked()
		if pkt != nil && c.opening == nil {
			c.opening = quote(pkt)
		}
		c.mu.Unlock()
		if pkt != nil {
			w := tcpip.SliceWriter(b)
			length := int(header.UDP(pkt.TransportHeader().Slice()).Length()) - header.UDPMinimumSize
			n, _ := pkt.Data().ReadTo(&w, true) // an error means that b was too short
			pkt.DecRef()
			return min(n, length), nil
		}
		if err != nil {
			return 0, c.wrap("read", err)
		}
		c.in.wait(mark)
	}
}

// errorLocked returns what the next call has to report. A pending ICMP error is
// reported once.
func (c *UDPConn) errorLocked() error {
	switch {
	case c.ended != nil:
		return c.ended
	case c.closed.Load():
		return net.ErrClosed
	}
	err := c.failed
	c.failed = nil
	return err
}

// Write sends b to the client as one datagram, fragmented if the link or, for
// IPv4, the path is smaller. It never blocks: a link that takes no more loses
// the datagram, counted, as a full network card would. b longer than 65507
// bytes (IPv6: 65487), or for IPv6 longer than what the path was found to
// carry, is syscall.EMSGSIZE.
func (c *UDPConn) Write(b []byte) (int, error) {
	if c.closed.Load() {
		return 0, c.wrap("write", net.ErrClosed)
	}
	if err := c.pendingError(); err != nil {
		return 0, c.wrap("write", err)
	}
	if err := c.send(b); err != nil {
		if errors.Is(err, syscall.ENOBUFS) {
			c.stack.count.udpSend.Add(1)
			return len(b), nil
		}
		return 0, c.wrap("write", err)
	}
	c.touch()
	c.stack.count.udpOut.Add(1)
	return len(b), nil
}

func (c *UDPConn) pendingError() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	err := c.failed
	c.failed = nil
	return err
}

func (c *UDPConn) send(b []byte) error {
	length := header.UDPMinimumSize + len(b)
	limit := maxPacket
	if c.protocol == header.IPv4ProtocolNumber {
		limit -= header.IPv4MinimumSize
	}
	path := int(c.pathMTU.Load())
	if length > limit || c.protocol == header.IPv6ProtocolNumber && length > path && path < int(c.route.MTU()) {
		return syscall.EMSGSIZE
	}
	fits := length <= int(c.route.MTU())
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{
		ReserveHeaderBytes: header.UDPMinimumSize + int(c.route.MaxHeaderLength()),
		Payload:            buffer.MakeWithData(b),
	})
	defer pkt.DecRef()
	pkt.TransportProtocolNumber = header.UDPProtocolNumber
	h := header.UDP(pkt.TransportHeader().Push(header.UDPMinimumSize))
	h.Encode(&header.UDPFields{
		SrcPort: c.id.LocalPort,
		DstPort: c.id.RemotePort,
		Length:  uint16(length),
	})
	c.checksum(h, pkt, fits)
	return translate(c.route.WritePacket(stack.NetworkHeaderParams{
		Protocol: header.UDPProtocolNumber,
		TTL:      c.route.DefaultTTL(),
		// Like the kernel's sockets: probe the path with what fits the link,
		// and let it be fragmented once it has turned out to be narrower.
		DF: fits && length <= path,
	}, pkt))
}

// checksum fills in the UDP checksum, or leaves the payload's part to a link
// with offloading (RFC 768; zero means none and becomes all ones).
func (c *UDPConn) checksum(h header.UDP, pkt *stack.PacketBuffer, fits bool) {
	sum := c.route.PseudoHeaderChecksum(header.UDPProtocolNumber, h.Length())
	if fits && c.route.HasHostGSOCapability() {
		h.SetChecksum(sum)
		pkt.GSOOptions = stack.GSO{
			NeedsCsum:  true,
			CsumOffset: header.UDPMinimumSize - 2,
			L3HdrLen:   header.IPv4MinimumSize,
		}
		if c.protocol == header.IPv6ProtocolNumber {
			pkt.GSOOptions.L3HdrLen = header.IPv6MinimumSize
		}
		return
	}
	sum = ^h.CalculateChecksum(combine(sum, pkt.Data().Checksum()))
	if sum == 0 {
		sum = 0xffff
	}
	h.SetChecksum(sum)
}

// Reject answers the datagram that opened the session with an ICMP "port
// unreachable" and closes the session, also after Reads: often the datagram
// itself, or the server that got it, tells that nobody listens.
func (c *UDPConn) Reject() {
	c.mu.Lock()
	first := c.opening
	if pkt := c.queue.front(); pkt != nil && first == nil {
		first = quote(pkt)
	}
	c.mu.Unlock()
	if first != nil && !c.closed.Load() {
		c.stack.count.udpRejected.Add(1)
		c.stack.sendUnreachable(c.id, first, portUnreachable)
	}
	_ = c.Close()
}

// Close ends the session. Blocked Reads return net.ErrClosed.
func (c *UDPConn) Close() error {
	if c.closed.Swap(true) {
		c.mu.Lock()
		ended := c.ended
		c.mu.Unlock()
		if ended != nil {
			return nil //nolint:nilerr // it had ended by itself, this Close is the first
		}
		return c.wrap("close", net.ErrClosed)
	}
	c.stack.forgetUDP(c)
	c.in.setDeadline(time.Time{})
	c.mu.Lock()
	if c.idleTimer != nil {
		c.idleTimer.Stop()
	}
	for pkt := c.take(); pkt != nil; pkt = c.take() {
		pkt.DecRef()
	}
	c.mu.Unlock()
	c.in.wake()
	c.route.Release()
	return nil
}

// fail sets why the session is about to be closed.
func (c *UDPConn) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended == nil && !c.closed.Load() {
		c.ended = err
	}
}

// CloseWrite does nothing: UDP has no end of stream.
func (c *UDPConn) CloseWrite() error { return nil }

func (c *UDPConn) touch() { c.active.Store(int64(time.Since(c.now))) }

// checkIdle runs when the session may have been idle for its timeout.
func (c *UDPConn) checkIdle() {
	silence := time.Since(c.now) - time.Duration(c.active.Load())
	if left := c.idle - silence; left > 0 {
		c.mu.Lock()
		if !c.closed.Load() {
			c.idleTimer.Reset(left)
		}
		c.mu.Unlock()
		return
	}
	c.stack.count.udpIdle.Add(1)
	c.fail(os.ErrDeadlineExceeded)
	_ = c.Close()
}

func (c *UDPConn) wrap(op string, err error) error {
	return opError(op, "udp", c.LocalAddr(), c.RemoteAddr(), err)
}

// SetDeadline sets the read deadline; Write never blocks.
func (c *UDPConn) SetDeadline(t time.Time) error { return c.SetReadDeadline(t) }

// SetReadDeadline makes Reads fail with os.ErrDeadlineExceeded from t on. It
// does not change the session's idle timeout.
func (c *UDPConn) SetReadDeadline(t time.Time) error {
	if c.closed.Load() {
		return c.wrap("set", net.ErrClosed)
	}
	c.in.setDeadline(t)
	return nil
}

// SetWriteDeadline does nothing but report a closed session: Write never
// blocks.
func (c *UDPConn) SetWriteDeadline(time.Time) error {
	if c.closed.Load() {
		return c.wrap("set", net.ErrClosed)
	}
	return nil
}

// packetQueue is a FIFO that reuses its memory and gives it back when large.
type packetQueue struct {
	packets []*stack.PacketBuffer
	head    int
}

func (q *packetQueue) len() int { return len(q.packets) - q.head }

func (q *packetQueue) front() *stack.PacketBuffer {
	if q.len() == 0 {
		return nil
	}
	return q.packets[q.head]
}

func (q *packetQueue) push(pkt *stack.PacketBuffer) {
	if q.head > 0 && len(q.packets) == cap(q.packets) {
		n := copy(q.packets, q.packets[q.head:])
		clear(q.packets[n:])
		q.packets, q.head = q.packets[:n], 0
	}
	q.packets = append(q.packets, pkt)
}

func (q *packetQueue) pop() *stack.PacketBuffer {
	if q.len() == 0 {
		return nil
	}
	pkt := q.packets[q.head]
	q.packets[q.head] = nil
	q.head++
	if q.head == len(q.packets) {
		q.packets, q.head = q.packets[:0], 0
		if cap(q.packets) > 64 {
			q.packets = nil
		}
	}
	return pkt
}
