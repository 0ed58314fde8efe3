package appliance

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"syscall"

	"mitm-appliance/flow"
	"mitm-appliance/netstack"
	"mitm-appliance/proxycore"
)

// feed is the adapter from one netstack to the core: the place where packets' conversations become
// the proxy's. Its goroutines are waited for by the core.
type feed struct {
	ctx      context.Context // ends with the mode
	core     *proxycore.Core
	mode     string                                    // full mode spec
	name     string                                    // flow.Client.Feed
	identify func(c *flow.Client)                      // adds who the client is; may be nil
	first    func(to netip.AddrPort) proxycore.Handler // for destinations that we serve ourselves; may be nil
}

var _ netstack.Handler = (*feed)(nil)

// HandleTCP implements netstack.Handler.
func (f *feed) HandleTCP(r *netstack.TCPRequest) {
	go f.serve(proxycore.Inbound{
		Network: "tcp",
		Client:  &flow.Client{Connection: flow.Connection{Transport: "tcp", Peer: r.Source(), Local: r.Destination()}},
		Waiting: r.Context(),
		Accept:  func(context.Context) (proxycore.Conn, error) { return f.accept(r) },
		Reject:  func(cause error) { refuse(r, cause) },
	})
}

// accept finishes a handshake. Where clients may then be idle for long before anything else happens, it
// runs on a goroutine of its own: the stack that a handshake needs would stay with the connection, and
// be a quarter of what it costs.
func (f *feed) accept(r *netstack.TCPRequest) (conn proxycore.Conn, err error) {
	if f.core.Options().Eager() {
		return r.Accept()
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		conn, err = r.Accept()
	}()
	<-done
	return conn, err
}

// HandleUDP implements netstack.Handler.
func (f *feed) HandleUDP(c *netstack.UDPConn) {
	go f.serve(proxycore.Inbound{
		Network: "udp",
		Client:  &flow.Client{Connection: flow.Connection{Transport: "udp", Peer: c.Source(), Local: c.Destination()}},
		Accept:  func(context.Context) (proxycore.Conn, error) { return c, nil },
		Reject:  func(error) { c.Reject() },
	})
}

func (f *feed) serve(in proxycore.Inbound) {
	to := in.Client.Local
	in.Client.Mode, in.Client.Feed = f.mode, f.name
	in.Target = flow.AddressOf(to)
	if f.identify != nil {
		f.identify(in.Client)
	}
	if f.first != nil {
		in.First = f.first(to)
		in.LazyUpstream = in.First != nil
	}
	f.core.Serve(f.ctx, in)
}

// refuse lets the client see what we saw: a refusal, an unreachable network, or silence.
func refuse(r *netstack.TCPRequest, cause error) {
	var timeout net.Error
	switch {
	case errors.Is(cause, syscall.EHOSTUNREACH), errors.Is(cause, syscall.ENETUNREACH):
		r.Unreachable()
	case errors.Is(cause, os.ErrDeadlineExceeded), errors.As(cause, &timeout) && timeout.Timeout():
		r.Drop()
	default:
		r.Reject()
	}
}
