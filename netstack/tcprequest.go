package netstack

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// ErrDecided is returned by TCPRequest.Accept when the request was decided
// before, by the handler or by its AcceptTimeout.
var ErrDecided = errors.New("netstack: request was already decided")

// requestState is how a TCPRequest was decided.
type requestState int

const (
	undecided requestState = iota
	requestAccepted
	requestRejected
	requestDropped
	requestExpired
	requestGivenUp
)

// TCPRequest is a connection that a client has asked for (its SYN) and that has
// not been answered. Exactly one of Accept, Reject, Unreachable and Drop
// decides; later calls have no effect, and a later Accept returns ErrDecided.
// All methods are safe for concurrent use.
type TCPRequest struct {
	stack    *Stack
	id       stack.TransportEndpointID
	sequence uint32 // of the SYN
	asked    time.Time
	place    *list.Element // in stack.waiting, whose lock guards it
	quote    []byte        // the SYN's headers, for an ICMP error

	mu      sync.Mutex
	state   requestState
	gvisor  *tcp.ForwarderRequest // nil until the handler is about to run
	timer   *time.Timer
	conn    *TCPConn // while its handshake is under way
	ctx     context.Context
	cancel  context.CancelCauseFunc
	because error // why ctx has ended
}

// Source returns the client's address.
func (r *TCPRequest) Source() netip.AddrPort {
	return addrPort(r.id.RemoteAddress, r.id.RemotePort)
}

// Destination returns the address that the client asked for.
func (r *TCPRequest) Destination() netip.AddrPort {
	return addrPort(r.id.LocalAddress, r.id.LocalPort)
}

// Context returns a context that ends when the request can no longer be
// accepted, so that a handler stops dialling upstream: the client has reset the
// connection (cause syscall.ECONNRESET), the AcceptTimeout is over
// (os.ErrDeadlineExceeded), the stack is closed (ErrClosed), or the request was
// decided (context.Canceled). A client that silently forgets its connection
// cannot be noticed before Accept.
func (r *TCPRequest) Context() context.Context {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ctx == nil {
		r.ctx, r.cancel = context.WithCancelCause(context.Background())
		if r.state != undecided {
			r.cancel(r.because)
		}
	}
	return r.ctx
}

// Accept completes the handshake: it sends the SYN-ACK and blocks until the
// client's ACK, at most Config.HandshakeTimeout.
func (r *TCPRequest) Accept() (*TCPConn, error) {
	s := r.stack
	conn := newTCPConn(r)
	r.mu.Lock()
	if r.state != undecided {
		defer r.mu.Unlock()
		if r.state == requestGivenUp || errors.Is(r.because, ErrClosed) {
			return nil, opError("accept", "tcp", conn.LocalAddr(), conn.RemoteAddr(), r.because)
		}
		return nil, ErrDecided
	}
	r.endLocked(requestAccepted, context.Canceled)
	r.conn = conn
	r.mu.Unlock()
	if s.isClosed() {
		r.release(false)
		return nil, opError("accept", "tcp", conn.LocalAddr(), conn.RemoteAddr(), ErrClosed)
	}

	timeout := time.AfterFunc(s.cfg.HandshakeTimeout, r.wakeHandshake)
	ep, err := r.gvisor.CreateEndpoint(&conn.queue)
	timeout.Stop()
	if err != nil {
		s.count.tcpFailed.Add(1)
		r.release(false)
		return nil, opError("accept", "tcp", conn.LocalAddr(), conn.RemoteAddr(), fmt.Errorf("handshake: %w", translate(err)))
	}
	s.count.tcpAccepted.Add(1)
	s.count.tcpLive.Add(1)
	conn.start(ep)
	r.release(false)
	return conn, nil
}

// wakeHandshake ends a handshake that is under way: gVisor waits for an event
// and fails when the connection is not established by then.
func (r *TCPRequest) wakeHandshake() {
	r.mu.Lock()
	conn := r.conn
	r.mu.Unlock()
	if conn != nil {
		conn.queue.Notify(waiter.WritableEvents)
	}
}

