package exchange

import (
	"context"
	"errors"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"mitm-appliance/flow"
	"mitm-appliance/proxycore"
)

// exchange is the state of one exchange. mu is held by whoever may touch the flow: the serving
// goroutine lets it go only while it waits for the network, so that an upload which runs beside the
// response can finish the request.
type exchange struct {
	svc     *Service
	conv    *Conversation
	client  Client
	http    *flow.HTTP
	l       *proxycore.LiveFlow
	invalid error

	mu        sync.Mutex
	server    Server
	along     proxycore.Route
	answered  bool                        // the response to the client was begun
	complete  bool                        // ... and the response hook has run: no error hook any more
	failed    bool                        // the exchange is being given up
	body      []byte                      // the body as it was collected, to see whether hooks replaced it
	uploading chan error                  // one result of an upload beside the response, then closed; nil without one
	streamed  bool                        // ... and that upload reads from the client
	awaited   bool                        // the client holds its body back until it sees a response
	next      func(context.Context) error // what takes over the stream afterwards
}

var (
	errRequestTooLarge = &Failure{
		http.StatusRequestEntityTooLarge,
		errors.New("Request body exceeds the option body_size_limit."),
	}
	errResponseTooLarge = &Failure{
		http.StatusBadGateway,
		errors.New("Response body exceeds the option body_size_limit."),
	}
	errNoResponse = badGateway(errors.New("a hook removed the response"))
)

// serve runs the exchange to its end and reports whether the client may send another.
func (x *exchange) serve(ctx context.Context) (more bool) {
	err := x.run(ctx)
	if err == nil {
		x.unlocked(func() { err = x.awaitUpload() })
	}
	if err != nil {
		x.fail(ctx, err)
	}
	if x.server != nil {
		if err == nil {
			x.conv.put(x.along, x.server)
		} else {
			x.server.Abort()
			x.server.Close()
		}
	}
	x.l.Finish(ctx)
	return err == nil
}

// fail ends the exchange with a reason: the error hook, unless the response hook has run already
// (HTTP-42), and a page for the client where there is still room for one (HTTP-38..40).
func (x *exchange) fail(ctx context.Context, err error) {
	x.failed = true
	if cause := context.Cause(ctx); cause != nil {
		err = cause // killed, idle, shut down or left: all else follows from that
	}
	if x.uploading != nil {
		x.server.Abort()
		if x.streamed {
			x.client.Interrupt()
		}
		x.unlocked(func() { _ = x.joinUpload() }) // it fails because of err
	}
	if killed := x.l.Err(); killed != nil {
		x.client.Abort(killed)
		err = killed
	}
	if x.complete {
		if x.l.Err() != nil {
			x.l.Fail(err)
		}
		return
	}
	x.l.Fail(err)
	_ = x.l.FireQuiet(ctx, proxycore.OnError) // what a kill could cut is being cut
	if x.answered || ctx.Err() != nil || x.l.Err() != nil || errors.Is(err, ErrClientGone) {
		return
	}
	f := asFailure(err)
	page := Page(x.svc.cfg.Name, f.Status, http.StatusText(f.Status), f)
	x.unlocked(func() { _ = x.client.Respond(&x.http.Request, page) }) // nobody is left to tell
}

func (x *exchange) unlocked(f func()) {
	x.mu.Unlock()
	defer x.mu.Lock()
	f()
}

// soon is the size up to which a body is taken to follow its head at once: recording the head alone
// would only cost.
const soon = 128 << 10

// hook fires a hook; the recorder is spared when the message is complete in the same breath.
func (x *exchange) hook(ctx context.Context, h proxycore.FlowHook, r Receiver) error {
	if n := r.Length(); n >= 0 && n <= soon {
		return x.l.FireQuiet(ctx, h)
	}
	return x.l.Fire(ctx, h)
}

func (x *exchange) run(ctx context.Context) error {
	req := &x.http.Request
	body := x.client.Body()
	if err := x.hook(ctx, proxycore.OnRequestHeaders, body); err != nil {
		return err
	}
	opts := x.svc.cfg.Options
	if x.invalid != nil {
		return x.invalid
	}
	if body.Length() > opts.maxBody() {
		return errRequestTooLarge
	}
	transform, streamed := x.l.TakeStream()
	preset := x.http.Response != nil
	if !preset && !streamed && body.Length() > opts.maxCollected() {
		x.conv.s.Logger().Info("streaming request", "host", req.Host, "size", body.Length())
		streamed = true
	}
	if streamed && !preset {
		return x.duplex(ctx, nil, transform)
	}
	if err := x.expect(); err != nil {
		return err
	}
	if err := x.collectRequest(body, streamed); err != nil {
		return err
	}
	if x.streamed {
		return x.duplex(ctx, x.body, nil)
	}
	if err := x.l.Fire(ctx, proxycore.OnRequest); err != nil {
		return err
	}
	if x.http.Response == nil {
		settle(&req.Message, x.body, true)
		if err := x.roundTrip(ctx); err != nil {
			return err
		}
	}
	return x.answer(ctx)
}

