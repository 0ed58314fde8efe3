package netstack

import (
	"errors"
	"io"
	"net"
	"reflect"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/waiter"
)

const (
	// relayChunk is the size of the buffer that a relay to anything but a
	// kernel socket borrows while it has data to move.
	relayChunk = 64 << 10
	// kernelChunk bounds one transfer between a kernel socket and the stack:
	// the connection's lock is held meanwhile, and its ACKs wait. A quarter of
	// it costs a fifth more CPU per byte towards the client, four times as much
	// gains nothing.
	kernelChunk = 1 << 20
)

var (
	_ io.WriterTo   = (*TCPConn)(nil)
	_ io.ReaderFrom = (*TCPConn)(nil)
)

// errFull ends gVisor's Read when the kernel socket takes no more.
var errFull = errors.New("socket buffer is full")

// relayBuffers holds the buffers of relays that are moving data right now.
var relayBuffers = sync.Pool{New: func() any { return new([relayChunk]byte) }}

// WriteTo copies what arrives to w until the client's FIN (nil) or an error.
// While it waits it holds no buffer. If w is a socket of package net itself,
// the bytes go from the received packets into the kernel without a copy in
// between. io.Copy calls it.
func (c *TCPConn) WriteTo(w io.Writer) (int64, error) {
	c.readMu.Lock()
	defer c.readMu.Unlock()
	if raw := kernelSocket(w); raw != nil {
		return c.writeToKernel(raw)
	}
	var total int64
	for {
		if err := c.waitReadable(); err != nil {
			return total, ignoreEOF(c.fail("read", err))
		}
		buf := relayBuffers.Get().(*[relayChunk]byte)
		n, err := c.copyTo(w, buf[:])
		relayBuffers.Put(buf)
		total += n
		if err != nil {
			return total, ignoreEOF(err)
		}
	}
}

func ignoreEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// WaitReadable blocks until Read would not, as bounded by the read deadline: for
// readers that hold no buffer while there is nothing to read.
func (c *TCPConn) WaitReadable() error {
	c.readMu.Lock()
	defer c.readMu.Unlock()
	if err := c.waitReadable(); err != nil {
		return c.fail("read", err)
	}
	return nil
}

// waitReadable is WaitReadable under readMu, with bare errors.
func (c *TCPConn) waitReadable() error {
	for {
		mark, err := c.readable()
		if err != nil {
			return err
		}
		if c.ep.Readiness(waiter.ReadableEvents) != 0 {
			return nil
		}
		c.in.wait(mark)
	}
}

// copyTo moves what is there, through buf.
func (c *TCPConn) copyTo(w io.Writer, buf []byte) (int64, error) {
	var total int64
	for {
		c.readTo = buf
		res, terr := c.ep.Read(&c.readTo, tcpip.ReadOptions{})
		c.readTo = nil
		if _, block := terr.(*tcpip.ErrWouldBlock); block {
			return total, nil
		}
		if terr != nil {
			return total, c.fail("read", translate(terr))
		}
		c.ep.ModerateRecvBuf(res.Count)
		n, err := w.Write(buf[:res.Count])
		total += int64(n)
		if err != nil {
			return total, err
		}
		if _, err := c.readable(); err != nil {
			return total, c.fail("read", err)
		}
	}
}

// writeToKernel lets the endpoint write its packets' views straight into the
// socket. The socket is never waited for inside of the endpoint's lock: a full
// one ends the Read, and the poller waits for it.
func (c *TCPConn) writeToKernel(raw syscall.RawConn) (int64, error) {
	var (
		total int64
		terr  tcpip.Error
		sink  socketWriter
	)
	step := func(fd uintptr) bool {
		sink = socketWriter{fd: int(fd), room: kernelChunk}
		var res tcpip.ReadResult
		res, terr = c.ep.Read(&sink, tcpip.ReadOptions{})
		if res.Count > 0 {
			total += int64(res.Count)
			c.ep.ModerateRecvBuf(res.Count)
			return true
		}
		return !sink.blocked
	}
	for {
		if err := c.waitReadable(); err != nil {
			return total, ignoreEOF(c.fail("read", err))
		}
		if err := raw.Write(step); err != nil {
			return total, err
		}
		if sink.err != nil {
			return total, opError("write", "tcp", nil, nil, sink.err)
		}
		switch terr.(type) {
		case nil, *tcpip.ErrWouldBlock, *tcpip.ErrBadBuffer:
			// ErrBadBuffer is gVisor's word for a writer that took nothing.
		default:
			return total, ignoreEOF(c.fail("read", translate(terr)))
		}
	}
}

// socketWriter writes to a non-blocking socket until it is full, or room is.
type socketWriter struct {
	fd      int
	room    int
	blocked bool
	err     error
}