// Reject refuses the connection with an RST: the client sees "connection
// refused".
func (r *TCPRequest) Reject() {
	if r.decide(requestRejected, context.Canceled) {
		r.stack.count.tcpRejected.Add(1)
		r.release(true)
	}
}

// Unreachable refuses the connection with an ICMP "host unreachable" from the
// destination: the client sees what it would see without a proxy in between.
func (r *TCPRequest) Unreachable() {
	if r.decide(requestRejected, context.Canceled) {
		r.stack.count.tcpRejected.Add(1)
		r.stack.sendUnreachable(r.id, r.quote, hostUnreachable)
		r.release(false)
	}
}

// Drop leaves the request unanswered. The client retransmits its SYN, which
// makes a new request, until it sees a timeout.
func (r *TCPRequest) Drop() { r.abandon(requestDropped, context.Canceled) }

// abandon decides without an answer.
func (r *TCPRequest) abandon(state requestState, because error) {
	if !r.decide(state, because) {
		return
	}
	switch state {
	case requestExpired:
		r.stack.count.tcpExpired.Add(1)
	case requestGivenUp:
		r.stack.count.tcpGivenUp.Add(1)
	default:
		r.stack.count.tcpDropped.Add(1)
	}
	r.release(false)
}

func (r *TCPRequest) decide(state requestState, because error) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.state != undecided {
		return false
	}
	r.endLocked(state, because)
	return true
}

func (r *TCPRequest) endLocked(state requestState, because error) {
	r.state, r.because = state, because
	if r.timer != nil {
		r.timer.Stop()
	}
	if r.cancel != nil {
		r.cancel(because)
	}
}

// release gives back what a decided request holds. gVisor's record of the SYN
// goes first: while ours exists, a retransmission is not offered again.
func (r *TCPRequest) release(reset bool) {
	r.mu.Lock()
	g := r.gvisor
	r.gvisor, r.conn = nil, nil
	r.mu.Unlock()
	if g != nil {
		g.Complete(reset)
	}
	s := r.stack
	s.mu.Lock()
	delete(s.pending, r.id)
	s.waiting.Remove(r.place)
	s.halfOpen.give(netipAddr(r.id.RemoteAddress))
	s.mu.Unlock()
}

// handleTCPSegment sees the segments that belong to no connection.
func (s *Stack) handleTCPSegment(id stack.TransportEndpointID, pkt *stack.PacketBuffer) bool {
	segment := header.TCP(pkt.TransportHeader().Slice())
	switch flags := segment.Flags(); {
	case flags.Contains(header.TCPFlagRst):
		s.resetPending(id, segment.SequenceNumber())
		return false
	case flags.Contains(header.TCPFlagSyn) && !flags.Contains(header.TCPFlagAck):
		return s.handleSYN(id, pkt, segment)
	}
	return false // gVisor answers with RST
}

// handleSYN applies the bounds and starts a request. It reports whether the
// segment was consumed.
func (s *Stack) handleSYN(id stack.TransportEndpointID, pkt *stack.PacketBuffer, segment header.TCP) bool {
	if !usable(id) {
		s.count.badAddress.Add(1)
		return true
	}
	r := &TCPRequest{
		stack:    s,
		id:       id,
		sequence: segment.SequenceNumber(),
	}
	if !s.admit(r) {
		return true
	}
	r.quote = quote(pkt)
	if s.forwarder.HandlePacket(id, pkt) {
		return true // runTCPHandler has been started
	}
	s.handlers.Done()
	r.release(false)
	return false
}

