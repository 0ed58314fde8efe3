package wg

import (
	"encoding/binary"

	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// maxHeaders is enough for an IPv6 header and the longest TCP header.
const maxHeaders = header.IPv6MinimumSize + header.TCPHeaderMaximumSize

// segmenter splits one TCP super-packet of the stack into packets of one MSS
// each and completes their checksums.
//
// PSH and FIN stay on the last segment only, as a network card does it. This is
// not cosmetic: gVisor sets PSH on everything it sends, and a receiver that
// merges segments (Linux GRO, wireguard-go on a TUN) must stop at each PSH, so
// with PSH on every segment the peer handles each one alone.
type segmenter struct {
	pkt     *stack.PacketBuffer
	headers [maxHeaders]byte
	hdrLen  int      // of headers
	ipLen   int      // of the IP header within headers
	mss     int      // 0: the packet goes out as it is
	payload [][]byte // not yet sent
	left    int      // bytes in payload
	sent    int      // payload bytes already sent
	index   uint16   // segments already sent
}

func (s *segmenter) active() bool { return s.pkt != nil }

// start takes over the caller's reference to pkt.
func (s *segmenter) start(pkt *stack.PacketBuffer) {
	s.pkt = pkt
	s.payload = pkt.AsSlices()
	s.left = pkt.Size()
	s.sent, s.index, s.mss, s.hdrLen = 0, 0, 0, 0
	gso := pkt.GSOOptions
	if gso.Type != stack.GSOTCPv4 && gso.Type != stack.GSOTCPv6 {
		return
	}
	ip, tcp := len(pkt.NetworkHeader().Slice()), len(pkt.TransportHeader().Slice())
	if ip < header.IPv4MinimumSize || tcp < header.TCPMinimumSize || ip+tcp > maxHeaders || gso.MSS == 0 {
		return
	}
	s.ipLen, s.hdrLen, s.mss = ip, ip+tcp, int(gso.MSS)
	s.take(s.headers[:s.hdrLen])
}

// size is the length of the segment that one will write.
func (s *segmenter) size() int {
	if s.mss == 0 {
		return s.left
	}
	return s.hdrLen + min(s.left, s.mss)
}

// one writes the next segment to b and returns its length.
func (s *segmenter) one(b []byte) int {
	n := s.write(b)
	if s.left == 0 {
		s.pkt.DecRef()
		s.pkt, s.payload = nil, nil
	}
	return n
}

func (s *segmenter) write(b []byte) int {
	if s.mss == 0 {
		size := min(s.left, len(b))
		s.take(b[:size])
		s.left = 0
		completeChecksum(b[:size], s.pkt.GSOOptions)
		return size
	}
	size := min(s.left, s.mss)
	copy(b, s.headers[:s.hdrLen])
	b = b[:s.hdrLen+size]
	s.take(b[s.hdrLen:])
	s.finish(b)
	s.sent += size
	s.index++
	return len(b)
}

// completeChecksum adds the transport header and payload to a checksum field
// that holds the pseudo-header's sum, if the stack left that to the link.
func completeChecksum(b []byte, gso stack.GSO) {
	start, at := int(gso.L3HdrLen), int(gso.L3HdrLen)+int(gso.CsumOffset)
	if !gso.NeedsCsum || at+checksum.Size > len(b) {
		return
	}
	sum := ^checksum.Checksum(b[start:], 0)
	if sum == 0 && gso.CsumOffset == header.UDPMinimumSize-checksum.Size {
		sum = 0xffff // zero would mean "none" (RFC 768)
	}
	checksum.Put(b[at:], sum)
}

// take moves the next len(b) bytes of the packet into b.
func (s *segmenter) take(b []byte) {
	s.left -= len(b)
	for len(b) > 0 {
		n := copy(b, s.payload[0])
		b = b[n:]
		if n == len(s.payload[0]) {
			s.payload = s.payload[1:]
		} else {
			s.payload[0] = s.payload[0][n:]
		}
	}
}

// finish completes the headers of a segment whose payload is in place.
func (s *segmenter) finish(b []byte) {
	tcp := header.TCP(b[s.ipLen:])
	var pseudo uint16
	if b[0]>>4 == 4 {
		ip := header.IPv4(b)
		ip.SetTotalLength(uint16(len(b)))
		ip.SetID(ip.ID() + s.index)
		ip.SetChecksum(0)
		ip.SetChecksum(^ip.CalculateChecksum())
		pseudo = pseudoHeaderSum(b[12:20], uint8(header.TCPProtocolNumber), len(tcp))
	} else {
		header.IPv6(b).SetPayloadLength(uint16(len(b) - header.IPv6MinimumSize))
		pseudo = pseudoHeaderSum(b[8:40], uint8(header.TCPProtocolNumber), len(tcp))
	}
	tcp.SetSequenceNumber(tcp.SequenceNumber() + uint32(s.sent))
	if s.left > 0 {
		tcp.SetFlags(uint8(tcp.Flags() &^ (header.TCPFlagPsh | header.TCPFlagFin)))
	}
	tcp.SetChecksum(0)
	tcp.SetChecksum(^checksum.Checksum(tcp, pseudo))
}

// pseudoHeaderSum sums the pseudo-header of RFC 9293 section 3.1 and RFC 8200
// section 8.1; addresses is source and destination as they stand in the packet.
func pseudoHeaderSum(addresses []byte, protocol uint8, length int) uint16 {
	var tail [4]byte
	tail[1] = protocol
	binary.BigEndian.PutUint16(tail[2:], uint16(length))
	return checksum.Checksum(tail[:], checksum.Checksum(addresses, 0))
}
