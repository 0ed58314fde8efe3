// Package netstack turns IP packets into conversations.
//
// In go the packets of one gVisor link endpoint (a TUN device, a WireGuard
// server, an in-memory pipe); out come a TCPRequest for every new TCP
// connection and a UDPConn for every new UDP session, both with the client's
// address and the address the client meant to reach, whatever it was. ICMP echo
// is answered here, for every address.
//
// The package knows gVisor and nothing above it: no proxy, no protocol, no
// policy, no device. One Stack serves one feed, so that the same addresses may
// appear behind two feeds.
package netstack

import (
	"container/list"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
)

const nicID tcpip.NICID = 1

// ErrClosed is returned by operations on a Stack that was closed.
var ErrClosed = errors.New("netstack: stack is closed")

// Handler receives new conversations. Both methods are called on goroutines
// that move packets: they must not block, and hand the work to a goroutine of
// their own.
type Handler interface {
	// HandleTCP is called once per new connection, before the client gets an
	// answer. The request must be decided by exactly one of Accept, Reject and
	// Drop; an undecided one is dropped after Config.AcceptTimeout.
	HandleTCP(r *TCPRequest)
	// HandleUDP is called once per new pair of addresses; the datagram that
	// opened the session is already waiting in c. The handler must Close c, if
	// only after c's idle timeout has ended its Read.
	HandleUDP(c *UDPConn)
}

// Config holds limits and timeouts. The zero value of each field means the
// default that is named with it.
type Config struct {
	Logger *slog.Logger // for limits that were reached; nil: nothing is logged

	// MaxHalfOpen bounds connections that are undecided or in the middle of
	// their handshake: 4096; MaxHalfOpenPerClient those of one source address:
	// 512. A SYN above a bound is ignored, so that a live client's
	// retransmission gets its turn; above MaxHalfOpen the oldest such connection
	// gives way, once it is older than GiveWayAfter.
	MaxHalfOpen          int
	MaxHalfOpenPerClient int
	// MaxTCP bounds established connections until the last byte of them is
	// acknowledged: 65536. SYNs above it are ignored.
	MaxTCP int
	// MaxUDP bounds UDP sessions: 16384; MaxUDPPerClient those of one source
	// address: 4096. Datagrams that would open one more are dropped.
	MaxUDP          int
	MaxUDPPerClient int
	// UDPBuffer bounds the memory of the unread datagrams of one session:
	// 1 MiB; UDPBufferTotal that of all sessions: 128 MiB. More are dropped.
	UDPBuffer      int
	UDPBufferTotal int

	GiveWayAfter      time.Duration // 1 s
	AcceptTimeout     time.Duration // life of an undecided TCPRequest: 60 s
	HandshakeTimeout  time.Duration // from SYN-ACK to the client's ACK: 15 s
	LingerTimeout     time.Duration // for a closed connection to deliver what was written: 60 s, then RST
	TimeWait          time.Duration // RFC 9293 TIME-WAIT, when this side closed first: 5 s
	KeepAliveIdle     time.Duration // silence before the first probe: 120 s
	KeepAliveInterval time.Duration // between probes: 30 s
	KeepAliveCount    int           // unanswered probes until the connection is dead: 5
	UDPTimeout        time.Duration // a session without a datagram in either direction ends: 60 s
	DNSTimeout        time.Duration // the same for destination port 53: 10 s
}