// admit makes r pending if the bounds allow it. Where too many connections are
// half-open the oldest gives way: else whoever leaves that many unanswered
// locks everybody out for as long as a dial may take.
func (s *Stack) admit(r *TCPRequest) bool {
	for madeRoom := false; ; madeRoom = true {
		s.mu.Lock()
		verdict := s.takeLocked(r)
		old := s.overdueLocked()
		s.mu.Unlock()
		switch verdict {
		case within:
			return true
		case aboveLive:
			s.overLimit(&s.count.synOverLive, "MaxTCP", r.id)
		case aboveClient:
			s.overLimit(&s.count.synOverPerClient, "MaxHalfOpenPerClient", r.id)
		case aboveTotal:
			if !madeRoom && old != nil && old.giveWay() {
				continue
			}
			s.overLimit(&s.count.synOverHalfOpen, "MaxHalfOpen", r.id)
		}
		return false
	}
}

// takeLocked makes r pending, or says why not; again for a SYN that is known.
func (s *Stack) takeLocked(r *TCPRequest) verdict {
	if _, retransmitted := s.pending[r.id]; retransmitted || s.closed {
		return again
	}
	if s.count.tcpLive.Load()+int64(s.halfOpen.total) >= int64(s.cfg.MaxTCP) {
		return aboveLive
	}
	if v := s.halfOpen.take(netipAddr(r.id.RemoteAddress)); v != within {
		return v
	}
	s.pending[r.id] = r
	r.asked, r.place = time.Now(), s.waiting.PushBack(r)
	s.handlers.Add(1)
	return within
}

// overdueLocked returns the request that is half-open for the longest, if that
// is long enough to give way.
func (s *Stack) overdueLocked() *TCPRequest {
	front := s.waiting.Front()
	if front == nil {
		return nil
	}
	if r := front.Value.(*TCPRequest); time.Since(r.asked) > s.cfg.GiveWayAfter { //nolint:forcetypeassert // it holds nothing else
		return r
	}
	return nil
}

// giveWay ends a request for another one's sake. It reports whether there is
// room at once: a handshake under way takes a moment to end.
func (r *TCPRequest) giveWay() bool {
	if r.decide(requestExpired, os.ErrDeadlineExceeded) {
		r.stack.overLimit(&r.stack.count.tcpExpired, "MaxHalfOpen", r.id)
		r.release(false)
		return true
	}
	r.wakeHandshake()
	return false
}

// runTCPHandler is called by gVisor on a goroutine of its own.
func (s *Stack) runTCPHandler(g *tcp.ForwarderRequest) {
	defer s.handlers.Done()
	s.mu.Lock()
	r := s.pending[g.ID()]
	s.mu.Unlock()
	if r == nil { // reset by the client before we got here
		g.Complete(false)
		return
	}
	r.mu.Lock()
	if r.state != undecided {
		r.mu.Unlock()
		g.Complete(false)
		return
	}
	r.gvisor = g
	r.timer = time.AfterFunc(s.cfg.AcceptTimeout, func() {
		r.abandon(requestExpired, os.ErrDeadlineExceeded)
	})
	r.mu.Unlock()
	s.count.tcpRequests.Add(1)
	s.handler.HandleTCP(r)
}

// resetPending ends the request that a client's RST belongs to. The number must
// fit, or anybody who can spoof addresses could cancel others' connections.
func (s *Stack) resetPending(id stack.TransportEndpointID, sequence uint32) {
	s.mu.Lock()
	r := s.pending[id]
	s.mu.Unlock()
	if r != nil && (sequence == r.sequence || sequence == r.sequence+1) {
		r.abandon(requestGivenUp, syscall.ECONNRESET)
	}
}

// usable reports whether a conversation between these addresses can exist:
// both unicast, the client's port not zero.
func usable(id stack.TransportEndpointID) bool {
	for _, a := range []netip.Addr{netipAddr(id.LocalAddress), netipAddr(id.RemoteAddress)} {
		if !a.IsValid() || a.IsUnspecified() || a.IsMulticast() || a == broadcast {
			return false
		}
	}
	return id.RemotePort != 0 && id.LocalPort != 0
}
