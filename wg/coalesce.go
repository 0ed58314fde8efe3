package wg

import (
	"bytes"
	"encoding/binary"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// coalescer merges the TCP segments of one decrypted batch into super-packets,
// so that the stack is entered once per train and not once per segment. It
// holds nothing between batches. (gVisor's own gro.GRO is not used: its Flush
// releases at most one packet per bucket, which strands the others.)
type coalescer struct {
	trains []train
	parts  [][]byte // packets of the batch, alive only until flush returns
	next   []int32  // next[i] is the part after parts[i] in its train, or -1
}

// searchBack bounds how many recent trains a segment is compared with. An older
// train of the same flow is simply not extended; order is kept.
const searchBack = 16

// train is one packet, or several TCP segments in sequence.
type train struct {
	proto       tcpip.NetworkProtocolNumber
	first, last int32
	payload     int // bytes
	hdrLen      int // 0: not TCP, or may not be merged
	ipLen       int
	segment     int    // payload of the first segment
	seq         uint32 // expected next
	open        bool
}

// add takes one packet; false means it was malformed or corrupt and dropped.
// pkt must stay valid until flush.
func (c *coalescer) add(pkt []byte) bool {
	t, ok := inspect(pkt)
	if !ok {
		return false
	}
	i := int32(len(c.parts))
	c.parts = append(c.parts, pkt)
	c.next = append(c.next, -1)
	t.first, t.last = i, i
	if t.hdrLen > 0 && c.extend(&t, pkt) {
		return true
	}
	c.trains = append(c.trains, t)
	return true
}

// extend appends the segment t (bytes pkt) to the latest train of its flow.
// When it cannot, that train is closed, so that order is kept.
func (c *coalescer) extend(t *train, pkt []byte) bool {
	for j := len(c.trains) - 1; j >= max(0, len(c.trains)-searchBack); j-- {
		old := &c.trains[j]
		if old.hdrLen == 0 || !sameFlow(c.parts[old.first], pkt, old.ipLen, t.ipLen) {
			continue
		}
		if !old.open || !c.fits(old, t, pkt) {
			old.open = false
			return false
		}
		c.next[old.last] = t.first
		old.last = t.last
		old.payload += t.payload
		old.seq += uint32(t.payload)
		old.open = t.open && t.payload == old.segment
		return true
	}
	return false
}

// fits reports whether the segment t directly continues the train old.
func (c *coalescer) fits(old, t *train, pkt []byte) bool {
	head := c.parts[old.first]
	seq := header.TCP(pkt[t.ipLen:]).SequenceNumber()
	flags := header.TCP(pkt[t.ipLen:]).Flags()
	return t.payload > 0 && t.payload <= old.segment &&
		flags&^header.TCPFlagPsh == header.TCPFlagAck &&
		seq == old.seq && t.hdrLen == old.hdrLen &&
		old.hdrLen+old.payload+t.payload <= maxSuperPacket &&
		sameHeaders(head, pkt, t.ipLen, t.hdrLen)
}

// sameFlow compares IP version, addresses and ports.
func sameFlow(a, b []byte, aIP, bIP int) bool {
	if aIP != bIP || binary.BigEndian.Uint32(a[aIP:]) != binary.BigEndian.Uint32(b[bIP:]) {
		return false
	}
	if aIP == header.IPv4MinimumSize {
		return bytes.Equal(a[12:20], b[12:20])
	}
	return bytes.Equal(a[8:40], b[8:40])
}

// sameHeaders compares what must agree within one train: traffic class, TTL,
// acknowledgement, window and options.
func sameHeaders(a, b []byte, ipLen, hdrLen int) bool {
	if ipLen == header.IPv4MinimumSize {
		if a[1] != b[1] || a[8] != b[8] || a[6] != b[6] {
			return false
		}
	} else if !bytes.Equal(a[:4], b[:4]) || a[7] != b[7] {
		return false
	}
	return bytes.Equal(a[ipLen+8:ipLen+12], b[ipLen+8:ipLen+12]) &&
		bytes.Equal(a[ipLen+14:ipLen+16], b[ipLen+14:ipLen+16]) &&
		bytes.Equal(a[ipLen+20:hdrLen], b[ipLen+20:hdrLen])
}

// flush delivers all trains in order and forgets them.
func (c *coalescer) flush(d stack.NetworkDispatcher) {
	for i := range c.trains {
		t := &c.trains[i]
		pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: c.build(t)})
		d.DeliverNetworkPacket(t.proto, pkt)
		pkt.DecRef()
	}
	clear(c.parts)
	c.trains, c.parts, c.next = c.trains[:0], c.parts[:0], c.next[:0]
}