func (c Config) withDefaults() Config {
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	ints := []struct {
		field *int
		value int
	}{
		{&c.MaxHalfOpen, 4096},
		{&c.MaxHalfOpenPerClient, 512},
		{&c.MaxTCP, 65536},
		{&c.MaxUDP, 16384},
		{&c.MaxUDPPerClient, 4096},
		{&c.UDPBuffer, 1 << 20},
		{&c.UDPBufferTotal, 128 << 20},
		{&c.KeepAliveCount, 5},
	}
	for _, f := range ints {
		if *f.field == 0 {
			*f.field = f.value
		}
	}
	times := []struct {
		field *time.Duration
		value time.Duration
	}{
		{&c.GiveWayAfter, time.Second},
		{&c.AcceptTimeout, 60 * time.Second},
		{&c.HandshakeTimeout, 15 * time.Second},
		{&c.LingerTimeout, 60 * time.Second},
		{&c.TimeWait, 5 * time.Second},
		{&c.KeepAliveIdle, 120 * time.Second},
		{&c.KeepAliveInterval, 30 * time.Second},
		{&c.UDPTimeout, 60 * time.Second},
		{&c.DNSTimeout, 10 * time.Second},
	}
	for _, f := range times {
		if *f.field == 0 {
			*f.field = f.value
		}
	}
	return c
}

// Stack is the network stack of one feed. All methods are safe for concurrent
// use.
type Stack struct {
	cfg     Config
	handler Handler
	link    stack.LinkEndpoint
	ip      *stack.Stack
	count   counters
	warned  atomic.Int64 // when a limit was last logged

	forwarder *tcp.Forwarder

	mu       sync.Mutex // guards what follows
	closed   bool
	pending  map[stack.TransportEndpointID]*TCPRequest
	waiting  list.List // pending, oldest first
	halfOpen budget
	sessions map[*UDPConn]struct{}
	udp      budget

	handlers  sync.WaitGroup // goroutines that are inside of Handler.HandleTCP
	closeOnce sync.Once
	done      chan struct{} // closed when Close has finished
}

