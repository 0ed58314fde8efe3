package http1

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"

	"mitm-appliance/proxycore/exchange"
)

const (
	readSize  = 4 << 10  // first size of a read buffer: most heads fit
	largeRead = 16 << 10 // a buffer that had to grow above this shrinks between messages
)

// reader reads ahead of the parser. Its bytes are reused: what outlives a call is copied.
type reader struct {
	src  io.Reader
	buf  []byte
	r, w int   // buf[r:w] is still to be parsed
	err  error // the end of src, given out after buf
}

func (r *reader) buffered() int { return r.w - r.r }

func (r *reader) bytes() []byte { return r.buf[r.r:r.w] }

// fill reads once more from src. Timeouts pass, everything else stays.
func (r *reader) fill() error {
	if r.err != nil {
		return r.err
	}
	if r.r == r.w {
		r.r, r.w = 0, 0
	}
	if r.w == len(r.buf) {
		if r.r > 0 {
			r.w = copy(r.buf, r.buf[r.r:r.w])
			r.r = 0
		} else {
			grown := make([]byte, max(readSize, 2*len(r.buf)))
			copy(grown, r.buf)
			r.buf = grown
		}
	}
	n, err := r.src.Read(r.buf[r.w:])
	r.w += n
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		r.err = err
	}
	if n > 0 {
		return nil
	}
	if err == nil {
		err = io.ErrNoProgress
	}
	return err
}

// read gives what is buffered, else reads: large pieces straight into p.
func (r *reader) read(p []byte) (int, error) {
	if r.r == r.w {
		if r.err != nil {
			return 0, r.err
		}
		if len(p) >= readSize {
			n, err := r.src.Read(p)
			if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
				r.err = err
			}
			if n > 0 {
				err = nil
			}
			return n, err
		}
		if err := r.fill(); err != nil {
			return 0, err
		}
	}
	n := copy(p, r.buf[r.r:r.w])
	r.r += n
	return n, nil
}

// rest takes what was read ahead.
func (r *reader) rest() []byte {
	b := bytes.Clone(r.bytes())
	r.r, r.w = 0, 0
	return b
}

// shrink gives a large buffer back between two messages.
func (r *reader) shrink() {
	if r.r == r.w && len(r.buf) > largeRead {
		r.buf = nil
	}
}

// section is a head or a trailer section: its lines with their ends, without the empty line.
type section struct {
	text  string
	lines int
	bare  bool // a line ended with LF alone
}

// section waits for a whole section. first, when not nil, looks at the first line before waiting
// for more than it; wait, when not nil, is called once before waiting for more than what is buffered. The end of the stream is io.EOF before the first byte, and io.ErrUnexpectedEOF later.
func (r *reader) section(cfg *Config, first func([]byte) error, wait func()) (s section, err error) {
	line, scanned := 0, 0 // distances from r.r
	for {
		b := r.bytes()
		i := bytes.IndexByte(b[scanned:], '\n')
		if i < 0 {
			scanned = len(b)
			if cfg.exceeded(scanned, scanned-line, 0) {
				return s, tooLarge(s.lines, cfg)
			}
			if s.lines > 0 && first != nil {
				if err := first(firstLine(b)); err != nil {
					return s, err
				}
				first = nil
			}
			if wait != nil {
				wait()
				wait = nil
			}
			if err := r.fillSection(); err != nil {
				return s, err
			}
			continue
		}
		end := scanned + i
		length := end - line
		if crlf := end > line && b[end-1] == '\r'; crlf {
			length--
		} else {
			s.bare = true
		}
		if length == 0 {
			s.text = string(b[:line])
			r.r += end + 1
			return s, nil
		}
		if cfg.exceeded(end, length, s.lines) {
			return s, tooLarge(s.lines, cfg)
		}
		s.lines++
		line, scanned = end+1, end+1
	}
}

// fillSection is fill for a section that may have begun.
func (r *reader) fillSection() error {
	begun := r.buffered() > 0
	err := r.fill()
	if errors.Is(err, io.EOF) && begun {
		return io.ErrUnexpectedEOF
	}
	return err
}

func firstLine(b []byte) []byte {
	line, _, _ := bytes.Cut(b, []byte("\n"))
	return bytes.TrimSuffix(line, []byte("\r"))
}

// exceeded reports whether a section of this size is too large; fields counts the first line not.
func (c *Config) exceeded(bytes, line, fields int) bool {
	return bytes > c.MaxHead || line > c.MaxLine || fields > c.MaxFields
}

func tooLarge(lines int, cfg *Config) error {
	status := http.StatusRequestHeaderFieldsTooLarge
	if lines == 0 {
		status = http.StatusRequestURITooLong
	}
	return &exchange.Failure{Status: status, Err: fmt.Errorf(
		"message head is too large: at most %d bytes, %d bytes a line and %d fields", cfg.MaxHead, cfg.MaxLine, cfg.MaxFields)}
}

// skipEmptyLines skips line ends before a request line (RFC 9112, section 2.2), without waiting for
// more than the next byte.
func (r *reader) skipEmptyLines(most int) error {
	for skipped := 0; ; {
		if r.r == r.w {
			if err := r.fill(); err != nil {
				return err
			}
		}
		c := r.buf[r.r]
		if c != '\r' && c != '\n' {
			return nil
		}
		if c == '\r' {
			if r.w-r.r == 1 {
				if err := r.fill(); err != nil {
					return err
				}
			}
			if r.buf[r.r+1] != '\n' {
				return nil // the request line's parser says what is wrong
			}
			r.r++
		}
		r.r++
		if skipped += 2; skipped > most {
			return exchange.Invalid("nothing but empty lines where a request was expected")
		}
	}
}
