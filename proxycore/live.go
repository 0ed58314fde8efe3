package proxycore

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"mitm-appliance/flow"
)

// Errors that a flow can end with or answer with.
var (
	ErrKilled  = errors.New(flow.Killed)
	ErrNotLive = errors.New("flow is not from a live connection")
)

// Recorder keeps flows. Record is called on the serving goroutine at each hook boundary and at the
// end, must not block, and gets an immutable snapshot; l is for later use of its verbs while
// f.Live.
type Recorder interface {
	Record(f *flow.Flow, l *LiveFlow)
}

// Transform rewrites a body while it streams; it must pass on backpressure by reading only as it is
// read. nil leaves the body as it is.
type Transform func(io.Reader) io.Reader

// LiveFlow is a flow whose conversation still runs: the data, which only the serving goroutine and
// the hooks it calls may touch, plus verbs, which anybody may use.
type LiveFlow struct {
	*flow.Flow
	Session *Session

	// Stream is set by StreamBody during OnRequestHeaders or OnResponseHeaders and taken by the
	// protocol when the hook returns.
	stream    bool
	transform Transform

	mu      sync.Mutex
	edits   []func(*flow.Flow)
	killed  error
	done    bool
	resumed chan struct{} // closed to wake a pause; nil when not paused
	onKill  func(error)
	inject  func(Injection) error
}

// Injection is a message that a person adds to a live conversation (FLOW-19).
type Injection struct {
	ToClient bool
	Data     []byte
	Text     bool // WebSocket: a text message
}

// StreamBody asks that the body of the message whose head is being handled is passed on as it
// arrives instead of being collected (HTTP-31). Only for hooks.
func (l *LiveFlow) StreamBody(t Transform) { l.stream, l.transform = true, t }

// TakeStream returns and clears what StreamBody asked for. Only for protocols.
func (l *LiveFlow) TakeStream() (Transform, bool) {
	t, ok := l.transform, l.stream
	l.transform, l.stream = nil, false
	return t, ok
}

// Fire runs a hook on the serving goroutine: pending edits, every addon, the recorder, then waiting
// while the flow is intercepted (FLOW-04). The error is ErrKilled or the conversation's end; the
// protocol then cuts both sides.
func (l *LiveFlow) Fire(ctx context.Context, hook FlowHook) error {
	l.run(ctx, hook)
	l.Publish(ctx)
	if l.Intercepted {
		return l.Pause(ctx)
	}
	return l.Err()
}

// FireQuiet is Fire without telling the recorder: for boundaries at which a message is complete in
// the same breath, so that publishing it twice would only cost.
func (l *LiveFlow) FireQuiet(ctx context.Context, hook FlowHook) error {
	l.run(ctx, hook)
	if l.Intercepted {
		return l.Pause(ctx)
	}
	return l.Err()
}

func (l *LiveFlow) run(ctx context.Context, hook FlowHook) {
	l.applyEdits()
	h := l.Session.Hooks()
	for _, f := range h.flow[hook] {
		err := guard(func() error { return f(ctx, l) })
		if errors.Is(err, ErrHalt) {
			break
		}
		if err != nil {
			h.log.Error("addon failed", "hook", hook.String(), "flow", l.ID, "err", err)
		}
	}
	if len(h.update) > 0 {
		h.Update(ctx, []*flow.Flow{l.Snapshot()})
	}
}

// Publish hands a snapshot to the recorder. Protocols call it when a flow changed between hooks.
func (l *LiveFlow) Publish(context.Context) {
	if r := l.Session.core.cfg.Recorder; r != nil {
		r.Record(l.Snapshot(), l)
	}
}

// Intercept holds the flow back: the running hook's Fire returns only after Resume or Kill. Only for
// hooks.
func (l *LiveFlow) Intercept() { l.Intercepted = true }

// Pause publishes the flow as intercepted and waits for Resume; edits made meanwhile are applied
// here, on the owner's goroutine. It returns nil on resume, ErrKilled on kill, and the cause of ctx
// when the conversation ended first.
func (l *LiveFlow) Pause(ctx context.Context) error {
	l.Intercepted = true
	for {
		l.mu.Lock()
		wake := make(chan struct{})
		l.resumed = wake
		if len(l.edits) > 0 || l.killed != nil { // came before there was anything to wake
			l.wake()
		}
		l.mu.Unlock()
		l.Publish(ctx)
		select {
		case <-wake:
		case <-ctx.Done():
			l.Intercepted = false
			return context.Cause(ctx)
		}
		l.applyEdits()
		if err := l.Err(); err != nil || !l.Intercepted {
			l.Intercepted = false
			l.Publish(ctx)
			return err
		}
	}
}

