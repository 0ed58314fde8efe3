package wg

import (
	"bytes"
	"fmt"
	"testing"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

const testOptions = 12 // bytes: two NOPs and a timestamp

var timestamps = []byte{1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8}

// superPacket is what a stack with host GSO writes: checksum incomplete, PSH set.
func superPacket(v6 bool, payload []byte, mss int) *stack.PacketBuffer {
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{
		ReserveHeaderBytes: maxHeaders, Payload: buffer.MakeWithData(payload),
	})
	tcp := header.TCP(pkt.TransportHeader().Push(header.TCPMinimumSize + testOptions))
	tcp.Encode(&header.TCPFields{
		SrcPort: 443, DstPort: 40000, SeqNum: 0xfffffff0, AckNum: 77, WindowSize: 500,
		DataOffset: header.TCPMinimumSize + testOptions, Flags: header.TCPFlagAck | header.TCPFlagPsh,
	})
	copy(tcp[header.TCPMinimumSize:], timestamps)
	pkt.GSOOptions = stack.GSO{Type: stack.GSOTCPv4, NeedsCsum: true, MSS: uint16(mss), CsumOffset: 16, L3HdrLen: 20}
	if v6 {
		pkt.GSOOptions.Type, pkt.GSOOptions.L3HdrLen = stack.GSOTCPv6, 40
		ip := header.IPv6(pkt.NetworkHeader().Push(header.IPv6MinimumSize))
		ip.Encode(&header.IPv6Fields{
			PayloadLength: uint16(len(tcp) + len(payload)), TransportProtocol: header.TCPProtocolNumber, HopLimit: 64,
			SrcAddr: tcpip.AddrFrom16([16]byte{0xfd, 1}), DstAddr: tcpip.AddrFrom16([16]byte{0xfd, 2}),
		})
		return pkt
	}
	ip := header.IPv4(pkt.NetworkHeader().Push(header.IPv4MinimumSize))
	ip.Encode(&header.IPv4Fields{
		TotalLength: uint16(pkt.Size()), ID: 0xffff, TTL: 64, Protocol: uint8(header.TCPProtocolNumber),
		SrcAddr: tcpip.AddrFrom4([4]byte{192, 0, 2, 1}), DstAddr: tcpip.AddrFrom4([4]byte{10, 66, 0, 2}),
	})
	return pkt
}

func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i * 7 / 3)
	}
	return b
}

// split runs a segmenter over pkt.
func split(pkt *stack.PacketBuffer) (segments [][]byte) {
	var s segmenter
	s.start(pkt)
	for s.active() {
		b := make([]byte, s.size())
		n := s.one(b)
		segments = append(segments, b[:n])
	}
	return segments
}

func TestSegmentsAddUp(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		for _, size := range []int{1, 999, 1000, 1001, 5000, 60300} {
			t.Run(fmt.Sprintf("v6=%v/%d bytes", v6, size), func(t *testing.T) {
				payload := pattern(size)
				segments := split(superPacket(v6, payload, 1000))
				if want := (size + 999) / 1000; len(segments) != want {
					t.Fatalf("%d segments, want %d", len(segments), want)
				}
				checkSegments(t, segments, payload)
			})
		}
	}
}

func checkSegments(t *testing.T, segments [][]byte, payload []byte) {
	t.Helper()
	var got []byte
	for i, b := range segments {
		tr, ok := inspect(b)
		if !ok {
			t.Fatalf("segment %d has wrong lengths or checksums", i)
		}
		tcp := header.TCP(b[tr.ipLen:])
		if want := uint32(0xfffffff0) + uint32(len(got)); tcp.SequenceNumber() != want {
			t.Errorf("segment %d has sequence number %d, want %d", i, tcp.SequenceNumber(), want)
		}
		if psh := tcp.Flags().Contains(header.TCPFlagPsh); psh != (i == len(segments)-1) {
			t.Errorf("segment %d of %d: PSH is %v", i, len(segments), psh)
		}
		if tr.ipLen == header.IPv4MinimumSize && header.IPv4(b).ID() != 0xffff+uint16(i) {
			t.Errorf("segment %d has identification %d", i, header.IPv4(b).ID())
		}
		if !bytes.Equal(tcp.Options(), timestamps) {
			t.Errorf("segment %d has other options", i)
		}
		got = append(got, b[tr.hdrLen:]...)
	}
	if !bytes.Equal(got, payload) {
		t.Error("the payload changed")
	}
}

