package http1

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"mitm-appliance/flow"
	"mitm-appliance/proxycore/exchange"
)

const (
	maxBorders    = 4096     // chunks of one body whose borders are kept
	maxExtensions = 64 << 10 // bytes of chunk extensions in one body; floods of them are an attack (CVE-2023-39326)
)

// body is an incoming body without its framing: an exchange.Receiver. The zero body is empty.
type body struct {
	framing
	r      *reader
	conn   interface{ SetReadDeadline(time.Time) error }
	cfg    *Config
	strict bool
	ended  func() // called once at the end of the message; may be nil

	done  bool
	timed bool
	err   error // what made the body unreadable; stays
	left  int64 // bytes of the fixed body or of the current chunk
	got   int64

	chunk      flow.Chunk // the current one
	entered    bool       // ... and Chunk has not told yet
	inChunks   bool       // the CRLF after a chunk's data is still to come
	chunks     []flow.Chunk
	tooMany    bool // borders are not kept any more
	extensions int
	trailer    flow.Header
}

var _ exchange.Receiver = (*body)(nil)

func (b *body) reset(r *reader, cfg *Config, f framing, strict bool) {
	*b = body{framing: f, r: r, cfg: cfg, strict: strict, ended: b.ended, conn: b.conn}
	b.left = max(f.length, 0)
	if f.kind == noBody {
		b.finish()
	}
}

func (b *body) finish() {
	b.done = true
	b.SetDeadline(time.Time{})
	if b.ended != nil {
		b.ended()
	}
}

func (b *body) Length() int64        { return b.length }
func (b *body) Trailer() flow.Header { return b.trailer }

// Chunks returns borders that are worth keeping: of a whole body only when it has more than one chunk,
// or extensions.
func (b *body) Chunks() []flow.Chunk {
	if b.tooMany || b.done && b.extensions == 0 && len(b.chunks) <= 2 {
		return nil
	}
	return b.chunks
}

// Chunk tells once about a chunk that Read entered.
func (b *body) Chunk() *flow.Chunk {
	if !b.entered {
		return nil
	}
	b.entered = false
	return &b.chunk
}

// Buffered is careful: what needs another look at the stream counts as not there.
func (b *body) Buffered() int {
	if b.done || b.err != nil {
		return 1 // Read gives its answer at once, and the buffer is not ours any more
	}
	have := b.r.bytes()
	switch {
	case b.kind == untilEOF:
		return len(have)
	case b.left > 0:
		return int(min(b.left, int64(len(have))))
	case b.kind != chunked:
		return 0
	}
	if b.inChunks {
		have = have[min(2, len(have)):]
	}
	i := bytes.IndexByte(have, '\n')
	if i < 1 || have[0] == '0' {
		return 0
	}
	return len(have) - i - 1
}

// Read gives bytes of one chunk at most, so that borders are not lost.
func (b *body) Read(p []byte) (n int, err error) {
	switch {
	case b.err != nil:
		return 0, b.err
	case b.done:
		return 0, io.EOF
	case len(p) == 0:
		return 0, nil
	case b.kind == untilEOF:
		n, err = b.r.read(p)
	case b.kind == chunked:
		n, err = b.readChunked(p)
	default:
		n, err = b.readLeft(p)
	}
	b.got += int64(n)
	if b.done {
		return n, io.EOF
	}
	if b.kind == untilEOF && (errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)) {
		b.finish() // io.ErrUnexpectedEOF: TLS without close_notify, which many servers never send
		return n, io.EOF
	}
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		b.err = b.explain(err)
		err = b.err
	}
	return n, err
}

// SetDeadline limits the time of Read. At the end of the body the limit is gone, as the connection
// is then read for other things.
func (b *body) SetDeadline(t time.Time) {
	if b.timed || !b.done && !t.IsZero() {
		_ = b.conn.SetReadDeadline(t) // a closed one fails to read
		b.timed = !t.IsZero()
	}
}

// explain names what is missing when the peer went away (H1-09).
func (b *body) explain(err error) error {
	if !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return err
	}
	if b.kind == fixed {
		return fmt.Errorf("peer closed connection without sending complete message body (received %d bytes, expected %d)", b.got, b.length)
	}
	return errors.New("peer closed connection without sending complete message body (incomplete chunked read)")
}

