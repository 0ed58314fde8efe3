// Package relay moves bytes between a client and its server without understanding them: raw TCP and
// UDP flows, whose messages hooks may see and change, and pass-through, which leaves no flow.
//
// In: a session whose protocol nobody wants to decode. Out: flows of messages, and both directions
// copied to their ends. It is the one place that implements half-close. It knows no protocol.
//
// While messages are recorded or somebody listens to them, each one is a read, a hook and a write.
// Once the recording budget of the flow is used up and no hook listens, bytes take the fastest way
// that both ends offer, without a buffer while idle.
package relay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"mitm-appliance/flow"
	"mitm-appliance/option"
	"mitm-appliance/proxycore"
)

// Options are the relay's settings.
type Options struct {
	StreamLimit option.Int // stream_store_limit
}

// DeclareOptions declares them.
func DeclareOptions(r *option.Registry) *Options {
	return &Options{StreamLimit: r.Int("stream_store_limit", 4<<20,
		"Bytes of a raw TCP or UDP flow that are recorded; the rest passes and is only counted. 0 records nothing, -1 everything.")}
}

// TCP relays a byte stream as a TCP flow (TCP-01..06).
type TCP struct{ Options *Options }

// UDP relays datagrams as a UDP flow (UDP-01..04).
type UDP struct{ Options *Options }

// Pass relays without a flow and without hooks (TCP-05, TLS-03).
type Pass struct{}

var (
	_ proxycore.Handler = TCP{}
	_ proxycore.Handler = UDP{}
	_ proxycore.Handler = Pass{}
)

// Serve implements proxycore.Handler.
func (h TCP) Serve(ctx context.Context, s *proxycore.Session) error {
	return serve(ctx, s, flow.KindTCP, h.Options, hooks{proxycore.OnTCPStart, proxycore.OnTCPMessage, proxycore.OnTCPEnd, proxycore.OnTCPError})
}

// Serve implements proxycore.Handler.
func (h UDP) Serve(ctx context.Context, s *proxycore.Session) error {
	return serve(ctx, s, flow.KindUDP, h.Options, hooks{proxycore.OnUDPStart, proxycore.OnUDPMessage, proxycore.OnUDPEnd, proxycore.OnUDPError})
}

// Serve implements proxycore.Handler.
func (Pass) Serve(ctx context.Context, s *proxycore.Session) error {
	server, err := connect(ctx, s)
	if err != nil {
		proxycore.Abort(s.Conn)
		return err
	}
	defer server.Close()
	up := func() error { return copyAll(server.Conn, s.Conn, nil) }
	down := func() error { return copyAll(s.Conn, server.Conn, nil) }
	return both(s, server, up, down)
}

type hooks struct{ start, message, end, fail proxycore.FlowHook }

// connect takes the connection that an outer layer opened, or opens one.
func connect(ctx context.Context, s *proxycore.Session) (*proxycore.ServerConn, error) {
	r := proxycore.Route{Network: s.Network, Address: s.Target, TLS: s.Secure, SNI: s.SNI, ALPN: s.ALPN}
	if c := s.TakeServer(r); c != nil {
		return c, nil
	}
	if s.ServerErr != nil {
		return nil, s.ServerErr
	}
	return s.Dial(ctx, r)
}

func serve(ctx context.Context, s *proxycore.Session, kind flow.Kind, o *Options, h hooks) error {
	l := s.Open(kind)
	l.Stream = &flow.Stream{Protocol: s.Protocol}
	defer l.Finish(ctx)
	r := &conversation{ctx: ctx, s: s, l: l, hooks: h, limit: int64(o.StreamLimit.Get())}
	if err := l.Fire(ctx, h.start); err != nil {
		return r.fail(err)
	}
	server, err := connect(ctx, s)
	if err != nil {
		return r.fail(err)
	}
	defer server.Close()
	r.server = server
	l.Server = server.Info()
	l.OnKill(func(error) {
		proxycore.Abort(s.Conn)
		proxycore.Abort(server.Transport())
	})
	l.OnInject(r.inject)
	err = both(s, server, r.up, r.down)
	l.Server = server.Info()
	if errors.Is(err, syscall.ECONNREFUSED) && l.Stream.Received > 0 {
		err = nil // the server has answered: it is a client that wants no more
	}
	if err != nil || l.Err() != nil {
		return r.fail(err)
	}
	return l.FireQuiet(ctx, h.end)
}

// conversation is one recorded relay. Its two directions share the flow under mu.
type conversation struct {
	ctx    context.Context
	s      *proxycore.Session
	l      *proxycore.LiveFlow
	server *proxycore.ServerConn
	hooks  hooks
	limit  int64

	mu     sync.Mutex
	stored int64
}

func (r *conversation) up() error {
	return copyAll(r.server.Conn, r.s.Conn, r.tap(true, r.server.Conn))
}

