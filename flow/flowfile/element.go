package flowfile

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"time"
	"unicode/utf8"
)

// element is one tnetstring: its type and the bytes between length and type.
type element struct {
	tag  byte
	data []byte
}

// maxDigits is how long a length may be (FMT-tnet-read).
const maxDigits = 12

var (
	errLength = errors.New("an element has no valid length")
	errShort  = errors.New("an element is longer than what encloses it")
)

// cut splits the first element off b.
func cut(b []byte) (el element, rest []byte, err error) {
	n, i := 0, 0
	for i < len(b) && b[i] >= '0' && b[i] <= '9' {
		if i == maxDigits {
			return element{}, nil, errLength
		}
		n = n*10 + int(b[i]-'0')
		i++
	}
	if i == 0 || i == len(b) || b[i] != ':' {
		return element{}, nil, errLength
	}
	b = b[i+1:]
	if n >= len(b) {
		return element{}, nil, errShort
	}
	return element{b[n], b[:n:n]}, b[n+1:], nil
}

// name says what an element is, for error messages.
func (el element) name() string {
	switch el.tag {
	case ',':
		return "bytes"
	case ';':
		return "text"
	case '#', '^':
		return "a number"
	case '!':
		return "a truth value"
	case '~':
		return "null"
	case ']':
		return "a list"
	case '}':
		return "a map"
	}
	return fmt.Sprintf("an element of unknown type %q", el.tag)
}

func (el element) expected(what string) error {
	return fmt.Errorf("expected %s, found %s", what, el.name())
}

func (el element) isNull() bool { return el.tag == '~' }

func (el element) text() (string, error) {
	if el.tag != ';' {
		return "", el.expected("text")
	}
	if !utf8.Valid(el.data) {
		return "", errors.New("text is not UTF-8")
	}
	return string(el.data), nil
}

func (el element) blob() ([]byte, error) {
	if el.tag != ',' {
		return nil, el.expected("bytes")
	}
	return el.data, nil
}

func (el element) bool() (bool, error) {
	if el.tag != '!' {
		return false, el.expected("a truth value")
	}
	switch string(el.data) {
	case "true":
		return true, nil
	case "false":
		return false, nil
	}
	return false, errors.New("a truth value is neither true nor false")
}

// int accepts floats without a fraction: mitmproxy does not tell the two apart (FMT-strict).
func (el element) int() (int64, error) {
	switch el.tag {
	case '#':
		n, err := strconv.ParseInt(string(el.data), 10, 64)
		if err != nil {
			return 0, errors.New("a whole number is malformed or too large")
		}
		return n, nil
	case '^':
		f, err := el.float()
		if err != nil {
			return 0, err
		}
		if f != math.Trunc(f) || math.Abs(f) > 1<<53 {
			return 0, errors.New("a number is not whole")
		}
		return int64(f), nil
	}
	return 0, el.expected("a number")
}

func (el element) float() (float64, error) {
	if el.tag != '^' && el.tag != '#' {
		return 0, el.expected("a number")
	}
	f, err := strconv.ParseFloat(string(el.data), 64)
	if err != nil && !errors.Is(err, strconv.ErrRange) {
		return 0, errors.New("a number is malformed")
	}
	return f, nil
}

// maxSeconds is beyond the year 5000: further away are not times but damage.
const maxSeconds = 1e11

func (el element) time() (time.Time, error) {
	f, err := el.float()
	if err != nil {
		return time.Time{}, err
	}
	if math.IsNaN(f) || math.Abs(f) > maxSeconds {
		return time.Time{}, errors.New("a time is out of range")
	}
	sec, frac := math.Modf(f)
	return time.Unix(int64(sec), int64(math.Round(frac*1e9))), nil
}

// each calls f with every item of a list.
func (el element) each(f func(element) error) error {
	if el.tag != ']' {
		return el.expected("a list")
	}
	for rest := el.data; len(rest) > 0; {
		item, next, err := cut(rest)
		if err != nil {
			return err
		}
		if err := f(item); err != nil {
			return err
		}
		rest = next
	}
	return nil
}

// tuple returns the items of a list that must have between least and most of them.
func (el element) tuple(least, most int) ([]element, error) {
	items := make([]element, 0, most)
	err := el.each(func(item element) error {
		items = append(items, item)
		if len(items) > most {
			return fmt.Errorf("a list has more than %d items", most)
		}
		return nil
	})
	if err == nil && len(items) < least {
		err = fmt.Errorf("a list has %d items instead of %d", len(items), least)
	}
	return items, err
}

// any turns a metadata value into the types of flow.Flow.Metadata: bytes become strings, which are
// written as bytes again when they are no UTF-8, and numbers beyond int64 become floats.
func (el element) any(depth int) (any, error) {
	if depth > maxDepth {
		return nil, fmt.Errorf("metadata is nested deeper than %d", maxDepth)
	}
	switch el.tag {
	case ',':
		return string(el.data), nil
	case ';':
		return el.text()
	case '#':
		if n, err := el.int(); err == nil {
			return n, nil
		}
		return el.float()
	case '^':
		return el.float()
	case '!':
		return el.bool()
	case '~':
		return nil, nil
	case ']':
		list := []any{}
		err := el.each(func(item element) error {
			v, err := item.any(depth + 1)
			list = append(list, v)
			return err
		})
		return list, err
	case '}':
		return el.anyMap(depth)
	}
	return nil, el.expected("a value")
}

func (el element) anyMap(depth int) (map[string]any, error) {
	m := map[string]any{}
	err := el.entries(func(key string, value element) error {
		v, err := value.any(depth + 1)
		m[key] = v
		return err
	})
	return m, err
}

// entries calls f with every key and value of a map.
func (el element) entries(f func(key string, value element) error) error {
	if el.tag != '}' {
		return el.expected("a map")
	}
	for rest := el.data; len(rest) > 0; {
		key, next, err := cut(rest)
		if err != nil {
			return err
		}
		if key.tag != ';' && key.tag != ',' {
			return fmt.Errorf("a key of a map is %s", key.name())
		}
		value, after, err := cut(next)
		if err != nil {
			return err
		}
		if err := f(string(key.data), value); err != nil {
			return err
		}
		rest = after
	}
	return nil
}
