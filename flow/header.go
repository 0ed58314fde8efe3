package flow

import "strings"

// Field is one header or trailer line. Both parts are raw bytes kept in a string: case, order,
// duplicates and bytes that are no UTF-8 survive (HTTP-23).
type Field struct {
	Name, Value string
}

// Header is an ordered list of fields. Lookups fold ASCII case (RFC 9110, section 5.1). The methods
// that change it never write to the old fields, so that a snapshot which shares them stays true.
type Header []Field

// Get returns the value of the first field called name, or "".
func (h Header) Get(name string) string {
	v, _ := h.Lookup(name)
	return v
}

// Lookup returns the value of the first field called name and whether there is one.
func (h Header) Lookup(name string) (string, bool) {
	for i := range h {
		if EqualFold(h[i].Name, name) {
			return h[i].Value, true
		}
	}
	return "", false
}

// Has reports whether a field called name exists.
func (h Header) Has(name string) bool {
	_, ok := h.Lookup(name)
	return ok
}

// Values returns the values of all fields called name, in order.
func (h Header) Values(name string) []string {
	var vs []string
	for i := range h {
		if EqualFold(h[i].Name, name) {
			vs = append(vs, h[i].Value)
		}
	}
	return vs
}

// Add appends a field.
func (h *Header) Add(name, value string) {
	old := *h
	*h = append(old[:len(old):len(old)], Field{name, value})
}

// Set makes value the only one of name: the first field of that name keeps its place and spelling,
// further ones go; without one the field is appended.
func (h *Header) Set(name, value string) {
	next := make(Header, 0, len(*h)+1)
	done := false
	for _, f := range *h {
		if !EqualFold(f.Name, name) {
			next = append(next, f)
			continue
		}
		if !done {
			next = append(next, Field{f.Name, value})
			done = true
		}
	}
	if !done {
		next = append(next, Field{name, value})
	}
	*h = next
}

// Del removes all fields called name.
func (h *Header) Del(name string) {
	if !h.Has(name) {
		return
	}
	next := make(Header, 0, len(*h))
	for _, f := range *h {
		if !EqualFold(f.Name, name) {
			next = append(next, f)
		}
	}
	*h = next
}

// Insert puts a field at index i; i is clipped to the list.
func (h *Header) Insert(i int, name, value string) {
	old := *h
	i = max(0, min(i, len(old)))
	next := make(Header, 0, len(old)+1)
	next = append(next, old[:i]...)
	next = append(next, Field{name, value})
	*h = append(next, old[i:]...)
}

// HasToken reports whether one of the comma-separated tokens of the fields called name is token,
// ASCII case folded (RFC 9110, section 5.6.1): Connection: keep-alive, Upgrade.
func (h Header) HasToken(name, token string) bool {
	for i := range h {
		if EqualFold(h[i].Name, name) && listHas(h[i].Value, token) {
			return true
		}
	}
	return false
}

func listHas(list, token string) bool {
	for item := range strings.SplitSeq(list, ",") {
		if EqualFold(strings.Trim(item, " \t"), token) {
			return true
		}
	}
	return false
}

// EqualFold compares field names and tokens as HTTP does: ASCII letters without case, everything
// else byte by byte. (strings.EqualFold would fold the Kelvin sign into a k.)
func EqualFold(a, b string) bool {
	if len(a) != len(b) {
		return false
	}
	for i := 0; i < len(a); i++ {
		x, y := a[i], b[i]
		if x == y {
			continue
		}
		if x|0x20 != y|0x20 || x|0x20 < 'a' || x|0x20 > 'z' {
			return false
		}
	}
	return true
}