// New starts a stack over link and delivers its conversations to h. The stack
// owns link from here on: Close detaches and closes it.
//
// A link that reports stack.CapabilityRXChecksumOffload vouches for the TCP and
// UDP checksums of every packet it delivers; for other links the stack verifies
// them itself. Calling link.Attach(nil) must stop deliveries, and link.Wait
// return once the last one has ended.
func New(cfg Config, link stack.LinkEndpoint, h Handler) (*Stack, error) {
	cfg = cfg.withDefaults()
	s := &Stack{
		cfg:      cfg,
		handler:  h,
		link:     link,
		pending:  make(map[stack.TransportEndpointID]*TCPRequest),
		halfOpen: newBudget(cfg.MaxHalfOpen, cfg.MaxHalfOpenPerClient),
		sessions: make(map[*UDPConn]struct{}),
		udp:      newBudget(cfg.MaxUDP, cfg.MaxUDPPerClient),
		done:     make(chan struct{}),
	}
	s.ip = stack.New(stack.Options{
		NetworkProtocols: []stack.NetworkProtocolFactory{ipv4.NewProtocol, ipv6.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{
			tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4, icmp.NewProtocol6,
		},
	})
	if err := s.setup(); err != nil {
		s.ip.Destroy()
		return nil, fmt.Errorf("netstack: start: %w", err)
	}
	return s, nil
}

// setup configures TCP, installs the handlers and attaches the link, last,
// because packets flow from then on.
func (s *Stack) setup() error {
	if err := tuneTCP(s.ip, s.cfg.TimeWait); err != nil {
		return err
	}
	// The forwarder's own bound is never reached: handleSYN counts first.
	s.forwarder = tcp.NewForwarder(s.ip, 0, 2*s.cfg.MaxHalfOpen+1, s.runTCPHandler)
	s.ip.SetTransportProtocolHandler(tcp.ProtocolNumber, s.handleTCPSegment)
	s.ip.SetTransportProtocolHandler(udp.ProtocolNumber, s.handleUDPPacket)
	s.ip.SetTransportProtocolHandler(icmp.ProtocolNumber4, s.handleEcho)
	s.ip.SetRouteTable([]tcpip.Route{
		{Destination: header.IPv4EmptySubnet, NIC: nicID},
		{Destination: header.IPv6EmptySubnet, NIC: nicID},
	})
	if err := s.ip.CreateNICWithOptions(nicID, s.link, stack.NICOptions{Disabled: true}); err != nil {
		return translate(err)
	}
	// Promiscuous: packets for any address are ours. Spoofing: we answer as
	// that address.
	if err := s.ip.SetPromiscuousMode(nicID, true); err != nil {
		return translate(err)
	}
	if err := s.ip.SetSpoofing(nicID, true); err != nil {
		return translate(err)
	}
	if err := s.ip.EnableNIC(nicID); err != nil {
		return translate(err)
	}
	return nil
}

// tuneTCP sets what gVisor leaves off or small. RACK is off because it
// retransmits spuriously, and the congestion control is reno because gVisor's
// cubic overflows on fast links.
func tuneTCP(ip *stack.Stack, timeWait time.Duration) error {
	sack := tcpip.TCPSACKEnabled(true)
	recovery := tcpip.TCPRecovery(0)
	reno := tcpip.CongestionControlOption("reno")
	delay := tcpip.TCPDelayEnabled(false)
	moderate := tcpip.TCPModerateReceiveBufferOption(true)
	wait := tcpip.TCPTimeWaitTimeoutOption(timeWait)
	receive := tcpip.TCPReceiveBufferSizeRangeOption{Min: tcp.MinBufferSize, Default: 1 << 20, Max: 8 << 20}
	send := tcpip.TCPSendBufferSizeRangeOption{Min: tcp.MinBufferSize, Default: 1 << 20, Max: 6 << 20}
	for _, option := range []tcpip.SettableTransportProtocolOption{
		&sack, &recovery, &reno, &delay, &moderate, &wait, &receive, &send,
	} {
		if err := ip.SetTransportProtocolOption(tcp.ProtocolNumber, option); err != nil {
			return fmt.Errorf("set TCP option %T: %w", option, translate(err))
		}
	}
	return nil
}

// Close ends every conversation (RST to TCP clients, errors to blocked
// handlers), closes the link and returns when no goroutine of the stack is
// left. Handlers' own goroutines are theirs to wait for.
func (s *Stack) Close() error {
	s.closeOnce.Do(s.shutdown)
	<-s.done
	return nil
}

func (s *Stack) shutdown() {
	defer close(s.done)
	s.mu.Lock()
	s.closed = true
	requests := make([]*TCPRequest, 0, len(s.pending))
	for _, r := range s.pending {
		requests = append(requests, r)
	}
	sessions := make([]*UDPConn, 0, len(s.sessions))
	for c := range s.sessions {
		sessions = append(sessions, c)
	}
	s.mu.Unlock()

	// No packet comes in from here on, so nothing new can start.
	s.link.Attach(nil)
	s.link.Wait()
	for _, r := range requests {
		r.abandon(requestDropped, ErrClosed)
	}
	for _, c := range sessions {
		c.fail(ErrClosed)
		_ = c.Close()
	}
	s.ip.Close()
	s.abortHandshakes()
	s.ip.Wait()
	s.handlers.Wait()
}

// abortHandshakes waits for the Accepts that were under way. A handshake that
// started after gVisor aborted its endpoints would wait for its own timeout, so
// they are told again until none is left.
func (s *Stack) abortHandshakes() {
	for {
		s.mu.Lock()
		left := len(s.pending)
		for _, r := range s.pending {
			r.wakeHandshake()
		}
		s.mu.Unlock()
		if left == 0 {
			return
		}
		time.Sleep(time.Millisecond)
	}
}

func (s *Stack) isClosed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closed
}

// addrPort converts gVisor's address. The zone of a link-local address is lost,
// a feed has one link.
func addrPort(a tcpip.Address, port uint16) netip.AddrPort {
	return netip.AddrPortFrom(netipAddr(a), port)
}

func netipAddr(a tcpip.Address) netip.Addr {
	switch a.Len() {
	case header.IPv4AddressSize:
		return netip.AddrFrom4(a.As4())
	case header.IPv6AddressSize:
		return netip.AddrFrom16(a.As16())
	}
	return netip.Addr{}
}
