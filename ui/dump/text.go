package dump

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"unicode/utf8"

	"mitm-appliance/flow"
)

// size is a number of bytes in at most five characters (FMT-size).
func size(n int64) string {
	if n < 1024 {
		return strconv.FormatInt(n, 10) + "b"
	}
	f := float64(n)
	for _, unit := range []string{"k", "m", "g", "t"} {
		f /= 1024
		if f < 99.95 {
			return fmt.Sprintf("%.1f%s", f, unit)
		}
		if f < 1024 || unit == "t" {
			return fmt.Sprintf("%.0f%s", f, unit)
		}
	}
	return ""
}

const noAddress = "<no address>"

// endpoint formats an address of a socket (FMT-addr).
func endpoint(ap netip.AddrPort) string {
	if !ap.IsValid() {
		return noAddress
	}
	ip := ap.Addr().Unmap()
	if ip.IsUnspecified() {
		return "*:" + strconv.Itoa(int(ap.Port()))
	}
	return netip.AddrPortFrom(ip, ap.Port()).String()
}

// serverName is what the client wanted to reach, or what answered.
func serverName(s *flow.Server) string {
	switch {
	case s == nil:
		return noAddress
	case !s.Address.IsZero():
		return s.Address.String()
	}
	return endpoint(s.Peer)
}

// origin says in brackets how the client's traffic came to us: the feed, the process, the WireGuard
// peer, the device. It is "" for clients of listeners.
func origin(c *flow.Client) string {
	var words []string
	if c.Feed != "" {
		words = append(words, c.Feed)
	}
	if p := c.Process; p != nil {
		words = append(words, p.Name+"/"+strconv.Itoa(p.PID))
	}
	if c.Tunnel != "" {
		words = append(words, c.Tunnel)
	}
	if c.Device != "" {
		words = append(words, c.Device)
	}
	if len(words) == 0 {
		return ""
	}
	return "[" + strings.Join(words, " ") + "]"
}

// cut shortens text to n characters and says so.
func cut(s string, n int) string {
	if len(s) <= n || utf8.RuneCountInString(s) <= n {
		return s
	}
	for i := range s {
		if n == 0 {
			return s[:i] + "…"
		}
		n--
	}
	return s
}

// looksBinary is mitmproxy's guess from the first bytes (FMT-mostlybin).
func looksBinary(b []byte) bool {
	const look = 100
	if len(b) > look {
		n := look
		for n < len(b) && n < look+3 && !utf8.RuneStart(b[n]) {
			n++
		}
		b = b[:n]
	}
	if len(b) == 0 {
		return false
	}
	printable, text := 0, 0
	for _, c := range b {
		switch {
		case c >= ' ' && c < 0x7f || c >= '\t' && c <= '\r':
			printable++
			text++
		case c >= utf8.RuneSelf:
			text++
		}
	}
	if printable*10 > len(b)*7 {
		return false
	}
	return text*100 <= len(b)*95 || !utf8.Valid(b)
}

// appendHex appends a hex dump, every line behind indent.
func appendHex(b []byte, data []byte, indent string) []byte {
	for at := 0; at < len(data); at += 16 {
		line := data[at:min(at+16, len(data))]
		b = append(b, indent...)
		b = fmt.Appendf(b, "%010x ", at)
		for i := range 16 {
			if i < len(line) {
				b = append(b, ' ', hexDigits[line[i]>>4], hexDigits[line[i]&15])
			} else {
				b = append(b, "   "...)
			}
		}
		b = append(b, "  "...)
		for _, c := range line {
			if c < ' ' || c >= 0x7f {
				c = '.'
			}
			b = append(b, c)
		}
		b = append(b, '\n')
	}
	return b
}