func (r *conversation) down() error {
	return copyAll(r.s.Conn, r.server.Conn, r.tap(false, r.s.Conn))
}

// tap returns what handles each message of one direction.
func (r *conversation) tap(fromClient bool, to io.Writer) *tap {
	return &tap{
		message: func(data []byte) error { return r.message(fromClient, false, data, to) },
		count: func(n int64) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.add(fromClient, n)
		},
	}
}

func (r *conversation) add(fromClient bool, n int64) {
	if fromClient {
		r.l.Stream.Sent += n
	} else {
		r.l.Stream.Received += n
	}
}

// message records a message, shows it to the hooks and sends what they left of it. data belongs to
// the caller. errFast says that this and later messages of the direction need no looking at.
func (r *conversation) message(fromClient, injected bool, data []byte, to io.Writer) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.add(fromClient, int64(len(data)))
	listened := r.s.Hooks().Listens(r.hooks.message)
	m := flow.StreamMessage{FromClient: fromClient, Injected: injected, Size: int64(len(data)), Time: time.Now()}
	room := r.limit < 0 || r.stored+int64(len(data)) <= r.limit
	switch {
	case room || listened || injected:
		m.Data = append([]byte(nil), data...)
	case r.stored >= r.limit:
		if _, err := to.Write(data); err != nil {
			return err
		}
		return errFast
	default: // the message that crosses the limit is kept as far as it fits
		m.Data = append([]byte(nil), data[:r.limit-r.stored]...)
		r.stored = r.limit
		r.l.Stream.Messages = append(r.l.Stream.Messages, m)
		_, err := to.Write(data)
		return err
	}
	r.stored += int64(len(m.Data))
	return r.fire(m, room || injected, to)
}

// fire runs the message hook and sends the message as the hooks left it. One that is only looked at,
// not kept, is taken off the list again.
func (r *conversation) fire(m flow.StreamMessage, keep bool, to io.Writer) error {
	messages := r.l.Stream.Messages
	r.l.Stream.Messages = append(messages, m)
	last := len(messages)
	if err := r.l.Fire(r.ctx, r.hooks.message); err != nil {
		return err
	}
	if last >= len(r.l.Stream.Messages) { // an addon dropped the history
		return nil
	}
	m = r.l.Stream.Messages[last]
	if !keep {
		r.l.Stream.Messages = messages
	}
	if m.Dropped || len(m.Data) == 0 && m.Size > 0 {
		return nil
	}
	_, err := to.Write(m.Data)
	return err
}

func (r *conversation) inject(i proxycore.Injection) error {
	to := io.Writer(r.server.Conn)
	if i.ToClient {
		to = r.s.Conn
	}
	if err := r.message(!i.ToClient, true, i.Data, to); err != nil && !errors.Is(err, errFast) {
		return fmt.Errorf("inject message: %w", err)
	}
	return nil
}

// fail ends the flow with an error: what hooks, people and the client get to see.
func (r *conversation) fail(err error) error {
	if killed := r.l.Err(); killed != nil {
		err = killed
	}
	r.l.Fail(err)
	_ = r.l.FireQuiet(r.ctx, r.hooks.fail) // the flow ends either way
	if proxycore.IsRefused(err) {
		reject(r.s)
	}
	proxycore.Abort(r.s.Conn)
	return err
}

// reject tells the client of a UDP conversation that nobody listens, where the transport can.
func reject(s *proxycore.Session) {
	if c, ok := s.Conn.Unwrap().(interface{ Reject() }); ok {
		c.Reject()
	}
}

// both runs the two directions until both have ended. A direction that ends in order closes the
// write side of its target; one that fails, or a reset, cuts both ends. A silent UDP conversation
// ends in order; in one that a side refuses, the client is refused.
func both(s *proxycore.Session, server *proxycore.ServerConn, up, down func() error) error {
	var failed error
	var once sync.Once
	end := func(err error, target proxycore.Conn, udp bool) {
		switch {
		case udp && errors.Is(err, syscall.ECONNREFUSED):
			once.Do(func() { failed = err })
			reject(s) // no use to a client that has refused itself, and no harm
			_, _ = s.Conn.Close(), server.Transport().Close()
		case err != nil && !isSilence(err, udp):
			once.Do(func() { failed = err })
			proxycore.Abort(s.Conn)
			proxycore.Abort(server.Transport())
		case udp:
			_, _ = s.Conn.Close(), server.Transport().Close() // wakes the other direction
		default:
			_ = target.CloseWrite() // fails only when it is closed already
		}
	}
	udp := s.Network == "udp"
	done := make(chan struct{})
	go func() {
		defer close(done)
		end(up(), server.Conn, udp)
	}()
	end(down(), s.Conn, udp)
	<-done
	return failed
}

// isSilence is true for the ways in which a UDP conversation ends when nobody speaks any more.
func isSilence(err error, udp bool) bool {
	return udp && (errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, net.ErrClosed))
}
