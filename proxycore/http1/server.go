package http1

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync/atomic"
	"syscall"
	"time"

	"mitm-appliance/flow"
	"mitm-appliance/proxycore"
	"mitm-appliance/proxycore/exchange"
)

// server is a connection to a server: the exchange.Server of one exchange after another.
type server struct {
	writer
	f    *Framing
	s    *proxycore.Session
	conn *proxycore.ServerConn
	opts *exchange.Options
	in   reader
	body body
	peek *peeker // nil until somebody asks whether the connection is stale

	sentAll bool // the request is out
	asked   bool // the request wants the connection to stay
	keep    bool // so does the response
	dead    atomic.Bool
}

var _ exchange.Server = (*server)(nil)

func newServer(f *Framing, s *proxycore.Session, conn *proxycore.ServerConn, opts *exchange.Options) *server {
	v := &server{f: f, s: s, conn: conn, opts: opts}
	v.in.src = touching{conn.Conn, s}
	v.writer.dst, v.writer.pool = conn.Conn, &f.buffers
	v.body.conn = conn.Conn
	return v
}

// touching notes that the conversation is not idle: a server that sends counts (CONN-02).
type touching struct {
	io.Reader
	s *proxycore.Session
}

func (t touching) Read(p []byte) (int, error) {
	n, err := t.Reader.Read(p)
	if n > 0 {
		t.s.Touch()
	}
	return n, err
}

// Conn is the connection below.
func (v *server) Conn() *proxycore.ServerConn { return v.conn }

// Send sends a whole request.
func (v *server) Send(req *flow.Request) error {
	before := v.sent
	k, err := v.plan(req, false)
	if err != nil {
		return err
	}
	v.give(appendRequest(v.take(), req))
	if err := v.whole(&req.Message, k); err != nil {
		if v.sent == before {
			return fmt.Errorf("%w: %w", exchange.ErrUnsent, err)
		}
		return err
	}
	v.sentAll = true
	return nil
}

// Begin starts a streamed request.
func (v *server) Begin(req *flow.Request, length int64) error {
	k, err := v.plan(req, length < 0)
	if err != nil {
		return err
	}
	v.begin(framing{kind: k, length: length})
	v.give(appendRequest(v.take(), req))
	return nil
}

// End finishes a streamed request.
func (v *server) End(trailer flow.Header) error {
	if err := v.writer.End(trailer); err != nil {
		return err
	}
	v.sentAll = true
	return nil
}

// plan decides how the end of the request is marked.
func (v *server) plan(req *flow.Request, open bool) (kind, error) {
	f := inspect(req.Header)
	v.asked, v.sentAll, v.keep = f.persistent(req.Version), false, false
	switch {
	case f.chunkedLast():
		if f.lengths > 0 && v.opts.Strict() { // hooks made it ambiguous
			req.Header.Del("content-length")
		}
		return chunked, nil
	case f.lengths > 0 && !open:
		return fixed, nil
	case !open:
		return noBody, nil
	case req.Version == "HTTP/1.0":
		return noBody, errors.New("a request of unknown length cannot be streamed in HTTP/1.0")
	}
	req.Header.Set("Transfer-Encoding", "chunked")
	return chunked, nil
}

// Receive reads the next response head.
func (v *server) Receive(req *flow.Request, resp *flow.Response) error {
	v.in.shrink()
	s, err := v.in.section(&v.f.cfg, nil, nil)
	if err != nil {
		return v.explain(err)
	}
	resp.Start = time.Now()
	invalid, err := parseResponse(s, resp)
	if err != nil {
		return err
	}
	strict := v.opts.Strict()
	if strict && invalid != nil {
		return invalid
	}
	f := inspect(resp.Header)
	end, err := responseFraming(req.Method, resp, &f, strict)
	if err != nil {
		return err
	}
	v.keep = f.persistent(resp.Version) && end.kind != untilEOF && resp.Status != http.StatusSwitchingProtocols
	v.body.reset(&v.in, &v.f.cfg, end, strict)
	return nil
}

// explain tells a server that hung up from one that was cut in the middle of a head.
func (v *server) explain(err error) error {
	var f *exchange.Failure
	switch {
	case errors.As(err, &f):
		return err
	case v.in.buffered() == 0:
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return exchange.ErrUnanswered
		}
		return fmt.Errorf("%w: %w", exchange.ErrUnanswered, err)
	case errors.Is(err, io.ErrUnexpectedEOF):
		return errors.New("server closed the connection in the middle of a response head")
	}
	return fmt.Errorf("cannot read the response: %w", err)
}

// Body is that of the last response.
func (v *server) Body() exchange.Receiver { return &v.body }

// Reusable says whether both sides are done and want to stay. Bytes that nobody asked for spoil a
// connection (H1-14).
func (v *server) Reusable() bool {
	if v.in.buffered() > 0 {
		v.s.Logger().Info("unexpected data from server", "server", v.conn.Info().Address, "bytes", v.in.buffered())
		return false
	}
	return v.sentAll && v.asked && v.keep && v.body.done && !v.dead.Load() && v.in.err == nil && v.writer.err == nil
}

// Stale looks at the socket without reading from it: a server that hung up, or that speaks unasked,
// is of no use.
func (v *server) Stale() bool {
	if v.in.buffered() > 0 || v.in.err != nil {
		return true
	}
	if v.peek == nil {
		t, ok := v.conn.Transport().(syscall.Conn)
		if !ok {
			return false // nothing to look at
		}
		raw, err := t.SyscallConn()
		if err != nil {
			return true
		}
		v.peek = &peeker{raw: raw}
		v.peek.look = v.peek.recv
	}
	n, err := v.peek.run()
	switch {
	case errors.Is(err, syscall.EAGAIN):
		return false
	case err != nil || n == 0 || !v.conn.Route.TLS:
		return true
	}
	return v.staleTLS()
}

// peeker looks at what a socket has received, without a goroutine and without waiting.
type peeker struct {
	raw  syscall.RawConn
	look func(fd uintptr) bool // recv, bound once
	one  [1]byte
	n    int
	err  error
}

func (p *peeker) run() (int, error) {
	if err := p.raw.Read(p.look); err != nil {
		return 0, err
	}
	return p.n, p.err
}

func (p *peeker) recv(fd uintptr) bool {
	p.n, _, p.err = syscall.Recvfrom(int(fd), p.one[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
	return true
}

// staleTLS lets TLS handle what has arrived: session tickets are harmless, a close_notify is not.
func (v *server) staleTLS() bool {
	if v.conn.SetReadDeadline(time.Now().Add(time.Millisecond)) != nil {
		return true
	}
	err := v.in.fill()
	return err == nil || v.in.err != nil || v.conn.SetReadDeadline(time.Time{}) != nil
}

// Detach hands over the connection.
func (v *server) Detach() *proxycore.ServerConn {
	p := proxycore.NewPeekConn(v.conn.Conn, "tcp")
	p.Unread(v.in.rest())
	v.conn.Conn = p
	return v.conn
}

// Close gives the connection up.
func (v *server) Close() { _ = v.conn.Close() } // its end is of no interest any more

// Abort resets it.
func (v *server) Abort() {
	v.dead.Store(true)
	proxycore.Abort(v.conn.Transport())
}
