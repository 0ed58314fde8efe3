package wg

import (
	"sync/atomic"
	"time"
)

const (
	// maxFlying packets may be inside wireguard-go in each direction, about
	// 5 ms at 2 Gbit/s. Each holds a buffer of 64 KiB there.
	maxFlying = 1024
	// stallTimeout without progress means that the packets believed to be
	// inside were dropped there, say for lack of a session.
	stallTimeout = 2 * time.Millisecond
)

// pacer bounds how many packets are inside wireguard-go in one direction.
// Reading is cheaper than encryption and decryption, and wireguard-go reads
// whatever there is, up to 1024 batches of 128 packets of 64 KiB for each peer:
// whole TCP windows would wait there, hundreds of megabytes of memory. Kept back,
// they wait in send buffers and sockets instead, where room for them is anyway.
//
// Packets that wireguard-go drops or makes itself blur the count. That is
// harmless: too low, and a few more get in; too high, and a pause of
// stallTimeout sets it right.
type pacer struct {
	flying   atomic.Int64
	progress chan struct{}
}

func newPacer() *pacer { return &pacer{progress: make(chan struct{}, 1)} }

// enter counts n packets that went in.
func (p *pacer) enter(n int) { p.flying.Add(int64(n)) }

// leave counts n packets that came out.
func (p *pacer) leave(n int) {
	if v := p.flying.Add(-int64(n)); v < 0 {
		p.flying.CompareAndSwap(v, 0)
	}
	select {
	case p.progress <- struct{}{}:
	default:
	}
}

// wait returns when there is room, or when done is closed.
func (p *pacer) wait(done <-chan struct{}) {
	for p.flying.Load() > maxFlying {
		timer := time.NewTimer(stallTimeout)
		select {
		case <-p.progress:
		case <-timer.C:
			p.flying.Store(0)
		case <-done:
			timer.Stop()
			return
		}
		timer.Stop()
	}
}