// build copies a train into one buffer.
func (c *coalescer) build(t *train) buffer.Buffer {
	head := c.parts[t.first]
	if t.first == t.last {
		return buffer.MakeWithData(head)
	}
	size := t.hdrLen + t.payload
	view := buffer.NewViewSize(size)
	b := view.AsSlice()
	n := copy(b, head)
	for i := c.next[t.first]; i >= 0; i = c.next[i] {
		n += copy(b[n:], c.parts[i][t.hdrLen:])
	}
	if t.ipLen == header.IPv4MinimumSize {
		header.IPv4(b).SetTotalLength(uint16(size))
	} else {
		header.IPv6(b).SetPayloadLength(uint16(size - header.IPv6MinimumSize))
	}
	tcp := header.TCP(b[t.ipLen:])
	tcp.SetFlags(uint8(tcp.Flags() | header.TCP(c.parts[t.last][t.ipLen:]).Flags()&header.TCPFlagPsh))
	return buffer.MakeWithView(view)
}

// inspect checks lengths and checksums and says what may be merged. wireguard-go
// already cut the packet to the length in its IP header.
func inspect(pkt []byte) (train, bool) {
	if len(pkt) == 0 {
		return train{}, false
	}
	switch pkt[0] >> 4 {
	case 4:
		return inspect4(pkt)
	case 6:
		return inspect6(pkt)
	}
	return train{}, false
}

func inspect4(pkt []byte) (train, bool) {
	t := train{proto: header.IPv4ProtocolNumber}
	ip := header.IPv4(pkt)
	if !ip.IsValid(len(pkt)) || int(ip.TotalLength()) != len(pkt) || !ip.IsChecksumValid() {
		return t, false
	}
	if ip.FragmentOffset() != 0 || ip.Flags()&header.IPv4FlagMoreFragments != 0 {
		return t, true
	}
	ipLen := int(ip.HeaderLength())
	return t.transport(pkt, ipLen, ip.Protocol(), pkt[12:20], ipLen == header.IPv4MinimumSize)
}

func inspect6(pkt []byte) (train, bool) {
	t := train{proto: header.IPv6ProtocolNumber}
	ip := header.IPv6(pkt)
	if !ip.IsValid(len(pkt)) || int(ip.PayloadLength())+header.IPv6MinimumSize != len(pkt) {
		return t, false
	}
	return t.transport(pkt, header.IPv6MinimumSize, ip.NextHeader(), pkt[8:40], true)
}

// transport verifies the checksum of TCP and UDP (the stack verifies those of
// ICMP) and completes t for TCP. Packets behind IPv6 extension headers and IP
// fragments pass unverified: WireGuard has authenticated them.
func (t train) transport(pkt []byte, ipLen int, protocol uint8, addresses []byte, plain bool) (train, bool) {
	data := pkt[ipLen:]
	switch protocol {
	case uint8(header.UDPProtocolNumber):
		if len(data) < header.UDPMinimumSize {
			return t, false
		}
		if header.UDP(data).Checksum() == 0 && ipLen != header.IPv6MinimumSize {
			return t, true
		}
	case uint8(header.TCPProtocolNumber):
		if len(data) < header.TCPMinimumSize {
			return t, false
		}
	default:
		return t, true
	}
	sum := pseudoHeaderSum(addresses, protocol, len(data))
	if checksum.Checksum(data, sum) != 0xffff {
		return t, false
	}
	if protocol != uint8(header.TCPProtocolNumber) || !plain {
		return t, true
	}
	tcp := header.TCP(data)
	off := int(tcp.DataOffset())
	if off < header.TCPMinimumSize || off > len(data) {
		return t, false
	}
	t.ipLen, t.hdrLen = ipLen, ipLen+off
	t.payload = len(pkt) - t.hdrLen
	t.segment = t.payload
	t.seq = tcp.SequenceNumber() + uint32(t.payload)
	t.open = t.payload > 0 && tcp.Flags() == header.TCPFlagAck
	return t, true
}
