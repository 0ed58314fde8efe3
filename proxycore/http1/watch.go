package http1

import (
	"errors"
	"io"
	"os"
	"sync"
	"time"

	"mitm-appliance/proxycore/exchange"
)

// patience is how long an exchange may take before somebody looks whether its client is still there.
// Most are over by then and cost no goroutine.
const patience = 200 * time.Millisecond

// watch notices that a client leaves while it waits for its response (HTTP-21). It reads from the
// client between the end of a request and the end of the exchange, when nobody else does.
type watch struct {
	c     *client
	timer *time.Timer

	mu      sync.Mutex
	armed   bool
	looking chan struct{} // closed when the goroutine has ended; nil without one
	stop    chan struct{}
}

// arm starts the clock.
func (w *watch) arm() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.armed = true
	if w.timer == nil {
		w.timer = time.AfterFunc(patience, w.look)
		return
	}
	w.timer.Reset(patience)
}

// disarm ends the look-out and waits for it.
func (w *watch) disarm() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.armed {
		return
	}
	w.armed = false
	w.timer.Stop()
	if w.looking == nil {
		return
	}
	conn := w.c.s.Conn
	_ = conn.SetReadDeadline(time.Unix(1, 0)) // wakes the goroutine; a closed one is awake
	close(w.stop)
	<-w.looking
	w.looking = nil
	_ = conn.SetReadDeadline(time.Time{}) // as above
}

// look runs on the timer's goroutine.
func (w *watch) look() {
	w.mu.Lock()
	if !w.armed || w.looking != nil {
		w.mu.Unlock()
		return
	}
	done, stop := make(chan struct{}), make(chan struct{})
	w.looking, w.stop = done, stop
	w.mu.Unlock()
	defer close(done)
	if w.c.in.buffered() > 0 {
		return // the next request is there: nobody who leaves sends one
	}
	err := w.c.in.fill()
	switch {
	case err == nil || errors.Is(err, os.ErrDeadlineExceeded):
		return
	case errors.Is(err, io.EOF) && !w.c.s.Secure: // it may only have closed its side (H1-19)
		timeout := time.NewTimer(w.c.f.cfg.HalfClose)
		defer timeout.Stop()
		select {
		case <-stop:
			return
		case <-timeout.C:
		}
	}
	w.c.s.Cut(exchange.ErrClientGone)
}
