//go:build linux

package tun

import (
	"bytes"
	"errors"
	"testing"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

func udpPacket(payload []byte) []byte {
	b := make([]byte, header.IPv4MinimumSize+header.UDPMinimumSize+len(payload))
	source, target := tcpip.AddrFrom4([4]byte{10, 0, 0, 1}), tcpip.AddrFrom4([4]byte{10, 0, 0, 2})
	header.IPv4(b).Encode(&header.IPv4Fields{
		TotalLength: uint16(len(b)), ID: 65535, TTL: 64, Protocol: uint8(header.UDPProtocolNumber),
		SrcAddr: source, DstAddr: target,
	})
	header.IPv4(b).SetChecksum(^header.IPv4(b).CalculateChecksum())
	udp := header.UDP(b[header.IPv4MinimumSize:])
	udp.Encode(&header.UDPFields{SrcPort: 1, DstPort: 2, Length: uint16(len(udp))})
	copy(udp[header.UDPMinimumSize:], payload)
	sum := header.PseudoHeaderChecksum(header.UDPProtocolNumber, source, target, uint16(len(udp)))
	udp.SetChecksum(^checksum.Checksum(udp, sum))
	return b
}

func TestClassify(t *testing.T) {
	good := udpPacket([]byte("payload"))
	bad := bytes.Clone(good)
	bad[len(bad)-1] ^= 1
	unsummed := bytes.Clone(bad)
	header.UDP(unsummed[header.IPv4MinimumSize:]).SetChecksum(0)
	fragment := bytes.Clone(bad)
	header.IPv4(fragment).SetFlagsFragmentOffset(header.IPv4FlagMoreFragments, 0)
	for _, c := range []struct {
		name   string
		head   virtioHeader
		packet []byte
		want   error
	}{
		{"good", virtioHeader{}, good, nil},
		{"bad checksum", virtioHeader{}, bad, errChecksum},
		{"vouched for by the card", virtioHeader{flags: flagDataValid}, bad, nil},
		{"never summed", virtioHeader{flags: flagNeedsChecksum, checksumStart: 20, checksumOffset: 6}, bad, nil},
		{"UDP without a checksum", virtioHeader{}, unsummed, nil},
		{"fragment", virtioHeader{}, fragment, nil},
		{"checksum outside", virtioHeader{flags: flagNeedsChecksum, checksumStart: 65535, checksumOffset: 65535}, good, errMalformed},
		{"unknown segmentation", virtioHeader{gsoType: 9}, good, errMalformed},
		{"segments of no size", virtioHeader{gsoType: gsoUDP}, good, errMalformed},
		{"TCP with ECN", virtioHeader{gsoType: gsoTCPv4 | gsoECN, gsoSize: 1, flags: flagDataValid}, good, nil},
		{"empty", virtioHeader{}, nil, errMalformed},
		{"no IP", virtioHeader{}, []byte("hello, this is no IP packet"), errMalformed},
		{"cut IPv4", virtioHeader{}, good[:19], errMalformed},
		{"cut IPv6", virtioHeader{}, append([]byte{0x60}, make([]byte, 38)...), errMalformed},
	} {
		if _, err := classify(c.head, c.packet); !errors.Is(err, c.want) || (err == nil) != (c.want == nil) {
			t.Errorf("%s: got %v, want %v", c.name, err, c.want)
		}
	}
}

func TestHeaderRoundTrip(t *testing.T) {
	want := virtioHeader{1, 2, 3, 4, 5, 6}
	var b [headerSize]byte
	want.encode(&b)
	if got := decodeHeader(&b); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestSplitDatagrams(t *testing.T) {
	payload := randomBytes(2500)
	var got [][]byte
	err := splitDatagrams(header.IPv4ProtocolNumber, udpPacket(payload), 1000, func(v *buffer.View) {
		got = append(got, bytes.Clone(v.AsSlice()))
		v.Release()
	})
	if err != nil || len(got) != 3 {
		t.Fatalf("%d datagrams, %v", len(got), err)
	}
	for i, b := range got {
		ip := header.IPv4(b)
		udp := header.UDP(ip.Payload())
		want := payload[i*1000 : min(i*1000+1000, len(payload))]
		if !ip.IsValid(len(b)) || !ip.IsChecksumValid() || ip.ID() != uint16(65535+i) ||
			int(udp.Length()) != len(udp) || !bytes.Equal(udp.Payload(), want) {
			t.Errorf("datagram %d: %d bytes, % x", i, len(b), b[:28])
		}
	}
	if err := splitDatagrams(header.IPv4ProtocolNumber, udpPacket(payload), 1, nil); !errors.Is(err, errMalformed) {
		t.Errorf("datagrams of one byte: %v", err)
	}
}

// sink is a dispatcher that checks what a stack relies on.
type sink struct {
	t       *testing.T
	packets int
}

func (s *sink) DeliverNetworkPacket(protocol tcpip.NetworkProtocolNumber, pkt *stack.PacketBuffer) {
	s.packets++
	if protocol != header.IPv4ProtocolNumber && protocol != header.IPv6ProtocolNumber {
		s.t.Errorf("protocol %d", protocol)
	}
	if size := pkt.Data().Size(); size < header.IPv4MinimumSize || size > maxPacket {
		s.t.Errorf("a packet of %d bytes", size)
	}
}

func (*sink) DeliverLinkPacket(tcpip.NetworkProtocolNumber, *stack.PacketBuffer) {}

// FuzzReceive feeds virtio headers and packets as the kernel would.
func FuzzReceive(f *testing.F) {
	f.Add([]byte{0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, udpPacket([]byte("hello")))
	f.Add([]byte{1, 5, 0, 0, 2, 0, 20, 0, 6, 0}, udpPacket(make([]byte, 100)))
	f.Add([]byte{2, 1, 40, 0, 1, 0, 0, 0, 0, 0}, udpPacket(make([]byte, 100)))
	f.Add([]byte{1, 4, 40, 0, 1, 0, 40, 0, 16, 0}, append([]byte{0x60, 0, 0, 0, 0, 60, 6, 64}, make([]byte, 92)...))
	f.Add([]byte{1, 5, 0, 0, 9, 0, 40, 0, 6, 0}, append([]byte{0x60, 0, 0, 0, 0, 60, 17, 64}, make([]byte, 92)...))
	f.Fuzz(func(t *testing.T, head, packet []byte) {
		var h [headerSize]byte
		if copy(h[:], head) < headerSize || len(packet) > maxPacket {
			return
		}
		e, s := &endpoint{}, &sink{t: t}
		view := buffer.NewViewSize(buffer.MaxChunkSize)
		n := copy(view.AsSlice(), packet)
		e.receive(s, &h, view, n).Release()
		dropped := e.count.malformed.Load() + e.count.badChecksum.Load()
		if s.packets == 0 && dropped != 1 || s.packets > maxDatagrams || s.packets > 0 && dropped != 0 {
			t.Errorf("%d delivered, %d counted as dropped", s.packets, dropped)
		}
	})
}
