package wg

import (
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.zx2c4.com/wireguard/tun"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

const (
	defaultMTU       = 1420    // what remains of 1500 after the largest outer headers
	batchSize        = 128     // packets per Read and Write, wireguard-go's ideal
	queuePackets     = 4096    // super-packets waiting to be read
	defaultQueueSize = 1 << 20 // bytes waiting to be read
	queueWait        = 100 * time.Millisecond
	maxSuperPacket   = 65535
)

// One Read returns at most what fits into one UDP datagram train of wireguard-go
// (UDP_SEGMENT), Ethernet header included: Linux cuts a train of 64 KiB or more
// into single datagrams before the network card, and every one of them then takes
// the long way through both kernels. wireguard-go itself stops only at 65507
// bytes of payload. gVisor's 1392 byte packets, 1424 when encrypted, hit just
// that: 46 of them fit in 65507 bytes, but not in 64 KiB with their headers.
const (
	maxTrain         = 65535 - 14 - 40 - 8 // Ethernet, IPv6 and UDP headers
	datagramOverhead = 32 + 15             // WireGuard's header, tag and padding
	// gsoSize lets gVisor make super-packets of one train. It keeps room for
	// the longest header, so what counts is 45 full segments of payload.
	gsoSize = 45*1340 + header.TCPTotalHeaderMaximumSize + 1
)

// link is the wire between a gVisor stack and wireguard-go: decrypted packets
// go up through deliver, the stack's packets wait in queue until wireguard-go
// reads them. Its two faces are endpoint (gVisor's) and tunDevice
// (wireguard-go's); both exist because their Close and MTU methods differ.
type link struct {
	mtu        atomic.Uint32
	dispatcher atomic.Pointer[stack.NetworkDispatcher]
	delivering sync.RWMutex // read-held during deliveries

	queue       chan *stack.PacketBuffer
	queuedBytes atomic.Int64
	maxBytes    int64
	space       chan struct{} // tells one waiting writer that the queue shrank
	outward     *pacer        // from read to the network
	inward      *pacer        // from the network to deliver

	closeOnce sync.Once
	done      chan struct{}
	events    chan tun.Event

	coalescers sync.Pool // *coalescer: peers decrypt concurrently
	pending    segmenter // touched by Read only; wireguard-go has one reader

	counters linkCounters
}

type linkCounters struct {
	received, receivedBad, sent, dropped atomic.Uint64
}

func newLink(mtu int, maxBytes int64) *link {
	l := &link{
		queue:    make(chan *stack.PacketBuffer, queuePackets),
		maxBytes: maxBytes,
		space:    make(chan struct{}, 1),
		outward:  newPacer(),
		inward:   newPacer(),
		done:     make(chan struct{}),
		events:   make(chan tun.Event, 1),
	}
	l.mtu.Store(uint32(mtu))
	l.coalescers.New = func() any { return new(coalescer) }
	return l
}

// enqueue hands the stack's packets to the reader. While the queue is full it
// waits a moment, which slows the stack down to the pace of the network without
// loss; what does not fit then is dropped and counted, as a network card would.
func (l *link) enqueue(pkts stack.PacketBufferList) int {
	for _, pkt := range pkts.AsSlice() {
		size := int64(pkt.Size())
		if !l.reserve(size) && !l.reserveLater(size) {
			l.counters.dropped.Add(1)
			continue
		}
		select {
		case l.queue <- pkt.IncRef():
		default:
			pkt.DecRef()
			l.release(size)
			l.counters.dropped.Add(1)
		}
	}
	return pkts.Len()
}

// reserve takes room in the queue. A packet is let in while there is any room.
func (l *link) reserve(size int64) bool {
	if l.queuedBytes.Add(size)-size < l.maxBytes {
		return true
	}
	l.release(size)
	return false
}

// reserveLater waits for room, or until queueWait passed or the link closed.
func (l *link) reserveLater(size int64) bool {
	timer := time.NewTimer(queueWait)
	defer timer.Stop()
	for {
		select {
		case <-l.space:
		case <-timer.C:
			return l.reserve(size)
		case <-l.done:
			return false
		}
		if l.reserve(size) {
			l.wake() // the next writer, should there still be room
			return true
		}
	}
}

func (l *link) release(size int64) { l.queuedBytes.Add(-size) }

func (l *link) wake() {
	select {
	case l.space <- struct{}{}:
	default:
	}
}

// next returns a packet to send, or nil: when the link closed, or, with
// wait false, when nothing waits.
func (l *link) next(wait bool) *stack.PacketBuffer {
	var pkt *stack.PacketBuffer
	select {
	case pkt = <-l.queue:
	default:
		if !wait {
			return nil
		}
		select {
		case pkt = <-l.queue:
		case <-l.done:
			return nil
		}
	}
	l.release(int64(pkt.Size()))
	l.wake()
	return pkt
}

// read fills bufs with packets of at most MTU bytes. A super-packet that does
// not fit goes on in the next call.
func (l *link) read(bufs [][]byte, sizes []int, offset int) (int, error) {
	l.outward.wait(l.done)
	n, room := 0, maxTrain
	for n < len(bufs) {
		if !l.pending.active() {
			pkt := l.next(n == 0)
			if pkt == nil {
				break
			}
			l.pending.start(pkt)
		}
		size := l.pending.size() + datagramOverhead
		if size > room && n > 0 {
			break
		}
		room -= size
		sizes[n] = l.pending.one(bufs[n][offset:])
		n++
	}
	if n == 0 {
		return 0, os.ErrClosed
	}
	l.counters.sent.Add(uint64(n))
	l.outward.enter(n)
	return n, nil
}

// deliver hands decrypted packets to the stack, merging TCP segments.
func (l *link) deliver(bufs [][]byte, offset int) {
	l.delivering.RLock()
	defer l.delivering.RUnlock()
	defer l.inward.leave(len(bufs))
	d := l.dispatcher.Load()
	if d == nil {
		l.counters.receivedBad.Add(uint64(len(bufs)))
		return
	}
	c := l.coalescers.Get().(*coalescer)
	for _, b := range bufs {
		if !c.add(b[offset:]) {
			l.counters.receivedBad.Add(1)
		}
	}
	l.counters.received.Add(uint64(len(bufs)))
	c.flush(*d)
	l.coalescers.Put(c)
}

func (l *link) close() {
	l.closeOnce.Do(func() {
		close(l.done)
		close(l.events)
	})
}

// endpoint is the link as gVisor sees it: it accepts TCP super-packets of up to
// 64 KiB (host GSO), which the reader splits.
type endpoint struct{ *link }

var (
	_ stack.LinkEndpoint = endpoint{}
	_ stack.GSOEndpoint  = endpoint{}
)

func (e endpoint) MTU() uint32       { return e.mtu.Load() }
func (e endpoint) SetMTU(mtu uint32) { e.mtu.Store(mtu) }

// Capabilities: the coalescer verifies checksums before it merges.
func (e endpoint) Capabilities() stack.LinkEndpointCapabilities {
	return stack.CapabilityRXChecksumOffload
}

// Attach with nil stops deliveries; Wait says when the last one has ended.
func (e endpoint) Attach(d stack.NetworkDispatcher) {
	if d == nil {
		e.dispatcher.Store(nil)
		return
	}
	e.dispatcher.Store(&d)
}

// Wait returns once the deliveries under way have ended.
func (e endpoint) Wait() {
	e.delivering.Lock()
	defer e.delivering.Unlock()
}

func (e endpoint) WritePackets(pkts stack.PacketBufferList) (int, tcpip.Error) {
	return e.enqueue(pkts), nil
}

func (e endpoint) SupportedGSO() stack.SupportedGSO        { return stack.HostGSOSupported }
func (e endpoint) GSOMaxSize() uint32                      { return maxSuperPacket }
func (e endpoint) IsAttached() bool                        { return e.dispatcher.Load() != nil }
func (e endpoint) MaxHeaderLength() uint16                 { return 0 }
func (e endpoint) LinkAddress() tcpip.LinkAddress          { return "" }
func (e endpoint) SetLinkAddress(tcpip.LinkAddress)        {}
func (e endpoint) ARPHardwareType() header.ARPHardwareType { return header.ARPHardwareNone }
func (e endpoint) AddHeader(*stack.PacketBuffer)           {}
func (e endpoint) ParseHeader(*stack.PacketBuffer) bool    { return true }
func (e endpoint) Close()                                  {}
func (e endpoint) SetOnCloseAction(func())                 {}

// tunDevice is the link as wireguard-go sees it.
type tunDevice struct{ *link }

var _ tun.Device = tunDevice{}

func (d tunDevice) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	return d.read(bufs, sizes, offset)
}

func (d tunDevice) Write(bufs [][]byte, offset int) (int, error) {
	d.deliver(bufs, offset)
	return len(bufs), nil
}

func (d tunDevice) Close() error {
	d.close()
	return nil
}

func (d tunDevice) File() *os.File           { return nil }
func (d tunDevice) MTU() (int, error)        { return int(d.mtu.Load()), nil }
func (d tunDevice) Name() (string, error)    { return "mitm-appliance", nil }
func (d tunDevice) Events() <-chan tun.Event { return d.events }
func (d tunDevice) BatchSize() int           { return batchSize }