func TestOtherPacketsPassUnchanged(t *testing.T) {
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(pattern(1300))})
	segments := split(pkt)
	if len(segments) != 1 || !bytes.Equal(segments[0], pattern(1300)) {
		t.Errorf("got %d packets, or another content", len(segments))
	}
}

// A stack that knows of the offload leaves UDP checksums to the link as well.
func TestPartialUDPChecksumIsCompleted(t *testing.T) {
	for _, payload := range [][]byte{pattern(100), pattern(101), zeroSumPayload()} {
		pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{
			ReserveHeaderBytes: maxHeaders, Payload: buffer.MakeWithData(payload),
		})
		length := header.UDPMinimumSize + len(payload)
		udp := header.UDP(pkt.TransportHeader().Push(header.UDPMinimumSize))
		udp.Encode(&header.UDPFields{SrcPort: 53, DstPort: 4000, Length: uint16(length)})
		ip := header.IPv4(pkt.NetworkHeader().Push(header.IPv4MinimumSize))
		ip.Encode(&header.IPv4Fields{TotalLength: uint16(pkt.Size()), TTL: 64, Protocol: uint8(header.UDPProtocolNumber)})
		ip.SetChecksum(^ip.CalculateChecksum())
		udp.SetChecksum(pseudoHeaderSum(ip[12:20], uint8(header.UDPProtocolNumber), length))
		pkt.GSOOptions = stack.GSO{NeedsCsum: true, CsumOffset: 6, L3HdrLen: 20}
		b := split(pkt)[0]
		if _, ok := inspect(b); !ok || header.UDP(b[20:]).Checksum() == 0 {
			t.Errorf("checksum of %d bytes is %#x", len(payload), header.UDP(b[20:]).Checksum())
		}
	}
}

// zeroSumPayload makes the sum 0xffff, whose complement would mean "none".
func zeroSumPayload() []byte {
	sum := 17 + 10 + 53 + 4000 + 10 // pseudo-header, ports and length, for two bytes
	rest := 0xffff - sum
	return []byte{byte(rest >> 8), byte(rest)}
}

// A full Read must stay below 64 KiB once encrypted, or Linux undoes the train.
func TestOneReadIsOneTrain(t *testing.T) {
	for _, mss := range []int{536, 1220, 1340, 1368, 1380} {
		l := newLink(defaultMTU, 1<<20)
		d := tunDevice{l}
		for range 3 {
			pkt := superPacket(false, pattern(gsoSize-header.TCPTotalHeaderMaximumSize-1), mss)
			var list stack.PacketBufferList
			list.PushBack(pkt)
			if _, err := (endpoint{l}).WritePackets(list); err != nil {
				t.Fatal(err)
			}
			pkt.DecRef()
		}
		bufs, sizes := readBuffers()
		for left := 3 * 60300; left > 0; {
			n, err := d.Read(bufs, sizes, 16)
			if err != nil {
				t.Fatal(err)
			}
			train := 0
			for _, size := range sizes[:n] {
				left -= size - 20 - 20 - testOptions
				train += (size+15)/16*16 + 32
			}
			if ethernet := 14 + 20 + 8; train+ethernet > 65535 {
				t.Errorf("MSS %d: one Read makes a train of %d bytes", mss, train+ethernet)
			}
		}
		if err := d.Close(); err != nil {
			t.Error(err)
		}
		if l.queuedBytes.Load() != 0 {
			t.Errorf("%d bytes are counted as queued in an empty queue", l.queuedBytes.Load())
		}
	}
}

func readBuffers() (bufs [][]byte, sizes []int) {
	bufs, sizes = make([][]byte, batchSize), make([]int, batchSize)
	for i := range bufs {
		bufs[i] = make([]byte, 2048)
	}
	return bufs, sizes
}
