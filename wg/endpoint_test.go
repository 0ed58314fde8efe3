package wg

import (
	"errors"
	"os"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// put writes one packet of size bytes to the link, as the stack would.
func put(t *testing.T, l *link, size int) {
	t.Helper()
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(pattern(size))})
	defer pkt.DecRef()
	var list stack.PacketBufferList
	list.PushBack(pkt)
	if n, err := (endpoint{l}).WritePackets(list); n != 1 || err != nil {
		t.Errorf("wrote %d packets, %v", n, err)
	}
}

func TestFullQueueDropsAfterAMoment(t *testing.T) {
	l := newLink(defaultMTU, 3000)
	for range 3 {
		put(t, l, 1000)
	}
	start := time.Now()
	put(t, l, 1000)
	if took := time.Since(start); l.counters.dropped.Load() != 1 || took < queueWait {
		t.Errorf("%d packets dropped after %v, want 1 after %v", l.counters.dropped.Load(), took, queueWait)
	}
	bufs, sizes := readBuffers()
	if n, err := l.read(bufs, sizes, 0); n != 3 || err != nil {
		t.Errorf("read %d packets, %v, want the 3 that fitted", n, err)
	}
}

func TestWritersGoOnWhenTheReaderDoes(t *testing.T) {
	l := newLink(defaultMTU, 1000)
	const writers, each = 4, 50
	for range writers {
		go func() {
			for range each {
				put(t, l, 1000)
			}
		}()
	}
	bufs, sizes := readBuffers()
	for got := 0; got+int(l.counters.dropped.Load()) < writers*each; {
		n, err := l.read(bufs, sizes, 0)
		if err != nil {
			t.Fatal(err)
		}
		got += n
		l.outward.leave(n)
	}
	if dropped := l.counters.dropped.Load(); dropped > writers {
		t.Errorf("%d packets were dropped although the reader kept going", dropped)
	}
}

func TestClosedLinkEndsReaderAndWriters(t *testing.T) {
	l := newLink(defaultMTU, 1000)
	result := make(chan error)
	go func() {
		bufs, sizes := readBuffers()
		_, err := tunDevice{l}.Read(bufs, sizes, 0)
		result <- err
	}()
	if err := (tunDevice{l}).Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-result; !errors.Is(err, os.ErrClosed) {
		t.Errorf("a waiting Read gives %v, want os.ErrClosed", err)
	}
	for range 3 {
		put(t, l, 1000) // must not block
	}
	if err := (tunDevice{l}).Close(); err != nil {
		t.Errorf("closing twice: %v", err)
	}
}

func TestUnattachedLinkDropsWhatArrives(t *testing.T) {
	l := newLink(defaultMTU, 1000)
	e := endpoint{l}
	segments := split(superPacket(false, pattern(3000), 1000))
	write := func() {
		if n, err := (tunDevice{l}).Write(segments, 0); n != len(segments) || err != nil {
			t.Errorf("wrote %d, %v", n, err)
		}
	}
	write()
	if got := l.counters.receivedBad.Load(); got != 3 || e.IsAttached() {
		t.Errorf("%d packets counted as dropped, want 3; attached %v", got, e.IsAttached())
	}
	var to catcher
	e.Attach(&to)
	write()
	e.Attach(nil)
	e.Wait()
	write()
	if len(to.got) != 1 || l.counters.received.Load() != 3 {
		t.Errorf("%d packets delivered, %d counted, want 1 made of 3", len(to.got), l.counters.received.Load())
	}
}

func TestSmallPacketsShareARead(t *testing.T) {
	l := newLink(defaultMTU, 1<<20)
	put(t, l, 1420)
	put(t, l, 60)
	bufs, sizes := readBuffers()
	n, err := l.read(bufs, sizes, 16)
	if err != nil || n != 2 || sizes[0] != 1420 || sizes[1] != 60 {
		t.Fatalf("read %d packets of %v, %v", n, sizes[:2], err)
	}
	if string(bufs[0][16:1436]) != string(pattern(1420)) {
		t.Error("the packet does not start at the offset")
	}
}
