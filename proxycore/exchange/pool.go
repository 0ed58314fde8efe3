package exchange

import (
	"context"
	"slices"
	"strings"
	"time"

	"mitm-appliance/flow"
	"mitm-appliance/proxycore"
)

// maxIdle bounds the connections that wait for the next request of one client. Explicit proxies may
// see requests for any number of servers on one connection.
const maxIdle = 16

type idleServer struct {
	route  proxycore.Route
	server Server
	since  time.Time
}

// take returns a connection that waits in the pool, newest first. careful looks at it before.
func (c *Conversation) take(r proxycore.Route, careful bool) Server {
	for {
		e := c.pop(r)
		if e.server == nil {
			return nil
		}
		const fresh = time.Second // a server that has just answered rarely hangs up at once
		if (careful || time.Since(e.since) > fresh) && e.server.Stale() {
			e.server.Close()
			continue
		}
		return e.server
	}
}

func (c *Conversation) pop(r proxycore.Route) idleServer {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := len(c.idle) - 1; i >= 0; i-- {
		if e := c.idle[i]; e.route == r {
			c.idle = append(c.idle[:i], c.idle[i+1:]...)
			return e
		}
	}
	return idleServer{}
}

// put gives a connection back after an exchange.
func (c *Conversation) put(r proxycore.Route, s Server) {
	if !s.Reusable() {
		s.Close()
		return
	}
	var oldest Server
	c.mu.Lock()
	if len(c.idle) == maxIdle {
		oldest = c.idle[0].server
		c.idle = append(c.idle[:0], c.idle[1:]...)
	}
	c.idle = append(c.idle, idleServer{r, s, time.Now()})
	c.mu.Unlock()
	if oldest != nil {
		oldest.Close()
	}
}

// server finds or opens a connection along r (HTTP-08, HTTP-09). waited says that it may have been
// closed by the server meanwhile, without anybody noticing.
func (c *Conversation) server(ctx context.Context, r proxycore.Route, fresh, careful bool) (s Server, waited bool, err error) {
	if !fresh {
		if s := c.take(r, careful); s != nil {
			return s, true, nil
		}
		conn, err := c.takeOpened(ctx, r)
		if err != nil {
			return nil, false, err
		}
		if conn != nil {
			return c.svc.cfg.NewServer(c.s, conn), true, nil
		}
	}
	conn, err := c.s.Dial(ctx, r)
	if err != nil {
		return nil, false, err
	}
	return c.svc.cfg.NewServer(c.s, conn), false, nil
}

// takeOpened takes over what an outer layer opened for the conversation's own target.
func (c *Conversation) takeOpened(ctx context.Context, r proxycore.Route) (*proxycore.ServerConn, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if r.Address == c.s.Target && c.s.ServerErr != nil {
		return nil, c.s.ServerErr
	}
	if conn := c.s.TakeServer(r); conn != nil {
		if c.svc.speaks(conn) {
			return conn, nil
		}
		_ = conn.Close() // it was asked for something else; a new one is not
		return nil, nil
	}
	if !r.TLS {
		return nil, nil
	}
	plain := r
	plain.TLS, plain.ALPN = false, ""
	conn := c.s.TakeServer(plain)
	if conn == nil {
		return nil, nil
	}
	if err := c.s.SecureServer(ctx, conn, r); err != nil {
		_ = conn.Close()
		return nil, err
	}
	return conn, nil
}

// speaks reports whether what was agreed on with the server in TLS is something that NewServer knows.
func (v *Service) speaks(conn *proxycore.ServerConn) bool {
	tls := conn.Info().TLS
	return tls == nil || tls.ALPN == "" || strings.HasPrefix(tls.ALPN, "http/1") ||
		slices.Contains(strings.Split(v.cfg.ALPN, ","), tls.ALPN)
}

// unreachable describes a server that could not be connected to, for the flow (HTTP-43).
func unreachable(addr flow.Address, err error) *flow.Server {
	return &flow.Server{Address: addr, Connection: flow.Connection{Transport: "tcp", Error: err.Error(), Start: time.Now()}}
}
