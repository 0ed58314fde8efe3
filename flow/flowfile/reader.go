package flowfile

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"

	"mitm-appliance/flow"
)

// Errors that a FileError wraps. ErrTruncated, ErrDamaged and ErrHAR are final: there is no place where
// a next flow begins. After any other one, Next goes on with the next flow.
var (
	ErrTruncated = errors.New("flow file ends in the middle of a flow")
	ErrDamaged   = errors.New("flow file is damaged")
	ErrHAR       = errors.New("HAR files cannot be read: convert it with mitmproxy: mitmdump -nr OLD.har -w NEW")
	ErrTooLarge  = errors.New("flow is larger than the limit")
)

// FileError says where and why a flow could not be read.
type FileError struct {
	Offset int64 // where the flow begins, in bytes
	Flows  int   // how many were read before
	Err    error
}

func (e *FileError) Error() string {
	switch {
	case errors.Is(e.Err, ErrHAR):
		return e.Err.Error()
	case errors.Is(e.Err, ErrTruncated):
		return fmt.Sprintf("%v at byte %d; %d flows were read", e.Err, e.Offset, e.Flows)
	}
	return fmt.Sprintf("flow at byte %d, after %d flows: %v", e.Offset, e.Flows, e.Err)
}

// Unwrap returns Err.
func (e *FileError) Unwrap() error { return e.Err }

// Final reports whether Next cannot go on after this error.
func (e *FileError) Final() bool {
	return errors.Is(e.Err, ErrTruncated) || errors.Is(e.Err, ErrDamaged) || errors.Is(e.Err, ErrHAR)
}

// DefaultMaxFlow is the limit of a Reader whose MaxFlow is 0.
const DefaultMaxFlow = 1 << 30

// Reader reads flows one by one. Make one with NewReader; it is for one goroutine.
type Reader struct {
	// MaxFlow is the largest flow in bytes that is read; larger ones are skipped with ErrTooLarge.
	// 0 means DefaultMaxFlow. Memory is taken as bytes arrive, not as lengths promise.
	MaxFlow int64

	in     *bufio.Reader
	offset int64 // of the flow that is being read
	flows  int
	final  error
}

// NewReader returns a Reader of r, which it reads ahead.
func NewReader(r io.Reader) *Reader { return &Reader{in: bufio.NewReaderSize(r, 64<<10)} }

// Offset is where the next flow begins, in bytes.
func (r *Reader) Offset() int64 { return r.offset }

// Next returns the next flow. The end of the input between two flows is io.EOF; every other error but
// one of reading is a *FileError.
func (r *Reader) Next() (*flow.Flow, error) {
	if r.final != nil {
		return nil, r.final
	}
	if err := r.refuseHAR(); err != nil {
		return nil, r.end(err)
	}
	el, size, err := r.element()
	if err != nil {
		if errors.Is(err, ErrTooLarge) {
			err = r.fail(err)
			r.offset += size
			return nil, err
		}
		return nil, r.end(err)
	}
	f, err := decode(el)
	if err != nil {
		err = r.fail(err)
		r.offset += size
		return nil, err
	}
	r.offset += size
	r.flows++
	return f, nil
}

func (r *Reader) fail(err error) error { return &FileError{r.offset, r.flows, err} }

// end makes err the answer to every further call.
func (r *Reader) end(err error) error {
	failed := &FileError{r.offset, r.flows, err}
	switch {
	case errors.Is(err, io.EOF):
		r.final = io.EOF
	case failed.Final():
		r.final = failed
	default:
		r.final = fmt.Errorf("reading flows at byte %d: %w", r.offset, err)
	}
	return r.final
}

var bom = []byte("\xef\xbb\xbf")

// refuseHAR recognises HAR as mitmproxy does (FMT-read).
func (r *Reader) refuseHAR() error {
	if r.offset > 0 {
		return nil
	}
	head, _ := r.in.Peek(4) // an error shows again when reading
	if bytes.HasPrefix(bytes.TrimPrefix(head, bom), []byte("{")) {
		return ErrHAR
	}
	return nil
}

// element reads one tnetstring; size is its whole length.
func (r *Reader) element() (el element, size int64, err error) {
	n, digits, err := r.length()
	if err != nil {
		return element{}, 0, err
	}
	size = int64(digits) + 1 + n + 1
	limit := r.MaxFlow
	if limit == 0 {
		limit = DefaultMaxFlow
	}
	if n > limit {
		skipped, err := io.CopyN(io.Discard, r.in, n+1)
		if skipped < n+1 {
			return element{}, 0, shortOr(err)
		}
		return element{}, size, fmt.Errorf("%w of %d bytes", ErrTooLarge, limit)
	}
	data, err := r.payload(n)
	if err != nil {
		return element{}, 0, shortOr(err)
	}
	tag, err := r.in.ReadByte()
	if err != nil {
		return element{}, 0, shortOr(err)
	}
	if tag != '}' {
		return element{}, 0, fmt.Errorf("%w: expected a map, found %s", ErrDamaged, element{tag: tag}.name())
	}
	return element{tag, data}, size, nil
}

func (r *Reader) length() (n int64, digits int, err error) {
	for {
		c, err := r.in.ReadByte()
		switch {
		case err != nil && digits == 0:
			return 0, 0, err // the end is fine here
		case err != nil:
			return 0, 0, shortOr(err)
		case c == ':' && digits > 0:
			return n, digits, nil
		case c < '0' || c > '9':
			return 0, 0, fmt.Errorf("%w or no flow file: expected a length, found %q", ErrDamaged, c)
		case digits == maxDigits:
			return 0, 0, fmt.Errorf("%w: a length has more than %d digits", ErrDamaged, maxDigits)
		}
		n = n*10 + int64(c-'0')
		digits++
	}
}

// trusted is how much is allocated on the word of a length alone.
const trusted = 1 << 20

func (r *Reader) payload(n int64) ([]byte, error) {
	if n <= trusted {
		b := make([]byte, n)
		_, err := io.ReadFull(r.in, b)
		return b, err
	}
	var buf bytes.Buffer
	buf.Grow(trusted)
	_, err := io.CopyN(&buf, r.in, n)
	return buf.Bytes(), err
}

func shortOr(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return ErrTruncated
	}
	return err
}

// Whole finds out how much of a file of the given size is whole flows, without decoding them: what
// follows byte end is the beginning of one that a crash or a full disk cut off. The error wraps
// ErrDamaged when there is something else than a flow.
func Whole(file io.ReaderAt, size int64) (end int64, flows int, err error) {
	var head [maxDigits + 1]byte
	for end < size {
		n, err := file.ReadAt(head[:min(int64(len(head)), size-end)], end)
		if err != nil && !errors.Is(err, io.EOF) {
			return end, flows, err
		}
		r := Reader{in: bufio.NewReaderSize(bytes.NewReader(head[:n]), 16)}
		length, digits, err := r.length()
		if errors.Is(err, ErrTruncated) {
			return end, flows, nil
		}
		if err != nil {
			return end, flows, &FileError{end, flows, err}
		}
		next := end + int64(digits) + 1 + length + 1
		if next > size {
			return end, flows, nil
		}
		var tag [1]byte
		if _, err := file.ReadAt(tag[:], next-1); err != nil {
			return end, flows, err
		}
		if tag[0] != '}' {
			return end, flows, &FileError{end, flows, fmt.Errorf("%w: expected a map, found %s", ErrDamaged, element{tag: tag[0]}.name())}
		}
		end = next
		flows++
	}
	return end, flows, nil
}
