package flowfile

import (
	"encoding/base64"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"mitm-appliance/flow"
)

// client writes FMT-client. A flow without a client gets an empty one: the format needs it.
func (e *encoder) client(c *flow.Client) {
	if c == nil {
		c = &flow.Client{}
	}
	m := e.open('}')
	e.endpoint(c.Peer)
	e.key("peername")
	e.endpoint(c.Local)
	e.key("sockname")
	e.connection(&c.Connection, c.ID)
	e.time(c.Start)
	e.key("timestamp_start")
	e.connectionEnd(&c.Connection)
	if len(c.Leaf) == 0 {
		e.null()
	} else {
		e.certificate(c.Leaf)
	}
	e.key("mitmcert")
	mode, _ := proxyMode(c.Mode)
	e.text(mode)
	e.key("proxy_mode")
	e.close(m)
}

// server writes FMT-server. No server at all is an empty one with the flow's own ID.
func (e *encoder) server(s *flow.Server, flowID flow.ID) {
	if s == nil {
		s = &flow.Server{Connection: flow.Connection{ID: flowID}}
	}
	m := e.open('}')
	e.optEndpoint(s.Peer)
	e.key("peername")
	e.optEndpoint(s.Local)
	e.key("sockname")
	e.connection(&s.Connection, s.ID)
	e.optTime(s.Start)
	e.key("timestamp_start")
	e.connectionEnd(&s.Connection)
	if s.Address.IsZero() {
		e.null()
	} else {
		e.address(s.Address)
	}
	e.key("address")
	e.optTime(s.TCPSetup)
	e.key("timestamp_tcp_setup")
	if via, ok := parseVia(s.Via); ok {
		l := e.open(']')
		e.address(via.address)
		e.scalar(';', via.scheme)
		e.close(l)
	} else {
		e.null()
	}
	e.key("via")
	e.close(m)
}

// connection writes the keys between sockname and timestamp_start.
func (e *encoder) connection(c *flow.Connection, id flow.ID) {
	t := c.TLS
	if t == nil {
		t = &flow.TLS{}
	}
	e.scalar(';', id.String())
	e.key("id")
	if c.Transport == "udp" {
		e.scalar(';', "udp")
	} else {
		e.scalar(';', "tcp")
	}
	e.key("transport_protocol")
	e.optText(c.Error)
	e.key("error")
	e.bool(c.TLS != nil)
	e.key("tls")
	certs := e.open(']')
	for _, der := range slices.Backward(t.Certificates) {
		if isCertificate(der) {
			e.certificate(der)
		}
	}
	e.close(certs)
	e.key("certificate_list")
	if t.ALPN == "" && t.Established.IsZero() {
		e.null()
	} else {
		e.blob(t.ALPN) // empty after a handshake without agreement, as mitmproxy has it
	}
	e.key("alpn")
	e.strings(t.ALPNOffers, (*encoder).blob)
	e.key("alpn_offers")
	e.optText(t.Cipher)
	e.key("cipher")
	e.strings(t.Ciphers, (*encoder).text)
	e.key("cipher_list")
	if slices.Contains(tlsVersions, t.Version) {
		e.scalar(';', t.Version)
	} else {
		e.null()
	}
	e.key("tls_version")
	e.optText(t.SNI)
	e.key("sni")
}

func (e *encoder) connectionEnd(c *flow.Connection) {
	e.optTime(c.End)
	e.key("timestamp_end")
	if c.TLS == nil {
		e.null()
	} else {
		e.optTime(c.TLS.Established)
	}
	e.key("timestamp_tls_setup")
}

func (e *encoder) strings(list []string, write func(*encoder, string)) {
	m := e.open(']')
	for _, s := range slices.Backward(list) {
		write(e, s)
	}
	e.close(m)
}

// tlsVersions is the closed set of FMT-conn.
var tlsVersions = []string{"SSLv3", "TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3", "DTLSv0.9", "DTLSv1", "DTLSv1.2", "QUICv1"}

// endpoint writes ["", 0] when the endpoint is unknown, as mitmproxy does.
func (e *encoder) endpoint(ap netip.AddrPort) {
	host := ""
	if ap.IsValid() {
		host = ap.Addr().String()
	}
	m := e.open(']')
	e.int(int64(ap.Port()))
	e.scalar(';', host)
	e.close(m)
}

func (e *encoder) optEndpoint(ap netip.AddrPort) {
	if !ap.IsValid() {
		e.null()
		return
	}
	e.endpoint(ap)
}

