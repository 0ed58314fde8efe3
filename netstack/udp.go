package netstack

import (
	"net/netip"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/ports"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
)

const dnsPort = 53

// handleUDPPacket sees the datagrams that belong to no session, and opens one.
// It reports whether the packet was consumed; otherwise gVisor counts a
// malformed one.
func (s *Stack) handleUDPPacket(id stack.TransportEndpointID, pkt *stack.PacketBuffer) bool {
	if !usable(id) {
		s.count.badAddress.Add(1)
		return true
	}
	if !s.validUDP(pkt) {
		return false
	}
	c := s.openUDP(id, pkt)
	if c == nil {
		return true
	}
	c.receive(pkt)
	s.handler.HandleUDP(c)
	return true
}

// openUDP registers a session if the bounds allow it.
func (s *Stack) openUDP(id stack.TransportEndpointID, pkt *stack.PacketBuffer) *UDPConn {
	client := netipAddr(id.RemoteAddress)
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	bound := s.udp.take(client)
	s.mu.Unlock()
	switch bound {
	case aboveTotal:
		s.overLimit(&s.count.udpOverLive, "MaxUDP", id)
		return nil
	case aboveClient:
		s.overLimit(&s.count.udpOverPerClient, "MaxUDPPerClient", id)
		return nil
	}
	c, err := s.newUDPConn(id, pkt.NetworkProtocolNumber)
	if err != nil {
		s.giveUDP(client)
		return nil
	}
	s.mu.Lock()
	closed := s.closed
	if !closed {
		s.sessions[c] = struct{}{}
	}
	s.mu.Unlock()
	if closed {
		_ = c.Close()
		return nil
	}
	s.count.udpSessions.Add(1)
	return c
}

func (s *Stack) newUDPConn(id stack.TransportEndpointID, protocol tcpip.NetworkProtocolNumber) (*UDPConn, error) {
	route, err := s.ip.FindRoute(nicID, id.LocalAddress, id.RemoteAddress, protocol, false)
	if err != nil {
		return nil, translate(err)
	}
	c := &UDPConn{
		stack:    s,
		id:       id,
		protocol: protocol,
		route:    route,
		idle:     s.cfg.UDPTimeout,
		now:      time.Now(),
	}
	if id.LocalPort == dnsPort {
		c.idle = s.cfg.DNSTimeout
	}
	c.pathMTU.Store(maxPacket)
	c.in.init()
	err = s.ip.RegisterTransportEndpoint([]tcpip.NetworkProtocolNumber{protocol}, udp.ProtocolNumber, id,
		(*udpEndpoint)(c), ports.Flags{}, 0)
	if err != nil { // another packet of the same pair was faster
		route.Release()
		return nil, translate(err)
	}
	c.mu.Lock()
	c.idleTimer = time.AfterFunc(c.idle, c.checkIdle)
	c.mu.Unlock()
	return c, nil
}

func (s *Stack) giveUDP(client netip.Addr) {
	s.mu.Lock()
	s.udp.give(client)
	s.mu.Unlock()
}

// forgetUDP ends the session's registration. Later packets of the same pair
// open a new one.
func (s *Stack) forgetUDP(c *UDPConn) {
	s.ip.UnregisterTransportEndpoint([]tcpip.NetworkProtocolNumber{c.protocol}, udp.ProtocolNumber, c.id,
		(*udpEndpoint)(c), ports.Flags{}, 0)
	s.mu.Lock()
	delete(s.sessions, c)
	s.udp.give(netipAddr(c.id.RemoteAddress))
	s.mu.Unlock()
}

// validUDP checks the length and, unless the link vouches for it, the checksum.
// No link can vouch for a datagram that is larger than its MTU: it came in
// fragments.
func (s *Stack) validUDP(pkt *stack.PacketBuffer) bool {
	network := pkt.Network()
	size := pkt.Data().Size()
	vouched := pkt.RXChecksumValidated && uint32(size+header.UDPMinimumSize+header.IPv4MinimumSize) <= s.link.MTU()
	length, sum := header.UDPValid(
		header.UDP(pkt.TransportHeader().Slice()),
		func() uint16 { return pkt.Data().Checksum() },
		uint16(size),
		pkt.NetworkProtocolNumber,
		network.SourceAddress(), network.DestinationAddress(),
		vouched)
	return length && sum
}
