package flowfile

import (
	"fmt"
	"time"
)

// fields reads the entries of a map by name and remembers the first thing that was wrong, so that
// decoding reads as a list of fields. finish reports it, and keys that nobody asked for: the format
// allows no surplus (FMT-strict).
type fields struct {
	what    string // the map's name, for errors
	entries []entry
	next    int // where the search begins: files list the keys in a fixed order
	taken   int
	err     error
}

type entry struct {
	key   []byte
	value element
	taken bool
}

// maxFields is more than any map of the format has.
const maxFields = 32

func newFields(what string, el element) *fields {
	f := &fields{what: what}
	if el.tag != '}' {
		f.err = fmt.Errorf("%s: %w", what, el.expected("a map"))
		return f
	}
	f.entries = make([]entry, 0, 20)
	for rest := el.data; len(rest) > 0; {
		key, afterKey, err := cut(rest)
		if err == nil {
			var value element
			value, rest, err = cut(afterKey)
			f.entries = append(f.entries, entry{key: key.data, value: value})
		}
		if err == nil && len(f.entries) > maxFields {
			err = fmt.Errorf("more than %d keys", maxFields)
		}
		if err != nil {
			f.err = fmt.Errorf("%s: %w", what, err)
			return f
		}
	}
	f.next = len(f.entries) - 1 // written backwards, so the first key is the last entry
	return f
}

func (f *fields) fail(key string, err error) {
	if err != nil && f.err == nil {
		f.err = fmt.Errorf("%s: key %q: %w", f.what, key, err)
	}
}

// take returns a value; a missing one is an error.
func (f *fields) take(key string) element {
	n := len(f.entries)
	for i := range n {
		at := (f.next - i + n) % n
		e := &f.entries[at]
		if e.taken || string(e.key) != key {
			continue
		}
		e.taken = true
		f.taken++
		f.next = (at - 1 + n) % n
		return e.value
	}
	if f.err == nil {
		f.err = fmt.Errorf("%s: key %q is missing", f.what, key)
	}
	return element{tag: '~'}
}

func (f *fields) finish() error {
	if f.err != nil || f.taken == len(f.entries) {
		return f.err
	}
	for _, e := range f.entries {
		if !e.taken {
			return fmt.Errorf("%s: unknown or repeated key %.40q", f.what, e.key)
		}
	}
	return nil
}

func read[T any](f *fields, key string, parse func(element) (T, error)) T {
	el := f.take(key)
	var zero T
	if f.err != nil {
		return zero
	}
	v, err := parse(el)
	f.fail(key, err)
	return v
}

// opt is read for keys that may be null, which gives the zero value.
func opt[T any](f *fields, key string, parse func(element) (T, error)) T {
	return read(f, key, func(el element) (T, error) {
		if el.isNull() {
			var zero T
			return zero, nil
		}
		return parse(el)
	})
}

func blobText(el element) (string, error) {
	b, err := el.blob()
	return string(b), err
}

func (f *fields) text(key string) string       { return read(f, key, element.text) }
func (f *fields) optText(key string) string    { return opt(f, key, element.text) }
func (f *fields) blob(key string) string       { return read(f, key, blobText) }
func (f *fields) optBlob(key string) string    { return opt(f, key, blobText) }
func (f *fields) bool(key string) bool         { return read(f, key, element.bool) }
func (f *fields) optTime(key string) time.Time { return opt(f, key, element.time) }
func (f *fields) time(key string) time.Time    { return read(f, key, wholeTime) }

// wholeTime reads a time that the format cannot leave out: 0 stands for "unknown".
func wholeTime(el element) (time.Time, error) {
	t, err := el.time()
	if err == nil && t.Unix() == 0 && t.Nanosecond() == 0 {
		return time.Time{}, nil
	}
	return t, err
}

// number reads a whole number from 0 to most.
func (f *fields) number(key string, most int64) int64 {
	return read(f, key, func(el element) (int64, error) { return ranged(el, most) })
}

func (f *fields) optNumber(key string, most int64) int64 {
	return opt(f, key, func(el element) (int64, error) { return ranged(el, most) })
}

func ranged(el element, most int64) (int64, error) {
	n, err := el.int()
	if err == nil && (n < 0 || n > most) {
		err = fmt.Errorf("%d is not between 0 and %d", n, most)
	}
	return n, err
}

// list reads all items of a list.
func list[T any](parse func(element) (T, error)) func(element) ([]T, error) {
	return func(el element) ([]T, error) {
		var out []T
		err := el.each(func(item element) error {
			v, err := parse(item)
			out = append(out, v)
			return err
		})
		return out, err
	}
}
