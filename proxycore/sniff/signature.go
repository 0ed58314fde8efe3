package sniff

import (
	"bytes"
	"encoding/binary"
)

// signature recognises protocols whose client begins with a fixed string.
func signature(b []byte, _ Hints) Protocol {
	answer := Unknown
	for _, s := range [...]struct {
		prefix string
		is     Protocol
	}{
		{"SSH-", SSH},
		{"\x13BitTorrent protocol", BitTorrent},
		{"AMQP\x00", AMQP},
	} {
		switch matchPrefix(b, s.prefix) {
		case matches:
			return s.is
		case tooShort:
			answer = NeedMore
		}
	}
	return answer
}

type match uint8

const (
	differs match = iota
	tooShort
	matches
)

func matchPrefix(b []byte, prefix string) match {
	n := min(len(b), len(prefix))
	switch {
	case string(b[:n]) != prefix[:n]:
		return differs
	case n < len(prefix):
		return tooShort
	}
	return matches
}

// proxyHeader recognises the PROXY protocol: version 1 by its text, version 2
// by its 12 signature bytes (HAProxy's proxy-protocol.txt, section 2).
func proxyHeader(b []byte, _ Hints) Protocol {
	v2 := matchPrefix(b, "\r\n\r\n\x00\r\nQUIT\n")
	v1 := max(matchPrefix(b, "PROXY TCP4 "), matchPrefix(b, "PROXY TCP6 "), matchPrefix(b, "PROXY UNKNOWN"))
	switch max(v1, v2) {
	case matches:
		return ProxyHeader
	case tooShort:
		return NeedMore
	}
	return Unknown
}

// socks recognises the greetings of SOCKS 4 and 4a and of SOCKS 5 (RFC 1928,
// section 3). They are short, so every byte must fit.
func socks(b []byte, _ Hints) Protocol {
	switch b[0] {
	case 4:
		return socks4(b)
	case 5:
		return socks5(b)
	}
	return Unknown
}

func socks4(b []byte) Protocol {
	if len(b) > 1 && b[1] != 1 && b[1] != 2 {
		return Unknown
	}
	if len(b) < 9 {
		return NeedMore
	}
	texts := 1 // user id
	if is4a := b[4] == 0 && b[5] == 0 && b[6] == 0 && b[7] != 0; is4a {
		texts = 2 // and host name
	}
	rest := b[8:]
	for range texts {
		text, after, ended := bytes.Cut(rest, []byte{0})
		switch {
		case !isPrintable(text) || len(text) > 255:
			return Unknown
		case !ended:
			return NeedMore
		}
		rest = after
	}
	if len(rest) > 0 {
		return Unknown // a client waits for the answer before it goes on
	}
	return SOCKS4
}

func socks5(b []byte) Protocol {
	if len(b) < 2 {
		return NeedMore
	}
	methods := int(b[1])
	if methods == 0 || len(b) > 2+methods {
		return Unknown
	}
	for _, m := range b[2:] {
		if m > 9 && m < 0x80 { // assigned 0-9, private 0x80-0xFE
			return Unknown
		}
	}
	if len(b) < 2+methods {
		return NeedMore
	}
	return SOCKS5
}

func isPrintable(b []byte) bool {
	for _, c := range b {
		if c < 0x20 || c > 0x7e {
			return false
		}
	}
	return true
}

// startup recognises binary first messages with a length that must fit.
func startup(b []byte, _ Hints) Protocol {
	switch b[0] {
	case 0x00:
		return postgresStartup(b)
	case 0x03:
		return tpktConnect(b)
	case 0x10:
		return mqttConnect(b)
	case '*':
		return redisArray(b)
	}
	return Unknown
}

// postgresStartup recognises StartupMessage, SSLRequest, GSSENCRequest and
// CancelRequest (PostgreSQL documentation, "Message Formats").
func postgresStartup(b []byte) Protocol {
	if len(b) < 4 {
		return NeedMore
	}
	size := binary.BigEndian.Uint32(b)
	if size < 8 || size > 10000 || len(b) > int(size) {
		return Unknown
	}
	if len(b) < 8 {
		return NeedMore
	}
	switch code := binary.BigEndian.Uint32(b[4:]); {
	case code == 80877103 && size == 8, code == 80877104 && size == 8, code == 80877102 && size >= 16:
		return PostgreSQL
	case code>>16 == 3 && code&0xffff < 16 && size > 8:
		return PostgreSQL
	}
	return Unknown
}

// tpktConnect recognises RDP's first message: TPKT (RFC 1006, section 6) with an
// X.224 Connection Request.
func tpktConnect(b []byte) Protocol {
	if len(b) > 1 && b[1] != 0 {
		return Unknown
	}
	if len(b) < 6 {
		return NeedMore
	}
	size := int(binary.BigEndian.Uint16(b[2:]))
	if size < 11 || len(b) > size || b[5] != 0xe0 || int(b[4]) > size-5 {
		return Unknown
	}
	return RDP
}

// mqttConnect recognises a CONNECT packet (MQTT 3.1.1, section 3.1).
func mqttConnect(b []byte) Protocol {
	head := 1
	for { // the remaining length has one to four bytes
		if head == len(b) {
			return NeedMore
		}
		last := b[head]&0x80 == 0
		head++
		if last {
			break
		}
		if head > 4 {
			return Unknown
		}
	}
	switch max(matchPrefix(b[head:], "\x00\x04MQTT"), matchPrefix(b[head:], "\x00\x06MQIsdp")) {
	case matches:
		return MQTT
	case tooShort:
		return NeedMore
	}
	return Unknown
}

// redisArray recognises a command as an array of bulk strings (RESP): "*1\r\n$4\r\n".
func redisArray(b []byte) Protocol {
	rest := b
	for _, mark := range "*$" {
		if len(rest) == 0 {
			return NeedMore
		}
		if rest[0] != byte(mark) {
			return Unknown
		}
		digits := 1
		for digits < len(rest) && digits < 11 && rest[digits] >= '0' && rest[digits] <= '9' {
			digits++
		}
		switch matchPrefix(rest[digits:], "\r\n") {
		case differs:
			return Unknown
		case tooShort:
			return NeedMore
		}
		if digits == 1 {
			return Unknown
		}
		rest = rest[digits+2:]
	}
	return Redis
}

// isSTUN recognises a STUN message by its magic cookie (RFC 8489, section 5).
func isSTUN(b []byte) bool {
	return len(b) >= 20 && b[0]&0xc0 == 0 && binary.BigEndian.Uint32(b[4:]) == 0x2112a442 &&
		int(binary.BigEndian.Uint16(b[2:])) == len(b)-20
}

// isWireGuard recognises a handshake initiation: type 1, three zero bytes, 148 bytes.
func isWireGuard(b []byte) bool {
	return len(b) == 148 && binary.LittleEndian.Uint32(b) == 1
}
