package wg

import (
	"bytes"
	"encoding/binary"
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// catcher is a stack that keeps what it gets.
type catcher struct{ got [][]byte }

func (c *catcher) DeliverNetworkPacket(_ tcpip.NetworkProtocolNumber, pkt *stack.PacketBuffer) {
	c.got = append(c.got, pkt.ToView().AsSlice())
}

func (c *catcher) DeliverLinkPacket(tcpip.NetworkProtocolNumber, *stack.PacketBuffer) {}

func coalesce(pkts ...[]byte) (got [][]byte, refused int) {
	var c coalescer
	var to catcher
	for _, p := range pkts {
		if !c.add(p) {
			refused++
		}
	}
	c.flush(&to)
	return to.got, refused
}

// fix recomputes the checksums of a TCP packet that a test has changed.
func fix(b []byte) []byte {
	s := segmenter{ipLen: header.IPv6MinimumSize}
	if b[0]>>4 == 4 {
		s.ipLen = header.IPv4MinimumSize
	}
	s.finish(b)
	return b
}

func TestTrainBecomesOnePacket(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		payload := pattern(43210)
		got, refused := coalesce(split(superPacket(v6, payload, 1340))...)
		if len(got) != 1 || refused != 0 {
			t.Fatalf("v6=%v: %d packets, %d refused, want 1 and 0", v6, len(got), refused)
		}
		ipLen := 20
		if v6 {
			ipLen = 40
		}
		tcp := header.TCP(got[0][ipLen:])
		if !bytes.Equal(tcp.Payload(), payload) || !tcp.Flags().Contains(header.TCPFlagPsh) {
			t.Errorf("v6=%v: payload equal %v, flags %v", v6, bytes.Equal(tcp.Payload(), payload), tcp.Flags())
		}
		length := int(binary.BigEndian.Uint16(got[0][2:]))
		if v6 {
			length = int(binary.BigEndian.Uint16(got[0][4:])) + 40
		}
		if length != len(got[0]) {
			t.Errorf("v6=%v: length in the header is %d, the packet has %d", v6, length, len(got[0]))
		}
	}
}

// Each change to the third of four segments must keep it, and what follows,
// apart; order is kept.
func TestDifferentSegmentsStayApart(t *testing.T) {
	for name, change := range map[string]func(b []byte){
		"acknowledgement": func(b []byte) { b[20+11]++ },
		"window":          func(b []byte) { b[20+15]++ },
		"option":          func(b []byte) { b[20+30]++ },
		"traffic class":   func(b []byte) { b[1] = 4 },
		"TTL":             func(b []byte) { b[8]-- },
		"DF":              func(b []byte) { b[6] ^= 0x40 },
		"URG":             func(b []byte) { b[20+13] |= byte(header.TCPFlagUrg) },
		"FIN":             func(b []byte) { b[20+13] |= byte(header.TCPFlagFin) },
		"sequence":        func(b []byte) { b[20+7] ^= 0xff },
	} {
		segments := split(superPacket(false, pattern(4000), 1000))
		change(segments[2])
		fix(segments[2])
		got, refused := coalesce(segments...)
		if refused != 0 || len(got) < 2 || len(got) > 3 {
			t.Errorf("%s: %d packets, %d refused", name, len(got), refused)
			continue
		}
		if n := len(header.TCP(got[0][20:]).Payload()); n != 2000 {
			t.Errorf("%s: %d bytes arrived before the changed segment, want 2000", name, n)
		}
	}
}

func TestPSHEndsATrain(t *testing.T) {
	segments := split(superPacket(false, pattern(4000), 1000))
	header.TCP(segments[1][20:]).SetFlags(uint8(header.TCPFlagAck | header.TCPFlagPsh))
	fix(segments[1])
	if got, _ := coalesce(segments...); len(got) != 2 {
		t.Errorf("%d packets, want 2", len(got))
	}
}

func TestTwoFlowsInterleaved(t *testing.T) {
	a := split(superPacket(false, pattern(5000), 1000))
	b := split(superPacket(false, pattern(5000), 1000))
	var mixed [][]byte
	for i := range a {
		b[i][21]++ // another source port
		mixed = append(mixed, a[i], fix(b[i]))
	}
	if got, refused := coalesce(mixed...); len(got) != 2 || refused != 0 {
		t.Errorf("%d packets, %d refused, want 2 and 0", len(got), refused)
	}
}

