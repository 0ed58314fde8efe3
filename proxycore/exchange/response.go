package exchange

import (
	"context"
	"errors"
	"net/http"
	"time"

	"mitm-appliance/flow"
	"mitm-appliance/proxycore"
)

// answer gives the client the response that is there: a server's, or one that a hook has set.
func (x *exchange) answer(ctx context.Context) error {
	resp := x.http.Response
	if x.server == nil {
		if err := x.l.FireQuiet(ctx, proxycore.OnResponseHeaders); err != nil { // emulated (HTTP-03)
			return err
		}
		x.l.TakeStream()
		return x.respond(ctx, resp.Body.Data, true)
	}
	body := x.server.Body()
	if err := x.hook(ctx, proxycore.OnResponseHeaders, body); err != nil {
		return err
	}
	transform, streamed := x.l.TakeStream()
	if x.http.Response != resp { // a hook has replaced it: the server's body is of no use
		return x.respond(ctx, nil, true)
	}
	opts := x.svc.cfg.Options
	switch {
	case resp.Status == http.StatusSwitchingProtocols:
		return x.upgrade(ctx)
	case body.Length() > opts.maxBody():
		return errResponseTooLarge
	case !streamed && body.Length() != 0 && (body.Length() > opts.maxCollected() || isEventStream(resp.Header)):
		x.conv.s.Logger().Info("streaming response", "host", x.http.Request.Host, "size", body.Length())
		streamed = true
	}
	if streamed && body.Length() != 0 {
		return x.streamResponse(ctx, nil, transform)
	}
	data, done, err := x.collect(body, responseSide, false)
	if err != nil {
		return err
	}
	if !done {
		return x.streamResponse(ctx, data, nil)
	}
	resp.Body, resp.End = flow.BodyOf(data), time.Now()
	resp.Chunks, resp.Trailer = body.Chunks(), body.Trailer()
	return x.respond(ctx, data, false)
}

// respond runs the response hook and sends the whole response. was is the body before the hook.
func (x *exchange) respond(ctx context.Context, was []byte, made bool) error {
	var err error
	if len(was) > soon { // sending may take long enough for people to look
		err = x.l.Fire(ctx, proxycore.OnResponse)
	} else {
		err = x.l.FireQuiet(ctx, proxycore.OnResponse)
	}
	x.complete = true
	if err != nil {
		return err
	}
	resp := x.http.Response
	switch {
	case resp == nil:
		return errNoResponse
	case made:
		ours(resp)
	case !bodiless(&x.http.Request, resp.Status) || len(resp.Body.Data) > 0:
		settle(&resp.Message, was, !same(was, resp.Body.Data))
	}
	x.answered = true
	x.unlocked(func() { err = x.client.Respond(&x.http.Request, resp) })
	if err != nil {
		return ErrClientGone
	}
	return nil
}

// streamResponse passes a response's body on as it arrives (HTTP-34). prefix was collected before.
func (x *exchange) streamResponse(ctx context.Context, prefix []byte, transform proxycore.Transform) error {
	req, resp, from := &x.http.Request, x.http.Response, x.server.Body()
	length := from.Length()
	if transform != nil {
		length = -1
		if resp.Header.Has("content-length") && resp.Version == "HTTP/1.1" {
			resp.Header.Add("Transfer-Encoding", "chunked")
		}
		resp.Header.Del("content-length")
	}
	var kept store
	kept.start(&resp.Body, x.keep())
	x.l.Publish(ctx)
	x.answered = true
	if err := x.client.Begin(req, resp, length); err != nil {
		return ErrClientGone
	}
	s := &stream{from: from, to: x.client, prefix: prefix, transform: transform, note: func(p []byte) {
		x.mu.Lock()
		defer x.mu.Unlock()
		if kept.add(p) {
			x.l.Publish(ctx)
		}
	}}
	var readErr, writeErr error
	x.unlocked(func() { readErr, writeErr = x.svc.run(s) })
	switch {
	case readErr != nil:
		return x.uploadFailure(badGateway(readErr))
	case writeErr != nil:
		return ErrClientGone
	}
	kept.end()
	resp.End, resp.Trailer = time.Now(), from.Trailer()
	err := x.l.FireQuiet(ctx, proxycore.OnResponse)
	x.complete = true
	if err != nil {
		return err
	}
	trailer := resp.Trailer
	x.unlocked(func() { err = x.client.End(trailer) })
	if err != nil {
		return ErrClientGone
	}
	return nil
}

// upgrade passes on 101 Switching Protocols and lets the stream go raw (HTTP-17, H1-17).
func (x *exchange) upgrade(ctx context.Context) error {
	req, resp := &x.http.Request, x.http.Response
	switch {
	case !req.Header.Has("upgrade"):
		return badGateway(errors.New("server switched protocols without being asked"))
	case x.svc.cfg.Raw == nil || !x.conv.s.Options().RawTCP.Get():
		return badGateway(errors.New("server switched protocols, and the option rawtcp does not allow to relay what follows"))
	}
	var err error
	if x.unlocked(func() { err = x.awaitUpload() }); err != nil {
		return err
	}
	resp.End = time.Now()
	err = x.l.FireQuiet(ctx, proxycore.OnResponse)
	x.complete = true
	if err != nil {
		return err
	}
	x.answered = true
	x.unlocked(func() { err = x.client.Respond(req, resp) })
	if err != nil {
		return ErrClientGone
	}
	inner := x.conv.s.Layer(x.client.Detach())
	inner.Target = x.along.Address
	inner.Server, inner.ServerErr = x.server.Detach(), nil
	x.server = nil
	x.next = func(ctx context.Context) error { return x.svc.cfg.Raw.Serve(ctx, inner) }
	return nil
}
