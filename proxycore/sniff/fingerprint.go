package sniff

import (
	"crypto/md5" // JA3 is defined with MD5
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// JA3 returns the JA3 string: version, cipher suites, extensions, groups and
// point formats in the order sent, without GREASE.
func (h *ClientHello) JA3() string {
	formats := make([]uint16, len(h.PointFormats))
	for i, f := range h.PointFormats {
		formats[i] = uint16(f)
	}
	parts := []string{strconv.Itoa(int(h.Version))}
	for _, list := range [][]uint16{h.CipherSuites, h.extensionTypes(), h.Groups, formats} {
		parts = append(parts, joinDecimal(withoutGREASE(list), '-'))
	}
	return strings.Join(parts, ",")
}

// JA3Hash returns the MD5 of JA3 in lower-case hex.
func (h *ClientHello) JA3Hash() string {
	sum := md5.Sum([]byte(h.JA3())) // JA3 is defined with MD5
	return hex.EncodeToString(sum[:])
}

// JA4 returns the JA4 fingerprint (FoxIO, "JA4: TLS Client Fingerprinting"), for
// example "t13d1516h2_8daaf6152771_e5627efa2ab1".
func (h *ClientHello) JA4() string {
	ciphers := withoutGREASE(h.CipherSuites)
	extensions := withoutGREASE(h.extensionTypes())
	sni := byte('i')
	if slices.Contains(extensions, extServerName) {
		sni = 'd'
	}
	head := fmt.Sprintf("%c%s%c%02d%02d%s", h.ja4Transport(), h.ja4Version(), sni,
		min(len(ciphers), 99), min(len(extensions), 99), h.ja4ALPN())

	slices.Sort(ciphers)
	slices.Sort(extensions)
	extensions = slices.DeleteFunc(extensions, func(t uint16) bool { return t == extServerName || t == extALPN })
	tail := joinHex(extensions, ',')
	if algorithms := withoutGREASE(h.SignatureAlgorithms); tail != "" && len(algorithms) > 0 {
		tail += "_" + joinHex(algorithms, ',')
	}
	return head + "_" + ja4Hash(joinHex(ciphers, ',')) + "_" + ja4Hash(tail)
}

func (h *ClientHello) ja4Transport() byte {
	switch h.Protocol {
	case QUIC:
		return 'q'
	case DTLS:
		return 'd'
	}
	return 't'
}

func (h *ClientHello) ja4Version() string {
	switch h.MaxVersion() {
	case 0x0304:
		return "13"
	case 0x0303:
		return "12"
	case 0x0302:
		return "11"
	case 0x0301:
		return "10"
	case 0x0300:
		return "s3"
	case 0x0002:
		return "s2"
	case 0xfeff:
		return "d1"
	case 0xfefd:
		return "d2"
	case 0xfefc:
		return "d3"
	}
	return "00"
}

// ja4ALPN returns the first and last character of the first ALPN value, or of
// its hex form when either is not alphanumeric.
func (h *ClientHello) ja4ALPN() string {
	if len(h.ALPN) == 0 {
		return "00"
	}
	name := h.ALPN[0]
	if !isAlphanumeric(name[0]) || !isAlphanumeric(name[len(name)-1]) {
		name = hex.EncodeToString([]byte(name))
	}
	return string([]byte{name[0], name[len(name)-1]})
}

func isAlphanumeric(c byte) bool { return isLetter(c) || c >= '0' && c <= '9' }

func ja4Hash(s string) string {
	if s == "" {
		return "000000000000"
	}
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:6])
}

func (h *ClientHello) extensionTypes() []uint16 {
	types := make([]uint16, len(h.Extensions))
	for i, e := range h.Extensions {
		types[i] = e.Type
	}
	return types
}

// withoutGREASE returns a new list, so that it may be sorted.
func withoutGREASE(list []uint16) []uint16 {
	return slices.DeleteFunc(slices.Clone(list), IsGREASE)
}

// joinDecimal and joinHex write a list of numbers, the latter with four digits each. Every intercepted
// connection calls them, so they do without fmt.
func joinDecimal(list []uint16, separator byte) string {
	b := make([]byte, 0, 6*len(list))
	for i, v := range list {
		if i > 0 {
			b = append(b, separator)
		}
		b = strconv.AppendUint(b, uint64(v), 10)
	}
	return string(b)
}

func joinHex(list []uint16, separator byte) string {
	const digits = "0123456789abcdef"
	b := make([]byte, 0, 5*len(list))
	for i, v := range list {
		if i > 0 {
			b = append(b, separator)
		}
		b = append(b, digits[v>>12], digits[v>>8&15], digits[v>>4&15], digits[v&15])
	}
	return string(b)
}
