package sniff

import "bytes"

const (
	// MaxPeek is how many bytes, at most, TCP wants to see before it decides.
	// A longer request line with a known method counts as HTTP/1, so that its
	// handler can refuse it properly.
	MaxPeek = 16 << 10

	maxMethod = 24 // the longest registered method (UPDATEREDIRECTREF) has 17 bytes
	preface   = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
)

// http2Preface recognises the client connection preface of RFC 9113, section 3.4.
func http2Preface(b []byte, _ Hints) Protocol {
	switch {
	case len(b) >= len(preface) && string(b[:len(preface)]) == preface:
		return HTTP2
	case len(b) < len(preface) && preface[:len(b)] == string(b):
		return NeedMore
	}
	return Unknown
}

// requestLine recognises "method SP target SP HTTP/x" (RFC 9112, section 3),
// after leading empty lines (H1-02), and the same shape of RTSP and SIP.
func requestLine(b []byte, _ Hints) Protocol {
	b = trimEmptyLines(b)
	if len(b) == 0 || http2Preface(b, Hints{}) == NeedMore {
		return NeedMore
	}
	method := methodLen(b)
	switch {
	case method == 0 || method > maxMethod:
		return Unknown
	case method == len(b):
		return NeedMore
	case b[method] != ' ':
		return Unknown
	}
	line, _, complete := bytes.Cut(b[method+1:], []byte("\n"))
	switch {
	case bytes.Contains(line, []byte(" HTTP/")):
		return HTTP1
	case bytes.Contains(line, []byte(" RTSP/")):
		return RTSP
	case bytes.Contains(line, []byte(" SIP/")):
		return SIP
	case complete:
		return Unknown
	}
	return NeedMore
}

// trimEmptyLines drops up to four line ends in front of a request line.
func trimEmptyLines(b []byte) []byte {
	for range 4 {
		switch {
		case bytes.HasPrefix(b, []byte("\r\n")):
			b = b[2:]
		case len(b) == 1 && b[0] == '\r':
			return nil
		}
	}
	return b
}

// methodLen counts the bytes of b that can be a method: a token (RFC 9110,
// section 5.6.2) that starts with a letter and has no more than maxMethod+1 bytes.
func methodLen(b []byte) int {
	if !isLetter(b[0]) {
		return 0
	}
	n := 1
	for n < len(b) && n <= maxMethod && isToken(b[n]) {
		n++
	}
	return n
}

func isLetter(c byte) bool { return c|0x20 >= 'a' && c|0x20 <= 'z' }

func isToken(c byte) bool {
	return isLetter(c) || c >= '0' && c <= '9' || bytes.IndexByte([]byte("!#$%&'*+-.^_`|~"), c) >= 0
}

// hasKnownMethod reports whether b begins with a well-known method, a space
// and the first byte of a target, all on one line.
func hasKnownMethod(b []byte) bool {
	method, rest, ok := bytes.Cut(trimEmptyLines(b), []byte(" "))
	if !ok || len(rest) == 0 || bytes.IndexByte(rest, '\n') >= 0 {
		return false
	}
	switch string(method) {
	case "GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "CONNECT", "TRACE", "PROPFIND":
		return true
	}
	return false
}
