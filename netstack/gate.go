package netstack

import (
	"os"
	"sync"
	"time"
)

// gate is where one direction of a connection waits: for an event, or for its
// deadline. It costs no goroutine and no channel while nobody waits.
//
// The order of use is: mark, err := ready(); try the operation; if it would
// block, wait(mark). An event between ready and wait makes wait return at once.
type gate struct {
	mu      sync.Mutex
	cond    sync.Cond
	events  uint64
	expired bool
	timer   *time.Timer
	armed   uint64 // which setDeadline the timer belongs to
}

func (g *gate) init() { g.cond.L = &g.mu }

// wake lets the waiting goroutines try again. It never blocks.
func (g *gate) wake() {
	g.mu.Lock()
	g.events++
	g.mu.Unlock()
	g.cond.Broadcast()
}

// ready returns the mark to wait with, or os.ErrDeadlineExceeded.
func (g *gate) ready() (uint64, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.expired {
		return 0, os.ErrDeadlineExceeded
	}
	return g.events, nil
}

// wait blocks until an event happened since mark, or the deadline passed.
func (g *gate) wait(mark uint64) {
	g.mu.Lock()
	for g.events == mark && !g.expired {
		g.cond.Wait()
	}
	g.mu.Unlock()
}

// setDeadline has the meaning of net.Conn's: a zero t means none, a past one
// ends waiting operations at once.
func (g *gate) setDeadline(t time.Time) {
	g.mu.Lock()
	if g.timer != nil {
		g.timer.Stop()
		g.timer = nil
	}
	g.armed++
	g.expired = false
	if !t.IsZero() {
		if d := time.Until(t); d > 0 {
			armed := g.armed
			g.timer = time.AfterFunc(d, func() { g.expire(armed) })
		} else {
			g.expired = true
		}
	}
	expired := g.expired
	g.mu.Unlock()
	if expired {
		g.cond.Broadcast()
	}
}

func (g *gate) expire(armed uint64) {
	g.mu.Lock()
	if g.armed == armed {
		g.expired = true
	}
	g.mu.Unlock()
	g.cond.Broadcast()
}
