package dump

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

const hexDigits = "0123456789abcdef"

// appendEscaped appends captured text for a terminal. What does not print (control characters of both
// sets, bytes that are no UTF-8, characters that turn the direction of writing) becomes \x1b or \u202e.
// keep lists characters that are let through although they do not print.
func appendEscaped(b []byte, s, keep string) []byte {
	for i := 0; i < len(s); {
		c := s[i]
		if c < utf8.RuneSelf {
			i++
			if c >= ' ' && c != 0x7f || strings.IndexByte(keep, c) >= 0 {
				b = append(b, c)
			} else {
				b = append(b, '\\', 'x', hexDigits[c>>4], hexDigits[c&15])
			}
			continue
		}
		r, n := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == utf8.RuneError && n == 1:
			b = append(b, '\\', 'x', hexDigits[c>>4], hexDigits[c&15])
		case unicode.IsPrint(r):
			b = append(b, s[i:i+n]...)
		case r <= 0xff:
			b = append(b, '\\', 'x', hexDigits[r>>4], hexDigits[r&15])
		case r <= 0xffff:
			b = append(b, '\\', 'u', hexDigits[r>>12], hexDigits[r>>8&15], hexDigits[r>>4&15], hexDigits[r&15])
		default:
			b = append(b, '\\', 'U')
			for shift := 28; shift >= 0; shift -= 4 {
				b = append(b, hexDigits[r>>shift&15])
			}
		}
		i += n
	}
	return b
}

func escaped(s string) string { return string(appendEscaped(nil, s, "")) }

// ink is how a piece of text is printed: parameters of the terminal's SGR sequence (ECMA-48, section
// 8.3.117). The zero ink is plain.
type ink string

const (
	plain   ink = ""
	bold    ink = "1"
	dim     ink = "2"
	red     ink = "31"
	green   ink = "32"
	yellow  ink = "33"
	blue    ink = "34"
	magenta ink = "35"
	cyan    ink = "36"
	sky     ink = "94"
	blink   ink = "5"
)

// with adds to an ink.
func (i ink) with(more ink) ink {
	if i == plain || more == plain {
		return i + more
	}
	return i + ";" + more
}

// page is what is being printed.
type page struct {
	b     []byte
	color bool
}

// own writes text of ours as it is.
func (p *page) own(i ink, s string) {
	if !p.color || i == plain || s == "" {
		p.b = append(p.b, s...)
		return
	}
	p.open(i)
	p.b = append(p.b, s...)
	p.close()
}

// seen writes captured text on one line.
func (p *page) seen(i ink, s string) {
	if !p.color || i == plain || s == "" {
		p.b = appendEscaped(p.b, s, "")
		return
	}
	p.open(i)
	p.b = appendEscaped(p.b, s, "")
	p.close()
}

func (p *page) open(i ink) {
	p.b = append(p.b, "\x1b["...)
	p.b = append(p.b, i...)
	p.b = append(p.b, 'm')
}

func (p *page) close() { p.b = append(p.b, "\x1b[0m"...) }

func (p *page) newline() { p.b = append(p.b, '\n') }
