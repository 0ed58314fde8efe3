package tlsmitm

import (
	"crypto/tls"
	"io"
	"sync"

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

// Read reads clear bytes; at most one record at a time. A TLS alert of the peer ends in an error that
// says what it means.
func (c *Conn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if err != nil && err != io.EOF && c.explain != nil {
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

	mu    sync.Mutex
	batch *[]byte // nil outside of begin and flush
	err   error   // what flushing failed with: the stream has a gap from there on
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
