//go:build linux

package tun

import (
	"encoding/binary"
	"errors"
	"fmt"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// headerSize is that of the virtio-net header in front of every packet, in the
// legacy layout and the byte order of the machine (Virtio 1.2 section 5.1.6).
const headerSize = 10

// Flags and types of the header, linux/virtio_net.h.
const (
	flagNeedsChecksum = 1
	flagDataValid     = 2

	gsoNone  = 0
	gsoTCPv4 = 1
	gsoTCPv6 = 4
	gsoUDP   = 5 // each datagram is of its own, UDP_L4
	gsoECN   = 0x80
)

var (
	errMalformed = errors.New("malformed packet")
	errChecksum  = errors.New("bad checksum")
)

// virtioHeader says what the kernel has left for the receiver to do.
type virtioHeader struct {
	flags          uint8
	gsoType        uint8
	headerLen      uint16
	gsoSize        uint16 // payload per segment
	checksumStart  uint16
	checksumOffset uint16
}

func decodeHeader(b *[headerSize]byte) virtioHeader {
	return virtioHeader{
		flags:          b[0],
		gsoType:        b[1],
		headerLen:      binary.NativeEndian.Uint16(b[2:]),
		gsoSize:        binary.NativeEndian.Uint16(b[4:]),
		checksumStart:  binary.NativeEndian.Uint16(b[6:]),
		checksumOffset: binary.NativeEndian.Uint16(b[8:]),
	}
}

func (h virtioHeader) encode(b *[headerSize]byte) {
	b[0], b[1] = h.flags, h.gsoType
	binary.NativeEndian.PutUint16(b[2:], h.headerLen)
	binary.NativeEndian.PutUint16(b[4:], h.gsoSize)
	binary.NativeEndian.PutUint16(b[6:], h.checksumStart)
	binary.NativeEndian.PutUint16(b[8:], h.checksumOffset)
}

// classify checks a received packet against its virtio header. It returns the
// network protocol, or an error that wraps errMalformed or errChecksum.
func classify(h virtioHeader, packet []byte) (tcpip.NetworkProtocolNumber, error) {
	protocol, err := networkProtocol(packet)
	if err != nil {
		return 0, err
	}
	switch h.gsoType &^ gsoECN {
	case gsoNone:
	case gsoTCPv4, gsoTCPv6, gsoUDP:
		if h.gsoSize == 0 {
			return 0, fmt.Errorf("%w: segments of no size", errMalformed)
		}
	default:
		return 0, fmt.Errorf("%w: segmentation type %d", errMalformed, h.gsoType)
	}
	switch {
	case h.flags&flagNeedsChecksum != 0:
		if int(h.checksumStart)+int(h.checksumOffset)+2 > len(packet) {
			return 0, fmt.Errorf("%w: checksum outside of the packet", errMalformed)
		}
	case h.flags&flagDataValid == 0:
		if !checksumsValid(protocol, packet) {
			return 0, errChecksum
		}
	}
	return protocol, nil
}

func networkProtocol(packet []byte) (tcpip.NetworkProtocolNumber, error) {
	switch header.IPVersion(packet) {
	case header.IPv4Version:
		if len(packet) >= header.IPv4MinimumSize {
			return header.IPv4ProtocolNumber, nil
		}
	case header.IPv6Version:
		if len(packet) >= header.IPv6MinimumSize {
			return header.IPv6ProtocolNumber, nil
		}
	}
	return 0, fmt.Errorf("%w: no IP header", errMalformed)
}

// transport is where a packet's TCP or UDP header is.
type transport struct {
	protocol         tcpip.TransportProtocolNumber
	source, target   tcpip.Address
	segment          []byte // header and payload, without trailing bytes
	offset, ipLength int
}

// findTransport returns the TCP or UDP segment of an unfragmented packet
// without IPv6 extension headers; all others have none that we look into.
func findTransport(protocol tcpip.NetworkProtocolNumber, packet []byte) (transport, bool) {
	var t transport
	if protocol == header.IPv4ProtocolNumber {
		ip := header.IPv4(packet)
		if !ip.IsValid(len(packet)) || ip.More() || ip.FragmentOffset() != 0 {
			return transport{}, false
		}
		t = transport{
			ip.TransportProtocol(), ip.SourceAddress(), ip.DestinationAddress(), nil,
			int(ip.HeaderLength()), int(ip.TotalLength()),
		}
	} else {
		ip := header.IPv6(packet)
		if !ip.IsValid(len(packet)) {
			return transport{}, false
		}
		t = transport{
			tcpip.TransportProtocolNumber(ip.NextHeader()), ip.SourceAddress(), ip.DestinationAddress(), nil,
			header.IPv6MinimumSize, header.IPv6MinimumSize + int(ip.PayloadLength()),
		}
	}
	t.segment = packet[t.offset:t.ipLength]
	switch t.protocol {
	case header.TCPProtocolNumber:
		return t, len(t.segment) >= header.TCPMinimumSize
	case header.UDPProtocolNumber:
		return t, len(t.segment) >= header.UDPMinimumSize
	}
	return transport{}, false
}

// checksumsValid verifies what the kernel has not: the endpoint tells gVisor
// that checksums are good, because those of local senders are never filled in.
// The IP header's was verified or made by the kernel on the way to the device,
// ICMP's is verified by gVisor, and a fragment has none of its own.
func checksumsValid(protocol tcpip.NetworkProtocolNumber, packet []byte) bool {
	t, ok := findTransport(protocol, packet)
	if !ok {
		return true
	}
	if t.protocol == header.UDPProtocolNumber {
		udp := header.UDP(t.segment)
		if int(udp.Length()) > len(t.segment) || udp.Length() < header.UDPMinimumSize {
			return true // malformed, and the stack will count it
		}
		if udp.Checksum() == 0 {
			return protocol == header.IPv4ProtocolNumber // optional there, RFC 768
		}
		t.segment = t.segment[:udp.Length()]
	}
	sum := header.PseudoHeaderChecksum(t.protocol, t.source, t.target, uint16(len(t.segment)))
	return checksum.Checksum(t.segment, sum) == 0xffff
}
