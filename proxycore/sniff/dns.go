package sniff

import "encoding/binary"

const dnsHeader = 12 // bytes, RFC 1035 section 4.1.1

// isDNSPort reports the ports whose conversations are DNS (NL-09).
func isDNSPort(port uint16) bool { return port == 53 || port == 5353 }

// plausibleDNS reports whether b can be one whole DNS message: known opcode,
// counts that fit in the bytes, and a well-formed first question.
func plausibleDNS(b []byte) bool {
	if !plausibleDNSHeader(b, len(b)) {
		return false
	}
	if binary.BigEndian.Uint16(b[4:]) == 0 {
		return true // no question: a multicast answer (RFC 6762) or DSO (RFC 8490)
	}
	end := skipName(b, dnsHeader)
	return end > 0 && end+4 <= len(b)
}

// plausibleDNSHeader judges the 12 header bytes of a message of size bytes.
func plausibleDNSHeader(b []byte, size int) bool {
	if len(b) < dnsHeader || size < dnsHeader {
		return false
	}
	opcode := b[2] >> 3 & 0x0f
	if opcode == 3 || opcode > 6 || b[3]&0x0f > 11 {
		return false
	}
	questions := int(binary.BigEndian.Uint16(b[4:]))
	records := 0
	for i := 6; i < dnsHeader; i += 2 {
		records += int(binary.BigEndian.Uint16(b[i:]))
	}
	const smallestQuestion, smallestRecord = 5, 11 // a root name and the fixed fields
	return questions*smallestQuestion+records*smallestRecord <= size-dnsHeader
}

// skipName returns the offset behind the name at off, or 0 if it is malformed.
// A compression pointer ends a name; where it points to does not matter here.
func skipName(b []byte, off int) int {
	for start := off; off < len(b) && off-start < 255; {
		switch n := int(b[off]); {
		case n == 0:
			return off + 1
		case n >= 0xc0:
			return off + 2
		case n > 63:
			return 0
		default:
			off += 1 + n
		}
	}
	return 0
}

// dnsOverTCP recognises a DNS message with its two-byte length (RFC 1035,
// section 4.2.2) on the DNS ports.
func dnsOverTCP(b []byte, h Hints) Protocol {
	if !isDNSPort(h.Port) {
		return Unknown
	}
	if len(b) < 2+dnsHeader {
		return NeedMore
	}
	size := int(binary.BigEndian.Uint16(b))
	if !plausibleDNSHeader(b[2:], size) {
		return Unknown
	}
	if len(b) < 2+size {
		return DNS // the header alone is certain enough on this port
	}
	if !plausibleDNS(b[2 : 2+size]) {
		return Unknown
	}
	return DNS
}
