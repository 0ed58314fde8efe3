package sniff

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/crypto/cryptobyte"
)

// QUIC versions whose Initial packets can be opened.
const (
	QUICv1 uint32 = 1          // RFC 9000
	QUICv2 uint32 = 0x6b3343cf // RFC 9369
)

// ErrNotQUIC means that a datagram does not begin with a QUIC long header packet.
var ErrNotQUIC = errors.New("not a quic long header packet")

// PacketType is the kind of a QUIC long header packet.
type PacketType uint8

// The kinds of packets. The zero value is PacketUnknown: the version is not known.
const (
	PacketUnknown PacketType = iota
	PacketInitial
	PacketZeroRTT
	PacketHandshake
	PacketRetry
	PacketVersionNegotiation
)

// QUICHeader is the unprotected part of a long header packet (RFC 9000, section
// 17.2). Slices alias the datagram.
type QUICHeader struct {
	Type       PacketType
	Version    uint32
	DCID, SCID []byte // up to 20 bytes in known versions, 255 in others (RFC 8999)
	Token      []byte // Initial only

	packet   []byte // from the first byte to the end of the payload
	pnOffset int    // of the packet number in packet; 0 if there is none
}

// ParseQUICHeader parses the long header packet that a datagram begins with.
// Rest is what follows the packet in the datagram (coalesced packets). Errors wrap ErrNotQUIC.
func ParseQUICHeader(datagram []byte) (header QUICHeader, rest []byte, err error) {
	s := cryptobyte.String(datagram)
	var first uint8
	var dcid, scid cryptobyte.String
	if !s.ReadUint8(&first) || first&0x80 == 0 || !s.ReadUint32(&header.Version) ||
		!s.ReadUint8LengthPrefixed(&dcid) || !s.ReadUint8LengthPrefixed(&scid) {
		return QUICHeader{}, nil, fmt.Errorf("%w: short or cut header", ErrNotQUIC)
	}
	header.DCID, header.SCID, header.packet = dcid, scid, datagram
	header.Type = packetType(header.Version, first)
	if header.Type == PacketUnknown || header.Type == PacketVersionNegotiation {
		return header, nil, nil
	}
	if len(dcid) > 20 || len(scid) > 20 || first&0x40 == 0 {
		return QUICHeader{}, nil, fmt.Errorf("%w: bad connection id or fixed bit", ErrNotQUIC)
	}
	if header.Type == PacketRetry {
		return header, nil, nil
	}
	if header.Type == PacketInitial && !readVarintPrefixed(&s, &header.Token) {
		return QUICHeader{}, nil, fmt.Errorf("%w: token cut short", ErrNotQUIC)
	}
	var payload []byte
	if !readVarintPrefixed(&s, &payload) {
		return QUICHeader{}, nil, fmt.Errorf("%w: payload cut short", ErrNotQUIC)
	}
	header.packet = datagram[:len(datagram)-len(s)]
	header.pnOffset = len(header.packet) - len(payload)
	return header, s, nil
}

// packetType reads the type bits, which version 2 numbers differently
// (RFC 9369, section 3.2).
func packetType(version uint32, first uint8) PacketType {
	bits := first >> 4 & 3
	switch version {
	case 0:
		return PacketVersionNegotiation
	case QUICv1:
		return [...]PacketType{PacketInitial, PacketZeroRTT, PacketHandshake, PacketRetry}[bits]
	case QUICv2:
		return [...]PacketType{PacketRetry, PacketInitial, PacketZeroRTT, PacketHandshake}[bits]
	}
	return PacketUnknown
}

// readVarint reads a variable-length integer (RFC 9000, section 16).
func readVarint(s *cryptobyte.String, v *uint64) bool {
	var first uint8
	if !s.ReadUint8(&first) {
		return false
	}
	*v = uint64(first & 0x3f)
	for range 1<<(first>>6) - 1 {
		var next uint8
		if !s.ReadUint8(&next) {
			return false
		}
		*v = *v<<8 | uint64(next)
	}
	return true
}

// readVarintPrefixed reads bytes behind their length as a variable-length integer.
func readVarintPrefixed(s *cryptobyte.String, out *[]byte) bool {
	var n uint64
	return readVarint(s, &n) && n <= uint64(len(*s)) && s.ReadBytes(out, int(n))
}

// isQUIC reports whether a first datagram is likely QUIC (NL-06): a long
// header with a version in use or a greased one; on the usual ports also any other
// long header and short headers, which belong to a connection begun earlier.
func isQUIC(b []byte, port uint16) bool {
	if len(b) < 18 {
		return false
	}
	if b[0]&0x80 != 0 {
		switch v := binary.BigEndian.Uint32(b[1:]); {
		case v == QUICv1, v == QUICv2, v == 0x709a50c4, v&0x0f0f0f0f == 0x0a0a0a0a:
			return true
		case v>>8 == 0x513034 || v>>8 == 0x513035: // "Q04x", "Q05x": Google QUIC
			return true
		}
	}
	return b[0]&0x40 != 0 && (port == 80 || port == 443 || port == 8443)
}
