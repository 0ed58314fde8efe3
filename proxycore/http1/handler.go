package http1

import (
	"context"
	"errors"
	"io"
	"os"

	"mitm-appliance/flow"
	"mitm-appliance/proxycore"
	"mitm-appliance/proxycore/exchange"
)

// handler serves clients that speak HTTP/1.
type handler struct {
	f   *Framing
	svc *exchange.Service
}

// Serve answers requests in their order until the connection ends (H1-10).
func (h *handler) Serve(ctx context.Context, s *proxycore.Session) error {
	c := newClient(h.f, s)
	conv := h.svc.Converse(s)
	for {
		hx, invalid, err := c.next(h.svc.Options().Strict())
		if err != nil {
			return h.end(c, err)
		}
		more, err := conv.Serve(ctx, c, hx, invalid)
		c.watch.disarm()
		if c.detached {
			return err
		}
		if !more || !c.keep || !c.body.done || ctx.Err() != nil {
			c.close()
			return err
		}
	}
}

// end says goodbye to a client whose next request could not be read.
func (h *handler) end(c *client, err error) error {
	log := c.s.Logger()
	var f *exchange.Failure
	switch {
	case errors.As(err, &f):
		log.Info("bad request", "err", err)
		c.refused = true
		_ = c.Respond(&flow.Request{Message: flow.Message{Version: "HTTP/1.1"}}, h.svc.Page(err)) // close sees to the rest
		c.close()
		return nil
	case errors.Is(err, io.ErrUnexpectedEOF) && c.in.buffered() > 0:
		log.Info("client closed connection before completing request headers", "bytes", c.in.buffered())
		return nil
	case errors.Is(err, os.ErrDeadlineExceeded):
		log.Info("client did not complete its request headers in time", "bytes", c.in.buffered())
		return nil
	case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF): // the latter: TLS without close_notify
		return nil
	}
	return err
}