func (b *body) readLeft(p []byte) (int, error) {
	n, err := b.r.read(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	if b.left == 0 && b.kind == fixed {
		b.finish()
	}
	return n, err
}

func (b *body) readChunked(p []byte) (int, error) {
	if b.left == 0 {
		if err := b.nextChunk(); err != nil {
			return 0, err
		}
		if b.done {
			return 0, nil
		}
	}
	return b.readLeft(p)
}

// nextChunk reads a chunk's first line, and after the last chunk the trailer section (RFC 9112,
// section 7.1).
func (b *body) nextChunk() error {
	if b.inChunks {
		if err := b.chunkEnd(); err != nil {
			return err
		}
		b.inChunks = false
	}
	line, err := b.chunkLine()
	if err != nil {
		return err
	}
	size, extension, err := parseChunkLine(line, b.strict)
	if err != nil {
		return err
	}
	b.r.r += len(line) // line is still valid here: nothing was read in between
	if b.extensions += len(extension); b.extensions > maxExtensions {
		return exchange.Invalid("more than %d bytes of chunk extensions", maxExtensions)
	}
	b.chunk, b.entered, b.left = flow.Chunk{Size: size, Extension: string(extension)}, true, size
	if b.tooMany = b.tooMany || len(b.chunks) == maxBorders; b.tooMany {
		b.chunks = nil
	} else {
		b.chunks = append(b.chunks, b.chunk)
	}
	if size > 0 {
		b.inChunks = true
		return nil
	}
	return b.readTrailer()
}

// chunkEnd takes the line end after a chunk's data.
func (b *body) chunkEnd() error {
	for b.r.buffered() < 2 {
		if c := b.r.bytes(); len(c) == 1 && c[0] == '\n' && !b.strict {
			break
		}
		if err := b.r.fill(); err != nil {
			return err
		}
	}
	have := b.r.bytes()
	switch {
	case have[0] == '\n' && !b.strict:
		b.r.r++
	case have[0] == '\r' && have[1] == '\n':
		b.r.r += 2
	default:
		return refuse("A chunk is longer than its size says.")
	}
	return nil
}

// chunkLine waits for a chunk's first line and returns it with its end, still in the buffer.
func (b *body) chunkLine() ([]byte, error) {
	for scanned := 0; ; {
		have := b.r.bytes()
		if i := bytes.IndexByte(have[scanned:], '\n'); i >= 0 {
			return have[:scanned+i+1], nil
		}
		if scanned = len(have); scanned > b.cfg.MaxChunkLine {
			return nil, exchange.Invalid("the first line of a chunk has more than %d bytes", b.cfg.MaxChunkLine)
		}
		if err := b.r.fill(); err != nil {
			return nil, err
		}
	}
}

// parseChunkLine reads "SIZE [; extensions] CRLF". The extensions come with their leading semicolon,
// or the white space before it.
func parseChunkLine(line []byte, strict bool) (size int64, extension []byte, err error) {
	text := line[:len(line)-1]
	switch {
	case len(text) > 0 && text[len(text)-1] == '\r':
		text = text[:len(text)-1]
	case strict:
		return 0, nil, refuse("The first line of a chunk ends with LF instead of CRLF.")
	}
	digits := 0
	for digits < len(text) && classes[text[digits]]&classHex != 0 {
		size = size<<4 | int64(hexValue(text[digits]))
		if digits++; digits > 15 {
			return 0, nil, refuse("The chunk size %.40q is too large.", text)
		}
	}
	extension = text[digits:]
	switch {
	case digits == 0:
		return 0, nil, refuse("%.100q is no chunk size.", text)
	case len(extension) == 0:
	case !all(string(extension), classValue):
		return 0, nil, refuse("A chunk extension has control characters.")
	case trimmed(extension) != ';' && (strict || trimmed(extension) != 0):
		return 0, nil, refuse("%.100q is no chunk size.", text)
	}
	return size, extension, nil
}

// trimmed returns the first byte that is not white space, 0 without one.
func trimmed(b []byte) byte {
	for _, c := range b {
		if c != ' ' && c != '\t' {
			return c
		}
	}
	return 0
}

func hexValue(c byte) byte {
	if c <= '9' {
		return c - '0'
	}
	return c | 0x20 - 'a' + 10
}

func (b *body) readTrailer() error {
	s, err := b.r.section(b.cfg, nil, nil)
	if err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return err
	}
	h, invalid, err := parseFields(s.text, s.lines)
	if err != nil {
		return err
	}
	if b.strict {
		f := inspect(h)
		switch {
		case invalid != nil:
			return invalid
		case s.bare:
			return refuse("A line of the trailer section ends with LF instead of CRLF.")
		case f.lengths+f.encodings+f.hosts > 0:
			return refuse("The trailer section has a field that belongs in the head.")
		}
	}
	b.trailer = h
	b.finish()
	return nil
}
