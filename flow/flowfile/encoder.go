package flowfile

import (
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// encoder writes tnetstrings from the end of its buffer towards the beginning: a length stands before
// what it measures, so that backwards every length is known when it is due and nothing is copied
// twice. Maps therefore come out in reverse order of the calls, which is also how mitmproxy
// writes them (FMT-tnet-write).
type encoder struct {
	buf []byte
	at  int // buf[at:] is written
}

func (e *encoder) reset()        { e.at = len(e.buf) }
func (e *encoder) bytes() []byte { return e.buf[e.at:] }

// room makes sure that n more bytes fit in front.
func (e *encoder) room(n int) {
	if n <= e.at {
		return
	}
	used := len(e.buf) - e.at
	next := make([]byte, max(2*len(e.buf), used+n, 4<<10))
	copy(next[len(next)-used:], e.buf[e.at:])
	e.buf, e.at = next, len(next)-used
}

func (e *encoder) byte(c byte) {
	e.room(1)
	e.at--
	e.buf[e.at] = c
}

func (e *encoder) raw(s string) {
	e.room(len(s))
	e.at -= len(s)
	copy(e.buf[e.at:], s)
}

// length writes "N:".
func (e *encoder) length(n int) {
	e.byte(':')
	e.room(20)
	for {
		e.at--
		e.buf[e.at] = byte('0' + n%10)
		if n /= 10; n == 0 {
			return
		}
	}
}

// open begins a list (']') or map ('}') and returns what close needs.
func (e *encoder) open(tag byte) (mark int) {
	e.byte(tag)
	return len(e.buf) - e.at
}

func (e *encoder) close(mark int) { e.length(len(e.buf) - e.at - mark) }

// key names the value that was just written.
func (e *encoder) key(name string) { e.scalar(';', name) }

func (e *encoder) scalar(tag byte, s string) {
	e.byte(tag)
	e.raw(s)
	e.length(len(s))
}

func (e *encoder) null() { e.raw("0:~") }

func (e *encoder) bool(b bool) {
	if b {
		e.raw("4:true!")
		return
	}
	e.raw("5:false!")
}

func (e *encoder) int(n int64) {
	var b [20]byte
	e.scalar('#', string(strconv.AppendInt(b[:0], n, 10)))
}

func (e *encoder) float(f float64) { e.scalar('^', formatFloat(f)) }

// formatFloat is Python's repr, so that files are the same to the byte.
func formatFloat(f float64) string {
	a := math.Abs(f)
	switch {
	case math.IsNaN(f):
		return "nan"
	case math.IsInf(f, 0):
		return strings.ToLower(strings.TrimPrefix(strconv.FormatFloat(f, 'g', -1, 64), "+"))
	case a != 0 && (a < 1e-4 || a >= 1e16):
		return strconv.FormatFloat(f, 'e', -1, 64)
	}
	var b [32]byte
	s := strconv.AppendFloat(b[:0], f, 'f', -1, 64)
	if !slices.Contains(s, '.') {
		s = append(s, ".0"...)
	}
	return string(s)
}

// text writes UTF-8; bytes that are none become U+FFFD, as mitmproxy refuses them.
func (e *encoder) text(s string) {
	if !utf8.ValidString(s) {
		s = strings.ToValidUTF8(s, "\uFFFD")
	}
	e.scalar(';', s)
}

func (e *encoder) optText(s string) {
	if s == "" {
		e.null()
		return
	}
	e.text(s)
}

func (e *encoder) blob(s string) { e.scalar(',', s) }

func (e *encoder) data(b []byte) {
	e.byte(',')
	e.room(len(b))
	e.at -= len(b)
	copy(e.buf[e.at:], b)
	e.length(len(b))
}

// time writes seconds; the zero time is 0.
func (e *encoder) time(t time.Time) {
	if t.IsZero() {
		e.float(0)
		return
	}
	e.float(seconds(t))
}

// optTime writes seconds; the zero time is null.
func (e *encoder) optTime(t time.Time) {
	if t.IsZero() {
		e.null()
		return
	}
	e.float(seconds(t))
}

func seconds(t time.Time) float64 { return float64(t.Unix()) + float64(t.Nanosecond())/1e9 }

// record is a map whose order is kept.
type record []pair

type pair struct {
	name  string
	value any
}

// maxDepth bounds the nesting of metadata, both ways.
const maxDepth = 64

// any writes a metadata value. What JSON has no word for is written as null.
func (e *encoder) any(v any, depth int) {
	if depth > maxDepth {
		e.null()
		return
	}
	switch x := v.(type) {
	case bool:
		e.bool(x)
	case int:
		e.int(int64(x))
	case int64:
		e.int(x)
	case float64:
		e.float(x)
	case time.Time:
		e.optTime(x)
	case string:
		if utf8.ValidString(x) {
			e.scalar(';', x)
		} else {
			e.blob(x)
		}
	case []byte:
		e.data(x)
	default:
		e.container(v, depth)
	}
}

// container writes the values that hold others.
func (e *encoder) container(v any, depth int) {
	switch x := v.(type) {
	case []any:
		mark := e.open(']')
		for _, item := range slices.Backward(x) {
			e.any(item, depth+1)
		}
		e.close(mark)
	case map[string]any:
		mark := e.open('}')
		for _, k := range slices.Sorted(maps.Keys(x)) {
			e.any(x[k], depth+1)
			e.text(k)
		}
		e.close(mark)
	case record:
		mark := e.open('}')
		for _, p := range x {
			e.any(p.value, depth+1)
			e.key(p.name)
		}
		e.close(mark)
	default:
		e.null()
	}
}
