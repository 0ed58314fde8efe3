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
	add := func(class uint8, set string) {
		for i := 0; i < len(set); i++ {
			t[set[i]] |= class
		}
	}
	for c := 0x21; c < 256; c++ {
		if c != 0x7f {
			t[c] = classValue | classTarget | classHost
		}
	}
	add(classValue, "\t ")
	for _, c := range []byte("/\\?#@<>\"{}^`|") {
		t[c] &^= classHost
	}
	const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
	add(classToken, letters+"0123456789!#$%&'*+-.^_`|~")
	add(classHex, "0123456789abcdefABCDEF")
	return t
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
