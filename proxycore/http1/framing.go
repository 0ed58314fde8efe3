package http1

import (
	"net/http"
	"strconv"

	"mitm-appliance/flow"
	"mitm-appliance/proxycore/exchange"
)

// kind is how the end of a body is found (RFC 9112, section 6.3).
type kind uint8

const (
	noBody kind = iota
	fixed
	chunked
	untilEOF
)

// framing is a body's kind with the length of a fixed one.
type framing struct {
	kind   kind
	length int64
}

// facts are what the fields say about framing and persistence.
type facts struct {
	lengths, encodings, hosts int // how many fields
	length, encoding, host    string
	close, keepAlive          bool
}

// inspect collects facts in one pass; it looks at a name only when its length fits.
func inspect(h flow.Header) (f facts) {
	for i := range h {
		name, value := h[i].Name, h[i].Value
		switch len(name) {
		case 4:
			if flow.EqualFold(name, "host") {
				f.host = value
				f.hosts++
			}
		case 10:
			if flow.EqualFold(name, "connection") {
				f.close = f.close || flow.EqualFold(value, "close") || h[i:i+1].HasToken("connection", "close")
				f.keepAlive = f.keepAlive || h[i:i+1].HasToken("connection", "keep-alive")
			}
		case 14:
			if flow.EqualFold(name, "content-length") {
				if f.lengths == 0 {
					f.length = value
				}
				f.lengths++
			}
		case 17:
			if flow.EqualFold(name, "transfer-encoding") {
				f.encoding = value // the last one tells whether the body is chunked
				f.encodings++
			}
		}
	}
	return f
}

// persistent is RFC 9112, section 9.3; tokens without case (mitmproxy's QUIRK-04 is not copied).
func (f *facts) persistent(version string) bool {
	if f.close {
		return false
	}
	return version != "HTTP/1.0" || f.keepAlive
}

// chunkedLast reports whether chunked is the last transfer coding.
func (f *facts) chunkedLast() bool {
	if f.encodings == 0 {
		return false
	}
	v := f.encoding
	if flow.EqualFold(v, "chunked") {
		return true
	}
	const tail = len("chunked")
	if len(v) <= tail || !flow.EqualFold(v[len(v)-tail:], "chunked") {
		return false
	}
	before := trimOWS(v[:len(v)-tail])
	return before != "" && before[len(before)-1] == ','
}

// check finds what makes the end of a body ambiguous (HTTP-25).
func (f *facts) check(version string, response bool) error {
	switch {
	case f.encodings > 0 && f.lengths > 0:
		return refuse("The message has both Transfer-Encoding and Content-Length.")
	case f.encodings > 1:
		return refuse("The message has more than one Transfer-Encoding.")
	case f.lengths > 1:
		return refuse("The message has more than one Content-Length.")
	case f.lengths == 1 && !isCanonical(f.length):
		return refuse("Content-Length %.100q is not a plain decimal number.", f.length)
	case f.encodings == 1 && version == "HTTP/1.0":
		return refuse("Transfer-Encoding is not allowed in HTTP/1.0.")
	case f.encodings == 1 && !knownEncoding(f.encoding, response):
		return refuse("Transfer-Encoding %.100q is not one that can be forwarded safely.", f.encoding)
	}
	return nil
}

func isCanonical(s string) bool {
	if s == "" || len(s) > 18 || len(s) > 1 && s[0] == '0' {
		return false
	}
	for i := 0; i < len(s); i++ {
		if !isDigit(s[i]) {
			return false
		}
	}
	return true
}

// knownEncoding is the list of HTTP-25.
func knownEncoding(v string, response bool) bool {
	codings := [...]string{"compress", "deflate", "gzip", "identity"}
	if flow.EqualFold(v, "chunked") {
		return true
	}
	for i, c := range codings {
		if response && flow.EqualFold(v, c) {
			return true
		}
		if i < 3 && len(v) > len(c) && flow.EqualFold(v[:len(c)], c) {
			comma := trimOWS(v[len(c):])
			return comma != "" && comma[0] == ',' && flow.EqualFold(trimOWS(comma[1:]), "chunked")
		}
	}
	return false
}

// requestFraming finds the end of a request's body. strict refuses ambiguous ones; without it, what
// cannot be framed at all is still an error.
func requestFraming(r *flow.Request, f *facts, strict bool) (framing, error) {
	if strict {
		if err := f.check(r.Version, false); err != nil {
			return framing{}, err
		}
		switch {
		case f.hosts > 1:
			return framing{}, refuse("The request has more than one Host.")
		case f.hosts == 1 && !all(f.host, classHost):
			return framing{}, refuse("Host %.100q has characters that are not allowed there.", f.host)
		case r.Method == http.MethodConnect && (f.encodings > 0 || f.lengths > 0 && f.length != "0"):
			return framing{}, refuse("CONNECT has a body.")
		}
	}
	switch {
	case r.Method == http.MethodConnect:
		return framing{}, nil
	case f.chunkedLast():
		return framing{kind: chunked, length: -1}, nil
	case f.encodings > 0:
		return framing{}, exchange.Invalid("the end of a request with Transfer-Encoding %.100q cannot be found", f.encoding)
	case f.lengths > 0:
		return fixedLength(f.length)
	}
	return framing{}, nil
}

// responseFraming finds the end of a response's body.
func responseFraming(method string, r *flow.Response, f *facts, strict bool) (framing, error) {
	if strict {
		if err := f.check(r.Version, true); err != nil {
			return framing{}, err
		}
		if f.encodings > 0 && (r.Status/100 == 1 || r.Status == http.StatusNoContent) {
			return framing{}, refuse("Transfer-Encoding is not allowed in a response with status %d.", r.Status)
		}
	}
	switch {
	case bodiless(method, r.Status):
		return framing{}, nil
	case f.chunkedLast():
		return framing{kind: chunked, length: -1}, nil
	case f.encodings > 0:
		return framing{kind: untilEOF, length: -1}, nil
	case f.lengths > 0:
		return fixedLength(f.length)
	}
	return framing{kind: untilEOF, length: -1}, nil
}

func bodiless(method string, status int) bool {
	return method == http.MethodHead || status/100 == 1 || status == http.StatusNoContent ||
		status == http.StatusNotModified || method == http.MethodConnect && status/100 == 2
}

func fixedLength(text string) (framing, error) {
	n, err := strconv.ParseUint(text, 10, 62)
	switch {
	case err != nil:
		return framing{}, exchange.Invalid("Content-Length %.100q is not a number of bytes", text)
	case n == 0:
		return framing{}, nil
	}
	return framing{kind: fixed, length: int64(n)}, nil
}
