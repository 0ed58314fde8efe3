package exchange

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"mitm-appliance/flow"
	"mitm-appliance/proxycore"
)

const (
	// besideFrom is the size from which a collected body is sent beside reading the response: a server
	// that answers while it reads would block with us otherwise.
	besideFrom = 64 << 10
	// maxInterim bounds the 1xx responses of one exchange.
	maxInterim = 32
)

// roundTrip sends a collected request and waits for the head of its response. A connection that had
// waited in the pool may have died unseen: then the request goes out once more on a fresh one, if the
// server cannot have acted on it (RFC 9112, section 9.3.1).
func (x *exchange) roundTrip(ctx context.Context) error {
	again, err := x.attempt(ctx, false)
	if again && ctx.Err() == nil {
		x.server.Abort()
		_ = x.joinUpload() // it failed because of that
		x.server.Close()
		x.server = nil
		_, err = x.attempt(ctx, true)
	}
	return err
}

// attempt is one try. again says that after its error another one is harmless.
func (x *exchange) attempt(ctx context.Context, fresh bool) (again bool, err error) {
	idempotent := isIdempotent(x.http.Request.Method)
	waited, err := x.connect(ctx, fresh, !idempotent)
	if err != nil {
		return false, err
	}
	sent := x.send()
	if errors.Is(sent, ErrUnsent) && waited {
		return true, badGateway(sent)
	}
	err = x.receive() // a server may have answered before it stopped reading
	if err == nil || sent == nil {
		return waited && idempotent && errors.Is(err, ErrUnanswered), err
	}
	return waited && idempotent, badGateway(fmt.Errorf("cannot send the request: %w", sent))
}

// isIdempotent is RFC 9110, section 9.2.2.
func isIdempotent(method string) bool {
	switch method {
	case http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodTrace, http.MethodPut, http.MethodDelete:
		return true
	}
	return false
}

// connect gets a connection to where the request goes.
func (x *exchange) connect(ctx context.Context, fresh, careful bool) (waited bool, err error) {
	route := x.route()
	var server Server
	x.unlocked(func() { server, waited, err = x.conv.server(ctx, route, fresh, careful) })
	if err != nil {
		x.l.Server = unreachable(route.Address, err)
		return false, badGateway(fmt.Errorf("cannot connect to %s: %w", route.Address, err))
	}
	x.server, x.along = server, route
	x.l.Server = server.Conn().Info()
	return waited, nil
}

// send writes the request, a large one beside what follows.
func (x *exchange) send() (err error) {
	req := &x.http.Request
	if len(req.Body.Data) < besideFrom {
		x.unlocked(func() { err = x.server.Send(req) })
		return err
	}
	sent := *req // hooks may change the flow's while this one goes out
	server, done := x.server, make(chan error, 1)
	x.uploading = done
	go func() {
		defer close(done)
		done <- server.Send(&sent)
	}()
	return nil
}

// receive waits for the final response head; what comes before it is passed on and recorded
// (RFC 9110, section 15.2).
func (x *exchange) receive() error {
	req, server := &x.http.Request, x.server
	for {
		resp := new(flow.Response)
		var err error
		x.unlocked(func() { err = server.Receive(req, resp) })
		if err != nil {
			return badGateway(err)
		}
		if resp.Status >= 200 || resp.Status == http.StatusSwitchingProtocols {
			x.http.Response = resp
			return nil
		}
		if len(x.http.Interim) == maxInterim {
			return badGateway(fmt.Errorf("server sent more than %d interim responses", maxInterim))
		}
		resp.End = time.Now()
		x.http.Interim = append(x.http.Interim, *resp)
		if req.Version == "HTTP/1.0" {
			continue // does not know them
		}
		x.unlocked(func() { err = x.client.Interim(resp) })
		if err != nil {
			return ErrClientGone
		}
	}
}

