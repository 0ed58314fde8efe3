package sniff

import (
	"bytes"
	"fmt"

	"golang.org/x/crypto/cryptobyte"
)

// VersionError reports a QUIC version whose packets cannot be opened. The
// caller may answer with version negotiation or relay the datagrams as they are.
type VersionError struct{ Version uint32 }

func (e *VersionError) Error() string {
	return fmt.Sprintf("quic version %#x is neither 1 nor 2: let the client negotiate or pass it through", e.Version)
}

// InitialCollector finds the ClientHello in a client's first QUIC datagrams. CRYPTO
// frames may be spread over packets and datagrams, out of order and repeated.
// The zero value is ready. It is not safe for concurrent use. Its memory is
// bounded by MaxClientHello; how long to wait is the caller's decision.
type InitialCollector struct {
	version    uint32
	dcid, scid []byte
	token      []byte
	keys       *initialKeys // nil until a packet has authenticated
	largest    uint64       // packet number
	crypto     assembly
}

// Version returns the QUIC version; 0 until a packet has authenticated.
func (c *InitialCollector) Version() uint32 { return c.version }

// DCID returns the client's first destination connection id, from which the
// Initial keys derive; nil until a packet has authenticated.
func (c *InitialCollector) DCID() []byte { return c.dcid }

// SCID returns the client's own connection id, which may be empty.
func (c *InitialCollector) SCID() []byte { return c.scid }

// Token returns the token of the first Initial packet (from a Retry or NEW_TOKEN frame).
func (c *InitialCollector) Token() []byte { return c.token }

// Add takes the next datagram from the client, which is neither kept nor changed.
// It returns the hello once that is complete, and nil before. Packets other than Initial ones are
// skipped. The first error of a datagram is returned (ErrNotQUIC,
// ErrUndecryptable, ErrMalformed, ErrTooLarge or a *VersionError) unless the
// datagram completes the hello; the collector may be used further, since anyone can inject a
// stray datagram.
func (c *InitialCollector) Add(datagram []byte) (*ClientHello, error) {
	err := c.addPackets(datagram)
	hello, helloErr := c.crypto.hello(QUIC)
	switch {
	case helloErr != nil:
		return nil, helloErr
	case hello != nil:
		return hello, nil
	}
	return nil, err
}

// addPackets opens every Initial packet of a datagram.
func (c *InitialCollector) addPackets(datagram []byte) (first error) {
	for rest := datagram; len(rest) > 0; {
		header, next, err := ParseQUICHeader(rest)
		switch {
		case err != nil && len(rest) < len(datagram):
			return first // padding or a short header packet behind the first one
		case err != nil:
			return err
		case header.Type == PacketUnknown:
			return &VersionError{Version: header.Version}
		case header.Type == PacketInitial:
			err = c.addInitial(&header)
		}
		if first == nil {
			first = err
		}
		rest = next
	}
	return first
}

func (c *InitialCollector) addInitial(h *QUICHeader) error {
	keys := c.keys
	if keys == nil {
		var err error
		if keys, err = newInitialKeys(h.Version, h.DCID); err != nil {
			return err
		}
	}
	payload, number, err := keys.open(h, c.largest)
	if err != nil {
		return err
	}
	if c.keys == nil {
		c.keys, c.version = keys, h.Version
		c.dcid, c.scid, c.token = bytes.Clone(h.DCID), bytes.Clone(h.SCID), bytes.Clone(h.Token)
	}
	c.largest = max(c.largest, number)
	return c.addFrames(payload)
}

// addFrames takes the CRYPTO frames from a payload. Only PADDING, PING, ACK,
// CRYPTO and CONNECTION_CLOSE may appear in an Initial packet (RFC 9000, section 17.2.2).
func (c *InitialCollector) addFrames(payload cryptobyte.String) error {
	for !payload.Empty() {
		var kind uint64
		ok := readVarint(&payload, &kind)
		switch kind {
		case 0x00, 0x01:
		case 0x02, 0x03:
			ok = ok && skipACK(&payload, kind == 0x03)
		case 0x06:
			var off uint64
			var data []byte
			ok = ok && readVarint(&payload, &off) && readVarintPrefixed(&payload, &data)
			if ok {
				if err := c.crypto.add(off, data); err != nil {
					return err
				}
			}
		case 0x1c:
			return fmt.Errorf("%w: the client closed the connection", ErrMalformed)
		default:
			return fmt.Errorf("%w: frame of type %#x in an initial packet", ErrMalformed, kind)
		}
		if !ok {
			return fmt.Errorf("%w: frame of type %#x cut short", ErrMalformed, kind)
		}
	}
	return nil
}

// skipACK skips the body of an ACK frame (RFC 9000, section 19.3).
func skipACK(s *cryptobyte.String, ecn bool) bool {
	var ranges uint64
	if !skipVarints(s, 2) || !readVarint(s, &ranges) || ranges > uint64(len(*s)) {
		return false
	}
	fields := 1 + 2*ranges
	if ecn {
		fields += 3
	}
	return skipVarints(s, fields)
}

func skipVarints(s *cryptobyte.String, n uint64) bool {
	var v uint64
	for range n {
		if !readVarint(s, &v) {
			return false
		}
	}
	return true
}
