package proxycore

import (
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"time"
)

// Conn is a conversation's transport: a byte stream, or for UDP one datagram per Read and Write.
// CloseWrite sends FIN where the transport has one and is a no-op for UDP.
type Conn interface {
	net.Conn
	CloseWrite() error
}

// Aborter is a Conn that can be reset: the peer sees RST instead of FIN.
type Aborter interface{ Abort() }

// Abort resets c where it can, and closes it otherwise.
func Abort(c net.Conn) {
	switch t := c.(type) {
	case Aborter:
		t.Abort()
	case *net.TCPConn:
		_ = t.SetLinger(0) // a socket that is gone already cannot be reset
		_ = t.Close()
	default:
		_ = c.Close()
	}
}

// PeekConn is a Conn whose first bytes can be looked at before somebody reads them. Peeking and
// reading are for one goroutine at a time, as with every net.Conn's Read.
type PeekConn struct {
	Conn
	datagrams bool
	pending   [][]byte // not yet read: one entry a datagram, or the single buffer of a stream
	err       error    // met while peeking, given to the reader after pending
	touch     func()   // notes activity for the idle timeout; nil for inner layers
}

// NewPeekConn wraps c; network is "tcp" or "udp". Wrapping a PeekConn returns it as it is.
func NewPeekConn(c Conn, network string) *PeekConn {
	if p, ok := c.(*PeekConn); ok {
		return p
	}
	return &PeekConn{Conn: c, datagrams: network == "udp"}
}

// maxPeek bounds what is held while a protocol is being recognised: above the largest ClientHello
// that sniff accepts.
const maxPeek = 96 << 10

// ErrPeekLimit says that no protocol was recognised within the bytes that may be held back.
var ErrPeekLimit = errors.New("proxycore: too many bytes without a recognisable protocol")

// Peeked returns what has been received and not read. The slices are valid until the next call.
func (p *PeekConn) Peeked() [][]byte { return p.pending }

// Fill waits for more bytes (or one more datagram) than Peeked has, until deadline; the zero
// deadline waits for ever. A timeout is os.ErrDeadlineExceeded and leaves the Conn usable.
func (p *PeekConn) Fill(deadline time.Time) error {
	if p.err != nil {
		return p.err
	}
	held := 0
	for _, b := range p.pending {
		held += len(b)
	}
	if held >= maxPeek {
		return ErrPeekLimit
	}
	if err := p.Conn.SetReadDeadline(deadline); err != nil {
		return err
	}
	err := p.fillOnce()
	if resetErr := p.Conn.SetReadDeadline(time.Time{}); err == nil {
		err = resetErr
	}
	return err
}

// fillOnce is Fill under the deadline that is set already.
func (p *PeekConn) fillOnce() error {
	if p.err != nil {
		return p.err
	}
	err := p.fill()
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		p.err = err
	}
	return err
}

func (p *PeekConn) fill() error {
	if p.datagrams {
		return p.fillDatagram()
	}
	if w, ok := p.Conn.(interface{ WaitReadable() error }); ok { // idle clients cost no buffer
		if err := w.WaitReadable(); err != nil {
			return err
		}
	}
	if len(p.pending) == 0 {
		p.pending = [][]byte{make([]byte, 0, 4<<10)}
	}
	buf := p.pending[0]
	buf = slices.Grow(buf, 4<<10)
	n, err := p.Conn.Read(buf[len(buf):cap(buf)])
	p.pending[0] = buf[:len(buf)+n]
	if n > 0 {
		return nil
	}
	if len(buf) == 0 {
		p.pending = nil
	}
	return err
}

func (p *PeekConn) fillDatagram() error {
	buf := datagrams.Get().(*[64 << 10]byte)
	defer datagrams.Put(buf)
	n, err := p.Conn.Read(buf[:])
	if err == nil {
		p.pending = append(p.pending, slices.Clone(buf[:n]))
	}
	return err
}

//nolint:gochecknoglobals // a pool is a cache, not state
var datagrams = sync.Pool{New: func() any { return new([64 << 10]byte) }}

// Read gives what was peeked first.
func (p *PeekConn) Read(b []byte) (int, error) {
	if len(p.pending) == 0 {
		if p.err != nil {
			return 0, p.err
		}
		n, err := p.Conn.Read(b)
		if p.touch != nil && n > 0 {
			p.touch()
		}
		return n, err
	}
	n := copy(b, p.pending[0])
	if p.datagrams || n == len(p.pending[0]) {
		p.pending = p.pending[1:]
	} else {
		p.pending[0] = p.pending[0][n:]
	}
	if len(p.pending) == 0 {
		p.pending = nil
	}
	return n, nil
}

// Write passes b on.
func (p *PeekConn) Write(b []byte) (int, error) {
	if p.touch != nil {
		p.touch()
	}
	return p.Conn.Write(b)
}

// Unread puts b back in front of what is still to be read: a protocol that read ahead hands the
// stream on to the next one. p keeps b. Only for streams.
func (p *PeekConn) Unread(b []byte) {
	switch {
	case len(b) == 0:
	case len(p.pending) == 0:
		p.pending = [][]byte{b}
	default:
		p.pending = [][]byte{slices.Concat(b, p.pending[0])}
	}
}

// WriteTo lets io.Copy use the transport's own fast path once the peeked bytes are out.
func (p *PeekConn) WriteTo(w io.Writer) (int64, error) {
	var total int64
	for len(p.pending) > 0 {
		n, err := w.Write(p.pending[0])
		total += int64(n)
		if err != nil {
			return total, err
		}
		p.pending = p.pending[1:]
	}
	p.pending = nil
	if p.err != nil {
		return total, ignoreEOF(p.err)
	}
	n, err := io.Copy(w, p.Conn)
	return total + n, err
}

// ReadFrom lets io.Copy use the transport's own fast path.
func (p *PeekConn) ReadFrom(r io.Reader) (int64, error) { return io.Copy(p.Conn, r) }

// Unwrap returns the transport when nothing peeked is left, and p itself otherwise, so that a relay
// can reach the transport's fast path without losing bytes.
func (p *PeekConn) Unwrap() Conn {
	if len(p.pending) == 0 && p.err == nil {
		return p.Conn
	}
	return p
}

// Abort resets the transport.
func (p *PeekConn) Abort() { Abort(p.Conn) }

func ignoreEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}
