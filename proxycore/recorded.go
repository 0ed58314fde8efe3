package proxycore

import (
	"context"

	"mitm-appliance/flow"
)

// Replay runs a recorded flow through the hooks of its kind, in the order in which they fired when it
// was live and without any network (HOOK-27), and gives it to the recorder. The flow belongs to
// Replay until it returns. It is not live: nothing waits for it, so that an addon which intercepts
// it has no effect. The error is ctx's.
func (c *Core) Replay(ctx context.Context, f *flow.Flow) error {
	client := f.Client
	if client == nil {
		client = &flow.Client{}
	}
	s := &Session{core: c, root: &root{cancel: func(error) {}}, Network: client.Transport, log: c.cfg.Logger}
	s.root.client.Store(client)
	f.Live, f.Intercepted = false, false
	p := &player{ctx: ctx, live: &LiveFlow{Flow: f, Session: s}}
	switch {
	case f.HTTP != nil:
		p.http(f.HTTP)
	case f.DNS != nil:
		p.dns(f.DNS)
	case f.Stream != nil:
		p.stream(f.Stream)
	}
	if err := context.Cause(ctx); err != nil {
		return err
	}
	p.live.Finish(ctx)
	return nil
}

// player fires the hooks of one recorded flow until ctx ends.
type player struct {
	ctx  context.Context
	live *LiveFlow
}

func (p *player) fire(hooks ...FlowHook) {
	for _, h := range hooks {
		if p.ctx.Err() != nil {
			return
		}
		p.live.run(p.ctx, h)
		p.live.TakeStream()
		p.live.Intercepted = false
	}
}

func (p *player) http(h *flow.HTTP) {
	p.fire(OnRequestHeaders, OnRequest)
	if h.Response != nil {
		p.fire(OnResponseHeaders, OnResponse)
	}
	switch {
	case h.WebSocket != nil:
		all := h.WebSocket.Messages
		h.WebSocket.Messages = nil
		p.fire(OnWebSocketStart)
		for i := range all {
			h.WebSocket.Messages = all[: i+1 : i+1]
			p.fire(OnWebSocketMessage)
		}
		p.fire(OnWebSocketEnd)
	case p.live.Error != nil:
		p.fire(OnError)
	}
}

func (p *player) dns(d *flow.DNS) {
	p.fire(OnDNSRequest)
	if d.Response != nil {
		p.fire(OnDNSResponse)
	}
	if p.live.Error != nil {
		p.fire(OnDNSError)
	}
}

func (p *player) stream(s *flow.Stream) {
	start, message, end, failed := OnTCPStart, OnTCPMessage, OnTCPEnd, OnTCPError
	if p.live.Kind == flow.KindUDP {
		start, message, end, failed = OnUDPStart, OnUDPMessage, OnUDPEnd, OnUDPError
	}
	all := s.Messages
	s.Messages = nil
	p.fire(start)
	for i := range all {
		s.Messages = all[: i+1 : i+1]
		p.fire(message)
	}
	if p.live.Error != nil {
		p.fire(failed)
	} else {
		p.fire(end)
	}
}