func (e *encoder) address(a flow.Address) {
	m := e.open(']')
	e.int(int64(a.Port))
	e.text(a.Host)
	e.close(m)
}

const (
	pemBegin = "-----BEGIN CERTIFICATE-----\n"
	pemEnd   = "-----END CERTIFICATE-----\n"
	pemLine  = 48 // bytes that make a line of 64 characters
)

// certificate writes DER as PEM (RFC 7468), straight into the buffer.
func (e *encoder) certificate(der []byte) {
	e.byte(',')
	end := len(e.buf) - e.at
	e.raw(pemEnd)
	for len(der) > 0 {
		n := len(der) % pemLine
		if n == 0 {
			n = pemLine
		}
		line := der[len(der)-n:]
		der = der[:len(der)-n]
		e.byte('\n')
		width := base64.StdEncoding.EncodedLen(n)
		e.room(width)
		e.at -= width
		base64.StdEncoding.Encode(e.buf[e.at:], line)
	}
	e.raw(pemBegin)
	e.length(len(e.buf) - e.at - end)
}

// isCertificate reports whether der is one whole DER sequence. mitmproxy refuses a file with a
// certificate that it cannot parse.
func isCertificate(der []byte) bool {
	if len(der) < 4 || der[0] != 0x30 {
		return false
	}
	n, header := int(der[1]), 2
	if n >= 0x80 {
		digits := n & 0x7f
		if digits < 1 || digits > 3 || len(der) < 2+digits {
			return false
		}
		n, header = 0, 2+digits
		for _, b := range der[2:header] {
			n = n<<8 | int(b)
		}
	}
	return n == len(der)-header
}

// viaSpec is an upstream proxy: FMT-server's via.
type viaSpec struct {
	scheme  string
	address flow.Address
}

// parseVia reads "scheme://host:port". ok is false for what the format has no word for.
func parseVia(s string) (via viaSpec, ok bool) {
	scheme, rest, found := strings.Cut(s, "://")
	if !found || !slices.Contains(specSchemes, scheme) {
		return viaSpec{}, false
	}
	host, port := flow.SplitHostPort(strings.TrimSuffix(rest, "/"))
	if port == 0 {
		port = flow.DefaultPort(scheme)
	}
	return viaSpec{scheme, flow.Address{Host: host, Port: port}}, validHost(host) && port != 0
}

func (v viaSpec) String() string { return v.scheme + "://" + v.address.String() }

// specSchemes are the schemes of mitmproxy's server specifications.
var specSchemes = []string{"http", "https", "http3", "tls", "dtls", "tcp", "udp", "dns", "quic"}

// proxyMode returns the mode as mitmproxy parses it; exact is false when that is not all of it.
// mitmproxy refuses a whole file for one mode that it does not know.
func proxyMode(spec string) (mode string, exact bool) {
	head, listen := spec, ""
	if i := strings.LastIndexByte(spec, '@'); i > 0 {
		head, listen = spec[:i], spec[i:]
	}
	name, data, _ := strings.Cut(head, ":")
	if !validListen(listen) {
		listen = ""
	} else if validMode(name, data) {
		return spec, true
	}
	switch name {
	case "transparent", "socks5", "dns", "wireguard", "local", "tun":
		return name + listen, false
	}
	return "regular" + listen, false
}

func validListen(at string) bool {
	if at == "" {
		return true
	}
	port := at[strings.LastIndexAny(at, ":@")+1:]
	_, err := strconv.ParseUint(port, 10, 16)
	return err == nil
}

func validMode(name, data string) bool {
	switch name {
	case "regular", "transparent", "socks5", "dns":
		return data == ""
	case "wireguard", "tun":
		return isText(data)
	case "local":
		return isPlain(data, "-_,!")
	case "upstream", "reverse":
		if name == "upstream" && !strings.HasPrefix(data, "http://") && !strings.HasPrefix(data, "https://") {
			return false
		}
		_, ok := parseVia(data)
		return ok
	}
	return false
}

func isText(s string) bool { return s == strings.ToValidUTF8(s, "") }

func isPlain(s, also string) bool {
	for _, c := range []byte(s) {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && strings.IndexByte(also, c) < 0 {
			return false
		}
	}
	return true
}

// validHost is on the safe side of what mitmproxy takes for a host.
func validHost(host string) bool {
	if _, err := netip.ParseAddr(host); err == nil {
		return true
	}
	if len(host) > 253 || !isPlain(host, "-.") {
		return false
	}
	for label := range strings.SplitSeq(host, ".") {
		if len(label) == 0 || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
	}
	return true
}
