package http1

// Classes of bytes (RFC 9110, section 5.6.2 and 5.5).
const (
	classToken  = 1 << iota // may be in a method or a field name
	classValue              // may be in a field value or a reason phrase
	classTarget             // may be in a request target
	classHost               // may be in a Host field
	classHex                // hexadecimal digit
)

var classes = classify() // never written after start

func classify() (t [256]uint8) {
	for c := 0; c < 256; c++ {
		letter := c|0x20 >= 'a' && c|0x20 <= 'z'
		digit := c >= '0' && c <= '9'
		if letter || digit || contains("!#$%&'*+-.^_`|~", c) {
			t[c] |= classToken
		}
		if c == '\t' || c >= 0x20 && c != 0x7f {
			t[c] |= classValue
		}
		if c > 0x20 && c != 0x7f {
			t[c] |= classTarget
		}
		if c > 0x20 && c != 0x7f && !contains("/\\?#@<>\"{}^`|", c) {
			t[c] |= classHost
		}
		if digit || c|0x20 >= 'a' && c|0x20 <= 'f' {
			t[c] |= classHex
		}
	}
	return t
}

func contains(set string, c int) bool {
	for i := 0; i < len(set); i++ {
		if int(set[i]) == c {
			return true
		}
	}
	return false
}

// all reports whether every byte of s is of a class.
func all(s string, class uint8) bool {
	for i := 0; i < len(s); i++ {
		if classes[s[i]]&class == 0 {
			return false
		}
	}
	return true
}
