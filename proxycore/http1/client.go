package http1

import (
	"bytes"
	"net/http"
	"strconv"
	"strings"
	"time"

	"mitm-appliance/flow"
	"mitm-appliance/proxycore"
	"mitm-appliance/proxycore/exchange"
)

// client is a client's connection: the exchange.Client of one exchange after another.
type client struct {
	writer
	f     *Framing
	s     *proxycore.Session
	in    reader
	body  body
	watch watch

	strict     bool
	timed      bool // a read deadline runs for the head
	persistent bool // the request wants the connection to stay
	refused    bool // the request is not understood: neither is what follows it
	keep       bool // another request may follow
	begun      bool // a response was begun ...
	finished   bool // ... and ended
	detached   bool // the stream belongs to another protocol now
	connect    bool // the request is CONNECT
}

var _ exchange.Client = (*client)(nil)

func newClient(f *Framing, s *proxycore.Session) *client {
	c := &client{f: f, s: s}
	c.in.src = s.Conn
	c.writer.dst, c.writer.pool = s.Conn, &f.buffers
	c.watch.c = c
	c.body.ended, c.body.conn = c.watch.arm, s.Conn
	return c
}

// next waits for a request head. invalid says what is wrong with a request that can be shown, err
// that there is none.
func (c *client) next(strict bool) (h *flow.HTTP, invalid, err error) {
	c.strict, c.keep, c.begun, c.finished, c.refused = strict, false, false, false, false
	c.in.shrink()
	if err := c.in.skipEmptyLines(c.f.cfg.MaxHead); err != nil {
		return nil, nil, err
	}
	h = new(flow.HTTP)
	r := &h.Request
	r.Start = time.Now()
	s, err := c.in.section(&c.f.cfg, looksLikeRequest, c.hurry)
	if c.timed {
		c.timed = false
		_ = c.s.Conn.SetReadDeadline(time.Time{}) // a closed one fails to read
	}
	if err != nil {
		return nil, nil, err
	}
	invalid, err = parseRequest(s, r)
	if err != nil {
		return nil, nil, err
	}
	f := inspect(r.Header)
	end, ferr := requestFraming(r, &f, strict)
	if !strict {
		invalid = nil
	}
	if invalid == nil {
		invalid = ferr
	}
	c.refused = invalid != nil
	c.connect = r.Method == http.MethodConnect
	c.persistent = f.persistent(r.Version)
	c.body.reset(&c.in, &c.f.cfg, end, strict)
	return h, invalid, nil
}

// hurry gives a client that has begun a head limited time for the rest.
func (c *client) hurry() {
	c.timed = c.s.Conn.SetReadDeadline(time.Now().Add(c.f.cfg.HeadTimeout)) == nil
}

// looksLikeRequest answers garbage at its first line instead of waiting for an empty one (H1-20).
func looksLikeRequest(line []byte) error {
	return requestLine(string(line), new(flow.Request))
}

// Body is the request's.
func (c *client) Body() exchange.Receiver { return &c.body }

// Interim sends a 1xx response at once.
func (c *client) Interim(r *flow.Response) error {
	c.give(appendResponse(c.take(), r))
	return c.Flush()
}

// Respond sends a whole response.
func (c *client) Respond(req *flow.Request, resp *flow.Response) error {
	k := c.plan(req, resp, true)
	c.begun = true
	c.give(appendResponse(c.take(), resp))
	if err := c.whole(&resp.Message, k); err != nil {
		return err
	}
	c.finished = true
	return nil
}

// Begin starts a streamed response.
func (c *client) Begin(req *flow.Request, resp *flow.Response, length int64) error {
	k := c.plan(req, resp, false)
	c.begun = true
	c.begin(framing{kind: k, length: length})
	c.give(appendResponse(c.take(), resp))
	return nil
}

// End finishes a streamed response.
func (c *client) End(trailer flow.Header) error {
	if err := c.writer.End(trailer); err != nil {
		return err
	}
	c.finished = true
	return nil
}

// plan decides how the end of the response is marked, adapts the fields where the client could not
// understand them, and decides whether the connection stays (H1-11, H1-12).
func (c *client) plan(req *flow.Request, resp *flow.Response, whole bool) kind {
	f := inspect(resp.Header)
	if !strings.HasPrefix(resp.Version, "HTTP/1") { // translated, or made by a hook
		resp.Version = "HTTP/1.1"
		if !whole && f.encodings+f.lengths == 0 && !bodiless(req.Method, resp.Status) {
			resp.Header.Set("Transfer-Encoding", "chunked")
			f.encodings, f.encoding = 1, "chunked"
		}
	}
	k := untilEOF
	switch {
	case bodiless(req.Method, resp.Status):
		k = noBody
	case f.chunkedLast():
		k = c.planChunked(req, resp, &f, whole)
	case f.encodings == 0 && f.lengths > 0:
		k = fixed
	}
	c.keep = c.persistent && !c.refused && f.persistent(resp.Version) && k != untilEOF
	return k
}

// planChunked keeps chunks away from HTTP/1.0, which does not know them (RFC 9112, section 6.1).
func (c *client) planChunked(req *flow.Request, resp *flow.Response, f *facts, whole bool) kind {
	if req.Version != "HTTP/1.0" {
		if f.lengths > 0 && c.strict { // hooks made it ambiguous
			resp.Header.Del("content-length")
		}
		return chunked
	}
	resp.Header.Del("transfer-encoding")
	if !whole {
		return untilEOF
	}
	resp.Header.Set("Content-Length", strconv.Itoa(len(resp.Body.Data)))
	return fixed
}

// Interrupt wakes a Read of the body.
func (c *client) Interrupt() { _ = c.s.Conn.SetReadDeadline(time.Unix(1, 0)) } // a closed one is awake

// Abort resets the connection, and with it everything that serves it.
func (c *client) Abort(cause error) {
	c.s.Cut(cause)
	proxycore.Abort(c.s.Conn) // Cut takes effect a moment later
}

// Detach hands over the stream.
func (c *client) Detach() proxycore.Conn {
	c.watch.disarm()
	c.detached = true
	rest := c.in.rest()
	if c.connect { // H1-13
		rest = bytes.TrimLeft(rest, "\r\n")
	}
	c.s.Conn.Unread(rest)
	return c.s.Conn
}

// close ends the connection so that the client can read our last words: data that arrives on a closed
// socket would make the kernel take them back (RFC 9112, section 9.6).
func (c *client) close() {
	if c.begun && !c.finished { // the client must see that it is cut
		if c.kind == untilEOF {
			c.Abort(exchange.ErrClientGone)
		}
		return
	}
	if c.s.Conn.CloseWrite() != nil || c.body.done && !c.refused && c.in.buffered() == 0 {
		return
	}
	const most = 1 << 20
	buf := make([]byte, readSize)
	if c.s.Conn.SetReadDeadline(time.Now().Add(c.f.cfg.Linger)) != nil {
		return
	}
	for n := 0; n < most; {
		m, err := c.s.Conn.Read(buf)
		if err != nil {
			return
		}
		n += m
	}
}
