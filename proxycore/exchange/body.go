package exchange

import (
	"errors"
	"io"
	"slices"
	"time"

	"mitm-appliance/flow"
)

const (
	firstAlloc = 256 << 10 // memory given to an announced body before any of it is there
	copySize   = 64 << 10  // one read of a streamed body
)

// collect reads a body into memory of its own. done is false when it grew above most: data is then
// what has been read, and more follows.
func (v *Service) collect(r Receiver, most int64) (data []byte, done bool, err error) {
	n := r.Length()
	if n == 0 {
		return nil, true, drained(r)
	}
	if n > 0 {
		data = make([]byte, 0, min(n, firstAlloc))
	} else {
		if data, done, err = v.collectSmall(r, most); done || err != nil {
			return data, done, err
		}
	}
	for {
		if int64(len(data)) > most {
			return data, false, nil
		}
		if len(data) == cap(data) {
			data = slices.Grow(data, growth(len(data), n))
		}
		m, err := r.Read(data[len(data):cap(data)])
		data = data[:len(data)+m]
		if errors.Is(err, io.EOF) {
			return trim(data), true, nil
		}
		if err != nil {
			return data, false, err
		}
	}
}

// growth doubles, without passing an announced end.
func growth(have int, announced int64) int {
	if left := announced - int64(have); left > 0 {
		return int(min(int64(have), left))
	}
	return max(have, 512)
}

// collectSmall reads a body without announced length through a shared buffer, so that a small one
// costs a single allocation of its size.
func (v *Service) collectSmall(r Receiver, most int64) (data []byte, done bool, err error) {
	buf := v.buffer()
	defer v.release(buf)
	n := 0
	for err == nil && n < len(*buf) && int64(n) <= most {
		var m int
		m, err = r.Read((*buf)[n:])
		n += m
	}
	if n > 0 {
		data = slices.Clone((*buf)[:n])
	}
	if errors.Is(err, io.EOF) {
		return data, true, nil
	}
	return data, false, err
}

// trim gives back the spare capacity of a body that is going to be kept.
func trim(data []byte) []byte {
	if cap(data)-len(data) > len(data)/4+512 {
		return slices.Clone(data)
	}
	return data
}

// drained takes the end of a body that is known to be empty.
func drained(r Receiver) error {
	var none [0]byte
	if _, err := r.Read(none[:]); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	return nil
}

func (v *Service) buffer() *[]byte {
	if b, ok := v.buffers.Get().(*[]byte); ok {
		return b
	}
	b := make([]byte, copySize)
	return &b
}

func (v *Service) release(b *[]byte) { v.buffers.Put(b) }

// stream is one direction of a body that is passed on as it arrives.
type stream struct {
	from      Receiver
	to        Sender
	prefix    []byte // collected before the decision to stream; sent first
	transform func(io.Reader) io.Reader
	note      func([]byte) // sees every piece that was sent
}

// run copies until the end of the body. It does not end the message. Failures of the two sides are
// told apart, as they mean different things.
func (v *Service) run(s *stream) (readErr, writeErr error) {
	buf := v.buffer()
	defer v.release(buf)
	if err := s.sendPrefix(); err != nil {
		return nil, err
	}
	src := io.Reader(s.from)
	if s.transform != nil {
		src = s.transform(s.from)
	}
	for {
		if s.from.Buffered() == 0 {
			if err := s.to.Flush(); err != nil {
				return nil, err
			}
		}
		n, err := src.Read(*buf)
		if err := s.border(); err != nil {
			return nil, err
		}
		if n > 0 {
			if _, err := s.to.Write((*buf)[:n]); err != nil {
				return nil, err
			}
			s.note((*buf)[:n])
		}
		if errors.Is(err, io.EOF) {
			return nil, nil
		}
		if err != nil {
			return err, nil
		}
	}
}

// border passes on that a chunk begins, unless a transform made the borders meaningless.
func (s *stream) border() error {
	if s.transform != nil {
		return nil
	}
	if c := s.from.Chunk(); c != nil {
		return s.to.Chunk(*c)
	}
	return nil
}

func (s *stream) sendPrefix() error {
	rest := s.prefix
	for _, c := range s.from.Chunks() {
		if len(rest) == 0 {
			break
		}
		if err := s.to.Chunk(c); err != nil {
			return err
		}
		n := int(min(c.Size, int64(len(rest))))
		if _, err := s.to.Write(rest[:n]); err != nil {
			return err
		}
		rest = rest[n:]
	}
	s.from.Chunk() // the chunk that the prefix ends in has been announced
	if len(rest) > 0 {
		if _, err := s.to.Write(rest); err != nil {
			return err
		}
	}
	if len(s.prefix) > 0 {
		s.note(s.prefix)
	}
	return nil
}

// store keeps the beginning of a streamed body in its flow.
type store struct {
	body   *flow.Body
	budget int64
	told   time.Time
}

// start empties the body: nothing of it is known yet.
func (s *store) start(body *flow.Body, budget int64) {
	*body = flow.Body{State: flow.BodyMissing}
	*s = store{body: body, budget: budget, told: time.Now()}
}

// add notes a piece that passed. due says that the flow has changed for long enough to tell others.
func (s *store) add(p []byte) (due bool) {
	s.body.Size += int64(len(p))
	if keep := min(s.budget-int64(len(s.body.Data)), int64(len(p))); keep > 0 {
		s.body.Data = append(s.body.Data, p[:keep]...) // snapshots see their own length only
		s.body.State = flow.BodyTruncated
	}
	const every = time.Second
	if now := time.Now(); now.Sub(s.told) >= every {
		s.told = now
		return true
	}
	return false
}

// end says what is known about the body when all of it has passed.
func (s *store) end() {
	if int64(len(s.body.Data)) == s.body.Size {
		s.body.State = flow.BodyComplete
	}
}
