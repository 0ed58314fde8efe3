//go:build linux

package tun

import (
	"errors"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

const (
	maxPacket = 65535
	// copyBelow is the size up to which a packet moves to a buffer of its own
	// size: in the read buffer it would hold 64 KiB for as long as it is queued.
	copyBelow = 32 << 10
	// maxVectors is how many pieces a packet is written in without a copy
	// (UIO_MAXIOV minus the header).
	maxVectors = 1023
)

// Stats counts what went through the device.
type Stats struct {
	Reads, ReadBytes   uint64 // packets from the kernel, super-packets as one
	Writes, WriteBytes uint64 // packets to the kernel
	SplitDatagrams     uint64 // datagrams that UDP super-packets were split into
	Malformed          uint64 // packets from the kernel dropped: no IP, bad virtio header
	BadChecksum        uint64
	WriteErrors        uint64 // packets to the kernel lost
}

type counters struct {
	reads, readBytes, writes, writeBytes       atomic.Uint64
	split, malformed, badChecksum, writeErrors atomic.Uint64
}

func (c *counters) snapshot() Stats {
	return Stats{
		Reads: c.reads.Load(), ReadBytes: c.readBytes.Load(),
		Writes: c.writes.Load(), WriteBytes: c.writeBytes.Load(),
		SplitDatagrams: c.split.Load(), Malformed: c.malformed.Load(),
		BadChecksum: c.badChecksum.Load(), WriteErrors: c.writeErrors.Load(),
	}
}

// endpoint is the device as gVisor sees it. One goroutine reads while a stack
// is attached; writes happen on the goroutine that sends.
type endpoint struct {
	file  *os.File
	log   *slog.Logger
	count counters

	mtu        atomic.Uint32
	dispatcher atomic.Pointer[stack.NetworkDispatcher]

	attachMu sync.Mutex
	reader   sync.WaitGroup

	fdMu sync.RWMutex // held while fd is in use for writing
	fd   int          // -1 after shutdown
}

var (
	_ stack.LinkEndpoint = (*endpoint)(nil)
	_ stack.GSOEndpoint  = (*endpoint)(nil)
)

func newEndpoint(file *os.File, mtu int, log *slog.Logger) *endpoint {
	e := &endpoint{file: file, log: log}
	e.fd = rawFD(file)
	e.mtu.Store(uint32(mtu))
	return e
}

// rawFD returns the descriptor without os.File.Fd's switch to blocking mode.
func rawFD(file *os.File) int {
	fd := -1
	if raw, err := file.SyscallConn(); err == nil {
		_ = raw.Control(func(v uintptr) { fd = int(v) })
	}
	return fd
}

// Attach implements stack.LinkEndpoint. A nil dispatcher stops the reader; Wait
// returns when it has ended.
func (e *endpoint) Attach(d stack.NetworkDispatcher) {
	e.attachMu.Lock()
	defer e.attachMu.Unlock()
	if d == nil {
		e.dispatcher.Store(nil)
		_ = e.file.SetReadDeadline(time.Unix(1, 0)) // the reader wakes up
		return
	}
	running := e.dispatcher.Swap(&d) != nil
	if running {
		return
	}
	e.reader.Wait()
	_ = e.file.SetReadDeadline(time.Time{})
	e.reader.Go(e.read)
}

// shutdown ends the reader and all writing, before the file is closed.
func (e *endpoint) shutdown() {
	e.Attach(nil)
	e.Wait()
	e.fdMu.Lock()
	e.fd = -1
	e.fdMu.Unlock()
}

// read delivers packets until the stack is detached or the device gone.
func (e *endpoint) read() {
	raw, err := e.file.SyscallConn()
	if err != nil {
		return
	}
	var (
		head   [headerSize]byte
		view   = buffer.NewViewSize(buffer.MaxChunkSize)
		vector = [2]unix.Iovec{{Base: &head[0]}, {}}
		n      int
		errno  syscall.Errno
	)
	vector[0].SetLen(headerSize)
	defer func() { view.Release() }()
	step := func(fd uintptr) bool {
		b := view.AsSlice()
		vector[1].Base = &b[0]
		vector[1].SetLen(len(b))
		n, errno = readv(fd, vector[:])
		return errno != unix.EAGAIN
	}
	for {
		if err := raw.Read(step); err != nil {
			if !errors.Is(err, os.ErrDeadlineExceeded) && !errors.Is(err, os.ErrClosed) {
				e.log.Error("reading the TUN device failed", "err", err)
			}
			return
		}
		d := e.dispatcher.Load()
		if d == nil {
			return
		}
		switch {
		case errno == unix.EINTR:
		case errno != 0: // EBADFD: the interface was deleted
			e.log.Error("reading the TUN device failed", "err", errno)
			return
		default:
			view = e.receive(*d, &head, view, n-headerSize)
		}
	}
}

// receive delivers the packet of n bytes in view and returns the view to read
// into next.
func (e *endpoint) receive(d stack.NetworkDispatcher, head *[headerSize]byte, view *buffer.View, n int) *buffer.View {
	e.count.reads.Add(1)
	if n <= 0 || n > maxPacket {
		e.count.malformed.Add(1)
		return view
	}
	e.count.readBytes.Add(uint64(n))
	packet := view.AsSlice()[:n]
	h := decodeHeader(head)
	protocol, err := classify(h, packet)
	if err == nil && h.gsoType == gsoUDP {
		err = splitDatagrams(protocol, packet, int(h.gsoSize), func(datagram *buffer.View) {
			e.count.split.Add(1)
			deliver(d, protocol, datagram)
		})
		if err == nil {
			return view
		}
	}
	switch {
	case errors.Is(err, errChecksum):
		e.count.badChecksum.Add(1)
		return view
	case err != nil:
		e.count.malformed.Add(1)
		return view
	case n <= copyBelow:
		deliver(d, protocol, buffer.NewViewWithData(packet))
		return view
	}
	view.CapLength(n)
	deliver(d, protocol, view)
	return buffer.NewViewSize(buffer.MaxChunkSize)
}

func deliver(d stack.NetworkDispatcher, protocol tcpip.NetworkProtocolNumber, view *buffer.View) {
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithView(view)})
	d.DeliverNetworkPacket(protocol, pkt)
	pkt.DecRef()
}

