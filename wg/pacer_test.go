package wg

import (
	"testing"
	"time"
)

func TestPacerWaitsForPacketsToLeave(t *testing.T) {
	p := newPacer()
	p.enter(maxFlying)
	p.wait(nil) // there is room
	p.enter(maxFlying)
	go p.leave(maxFlying)
	p.wait(nil)
	if got := p.flying.Load(); got > maxFlying {
		t.Errorf("wait returned with %d packets inside", got)
	}
}

func TestPacerForgetsPacketsThatNeverLeave(t *testing.T) {
	p := newPacer()
	p.enter(10 * maxFlying)
	start := time.Now()
	p.wait(nil)
	if took := time.Since(start); took < stallTimeout || p.flying.Load() != 0 {
		t.Errorf("waited %v, %d packets inside", took, p.flying.Load())
	}
}

func TestPacerSurvivesPacketsThatNeverEntered(t *testing.T) {
	p := newPacer()
	p.leave(5)
	p.enter(3)
	if got := p.flying.Load(); got != 3 {
		t.Errorf("%d packets inside, want 3", got)
	}
}

func TestPacerEndsWithTheLink(t *testing.T) {
	p, done := newPacer(), make(chan struct{})
	close(done)
	p.enter(10 * maxFlying)
	p.wait(done)
}