// Resume lets an intercepted flow go on. It reports whether the flow was waiting.
func (l *LiveFlow) Resume() bool {
	return l.edit(func(f *flow.Flow) { f.Intercepted = false })
}

// Edit changes the flow on its owner's goroutine: at once while it is paused, else at the next hook.
// It fails with ErrNotLive when the conversation is over: then the store's copy is what to edit.
func (l *LiveFlow) Edit(change func(*flow.Flow)) error {
	l.mu.Lock()
	if l.done {
		l.mu.Unlock()
		return ErrNotLive
	}
	l.mu.Unlock()
	l.edit(change)
	return nil
}

// maxEdits bounds edits that wait for a hook which may never come.
const maxEdits = 64

func (l *LiveFlow) edit(change func(*flow.Flow)) (paused bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.done {
		return false
	}
	if len(l.edits) < maxEdits {
		l.edits = append(l.edits, change)
	}
	paused = l.resumed != nil
	l.wake()
	return paused
}

func (l *LiveFlow) wake() {
	if l.resumed != nil {
		close(l.resumed)
		l.resumed = nil
	}
}

func (l *LiveFlow) applyEdits() {
	l.mu.Lock()
	edits := l.edits
	l.edits = nil
	l.mu.Unlock()
	for _, change := range edits {
		change(l.Flow)
	}
}

// OnKill says how the protocol cuts the conversation, called at most once, from any goroutine. With
// a flow that is killed already it is called at once. Only for protocols.
func (l *LiveFlow) OnKill(cut func(cause error)) {
	l.mu.Lock()
	l.onKill = cut
	cause := l.killed
	l.mu.Unlock()
	if cause != nil && cut != nil {
		cut(cause)
	}
}

// Kill cuts the conversation at once, in whatever state it is (mitmproxy's cannot: QUIRK-02). A nil
// cause means ErrKilled. It fails with ErrNotLive when there is nothing left to cut.
func (l *LiveFlow) Kill(cause error) error {
	if cause == nil {
		cause = ErrKilled
	}
	l.mu.Lock()
	if l.done || l.killed != nil {
		l.mu.Unlock()
		return ErrNotLive
	}
	l.killed = cause
	cut := l.onKill
	l.wake()
	l.mu.Unlock()
	if cut != nil {
		cut(cause)
	}
	return nil
}

// Err returns why the flow was killed, nil while it was not.
func (l *LiveFlow) Err() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.killed
}

// OnInject says how the protocol adds a message. Only for protocols.
func (l *LiveFlow) OnInject(inject func(Injection) error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.inject = inject
}

// Inject adds a message to a live conversation. It fails with ErrNotLive, or when the flow's kind
// takes no messages.
func (l *LiveFlow) Inject(i Injection) error {
	l.mu.Lock()
	inject, done := l.inject, l.done
	l.mu.Unlock()
	switch {
	case done:
		return ErrNotLive
	case inject == nil:
		return errors.New("cannot inject messages into this flow")
	}
	return inject(i)
}

// Fail notes why the flow ended early, once: the first reason stays. A flow that was killed says so.
func (l *LiveFlow) Fail(err error) {
	if l.Error != nil || err == nil {
		return
	}
	if killed := l.Err(); killed != nil {
		err = killed
	}
	l.Error = &flow.Error{Message: err.Error(), Time: time.Now()}
}

// Finish ends the flow: the last edits, Live off, a last snapshot for the recorder. Every protocol
// calls it exactly once per flow.
func (l *LiveFlow) Finish(ctx context.Context) {
	l.FinishQuiet()
	l.Publish(ctx)
}

// FinishQuiet is Finish without telling the recorder: for flows that addons see and nobody keeps
// (HTTP-14).
func (l *LiveFlow) FinishQuiet() {
	l.applyEdits()
	l.mu.Lock()
	l.done = true
	l.onKill, l.inject = nil, nil
	l.mu.Unlock()
	l.applyEdits() // what came between the two
	l.Live = false
	l.Session.root.flows.Add(-1)
}
