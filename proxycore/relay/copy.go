package relay

import (
	"errors"
	"io"
	"net"
	"sync"
	"syscall"

	"mitm-appliance/proxycore"
)

// errFast says that a direction may take the fast path from here on.
var errFast = errors.New("relay: no more messages to look at")

// tap sees the bytes of one direction on their way. message sends the bytes itself.
type tap struct {
	message func([]byte) error
	count   func(int64)
}

// Write lets the tap be the target of a connection's WriteTo.
func (t *tap) Write(b []byte) (int, error) {
	if err := t.message(b); err != nil {
		return len(b), err // consumed, also when the fast path begins here
	}
	return len(b), nil
}

// copyAll copies src to dst until src ends. With a tap, every piece goes through it until it
// answers errFast.
func copyAll(dst proxycore.Conn, src proxycore.Conn, t *tap) error {
	if t != nil {
		err := messages(src, t)
		if !errors.Is(err, errFast) {
			return err
		}
	}
	n, err := fastCopy(dst, src)
	if t != nil {
		t.count(n)
	}
	return err
}

// messages reads src piece by piece without holding a buffer while there is nothing to read, where
// src allows that.
func messages(src proxycore.Conn, t *tap) error {
	if p, ok := src.(*proxycore.PeekConn); ok {
		if err := drain(p, t); err != nil {
			return err
		}
		src = p.Unwrap()
	}
	switch c := src.(type) {
	case *net.TCPConn:
		return rawMessages(c, c, t)
	case io.WriterTo:
		_, err := c.WriteTo(t)
		return err
	case syscall.Conn:
		return rawMessages(c, src, t)
	}
	size := chunk / 4
	if isDatagram(src) {
		size = chunk
	}
	return plainMessages(src, t, size)
}

func isDatagram(c net.Conn) bool {
	_, ok := c.RemoteAddr().(*net.UDPAddr)
	return ok
}

// drain takes what was peeked. The pieces are read through Read so that the PeekConn forgets them.
func drain(p *proxycore.PeekConn, t *tap) error {
	for len(p.Peeked()) > 0 {
		buf := make([]byte, len(p.Peeked()[0]))
		n, err := p.Read(buf)
		if err != nil {
			return err
		}
		if err := t.message(buf[:n]); err != nil {
			return err
		}
	}
	return nil
}

const chunk = 64 << 10 // the largest datagram, and a good size for streams

// plainMessages holds a buffer for its whole life: for TLS streams, whose own state is far larger.
func plainMessages(src io.Reader, t *tap, size int) error {
	buf := make([]byte, size)
	for {
		n, err := src.Read(buf)
		if n > 0 {
			if err := t.message(buf[:n]); err != nil {
				return err
			}
		}
		if err != nil {
			return ignoreEOF(err)
		}
	}
}

// rawMessages takes a buffer only once the kernel has something to read.
func rawMessages(c syscall.Conn, conn net.Conn, t *tap) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	datagrams := isDatagram(conn)
	for {
		var buf *[]byte
		var n int
		var readErr error
		err := raw.Read(func(fd uintptr) bool {
			buf = buffers.Get().(*[]byte)
			n, readErr = retry(func() (int, error) { return syscall.Read(int(fd), *buf) })
			if errors.Is(readErr, syscall.EAGAIN) {
				buffers.Put(buf)
				return false
			}
			return true
		})
		if err != nil {
			return err
		}
		err = deliver(t, (*buf)[:max(n, 0)], readErr, datagrams)
		buffers.Put(buf)
		if err != nil {
			return ignoreEOF(err)
		}
	}
}

func deliver(t *tap, b []byte, readErr error, datagrams bool) error {
	switch {
	case readErr != nil:
		return readErr
	case len(b) == 0 && !datagrams:
		return io.EOF
	}
	return t.message(b)
}

func retry(read func() (int, error)) (int, error) {
	for {
		n, err := read()
		if !errors.Is(err, syscall.EINTR) {
			return n, err
		}
	}
}

//nolint:gochecknoglobals // a pool is a cache, not state
var buffers = sync.Pool{New: func() any { b := make([]byte, chunk); return &b }}

// fastCopy lets the ends choose: splice between kernel sockets, a userspace connection's own
// WriteTo or ReadFrom otherwise, and a plain loop between TLS streams.
func fastCopy(dst, src proxycore.Conn) (int64, error) {
	var passed int64
	if p, ok := src.(*proxycore.PeekConn); ok {
		for len(p.Peeked()) > 0 {
			buf := make([]byte, len(p.Peeked()[0]))
			n, err := p.Read(buf)
			if err == nil {
				_, err = dst.Write(buf[:n])
			}
			if err != nil {
				return passed, err
			}
			passed += int64(n)
		}
		src = p.Unwrap()
	}
	if p, ok := dst.(*proxycore.PeekConn); ok {
		dst = p.Conn // writing does not touch what was peeked
	}
	n, err := choose(dst, src)
	return passed + n, ignoreEOF(err)
}

func choose(dst, src proxycore.Conn) (int64, error) {
	_, dstKernel := dst.(*net.TCPConn)
	_, srcKernel := src.(*net.TCPConn)
	if to, ok := dst.(io.ReaderFrom); ok && srcKernel && !dstKernel {
		return to.ReadFrom(src) // the kernel side's own WriteTo would not find it
	}
	if isDatagram(src) {
		return datagrams(dst, src)
	}
	return io.Copy(dst, src)
}

// datagrams copies one datagram at a time.
func datagrams(dst, src proxycore.Conn) (int64, error) {
	var total int64
	t := &tap{message: func(b []byte) error {
		n, err := dst.Write(b)
		total += int64(n)
		return err
	}}
	return total, messages(src, t)
}

func ignoreEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}
