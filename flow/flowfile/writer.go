package flowfile

import (
	"io"

	"mitm-appliance/flow"
)

// Writer writes flows to an io.Writer, each with a single Write, so that a reader never sees half of
// one. It is for one goroutine at a time.
type Writer struct {
	out io.Writer
	enc Encoder
}

// NewWriter returns a Writer to w. Flow files have no header: w may end with other flows already.
func NewWriter(w io.Writer) *Writer { return &Writer{out: w} }

// Write writes one flow.
func (w *Writer) Write(f *flow.Flow) error {
	b, err := w.enc.Encode(f)
	if err != nil {
		return err
	}
	_, err = w.out.Write(b)
	return err
}
