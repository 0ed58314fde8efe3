// Package dnsmitm serves DNS over UDP and TCP as DNS flows, one per question.
//
// In: a session whose client asks questions. Out: the questions sent on to the server that the client
// meant (or to our own name servers), the answers sent back, and both as editable messages.
// It knows no packets and no cache.
package dnsmitm

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/miekg/dns"

	"mitm-appliance/flow"
	"mitm-appliance/proxycore"
)

const (
	answerTimeout = 10 * time.Second // for one question
	maxOpen       = 128              // questions of one client connection that wait at once
	maxMessage    = 64 << 10
)

// Handler serves DNS.
type Handler struct {
	// Resolver answers questions on our own account, for clients that ask the appliance itself; nil
	// sends them to the session's target.
	Resolver *Resolver
}

var _ proxycore.Handler = Handler{}

// Serve implements proxycore.Handler. It returns when the client has gone and its questions are
// answered or given up.
func (h Handler) Serve(ctx context.Context, s *proxycore.Session) error {
	c := &conversation{
		s: s, resolver: h.Resolver, stream: s.Network == "tcp",
		open: map[uint16]*question{}, slots: make(chan struct{}, maxOpen),
	}
	ctx, cancel := context.WithCancel(ctx)
	err := c.readClient(ctx)
	if !errors.Is(err, io.EOF) { // a client that only closed its side still gets its answers
		cancel()
	}
	c.questions.Wait()
	cancel()
	c.closeServer()
	c.reader.Wait()
	if errors.Is(err, io.EOF) || errors.Is(err, os.ErrDeadlineExceeded) {
		return nil
	}
	return err
}

// conversation is one client's DNS connection, or its datagrams from one port.
type conversation struct {
	s        *proxycore.Session
	resolver *Resolver
	stream   bool // TCP: messages carry a length (RFC 1035, section 4.2.2)

	questions sync.WaitGroup
	slots     chan struct{}
	reader    sync.WaitGroup
	writing   sync.Mutex // of answers to the client

	mu     sync.Mutex
	open   map[uint16]*question
	server *proxycore.ServerConn
}

// question is one query on its way.
type question struct {
	answer chan []byte // capacity 1
}

func (c *conversation) readClient(ctx context.Context) error {
	for {
		wire, err := readMessage(c.s.Conn, c.stream)
		if err != nil {
			return err
		}
		now := time.Now()
		query, err := parse(wire, now)
		if err != nil {
			if !c.stream {
				c.s.Logger().Info("ignoring a datagram that is no DNS message", "err", err)
				continue
			}
			return err
		}
		c.s.Touch()
		q, repeated := c.register(query.ID)
		if repeated { // a retransmission: ask again, the flow is open already
			_ = c.ask(ctx, wire) // the first attempt's outcome counts
			continue
		}
		select {
		case c.slots <- struct{}{}:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		c.questions.Go(func() {
			defer func() { <-c.slots }()
			defer c.forget(query.ID)
			c.handle(ctx, q, query, wire)
		})
	}
}

func (c *conversation) register(id uint16) (q *question, repeated bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if q, ok := c.open[id]; ok {
		return q, true
	}
	q = &question{answer: make(chan []byte, 1)}
	c.open[id] = q
	return q, false
}

func (c *conversation) forget(id uint16) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.open, id)
}

// handle takes one question from dns_request to dns_response or dns_error.
func (c *conversation) handle(ctx context.Context, q *question, query *flow.DNSMessage, wire []byte) {
	l := c.s.Open(flow.KindDNS)
	l.DNS = &flow.DNS{Request: query}
	defer l.Finish(ctx)
	killed := make(chan struct{})
	l.OnKill(func(error) { close(killed) })
	before := clone(query)
	if err := l.Fire(ctx, proxycore.OnDNSRequest); err != nil {
		c.fail(ctx, l, err)
		return
	}
	answer, err := c.resolve(ctx, l, q, wire, before, killed)
	if err != nil {
		c.fail(ctx, l, err)
		return
	}
	before = clone(l.DNS.Response)
	if err := l.FireQuiet(ctx, proxycore.OnDNSResponse); err != nil {
		c.fail(ctx, l, err)
		return
	}
	if answer == nil || !same(before, l.DNS.Response) {
		if answer, err = pack(l.DNS.Response); err != nil {
			c.fail(ctx, l, err)
			return
		}
	}
	c.writeAnswer(answer)
}