func TestManyFlowsAllArrive(t *testing.T) {
	var pkts [][]byte
	for i := range batchSize {
		b := split(superPacket(false, pattern(100), 1000))[0]
		binary.BigEndian.PutUint16(b[20:], uint16(i))
		pkts = append(pkts, fix(b))
	}
	if got, refused := coalesce(pkts...); len(got) != batchSize || refused != 0 {
		t.Errorf("%d packets, %d refused, want all %d", len(got), refused, batchSize)
	}
}

func TestMergedPacketFitsItsLengthField(t *testing.T) {
	var pkts [][]byte
	for i := range 60 {
		b := split(superPacket(false, pattern(1368), 1368))[0]
		header.TCP(b[20:]).SetFlags(uint8(header.TCPFlagAck))
		header.TCP(b[20:]).SetSequenceNumber(uint32(1368 * i))
		pkts = append(pkts, fix(b))
	}
	got, _ := coalesce(pkts...)
	total := 0
	for _, p := range got {
		if int(binary.BigEndian.Uint16(p[2:])) != len(p) {
			t.Errorf("length field says %d, the packet has %d", binary.BigEndian.Uint16(p[2:]), len(p))
		}
		total += len(header.TCP(p[20:]).Payload())
	}
	if total != 60*1368 || len(got) != 2 {
		t.Errorf("%d bytes in %d packets, want %d in 2", total, len(got), 60*1368)
	}
}

func TestBrokenPacketsAreRefused(t *testing.T) {
	good := func() []byte { return split(superPacket(false, pattern(100), 1000))[0] }
	good6 := func() []byte { return split(superPacket(true, pattern(100), 1000))[0] }
	flip := func(b []byte, i int) []byte { b[i] ^= 0x10; return b }
	offset := func(b []byte, off byte) []byte { b[20+12] = off << 4; return fix(b) }
	for name, b := range map[string][]byte{
		"empty":                    {},
		"version":                  flip(good(), 0),
		"IPv4 cut":                 good()[:19],
		"IPv4 length":              good()[:50],
		"IPv4 header corrupt":      flip(good(), 8),
		"IPv4 payload corrupt":     flip(good(), 60),
		"IPv6 cut":                 good6()[:39],
		"IPv6 payload corrupt":     flip(good6(), 100),
		"data offset too small":    offset(good(), 4),
		"data offset past the end": offset(split(superPacket(false, pattern(1), 1000))[0], 15),
	} {
		if _, refused := coalesce(b); refused != 1 {
			t.Errorf("%s: accepted", name)
		}
	}
}

func FuzzCoalescer(f *testing.F) {
	for _, v6 := range []bool{false, true} {
		for _, b := range split(superPacket(v6, pattern(300), 100)) {
			f.Add(b, b)
		}
	}
	f.Fuzz(func(t *testing.T, a, b []byte) {
		got, refused := coalesce(a, b, bytes.Clone(a))
		total := 0
		for _, p := range got {
			total += len(p)
		}
		if len(got)+refused > 3 || total > 2*len(a)+len(b) {
			t.Fatalf("%d packets with %d bytes out of %d", len(got), total, 2*len(a)+len(b))
		}
	})
}

func BenchmarkCoalesce(b *testing.B) {
	segments := split(superPacket(false, pattern(60300), 1340))
	b.SetBytes(60300)
	var c coalescer
	for b.Loop() {
		for _, s := range segments {
			c.add(s)
		}
		c.flush(discard{})
	}
}

type discard struct{}

func (discard) DeliverNetworkPacket(tcpip.NetworkProtocolNumber, *stack.PacketBuffer) {}
func (discard) DeliverLinkPacket(tcpip.NetworkProtocolNumber, *stack.PacketBuffer)    {}

func BenchmarkSegment(b *testing.B) {
	pkt := superPacket(false, pattern(60300), 1340)
	buf := make([]byte, 2048)
	b.SetBytes(60300)
	for b.Loop() {
		var s segmenter
		s.start(pkt.IncRef())
		for s.active() {
			s.one(buf)
		}
	}
}
