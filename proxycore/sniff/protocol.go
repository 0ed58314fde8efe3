package sniff

// Protocol is what a conversation speaks, as far as its first bytes tell.
type Protocol uint8

// The protocols. The zero value is Unknown: relay the bytes as they are.
const (
	// Unknown is none of the protocols below; more bytes would not help.
	Unknown Protocol = iota
	// NeedMore means that the bytes so far are the beginning of several
	// possibilities. Ask again with more of them, or with Hints.Final.
	NeedMore

	TLS
	DTLS
	QUIC
	HTTP1
	HTTP2 // the connection preface of RFC 9113, section 3.4
	HTTP3 // only ever known by ALPN
	DNS

	// ProxyHeader is the PROXY protocol, version 1 or 2, in front of another one.
	ProxyHeader
	SOCKS4
	SOCKS5

	// The rest is relayed as raw bytes; the name is for people.
	SSH
	SMTP
	FTP
	POP3
	IMAP
	RTSP
	SIP
	MySQL
	PostgreSQL
	Redis
	MQTT
	AMQP
	RDP
	VNC
	Telnet
	BitTorrent
	STUN
	WireGuard
)

// String returns the protocol's name as the field writes it in lower case, for
// example "tls", "http/1.1" or "postgresql"; Unknown is "unknown".
func (p Protocol) String() string {
	names := [...]string{
		Unknown: "unknown", NeedMore: "need more", TLS: "tls", DTLS: "dtls", QUIC: "quic",
		HTTP1: "http/1.1", HTTP2: "h2", HTTP3: "h3", DNS: "dns",
		ProxyHeader: "proxy", SOCKS4: "socks4", SOCKS5: "socks5",
		SSH: "ssh", SMTP: "smtp", FTP: "ftp", POP3: "pop3", IMAP: "imap", RTSP: "rtsp", SIP: "sip",
		MySQL: "mysql", PostgreSQL: "postgresql", Redis: "redis", MQTT: "mqtt", AMQP: "amqp",
		RDP: "rdp", VNC: "vnc", Telnet: "telnet", BitTorrent: "bittorrent", STUN: "stun", WireGuard: "wireguard",
	}
	if int(p) >= len(names) {
		return "unknown"
	}
	return names[p]
}

// Hints is what the caller knows besides the client's bytes. The zero value
// means: nothing.
type Hints struct {
	Port   uint16 // destination port; 0 is unknown
	Server []byte // bytes that the server sent before the client said enough
	ALPN   string // protocol agreed on with the client in the enclosing TLS or QUIC; "" is none

	// Final says that no more bytes will come in time, so NeedMore is no
	// answer: what is likely is taken, and Unknown otherwise.
	Final bool
}

// TCP says what the first bytes of a TCP conversation (or of the stream inside
// TLS) speak. It returns NeedMore only while fewer than MaxPeek client bytes are there
// and Final is unset. It reads its arguments and keeps nothing of them.
func TCP(client []byte, h Hints) Protocol {
	if p := byALPN(h.ALPN); p != Unknown {
		return p
	}
	if len(h.Server) > 0 {
		if p := Banner(h.Server, h.Port); p != Unknown && p != HTTP1 {
			return p
		}
	}
	p := firstMatch(client, h)
	if p == NeedMore && len(h.Server) > 0 && !couldBeTLS(client) {
		return Unknown // the server spoke first (NL-11, NL-23)
	}
	if p == NeedMore && (h.Final || len(client) >= MaxPeek) {
		return likely(client)
	}
	if p == HTTP1 && len(h.Server) > 0 {
		return Unknown
	}
	return p
}

// firstMatch asks every detector in turn. A certain answer wins; otherwise one
// detector that wants more bytes is enough to wait.
func firstMatch(client []byte, h Hints) Protocol {
	if len(client) == 0 {
		return NeedMore
	}
	answer := Unknown
	for _, detect := range [...]func([]byte, Hints) Protocol{
		tlsRecord, http2Preface, dnsOverTCP, proxyHeader, signature, socks, startup, requestLine,
	} {
		switch p := detect(client, h); p {
		case Unknown:
		case NeedMore:
			answer = NeedMore
		default:
			return p
		}
	}
	return answer
}

// likely decides about bytes that were too few and will stay so.
func likely(client []byte) Protocol {
	switch {
	case len(client) >= 2 && couldBeTLS(client):
		return TLS
	case hasKnownMethod(client):
		return HTTP1
	}
	return Unknown
}

// byALPN maps the registered ALPN names (IANA TLS ALPN protocol ids) whose
// protocol is known here. Any other name says nothing (NL-08).
func byALPN(name string) Protocol {
	switch name {
	case "h2":
		return HTTP2
	case "http/1.1", "http/1.0", "http/0.9":
		return HTTP1
	case "h3":
		return HTTP3
	case "dot", "doq":
		return DNS
	case "imap":
		return IMAP
	case "pop3":
		return POP3
	case "ftp":
		return FTP
	case "mqtt":
		return MQTT
	case "postgresql":
		return PostgreSQL
	case "sip/2":
		return SIP
	}
	return Unknown
}

// UDP says what a UDP conversation speaks, judged by its first datagram. It never returns
// NeedMore: a datagram is complete. QUIC is only the likely family (NL-06);
// an [InitialCollector] tells whether a handshake really begins here.
func UDP(datagram []byte, h Hints) Protocol {
	switch {
	case len(datagram) == 0:
		return Unknown
	case isDTLS(datagram):
		return DTLS
	case isSTUN(datagram):
		return STUN
	case isWireGuard(datagram):
		return WireGuard
	case isQUIC(datagram, h.Port):
		return QUIC
	case isDNSPort(h.Port) && plausibleDNS(datagram):
		return DNS
	}
	return Unknown
}
