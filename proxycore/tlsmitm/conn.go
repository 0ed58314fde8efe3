package tlsmitm

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"sync"
	"time"

	"mitm-appliance/proxycore"
)

// Conn is the clear side of a TLS connection, as a proxycore.Conn: CloseWrite sends close_notify, which
// the peer sees as the end of our half (TLS-13), and leaves the transport open, because TLS may
// still have to answer there. Close sends it too. A Write of many records reaches the transport as few
// writes.
type Conn struct {
	*tls.Conn
	below   *transport
	explain func(error) error // turns what reading failed with into what people are told

	large sync.Mutex // one Write of many records at a time
}

func newConn(t *tls.Conn, below *transport, explain func(error) error) *Conn {
	return &Conn{Conn: t, below: below, explain: explain}
}

// handshake runs the handshake, bounded in time without the goroutine that HandshakeContext would start.
func (c *Conn) handshake(limit time.Duration) error {
	if err := c.SetDeadline(time.Now().Add(limit)); err != nil {
		return err
	}
	c.below.handshaking = true
	err := c.Conn.Handshake()
	c.below.handshaking = false
	if err == nil {
		return c.SetDeadline(time.Time{})
	}
	if code, ok := c.below.clearAlert(); ok && !isClosed(err) && !isTimeout(err) {
		return &net.OpError{Op: "remote error", Err: code} // as crypto/tls reports the alerts that it sees
	}
	return err
}

// Read reads clear bytes; at most one record at a time. A TLS alert of the peer ends in an error that
// says what it means.
func (c *Conn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if err != nil && c.explain != nil && !errors.Is(err, io.EOF) {
		err = c.explain(err)
	}
	return n, err
}

const (
	recordBytes = 16 << 10           // RFC 8446, section 5.1
	batchBytes  = 4 * recordBytes    // clear bytes that are encrypted before the transport sees them
	batchRoom   = batchBytes + 4*256 // with headers, tags and padding
)

// Write encrypts b.
func (c *Conn) Write(b []byte) (int, error) {
	if len(b) <= recordBytes {
		return c.Conn.Write(b) // one record, one write
	}
	c.large.Lock()
	defer c.large.Unlock()
	written := 0
	for written < len(b) {
		chunk := b[written:min(len(b), written+batchBytes)]
		c.below.begin()
		n, err := c.Conn.Write(chunk)
		if flushErr := c.below.flush(); err == nil {
			err = flushErr
		}
		written += n
		if err != nil {
			return written, err
		}
	}
	return written, nil
}

// Abort resets the transport.
func (c *Conn) Abort() { proxycore.Abort(c.below.Conn) }

// transport is what crypto/tls reads records from and writes them to. Between begin and flush,
// writes are collected.
type transport struct {
	proxycore.Conn
	pool *sync.Pool // of *[]byte with batchRoom

	handshaking bool
	last        [alertRecord]byte // received during the handshake

	mu    sync.Mutex
	batch *[]byte // nil outside of begin and flush
	err   error   // what flushing failed with: the stream has a gap from there on
}

// Read passes on what the peer sends, and keeps the end of it while the handshake lasts.
func (t *transport) Read(b []byte) (int, error) {
	n, err := t.Conn.Read(b)
	if t.handshaking {
		t.keep(b[:n])
	}
	return n, err
}

// alertRecord is the size of a TLS alert in the clear: a record header, its level and its description.
const alertRecord = 7

func (t *transport) keep(b []byte) {
	if len(b) > alertRecord {
		b = b[len(b)-alertRecord:]
	}
	copy(t.last[:], t.last[len(b):])
	copy(t.last[alertRecord-len(b):], b)
}

// clearAlert finds the alert in the clear that the handshake ended with. OpenSSL's clients send one when
// they refuse a certificate in TLS 1.3, where crypto/tls expects it encrypted and reports a bad MAC.
func (t *transport) clearAlert() (tls.AlertError, bool) {
	const fatal = 2
	l := t.last
	ok := l[0] == 21 && l[1] == 3 && l[3] == 0 && l[4] == 2 && l[5] == fatal
	return tls.AlertError(l[6]), ok
}

func (t *transport) begin() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.batch = t.pool.Get().(*[]byte)
}

func (t *transport) flush() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	batch := t.batch
	t.batch = nil
	if t.err == nil && len(*batch) > 0 {
		_, t.err = t.Conn.Write(*batch)
	}
	*batch = (*batch)[:0]
	t.pool.Put(batch)
	return t.err
}

func (t *transport) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.err != nil:
		return 0, t.err
	case t.batch != nil:
		*t.batch = append(*t.batch, b...)
		return len(b), nil
	}
	return t.Conn.Write(b)
}

func newBatchPool() *sync.Pool {
	return &sync.Pool{New: func() any {
		b := make([]byte, 0, batchRoom)
		return &b
	}}
}
