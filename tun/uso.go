//go:build linux

package tun

import (
	"fmt"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// maxDatagrams bounds the datagrams of one super-packet; the kernel's own bound
// (UDP_MAX_SEGMENTS) is 128.
const maxDatagrams = 512

// splitDatagrams undoes the kernel's UDP segmentation offload: unlike TCP's, it
// cannot be left to the stack, which would see one giant datagram. It calls
// deliver with each datagram as a packet of its own.
func splitDatagrams(protocol tcpip.NetworkProtocolNumber, packet []byte, size int, deliver func(*buffer.View)) error {
	t, ok := findTransport(protocol, packet)
	if !ok || t.protocol != header.UDPProtocolNumber {
		return fmt.Errorf("%w: UDP segmentation of what is not UDP", errMalformed)
	}
	headers := packet[:t.offset+header.UDPMinimumSize]
	payload := t.segment[header.UDPMinimumSize:]
	if len(payload) > size*maxDatagrams {
		return fmt.Errorf("%w: datagrams of %d bytes in a packet of %d", errMalformed, size, len(packet))
	}
	for i := 0; i == 0 || len(payload) > 0; i++ {
		n := min(size, len(payload))
		view := buffer.NewViewSize(len(headers) + n)
		b := view.AsSlice()
		copy(b, headers)
		copy(b[len(headers):], payload[:n])
		payload = payload[n:]
		header.UDP(b[t.offset:]).SetLength(uint16(header.UDPMinimumSize + n))
		fixLength(protocol, b, uint16(i))
		deliver(view)
	}
	return nil
}

// fixLength makes the IP header of the i-th segment that of a packet of its
// own.
func fixLength(protocol tcpip.NetworkProtocolNumber, b []byte, i uint16) {
	if protocol == header.IPv6ProtocolNumber {
		header.IPv6(b).SetPayloadLength(uint16(len(b) - header.IPv6MinimumSize))
		return
	}
	ip := header.IPv4(b)
	ip.SetTotalLength(uint16(len(b)))
	ip.SetID(ip.ID() + i)
	ip.SetChecksum(0)
	ip.SetChecksum(^ip.CalculateChecksum())
}
