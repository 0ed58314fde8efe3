package sniff

import (
	"encoding/binary"
	"fmt"
	"slices"

	"golang.org/x/crypto/cryptobyte"
)

const dtlsRecordHeader = 13 // RFC 6347, section 4.1

// isDTLS reports whether a datagram begins with a DTLS handshake record of
// version 1.0 (0xFEFF, common in first hellos), 1.2 or 1.3 (NL-05).
func isDTLS(b []byte) bool {
	return len(b) >= dtlsRecordHeader && b[0] == recordHandshake && b[1] == 0xfe && b[2] >= 0xfc
}

// DTLSCollector finds the ClientHello in a client's first DTLS datagrams: handshake
// messages may be fragmented over records and datagrams, out of order and
// repeated (RFC 6347, section 4.2.3). The zero value is ready. It is not safe for concurrent use.
type DTLSCollector struct {
	sequence uint16 // of the handshake message that is put together
	length   int    // of its body
	body     assembly
}

// Add takes the next datagram. It returns the hello once that is complete,
// and nil before. After a HelloVerifyRequest a client repeats its hello with a
// cookie: the collector then returns the second one when it is complete. An error wraps
// ErrMalformed or ErrTooLarge; the collector may be used further.
func (c *DTLSCollector) Add(datagram []byte) (hello *ClientHello, err error) {
	s := cryptobyte.String(datagram)
	for !s.Empty() {
		if !isDTLS(s) {
			return hello, c.malformed(hello, "not a DTLS handshake record")
		}
		epoch := binary.BigEndian.Uint16(s[3:])
		s.Skip(dtlsRecordHeader - 2)
		var record cryptobyte.String
		if !s.ReadUint16LengthPrefixed(&record) {
			return hello, c.malformed(hello, "record cut short")
		}
		if epoch != 0 {
			continue // encrypted: cannot hold a first hello
		}
		for !record.Empty() {
			found, err := c.addFragment(&record)
			if err != nil {
				return hello, err
			}
			if found != nil {
				hello = found
			}
		}
	}
	return hello, nil
}

// malformed returns no error for what follows a complete hello in its datagram.
func (c *DTLSCollector) malformed(hello *ClientHello, why string) error {
	if hello != nil {
		return nil
	}
	return fmt.Errorf("%w: %s", ErrMalformed, why)
}

// addFragment reads one handshake fragment from the record.
func (c *DTLSCollector) addFragment(record *cryptobyte.String) (*ClientHello, error) {
	var kind uint8
	var length, off uint32
	var sequence uint16
	var data cryptobyte.String
	if !record.ReadUint8(&kind) || !record.ReadUint24(&length) || !record.ReadUint16(&sequence) ||
		!record.ReadUint24(&off) || !record.ReadUint24LengthPrefixed(&data) {
		return nil, fmt.Errorf("%w: handshake fragment cut short", ErrMalformed)
	}
	switch {
	case kind != typeClientHello:
		return nil, fmt.Errorf("%w: handshake message of type %d", ErrMalformed, kind)
	case length > MaxClientHello:
		return nil, fmt.Errorf("%w: %d bytes announced", ErrTooLarge, length)
	case off > length || uint32(len(data)) > length-off:
		return nil, fmt.Errorf("%w: fragment beyond its message", ErrMalformed)
	}
	if sequence != c.sequence || int(length) != c.length {
		*c = DTLSCollector{sequence: sequence, length: int(length)}
	}
	if err := c.body.add(uint64(off), data); err != nil {
		return nil, err
	}
	body := c.body.ready()
	if len(body) < int(length) {
		return nil, nil
	}
	*c = DTLSCollector{}
	return parseHello(slices.Concat(wholeHeader(length, sequence), body), dtlsHandshakeHdr, DTLS)
}

// wholeHeader is the handshake header of a message sent in one fragment.
func wholeHeader(length uint32, sequence uint16) []byte {
	l := [3]byte{byte(length >> 16), byte(length >> 8), byte(length)}
	return []byte{typeClientHello, l[0], l[1], l[2], byte(sequence >> 8), byte(sequence), 0, 0, 0, l[0], l[1], l[2]}
}
