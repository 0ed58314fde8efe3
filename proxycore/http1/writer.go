package http1

import (
	"errors"
	"io"
	"strconv"
	"sync"

	"mitm-appliance/flow"
)

const (
	writeSize = 16 << 10  // what is gathered into one write: a TLS record
	pieceSize = 128 << 10 // one write of a large body: slow peers show signs of life between two
)

// writer gathers a message and gives it to dst in as few writes as possible.
type writer struct {
	dst  io.Writer
	pool *sync.Pool
	buf  *[]byte // what waits to be written; nil when nothing does
	sent int64   // bytes that dst has taken
	err  error   // stays

	kind    kind   // of the streamed message
	left    int64  // bytes owed: of the fixed body, or of the chunk that was begun
	inChunk bool   // a chunk was begun
	last    string // extension of the last chunk
}

// take returns the waiting bytes for appending to; give takes them back.
func (w *writer) take() []byte {
	if w.buf == nil {
		if b, ok := w.pool.Get().(*[]byte); ok {
			w.buf = b
		} else {
			b := make([]byte, 0, writeSize)
			w.buf = &b
		}
	}
	return *w.buf
}

func (w *writer) give(b []byte) { *w.buf = b }

// put adds p: copied while it fits into one write, else written from where it is.
func (w *writer) put(p []byte) error {
	b := w.take()
	if len(b)+len(p) <= writeSize {
		w.give(append(b, p...))
		return w.err
	}
	if n := writeSize - len(b); n > 0 && len(b) > 0 { // fill the record up
		b, p = append(b, p[:n]...), p[n:]
		w.give(b)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if len(p) < writeSize {
		w.give(append(w.take(), p...))
		return nil
	}
	for len(p) > 0 {
		n := min(len(p), pieceSize)
		if err := w.write(p[:n]); err != nil {
			return err
		}
		p = p[n:]
	}
	return nil
}

func (w *writer) write(p []byte) error {
	if w.err != nil {
		return w.err
	}
	n, err := w.dst.Write(p)
	w.sent += int64(n)
	w.err = err
	return err
}

// Flush writes what waits.
func (w *writer) Flush() error {
	if w.buf == nil {
		return w.err
	}
	b := w.buf
	w.buf = nil
	var err error
	if len(*b) > 0 {
		err = w.write(*b)
	}
	if cap(*b) <= 4*writeSize {
		*b = (*b)[:0]
		w.pool.Put(b)
	}
	return err
}

// begin starts the body of a streamed message.
func (w *writer) begin(f framing) {
	w.kind, w.left, w.inChunk, w.last = f.kind, 0, false, ""
	if f.kind == fixed {
		w.left = f.length
	}
}

var errOverrun = errors.New("http1: body is longer than announced")

// Write sends a piece of a streamed body.
func (w *writer) Write(p []byte) (int, error) {
	total := len(p)
	switch w.kind {
	case noBody:
		return total, nil
	case fixed:
		if w.left -= int64(total); w.left < 0 {
			return 0, errOverrun
		}
		return total, w.put(p)
	case untilEOF:
		return total, w.put(p)
	}
	for len(p) > 0 {
		if !w.inChunk {
			w.beginChunk(flow.Chunk{Size: int64(len(p))})
		}
		n := min(w.left, int64(len(p)))
		if err := w.put(p[:n]); err != nil {
			return 0, err
		}
		p = p[n:]
		w.endChunk(n)
	}
	return total, nil
}

func (w *writer) beginChunk(c flow.Chunk) {
	b := strconv.AppendInt(w.take(), c.Size, 16)
	b = append(b, c.Extension...)
	w.give(append(b, "\r\n"...))
	w.left, w.inChunk = c.Size, true
}

// endChunk counts n bytes of the current chunk and closes it after the last.
func (w *writer) endChunk(n int64) {
	if w.left -= n; w.left == 0 {
		w.give(append(w.take(), "\r\n"...))
		w.inChunk = false
	}
}

// Chunk begins a chunk of its size with its extension.
func (w *writer) Chunk(c flow.Chunk) error {
	switch {
	case w.kind != chunked:
		return nil
	case w.inChunk:
		return errors.New("http1: a chunk begins inside another")
	case c.Size == 0:
		w.last = c.Extension
		return nil
	}
	w.beginChunk(c)
	return w.err
}

// End finishes a streamed message.
func (w *writer) End(trailer flow.Header) error {
	if w.inChunk || w.kind == fixed && w.left > 0 {
		return io.ErrUnexpectedEOF
	}
	if w.kind == chunked {
		w.lastChunk(w.last, trailer)
	}
	return w.Flush()
}

func (w *writer) lastChunk(extension string, trailer flow.Header) {
	b := append(w.take(), '0')
	b = append(b, extension...)
	b = appendFields(append(b, "\r\n"...), trailer)
	w.give(append(b, "\r\n"...))
}

// whole sends a collected body behind the head that waits already.
func (w *writer) whole(m *flow.Message, k kind) error {
	w.begin(framing{kind: k, length: int64(len(m.Body.Data))})
	var err error
	switch {
	case k == noBody:
	case k == chunked:
		err = w.chunks(m)
	default:
		err = w.put(m.Body.Data)
	}
	if err != nil {
		return err
	}
	return w.Flush()
}

// chunks sends a body with the borders that it came with, while they still fit it.
func (w *writer) chunks(m *flow.Message) error {
	data, last := m.Body.Data, ""
	if fits(m.Chunks, int64(len(data))) {
		for _, c := range m.Chunks {
			if c.Size == 0 {
				last = c.Extension
				continue
			}
			w.beginChunk(c)
			if err := w.put(data[:c.Size]); err != nil {
				return err
			}
			data = data[c.Size:]
			w.endChunk(c.Size)
		}
	}
	if _, err := w.Write(data); err != nil {
		return err
	}
	w.lastChunk(last, m.Trailer)
	return nil
}

func fits(chunks []flow.Chunk, size int64) bool {
	var sum int64
	for _, c := range chunks {
		if c.Size < 0 || c.Size > size {
			return false
		}
		sum += c.Size
	}
	return sum == size
}

func appendFields(b []byte, h flow.Header) []byte {
	for i := range h {
		b = append(b, h[i].Name...)
		b = append(b, ": "...)
		b = append(b, h[i].Value...)
		b = append(b, "\r\n"...)
	}
	return b
}

func appendRequest(b []byte, r *flow.Request) []byte {
	b = append(b, r.Method...)
	b = append(b, ' ')
	path := r.Path
	switch {
	case r.Method == "CONNECT":
		path = r.Authority
	case r.Authority != "":
		b = append(b, r.Scheme...)
		b = append(b, "://"...)
		b = append(b, r.Authority...)
		if path == "*" {
			path = ""
		}
	case path == "":
		path = "/"
	}
	b = append(b, path...)
	b = append(b, ' ')
	b = append(b, r.Version...)
	b = append(b, "\r\n"...)
	return append(appendFields(b, r.Header), "\r\n"...)
}

func appendResponse(b []byte, r *flow.Response) []byte {
	b = append(b, r.Version...)
	b = append(b, ' ')
	b = strconv.AppendInt(b, int64(r.Status), 10)
	b = append(b, ' ')
	b = append(b, r.Reason...)
	b = append(b, "\r\n"...)
	return append(appendFields(b, r.Header), "\r\n"...)
}