// duplex streams the request and handles the response beside it (HTTP-33, H1-18).
func (x *exchange) duplex(ctx context.Context, prefix []byte, transform proxycore.Transform) error {
	req := &x.http.Request
	length := x.client.Body().Length()
	if transform != nil && length != 0 {
		length = -1
		req.Header.Del("content-length")
	}
	x.l.Publish(ctx)
	if _, err := x.connect(ctx, false, true); err != nil {
		return err
	}
	if err := x.server.Begin(req, length); err != nil {
		return badGateway(err)
	}
	x.uploading, x.streamed = make(chan error, 1), true
	go x.upload(ctx, prefix, transform)
	if err := x.receive(); err != nil {
		return x.uploadFailure(err)
	}
	return x.answer(ctx)
}

// uploadFailure prefers the client's fault as the reason, which made the server's connection fail.
func (x *exchange) uploadFailure(err error) error {
	if x.uploading == nil || !x.streamed {
		return err
	}
	select {
	case up := <-x.uploading:
		var f *Failure
		if errors.Is(up, ErrClientGone) || errors.As(up, &f) && f.Status < 500 {
			return up
		}
	default:
	}
	return err
}

// upload streams the request's body and finishes the request. It runs beside the serving goroutine.
func (x *exchange) upload(ctx context.Context, prefix []byte, transform proxycore.Transform) {
	done := x.uploading
	defer close(done)
	var kept store
	req := &x.http.Request
	x.mu.Lock()
	kept.start(&req.Body, x.keep())
	x.mu.Unlock()
	s := &stream{from: x.client.Body(), to: x.server, prefix: prefix, transform: transform, note: func(p []byte) {
		x.mu.Lock()
		defer x.mu.Unlock()
		if kept.add(p) && !x.failed {
			x.l.Publish(ctx)
		}
	}}
	readErr, writeErr := x.svc.run(s)
	x.mu.Lock()
	defer x.mu.Unlock()
	switch {
	case x.failed:
	case readErr != nil:
		done <- clientFailure(readErr)
		x.server.Abort() // wakes the serving goroutine
	case writeErr != nil:
		done <- badGateway(writeErr) // a response may be there all the same
	default:
		done <- x.endUpload(ctx, &kept)
	}
}

// endUpload runs the request hook and sends the rest. Its caller holds the flow.
func (x *exchange) endUpload(ctx context.Context, kept *store) error {
	req := &x.http.Request
	kept.end()
	req.End, req.Trailer = time.Now(), x.client.Body().Trailer()
	if err := x.l.Fire(ctx, proxycore.OnRequest); err != nil {
		return err
	}
	if err := x.server.End(req.Trailer); err != nil {
		return badGateway(err)
	}
	return nil
}

// uploadGrace is how long the rest of a collected request may take once the server has answered. A
// server answers the moment it has the last byte, which is before the sender has heard of it.
const uploadGrace = 250 * time.Millisecond

// awaitUpload waits until the request is out as well. A collected one that the server did not want to
// the end is given up.
func (x *exchange) awaitUpload() error {
	if x.uploading == nil {
		return nil
	}
	if !x.streamed {
		late := time.NewTimer(uploadGrace)
		defer late.Stop()
		select {
		case outcome := <-x.uploading:
			_ = outcome // the server has answered all the same
		case <-late.C:
			x.server.Abort()
		}
		_ = x.joinUpload() // likewise
		return nil
	}
	err := x.joinUpload()
	var f *Failure
	if errors.As(err, &f) && f.Status >= 500 {
		return nil // the server had enough: it has answered
	}
	return err
}

// joinUpload waits for the goroutine that sends, if there is one, and returns its error.
func (x *exchange) joinUpload() (err error) {
	if x.uploading == nil {
		return nil
	}
	for e := range x.uploading {
		err = e
	}
	x.uploading = nil
	return err
}

// keep is how much of a streamed body the flow gets.
func (x *exchange) keep() int64 {
	if x.svc.cfg.Options.StoreStreamed.Get() {
		return x.svc.cfg.StoreLimit
	}
	return x.svc.cfg.Prefix
}