// collectRequest reads the request's body, or as much of it as may be held in memory: then the rest
// is to be streamed. A body of which a response that is there already has no need is not awaited when
// the client holds it back.
func (x *exchange) collectRequest(body Receiver, streamed bool) error {
	req := &x.http.Request
	preset := x.http.Response != nil
	if preset && x.awaited {
		req.Body = flow.Body{State: flow.BodyMissing}
		return nil
	}
	data, done, err := x.collect(body, requestSide, streamed)
	if err != nil {
		return err
	}
	x.body = data
	if !done && !preset {
		x.streamed = true
		return nil
	}
	req.Body, req.End = flow.BodyOf(data), time.Now()
	if !done {
		req.Body.State = flow.BodyTruncated
	}
	req.Chunks, req.Trailer = body.Chunks(), body.Trailer()
	return nil
}

// expect answers Expect: 100-continue for a body that is collected (HTTP-16). A response that a hook
// has set goes out in place of the 100: the client then keeps its body.
func (x *exchange) expect() error {
	req := &x.http.Request
	if v, has := req.Header.Lookup("expect"); !has || !flow.EqualFold(v, "100-continue") {
		return nil
	}
	req.Header.Del("expect")
	if x.client.Body().Buffered() > 0 {
		return nil // it does not wait
	}
	if x.http.Response != nil {
		x.awaited = true
		return nil
	}
	now := time.Now()
	interim := flow.Response{
		Status: http.StatusContinue, Reason: "Continue",
		Message: flow.Message{Version: req.Version, Start: now, End: now},
	}
	if err := x.client.Interim(&interim); err != nil {
		return ErrClientGone
	}
	return nil
}

// side says whose body is read: its failures and limits have other names.
type side struct {
	tooLarge error
	failure  func(error) error
}

var (
	requestSide  = side{errRequestTooLarge, clientFailure}
	responseSide = side{errResponseTooLarge, badGateway}
)

// clientFailure tells what a client did wrong from its leaving.
func clientFailure(err error) error {
	var f *Failure
	if errors.As(err, &f) {
		return err
	}
	return ErrClientGone
}

// collect reads a body up to the limits, and one without announced length for a limited time: a
// response that trickles for ever would keep its client waiting for ever (mitmproxy's does).
func (x *exchange) collect(r Receiver, who side, streamed bool) (data []byte, done bool, err error) {
	most, limit := x.svc.cfg.Options.maxCollected(), x.svc.cfg.Options.maxBody()
	if streamed {
		most = 0
	}
	timed := r.Length() < 0
	x.unlocked(func() {
		if timed {
			r.SetDeadline(time.Now().Add(x.svc.cfg.Patience))
		}
		data, done, err = x.svc.collect(r, min(most, limit))
		if timed {
			r.SetDeadline(time.Time{})
		}
	})
	late := timed && errors.Is(err, os.ErrDeadlineExceeded)
	switch {
	case err != nil && !late:
		return nil, false, who.failure(err)
	case int64(len(data)) > limit:
		return nil, false, who.tooLarge
	}
	return data, done, nil
}

// settle makes a message's framing fields true after hooks had it. was is the body before them; ours
// says that a body without announced length needs one.
func settle(m *flow.Message, was []byte, ours bool) {
	if !same(m.Body.Data, was) {
		m.Chunks = nil
	}
	m.Body.Size, m.Body.State = int64(len(m.Body.Data)), flow.BodyComplete
	if m.Header.Has("transfer-encoding") {
		return
	}
	announced, has := m.Header.Lookup("content-length")
	if !has && (!ours || len(m.Body.Data) == 0) {
		return
	}
	var digits [20]byte
	if now := strconv.AppendInt(digits[:0], m.Body.Size, 10); announced != string(now) {
		m.Header.Set("Content-Length", string(now))
	}
}

func same(a, b []byte) bool {
	return len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0])
}

// bodiless reports whether a response has no body whatever its fields say (RFC 9112, section 6.3).
func bodiless(req *flow.Request, status int) bool {
	return req.Method == http.MethodHead || status/100 == 1 || status == http.StatusNoContent ||
		status == http.StatusNotModified
}

// ours prepares a response that did not come from a server.
func ours(r *flow.Response) {
	if r.Version == "" {
		r.Version = "HTTP/1.1"
	}
	settle(&r.Message, r.Body.Data, true)
	if len(r.Body.Data) == 0 && r.Status/100 != 1 && r.Status != http.StatusNoContent &&
		r.Status != http.StatusNotModified && !r.Header.Has("content-length") && !r.Header.Has("transfer-encoding") {
		r.Header.Add("Content-Length", "0")
	}
	if r.Start.IsZero() {
		r.Start = time.Now()
	}
	if r.End.IsZero() {
		r.End = time.Now()
	}
}

// isEventStream recognises media types whose bodies are streams by nature: collecting one would keep
// the client waiting for ever.
func isEventStream(h flow.Header) bool {
	media, _, _ := strings.Cut(h.Get("content-type"), ";")
	media = strings.TrimSpace(media)
	return flow.EqualFold(media, "text/event-stream") || flow.EqualFold(media, "multipart/x-mixed-replace") ||
		len(media) >= len(grpc) && flow.EqualFold(media[:len(grpc)], grpc)
}

const grpc = "application/grpc"
