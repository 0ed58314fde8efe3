package flow

import (
	"strconv"
	"strings"
	"time"
)

// HTTP is one exchange: a request and what came of it, in any version of HTTP.
type HTTP struct {
	Request   Request
	Response  *Response  // nil until a response head arrived or a rule set one
	Interim   []Response // 1xx responses before the final one, in order (RFC 9110, section 15.2)
	WebSocket *WebSocket // set when the exchange became a WebSocket (WS-02)
}

// Message is what requests and responses share. Body bytes are as sent, before content decoding.
type Message struct {
	Version string // "HTTP/1.1", "HTTP/2.0", "HTTP/3"
	Header  Header
	Body    Body
	Trailer Header
	Chunks  []Chunk // HTTP/1 chunk borders, kept only when a chunk extension was present
	Start   time.Time
	End     time.Time // zero until the last byte
}

// Chunk is the framing of one HTTP/1.1 chunk (RFC 9112, section 7.1).
type Chunk struct {
	Size      int64
	Extension string // raw, with its leading ";"; "" for none. The last chunk has size 0
}

// Request is the client's half. Host and Port say where it goes; Authority is what the request line
// or :authority said, "" when it said nothing.
type Request struct {
	Message
	Method    string
	Scheme    string // "http", "https"; "" for CONNECT
	Authority string
	Host      string
	Port      uint16
	Path      string // origin-form with query; "" for CONNECT, "*" for OPTIONS *
}

// Response is the server's half.
type Response struct {
	Message
	Status int
	Reason string // kept as sent, may be empty
}

// BodyState says how much of a body a flow holds.
type BodyState uint8

// The states of a Body.
const (
	BodyComplete  BodyState = iota // Data is the whole body
	BodyMissing                    // streamed and not stored: Data is nil, mitmproxy's content None
	BodyTruncated                  // Data is the beginning, as much as the budget allowed
)

// Body is a message body. The zero Body is empty and complete. Data is never written in place.
type Body struct {
	Data  []byte
	Size  int64 // bytes that passed, also when Data holds fewer
	State BodyState
}

// BodyOf is a complete body.
func BodyOf(data []byte) Body { return Body{Data: data, Size: int64(len(data))} }

// URL is the request's URL as the destination sees it: scheme, Host and Port. For CONNECT it is
// host:port.
func (r *Request) URL() string { return r.url(r.Host, r.Port) }

// PrettyURL prefers the name in the Host header or :authority, which people recognise, to an
// address (mitmproxy's pretty_url).
func (r *Request) PrettyURL() string {
	name := r.HostHeader()
	if name == "" {
		return r.URL()
	}
	host, port := SplitHostPort(name)
	if port == 0 {
		port = r.Port
	}
	return r.url(host, port)
}

// HostHeader is :authority for HTTP/2 and later, else the Host header, else "".
func (r *Request) HostHeader() string {
	if r.Authority != "" && !strings.HasPrefix(r.Version, "HTTP/1") {
		return r.Authority
	}
	if v, ok := r.Header.Lookup("host"); ok {
		return v
	}
	return r.Authority
}

func (r *Request) url(host string, port uint16) string {
	if r.Method == "CONNECT" || r.Scheme == "" {
		return JoinHostPort(host, port)
	}
	path := r.Path
	if path == "*" {
		path = ""
	}
	if port == DefaultPort(r.Scheme) {
		if strings.Contains(host, ":") {
			host = "[" + host + "]"
		}
		return r.Scheme + "://" + host + path
	}
	return r.Scheme + "://" + JoinHostPort(host, port) + path
}

// DefaultPort is the port that a URL of this scheme leaves out; 0 for schemes without one (MODE-09).
func DefaultPort(scheme string) uint16 {
	switch scheme {
	case "http", "ws":
		return 80
	case "https", "wss", "http3", "quic":
		return 443
	case "dns":
		return 53
	}
	return 0
}

// JoinHostPort puts brackets around IPv6 literals.
func JoinHostPort(host string, port uint16) string {
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	return host + ":" + strconv.Itoa(int(port))
}

// SplitHostPort splits "host", "host:port", "[v6]" and "[v6]:port"; a missing or malformed port is 0
// and brackets are removed.
func SplitHostPort(s string) (host string, port uint16) {
	if rest, ok := strings.CutPrefix(s, "["); ok {
		h, tail, found := strings.Cut(rest, "]")
		if !found {
			return s, 0
		}
		return h, parsePort(strings.TrimPrefix(tail, ":"))
	}
	h, p, found := strings.Cut(s, ":")
	if !found || strings.Contains(p, ":") {
		return s, 0
	}
	return h, parsePort(p)
}

func parsePort(s string) uint16 {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil {
		return 0
	}
	return uint16(n)
}

func (h *HTTP) snapshot() *HTTP {
	c := *h
	if h.Response != nil {
		r := *h.Response
		c.Response = &r
	}
	c.Interim = h.Interim[:len(h.Interim):len(h.Interim)]
	if h.WebSocket != nil {
		ws := *h.WebSocket
		ws.Messages = ws.Messages[:len(ws.Messages):len(ws.Messages)]
		c.WebSocket = &ws
	}
	return &c
}

func (h *HTTP) size() int64 {
	n := int64(len(h.Request.Body.Data))
	if h.Response != nil {
		n += int64(len(h.Response.Body.Data))
	}
	if h.WebSocket != nil {
		for i := range h.WebSocket.Messages {
			n += int64(len(h.WebSocket.Messages[i].Data))
		}
	}
	return n
}