// WritePackets implements stack.LinkWriter. It returns when the kernel has
// processed the packets.
func (e *endpoint) WritePackets(pkts stack.PacketBufferList) (int, tcpip.Error) {
	e.fdMu.RLock()
	defer e.fdMu.RUnlock()
	if e.fd < 0 {
		return 0, &tcpip.ErrClosedForSend{}
	}
	for i, pkt := range pkts.AsSlice() {
		if errno := e.write(pkt); errno != 0 {
			e.count.writeErrors.Add(1)
			return i, translateErrno(errno)
		}
	}
	return pkts.Len(), nil
}

func translateErrno(errno syscall.Errno) tcpip.Error {
	switch errno {
	case unix.EMSGSIZE:
		return &tcpip.ErrMessageTooLong{}
	case unix.EIO, unix.EBADFD: // the interface is down or gone
		return &tcpip.ErrNetworkUnreachable{}
	}
	return &tcpip.ErrNoBufferSpace{}
}

// write sends one packet, of up to 64 KiB, with what is left for the kernel to
// do in its virtio header.
func (e *endpoint) write(pkt *stack.PacketBuffer) syscall.Errno {
	var (
		head  [headerSize]byte
		store [24]unix.Iovec
	)
	describe(pkt).encode(&head)
	vector := store[:1]
	vector[0].Base = &head[0]
	vector[0].SetLen(headerSize)
	views, offset := pkt.AsViewList()
	for v := views.Front(); v != nil; v = v.Next() {
		b := v.AsSlice()
		if offset >= len(b) {
			offset -= len(b)
			continue
		}
		b, offset = b[offset:], 0
		vector = append(vector, unix.Iovec{Base: &b[0]})
		vector[len(vector)-1].SetLen(len(b))
	}
	if len(vector) > maxVectors {
		flat := pkt.ToView()
		defer flat.Release()
		b := flat.AsSlice()
		vector = append(vector[:1], unix.Iovec{Base: &b[0]})
		vector[1].SetLen(len(b))
	}
	n, errno := writev(uintptr(e.fd), vector)
	for errno == unix.EINTR {
		n, errno = writev(uintptr(e.fd), vector)
	}
	if errno == 0 {
		e.count.writes.Add(1)
		e.count.writeBytes.Add(uint64(n - headerSize))
	}
	return errno
}

