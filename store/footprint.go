package store

import "mitm-appliance/flow"

const (
	flowSize     = 1 << 10 // of a flow and what always belongs to it
	responseSize = 256
	fieldSize    = 32 // of a header field beside its text
	messageSize  = 96 // of a message beside its data
)

// counted is how much of a flow's messages has been counted. They are only ever appended while the
// flow lives, so that each is looked at once, and once more at the end, when all are counted anew.
type counted struct {
	messages int
	bytes    int64
}

// footprint estimates the memory of a flow: what it points to and nobody shares.
func (c *counted) footprint(f *flow.Flow) int64 {
	if !f.Live {
		*c = counted{}
	}
	switch {
	case f.HTTP != nil:
		n := flowSize + message(&f.HTTP.Request.Message)
		if f.HTTP.Response != nil {
			n += responseSize + message(&f.HTTP.Response.Message)
		}
		if w := f.HTTP.WebSocket; w != nil {
			n += c.add(len(w.Messages), func(i int) int { return len(w.Messages[i].Data) })
		}
		return n
	case f.Stream != nil:
		return flowSize + c.add(len(f.Stream.Messages), func(i int) int { return len(f.Stream.Messages[i].Data) })
	}
	return flowSize + f.Size()
}

// add counts what n messages have more than those that were counted before.
func (c *counted) add(n int, size func(int) int) int64 {
	if n < c.messages { // an addon dropped some
		*c = counted{}
	}
	for i := c.messages; i < n; i++ {
		c.bytes += messageSize + int64(size(i))
	}
	c.messages = n
	return c.bytes
}

func message(m *flow.Message) int64 {
	n := int64(len(m.Body.Data))
	for _, h := range []flow.Header{m.Header, m.Trailer} {
		for i := range h {
			n += fieldSize + int64(len(h[i].Name)+len(h[i].Value))
		}
	}
	return n
}