// resolve finds the answer: a hook's, our own, or the server's. It returns the server's bytes when
// the answer came as bytes.
func (c *conversation) resolve(ctx context.Context, l *proxycore.LiveFlow, q *question, wire []byte,
	before *flow.DNSMessage, killed <-chan struct{},
) ([]byte, error) {
	query := l.DNS.Request
	if l.DNS.Response == nil && c.resolver != nil {
		l.DNS.Response = c.resolver.local(query)
	}
	if l.DNS.Response != nil {
		return nil, nil
	}
	if !same(before, query) {
		changed, err := pack(query)
		if err != nil {
			return nil, err
		}
		wire = changed
	}
	if err := c.ask(ctx, wire); err != nil {
		return nil, err
	}
	l.Server = c.info()
	timeout := time.NewTimer(answerTimeout)
	defer timeout.Stop()
	select {
	case answer := <-q.answer:
		response, err := parse(answer, time.Now())
		if err != nil {
			return nil, err
		}
		l.DNS.Response = response
		return answer, nil
	case <-killed:
		return nil, l.Err()
	case <-timeout.C:
		return nil, fmt.Errorf("the name server did not answer within %s", answerTimeout)
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// fail ends a flow without an answer; the client gets SERVFAIL, or nothing for a killed flow (DNS-08).
func (c *conversation) fail(ctx context.Context, l *proxycore.LiveFlow, err error) {
	l.Fail(err)
	_ = l.FireQuiet(ctx, proxycore.OnDNSError) // the flow ends either way
	if l.Err() != nil {
		return
	}
	if answer, err := pack(reply(l.DNS.Request, dns.RcodeServerFailure, time.Now())); err == nil {
		c.writeAnswer(answer)
	}
}

func (c *conversation) writeAnswer(wire []byte) {
	c.writing.Lock()
	defer c.writing.Unlock()
	if err := writeMessage(c.s.Conn, c.stream, wire); err != nil {
		c.s.Logger().Debug("answering the client failed", "err", err)
	}
}

// ask sends a question to the server, connecting first if need be.
func (c *conversation) ask(ctx context.Context, wire []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.server == nil {
		server, err := c.connect(ctx)
		if err != nil {
			return err
		}
		c.server = server
		c.reader.Go(func() { c.readServer(server) })
	}
	if err := writeMessage(c.server.Conn, c.stream, wire); err != nil {
		return fmt.Errorf("asking the name server: %w", err)
	}
	return nil
}

func (c *conversation) connect(ctx context.Context) (*proxycore.ServerConn, error) {
	r := proxycore.Route{Network: c.s.Network, Address: c.s.Target, TLS: c.s.Secure, SNI: c.s.SNI, ALPN: c.s.ALPN}
	if c.resolver != nil {
		address, err := c.resolver.server()
		if err != nil {
			return nil, err
		}
		r = proxycore.Route{Network: c.s.Network, Address: address}
	}
	if server := c.s.TakeServer(r); server != nil {
		return server, nil
	}
	return c.s.Dial(ctx, r)
}

// readServer hands answers to the questions with their ID until the connection ends. An answer to
// nothing that was asked is dropped: it may be forged (QUIRK-09 is not copied).
func (c *conversation) readServer(server *proxycore.ServerConn) {
	defer func() {
		c.mu.Lock()
		if c.server == server {
			c.server = nil // the next question connects anew
		}
		c.mu.Unlock()
		_ = server.Close()
	}()
	for {
		wire, err := readMessage(server.Conn, c.stream)
		if err != nil {
			return // open questions run into their timeout, or are asked again by the client
		}
		c.mu.Lock()
		q := c.open[binary.BigEndian.Uint16(wire)]
		c.mu.Unlock()
		if q == nil {
			c.s.Logger().Debug("dropping an answer to no question", "server", server.Info().Address)
			continue
		}
		select {
		case q.answer <- wire:
		default: // answered already
		}
	}
}

func (c *conversation) info() *flow.Server {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.server == nil {
		return nil
	}
	return c.server.Info()
}

func (c *conversation) closeServer() {
	c.mu.Lock()
	server := c.server
	c.mu.Unlock()
	if server != nil {
		_ = server.Close()
	}
}

const headerSize = 12 // RFC 1035, section 4.1.1

var errShort = errors.New("dnsmitm: a DNS message has at least 12 bytes")

func readMessage(r net.Conn, stream bool) ([]byte, error) {
	if !stream {
		return readDatagram(r)
	}
	var size [2]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		if errors.Is(err, io.ErrUnexpectedEOF) {
			err = io.EOF
		}
		return nil, err
	}
	n := binary.BigEndian.Uint16(size[:])
	if n < headerSize {
		return nil, errShort
	}
	wire := make([]byte, n)
	_, err := io.ReadFull(r, wire)
	return wire, err
}

//nolint:gochecknoglobals // a pool is a cache, not state
var datagrams = sync.Pool{New: func() any { b := make([]byte, maxMessage); return &b }}

// readDatagram skips what is too short to be a message.
func readDatagram(r net.Conn) ([]byte, error) {
	buf := datagrams.Get().(*[]byte)
	defer datagrams.Put(buf)
	for {
		n, err := r.Read(*buf)
		if err != nil {
			return nil, err
		}
		if n >= headerSize {
			return append([]byte(nil), (*buf)[:n]...), nil
		}
	}
}

func writeMessage(w net.Conn, stream bool, wire []byte) error {
	if stream {
		framed := make([]byte, 2, 2+len(wire))
		binary.BigEndian.PutUint16(framed, uint16(len(wire))) // DNS messages are shorter than 64 KiB
		wire = append(framed, wire...)
	}
	_, err := w.Write(wire)
	return err
}
