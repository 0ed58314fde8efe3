package netstack

import (
	"net/netip"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// broadcast is the limited broadcast address, RFC 919.
var broadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})

func combine(a, b uint16) uint16 { return checksum.Combine(a, b) }

// handleEcho answers ICMPv4 echo requests (RFC 792). gVisor does so only for
// addresses that are its own, and for IPv6, where it answers for any. It
// reports whether the packet was an echo request.
func (s *Stack) handleEcho(id stack.TransportEndpointID, pkt *stack.PacketBuffer) bool {
	request := header.ICMPv4(pkt.TransportHeader().Slice())
	if len(request) < header.ICMPv4MinimumSize || request.Type() != header.ICMPv4Echo {
		return false
	}
	network := pkt.Network()
	source, target := network.SourceAddress(), network.DestinationAddress()
	if checksum.Checksum(request, pkt.Data().Checksum()) != 0xffff ||
		!usable(stack.TransportEndpointID{LocalAddress: target, RemoteAddress: source, LocalPort: 1, RemotePort: 1}) {
		return true
	}
	route, err := s.ip.FindRoute(nicID, target, source, header.IPv4ProtocolNumber, false)
	if err != nil {
		return true
	}
	defer route.Release()
	reply := stack.NewPacketBuffer(stack.PacketBufferOptions{
		ReserveHeaderBytes: int(route.MaxHeaderLength()) + header.ICMPv4MinimumSize,
		Payload:            pkt.Data().ToBuffer(),
	})
	defer reply.DecRef()
	h := header.ICMPv4(reply.TransportHeader().Push(header.ICMPv4MinimumSize))
	copy(h, request)
	h.SetType(header.ICMPv4EchoReply)
	h.SetChecksum(0)
	h.SetChecksum(^checksum.Checksum(h, reply.Data().Checksum()))
	if s.sendICMP(route, header.ICMPv4ProtocolNumber, reply) {
		s.count.echo.Add(1)
	}
	return true
}

func (s *Stack) sendICMP(route *stack.Route, protocol tcpip.TransportProtocolNumber, pkt *stack.PacketBuffer) bool {
	pkt.TransportProtocolNumber = protocol
	return route.WritePacket(stack.NetworkHeaderParams{Protocol: protocol, TTL: route.DefaultTTL()}, pkt) == nil
}

// unreachable is a reason of ICMP "destination unreachable".
type unreachable struct {
	v4 header.ICMPv4Code
	v6 header.ICMPv6Code
}

var (
	hostUnreachable = unreachable{header.ICMPv4HostUnreachable, header.ICMPv6AddressUnreachable}
	portUnreachable = unreachable{header.ICMPv4PortUnreachable, header.ICMPv6PortUnreachable}
)

// quoted is how much of a packet an ICMP error repeats: the IP header with
// options or extensions and the transport header.
const quoted = 128

// quote copies the start of a received packet.
func quote(pkt *stack.PacketBuffer) []byte {
	parts := [][]byte{pkt.NetworkHeader().Slice(), pkt.TransportHeader().Slice()}
	b := make([]byte, 0, min(quoted, len(parts[0])+len(parts[1])))
	for _, part := range parts {
		b = append(b, part[:min(len(part), cap(b)-len(b))]...)
	}
	return b
}

// sendUnreachable tells the client id.RemoteAddress, in the name of the address
// it wanted to reach, why it cannot (RFC 792, RFC 4443). gVisor's limit for
// ICMP errors applies.
func (s *Stack) sendUnreachable(id stack.TransportEndpointID, original []byte, why unreachable) {
	protocol := header.IPv4ProtocolNumber
	if id.LocalAddress.Len() == header.IPv6AddressSize {
		protocol = header.IPv6ProtocolNumber
	}
	if !s.ip.AllowICMPMessage() {
		return
	}
	route, err := s.ip.FindRoute(nicID, id.LocalAddress, id.RemoteAddress, protocol, false)
	if err != nil {
		return
	}
	defer route.Release()
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{
		ReserveHeaderBytes: int(route.MaxHeaderLength()) + header.ICMPv6DstUnreachableMinimumSize,
		Payload:            buffer.MakeWithData(original),
	})
	defer pkt.DecRef()
	number := header.ICMPv4ProtocolNumber
	if protocol == header.IPv4ProtocolNumber {
		h := header.ICMPv4(pkt.TransportHeader().Push(header.ICMPv4MinimumSize))
		h.SetType(header.ICMPv4DstUnreachable)
		h.SetCode(why.v4)
		h.SetChecksum(header.ICMPv4Checksum(h, pkt.Data().Checksum()))
	} else {
		number = header.ICMPv6ProtocolNumber
		h := header.ICMPv6(pkt.TransportHeader().Push(header.ICMPv6DstUnreachableMinimumSize))
		h.SetType(header.ICMPv6DstUnreachable)
		h.SetCode(why.v6)
		h.SetChecksum(header.ICMPv6Checksum(header.ICMPv6ChecksumParams{
			Header:      h,
			Src:         route.LocalAddress(),
			Dst:         route.RemoteAddress(),
			PayloadCsum: pkt.Data().Checksum(),
			PayloadLen:  pkt.Data().Size(),
		}))
	}
	if s.sendICMP(route, number, pkt) {
		s.count.unreachable.Add(1)
	}
}