// describe translates gVisor's offload request.
func describe(pkt *stack.PacketBuffer) virtioHeader {
	var h virtioHeader
	gso := &pkt.GSOOptions
	if !gso.NeedsCsum {
		return h
	}
	h.flags = flagNeedsChecksum
	h.checksumStart = gso.L3HdrLen
	h.checksumOffset = gso.CsumOffset
	if gso.Type == stack.GSONone || pkt.Data().Size() <= int(gso.MSS) {
		return h
	}
	h.gsoType = gsoTCPv4
	if gso.Type == stack.GSOTCPv6 {
		h.gsoType = gsoTCPv6
	}
	h.headerLen = uint16(pkt.HeaderSize())
	h.gsoSize = gso.MSS
	return h
}

// readv and writev never block, so they pass by the scheduler: it would take the
// processor away from a goroutine that copies 64 KiB in a system call, and
// waking another thread for it costs more than the copy.
func readv(fd uintptr, v []unix.Iovec) (int, syscall.Errno) {
	n, _, errno := syscall.RawSyscall(unix.SYS_READV, fd, uintptr(unsafe.Pointer(&v[0])), uintptr(len(v)))
	return int(n), errno
}

func writev(fd uintptr, v []unix.Iovec) (int, syscall.Errno) {
	n, _, errno := syscall.RawSyscall(unix.SYS_WRITEV, fd, uintptr(unsafe.Pointer(&v[0])), uintptr(len(v)))
	return int(n), errno
}

// Wait implements stack.LinkEndpoint.
func (e *endpoint) Wait() { e.reader.Wait() }

// IsAttached implements stack.LinkEndpoint.
func (e *endpoint) IsAttached() bool { return e.dispatcher.Load() != nil }

// MTU implements stack.LinkEndpoint.
func (e *endpoint) MTU() uint32 { return e.mtu.Load() }

// SetMTU implements stack.LinkEndpoint; the interface's MTU stays.
func (e *endpoint) SetMTU(mtu uint32) { e.mtu.Store(mtu) }

// Capabilities implements stack.LinkEndpoint: receive vouches for checksums.
func (e *endpoint) Capabilities() stack.LinkEndpointCapabilities {
	return stack.CapabilityRXChecksumOffload
}

// SupportedGSO implements stack.GSOEndpoint.
func (e *endpoint) SupportedGSO() stack.SupportedGSO { return stack.HostGSOSupported }

// GSOMaxSize implements stack.GSOEndpoint.
func (e *endpoint) GSOMaxSize() uint32 { return maxPacket }

// MaxHeaderLength implements stack.LinkEndpoint.
func (e *endpoint) MaxHeaderLength() uint16 { return 0 }

// LinkAddress implements stack.LinkEndpoint; a TUN device has none.
func (e *endpoint) LinkAddress() tcpip.LinkAddress { return "" }

// SetLinkAddress implements stack.LinkEndpoint.
func (e *endpoint) SetLinkAddress(tcpip.LinkAddress) {}

// ARPHardwareType implements stack.LinkEndpoint.
func (e *endpoint) ARPHardwareType() header.ARPHardwareType { return header.ARPHardwareNone }

// AddHeader implements stack.LinkEndpoint.
func (e *endpoint) AddHeader(*stack.PacketBuffer) {}

// ParseHeader implements stack.LinkEndpoint.
func (e *endpoint) ParseHeader(*stack.PacketBuffer) bool { return true }

// Close implements stack.LinkEndpoint. The device stays open until
// Device.Close.
func (e *endpoint) Close() {}

// SetOnCloseAction implements stack.LinkEndpoint.
func (e *endpoint) SetOnCloseAction(func()) {}