// Write never reports a short write without an error, which gVisor forbids.
func (w *socketWriter) Write(b []byte) (int, error) {
	if w.room <= 0 {
		return 0, errFull
	}
	done := 0
	for done < len(b) {
		n, err := transfer(unix.SYS_WRITE, w.fd, b[done:])
		switch {
		case err == nil:
			done += n
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EAGAIN):
			w.blocked = true
			return done, errFull
		default:
			w.err = err
			return done, err
		}
	}
	w.room -= done
	return done, nil
}

// ReadFrom copies from r until its end (nil) or an error. While it waits it
// holds no buffer if r is a socket of package net itself: then the bytes go
// from the kernel into the packets to be sent without a copy in between. Any
// other r is read into a borrowed 64 KiB buffer. io.Copy calls it when r has no
// WriteTo of its own.
func (c *TCPConn) ReadFrom(r io.Reader) (int64, error) {
	c.writeMu.Lock()
	defer c.writeMu.Unlock()
	if raw := kernelSocket(r); raw != nil {
		return c.readFromKernel(raw)
	}
	buf := relayBuffers.Get().(*[relayChunk]byte)
	defer relayBuffers.Put(buf)
	var total int64
	for {
		n, rerr := r.Read(buf[:])
		if n > 0 {
			m, err := c.write(buf[:n])
			total += int64(m)
			if err != nil {
				return total, err
			}
		}
		if rerr != nil {
			return total, ignoreEOF(rerr)
		}
	}
}

func (c *TCPConn) readFromKernel(raw syscall.RawConn) (int64, error) {
	var (
		total  int64
		mark   uint64
		err    error
		terr   tcpip.Error
		source socketReader
	)
	step := func(fd uintptr) bool {
		source.fd = int(fd)
		waiting := false
		if waiting, err = source.measure(); waiting || err != nil {
			return !waiting
		}
		// Only the sender of bytes may look at them, and only once, so that
		// nothing is lost when the endpoint is full: measure, then move.
		var n int64
		n, terr = c.ep.Write(&source, tcpip.WriteOptions{})
		total += n
		return true
	}
	for {
		if mark, err = c.writable(); err != nil {
			return total, c.fail("write", err)
		}
		terr = nil
		if rerr := raw.Read(step); rerr != nil {
			return total, rerr
		}
		switch {
		case err != nil:
			return total, ignoreEOF(err)
		case source.err != nil:
			return total, opError("read", "tcp", nil, nil, source.err)
		case terr == nil:
		default:
			if _, block := terr.(*tcpip.ErrWouldBlock); !block {
				return total, c.fail("write", translate(terr))
			}
			c.out.wait(mark)
		}
	}
}

// socketReader is a tcpip.Payloader of what a kernel socket holds already.
type socketReader struct {
	fd    int
	ahead [1]byte // read by measure to tell the end of the stream from silence
	has   bool
	left  int
	err   error
}

// measure finds out how much can be read. It reports whether there is nothing
// yet, or io.EOF, or the socket's error.
func (s *socketReader) measure() (waiting bool, err error) {
	n, err := unix.IoctlGetInt(s.fd, unix.TIOCINQ)
	if err != nil {
		return false, err
	}
	if n == 0 && !s.has {
		m, err := transfer(unix.SYS_READ, s.fd, s.ahead[:])
		switch {
		case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
			return true, nil
		case err != nil:
			return false, opError("read", "tcp", nil, nil, err)
		case m == 0:
			return false, io.EOF
		}
		s.has = true
	}
	s.left = min(n, kernelChunk)
	if s.has {
		s.left++
	}
	return false, nil
}

// Len implements tcpip.Payloader.
func (s *socketReader) Len() int { return s.left }

// Read implements tcpip.Payloader. gVisor wants all of Len, or an error.
func (s *socketReader) Read(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	if s.has {
		b[0], s.has = s.ahead[0], false
		s.left--
		return 1, nil
	}
	for {
		n, err := transfer(unix.SYS_READ, s.fd, b)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err == nil && n == 0:
			err = io.ErrUnexpectedEOF
		case err == nil:
			s.left -= n
			return n, nil
		}
		s.err = err
		return 0, err
	}
}

// transfer is read(2) or write(2) on a non-blocking socket. It passes by the
// scheduler, which would take the processor away from a goroutine that copies
// 64 KiB in a system call: waking another thread for it costs more than the copy.
func transfer(call uintptr, fd int, b []byte) (int, error) {
	n, _, errno := syscall.RawSyscall(call, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// kernelSocket returns the raw socket of v if v is a stream socket of package
// net and nothing else. A wrapper that embeds one would offer SyscallConn, too,
// but its own Read and Write must not be passed by.
func kernelSocket(v any) syscall.RawConn {
	switch v.(type) {
	case *net.TCPConn, *net.UnixConn:
	default:
		t := reflect.TypeOf(v) // io.Copy from a *net.TCPConn hands over a type of net that hides its WriteTo
		if t == nil || t.PkgPath() != "net" {
			return nil
		}
	}
	conn, ok := v.(syscall.Conn)
	if !ok {
		return nil
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil
	}
	return raw
}
