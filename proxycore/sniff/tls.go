package sniff

import (
	"encoding/binary"
	"fmt"
)

const (
	recordHeader    = 5
	recordAlert     = 21
	recordHandshake = 22
	maxRecord       = 1 << 14 // RFC 8446, section 5.1
)

// couldBeTLS reports whether b, if only one or two bytes long, may become a TLS
// handshake record, or is one (NL-05).
func couldBeTLS(b []byte) bool {
	return len(b) > 0 && b[0] == recordHandshake &&
		(len(b) < 2 || b[1] == 3) && (len(b) < 3 || b[2] <= 3)
}

func tlsRecord(b []byte, _ Hints) Protocol {
	switch {
	case !couldBeTLS(b):
		return Unknown
	case len(b) < 3:
		return NeedMore
	}
	return TLS
}

// ParseTLS parses the ClientHello at the start of a TLS stream, also when it is
// spread over several records. Client is everything received so far. While the hello is incomplete
// hello and err are nil, and need is how many bytes in total are wanted, at least, before the
// next try. Errors wrap ErrMalformed or ErrTooLarge.
func ParseTLS(client []byte) (hello *ClientHello, need int, err error) {
	var message []byte
	for rest := client; ; {
		seen := len(client) - len(rest)
		if !couldBeTLS(rest) && len(rest) > 0 {
			return nil, 0, fmt.Errorf("%w: not a TLS handshake record", ErrMalformed)
		}
		if len(rest) < recordHeader || seen > MaxClientHello {
			return incomplete(seen + recordHeader)
		}
		size := int(binary.BigEndian.Uint16(rest[3:]))
		if size == 0 || size > maxRecord {
			return nil, 0, fmt.Errorf("%w: TLS record of %d bytes", ErrMalformed, size)
		}
		fragment := rest[recordHeader:min(len(rest), recordHeader+size)]
		if len(message) == 0 && len(fragment) > 0 && fragment[0] != typeClientHello {
			return nil, 0, fmt.Errorf("%w: handshake message of type %d", ErrMalformed, fragment[0])
		}
		message = append(message, fragment...)
		if len(message) >= handshakeHeader {
			total := handshakeHeader + int(message[1])<<16 + int(message[2])<<8 + int(message[3])
			if total > MaxClientHello {
				return nil, 0, fmt.Errorf("%w: %d bytes announced", ErrTooLarge, total)
			}
			if len(message) >= total {
				hello, err := parseHello(message[:total:total], handshakeHeader, TLS)
				return hello, 0, err
			}
		}
		if len(rest) < recordHeader+size {
			return incomplete(seen + recordHeader + size)
		}
		rest = rest[recordHeader+size:]
	}
}

func incomplete(need int) (*ClientHello, int, error) {
	if need > MaxClientHello {
		return nil, 0, fmt.Errorf("%w: incomplete after %d bytes", ErrTooLarge, MaxClientHello)
	}
	return nil, need, nil
}

// ServerAnswer is what a server's first bytes after a ClientHello turn out to be.
type ServerAnswer uint8

// The kinds of answers. The zero value is AnswerNeedMore.
const (
	AnswerNeedMore ServerAnswer = iota
	AnswerTLS                   // a handshake record: the server speaks TLS
	AnswerAlert                 // a TLS alert: it speaks TLS and refuses
	AnswerNotTLS                // anything else: "The remote server does not speak TLS." (TLS-34)
)

// Answer judges the first bytes that a server sent after a ClientHello. Alert
// is the alert description (RFC 8446, section 6), and only set for AnswerAlert. For AnswerNotTLS
// [Banner] may tell what the server speaks instead.
func Answer(server []byte) (kind ServerAnswer, alert uint8) {
	if len(server) == 0 {
		return AnswerNeedMore, 0
	}
	isRecord := (server[0] == recordHandshake || server[0] == recordAlert) &&
		(len(server) < 2 || server[1] == 3) && (len(server) < 3 || server[2] <= 4)
	switch {
	case !isRecord:
		return AnswerNotTLS, 0
	case len(server) < 3:
		return AnswerNeedMore, 0
	case server[0] == recordHandshake:
		return AnswerTLS, 0
	case len(server) < recordHeader+2:
		return AnswerNeedMore, 0
	}
	return AnswerAlert, server[recordHeader+1]
}
