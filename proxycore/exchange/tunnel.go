package exchange

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"mitm-appliance/flow"
	"mitm-appliance/proxycore"
)

// tunnel answers CONNECT and serves what is inside (HTTP-13..15). Its flow is for addons; only one
// that failed is recorded, so that there is something to look at.
func (c *Conversation) tunnel(ctx context.Context, cl Client, h *flow.HTTP) (more bool, err error) {
	req := &h.Request
	host, port, err := ParseAuthority(req.Authority)
	if err == nil && port == 0 {
		err = Invalid("CONNECT needs a port: CONNECT %s:443", host)
	}
	if err != nil {
		c.s.Logger().Info("bad CONNECT", "authority", req.Authority, "err", err)
		_ = cl.Respond(req, c.svc.Page(err)) // see Serve
		return false, nil
	}
	req.Host, req.Port = host, port
	req.End = time.Now()
	l := c.s.Open(flow.KindHTTP)
	l.HTTP = h
	l.OnKill(cl.Abort)
	if err := l.FireQuiet(ctx, proxycore.OnHTTPConnect); err != nil {
		l.Fail(err)
		l.Finish(ctx)
		return false, nil
	}
	server := c.openTunnel(ctx, l)
	if ok := h.Response.Status/100 == 2; !ok {
		_ = l.FireQuiet(ctx, proxycore.OnHTTPConnectError) // a kill shows in the write that follows
		ours(h.Response)
		failed := cl.Respond(req, h.Response)
		l.Finish(ctx)
		return failed == nil && l.Err() == nil, nil
	}
	if h.Response.Version == "" { // a hook's
		h.Response.Version = req.Version
	}
	open := l.FireQuiet(ctx, proxycore.OnHTTPConnected) == nil && cl.Respond(req, h.Response) == nil
	l.FinishQuiet()
	if !open {
		return false, nil // killed, or the client is gone: its sockets say the rest
	}
	inner := c.s.Layer(cl.Detach())
	inner.Target = flow.Address{Host: req.Host, Port: req.Port}
	inner.Server, inner.ServerErr = server, nil
	inner.Secure, inner.SNI, inner.ALPN = false, "", ""
	return false, inner.Next(ctx, inner.Conn)
}

// openTunnel connects where the strategy says so, and sets the response that no hook has set.
func (c *Conversation) openTunnel(ctx context.Context, l *proxycore.LiveFlow) *proxycore.ServerConn {
	h := l.HTTP
	if h.Response != nil {
		return nil
	}
	now := time.Now()
	h.Response = &flow.Response{
		Message: flow.Message{Version: h.Request.Version, Start: now, End: now},
		Status:  http.StatusOK, Reason: "Connection established",
	}
	if !c.s.Options().Eager() {
		return nil
	}
	addr := flow.Address{Host: h.Request.Host, Port: h.Request.Port}
	conn, err := c.s.Dial(ctx, proxycore.Route{Address: addr})
	if err != nil {
		l.Server = unreachable(addr, err)
		l.Fail(err)
		text := fmt.Sprintf("Cannot connect to %s: %v\nSet connection_strategy to lazy to accept clients "+
			"without trying their destination first.\n", addr, err)
		h.Response = answer(c.svc.cfg.Name, http.StatusBadGateway, "Bad Gateway", "text/plain; charset=utf-8", text, false)
		return nil
	}
	l.Server = conn.Info()
	return conn
}
