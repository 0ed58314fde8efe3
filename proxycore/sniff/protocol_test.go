package sniff

import (
	"crypto/tls"
	"strings"
	"testing"
)

func TestTCP(t *testing.T) {
	tests := []struct {
		name  string
		bytes string
		hints Hints
		want  Protocol
	}{
		{"nothing yet", "", Hints{}, NeedMore},
		{"nothing and no more time", "", Hints{Final: true}, Unknown},
		{"tls record", "\x16\x03\x01\x02\x00\x01", Hints{}, TLS},
		{"tls 1.3 record version", "\x16\x03\x03", Hints{}, TLS},
		{"tls with an impossible version", "\x16\x03\x04", Hints{}, Unknown},
		{"one byte of tls", "\x16", Hints{}, NeedMore},
		{"two bytes of tls", "\x16\x03", Hints{}, NeedMore},
		{"two bytes of tls and no more time", "\x16\x03", Hints{Final: true}, TLS},
		{"one byte and no more time", "\x16", Hints{Final: true}, Unknown},
		{"sslv2 hello", "\x80\x2e\x01\x03\x01", Hints{}, Unknown},

		{"get", "GET / HTTP/1.1\r\nHost: a\r\n\r\n", Hints{}, HTTP1},
		{"get with bare lf", "GET / HTTP/1.1\nHost: a\n\n", Hints{}, HTTP1},
		{"empty line first", "\r\nGET / HTTP/1.1\r\n", Hints{}, HTTP1},
		{"own method", "BASELINE-CONTROL /x HTTP/1.1\r\n", Hints{}, HTTP1},
		{"connect", "CONNECT a:443 HTTP/1.1\r\n", Hints{}, HTTP1},
		{"absolute form", "GET http://a/ HTTP/1.0\r\n", Hints{}, HTTP1},
		{"space in target", "GET /a b HTTP/1.1\r\n", Hints{}, HTTP1},
		{"slow first byte", "G", Hints{}, NeedMore},
		{"slow method", "GET", Hints{}, NeedMore},
		{"slow target", "GET /some/pa", Hints{}, NeedMore},
		{"slow target, no more time", "GET /some/pa", Hints{Final: true}, HTTP1},
		{"slow word, no more time", "hello", Hints{Final: true}, Unknown},
		{"http/0.9 is relayed", "GET /\r\n", Hints{}, Unknown},
		{"memcached", "get key\r\n", Hints{}, Unknown},
		{"text line", "hello world\n", Hints{}, Unknown},
		{"newline before space", "hello\nbig world", Hints{}, Unknown},
		{"endless word", strings.Repeat("A", 100), Hints{}, Unknown},
		{"endless target of get", "GET /" + strings.Repeat("a", MaxPeek), Hints{}, HTTP1},
		{"endless target of foo", "FOO /" + strings.Repeat("a", MaxPeek), Hints{}, Unknown},
		{"server spoke first", "GET / HTTP/1.1\r\n", Hints{Server: []byte("hi\n")}, Unknown},
		{"server spoke first, client silent", "", Hints{Server: []byte("hi\n")}, Unknown},
		{"server spoke first, then tls", "\x16\x03\x01", Hints{Server: []byte("hi\n")}, TLS},
		{"server banner", "", Hints{Server: []byte("SSH-2.0-x\r\n")}, SSH},
		{"server sent http unasked", "", Hints{Server: []byte("HTTP/1.1 408 x\r\n")}, Unknown},

		{"h2 preface", preface, Hints{}, HTTP2},
		{"part of the preface", preface[:20], Hints{}, NeedMore},
		{"PRI line only", "PRI * HTTP/2.0\r\n\r\nXX", Hints{}, HTTP1},
		{"alpn h2", "", Hints{ALPN: "h2"}, HTTP2},
		{"alpn http/1.1", "\x00\x01", Hints{ALPN: "http/1.1"}, HTTP1},
		{"alpn unknown says nothing", "GET / HTTP/1.1\r\n", Hints{ALPN: "acme-tls/1"}, HTTP1},
		{"alpn dot", "", Hints{ALPN: "dot"}, DNS},

		{"dns query", "\x00\x1d" + dnsQuery, Hints{Port: 53}, DNS},
		{"dns query, only the header", "\x00\x1d" + dnsQuery[:12], Hints{Port: 53}, DNS},
		{"dns length", "\x00\x1d", Hints{Port: 53}, NeedMore},
		{"dns on another port", "\x00\x1d" + dnsQuery, Hints{Port: 1053}, Unknown},
		{"ssh tunnel on port 53", "SSH-2.0-x\r\n", Hints{Port: 53}, SSH},
		{"http on port 53", "GET /ab/cd/ef HTTP/1.1\r\n", Hints{Port: 53}, HTTP1},

		{"zeros", "\x00\x00\x00\x00\x00\x00", Hints{}, Unknown},
	}
	for _, test := range tests {
		if got := TCP([]byte(test.bytes), test.hints); got != test.want {
			t.Errorf("%s: TCP(%.40q) = %v, want %v", test.name, test.bytes, got, test.want)
		}
	}
}

func TestTCPSignatures(t *testing.T) {
	tests := []struct {
		name  string
		bytes string
		want  Protocol
	}{
		{"ssh client", "SSH-2.0-OpenSSH_9.2\r\n", SSH},
		{"two bytes of ssh", "SS", NeedMore},
		{"proxy v1", "PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n", ProxyHeader},
		{"proxy v1 unknown", "PROXY UNKNOWN\r\n", ProxyHeader},
		{"proxy v2", "\r\n\r\n\x00\r\nQUIT\n\x21\x11", ProxyHeader},
		{"half of proxy v2", "\r\n\r\n\x00\r", NeedMore},
		{"socks4", "\x04\x01\x00\x50\x01\x02\x03\x04me\x00", SOCKS4},
		{"socks4a", "\x04\x01\x00\x50\x00\x00\x00\x04me\x00host\x00", SOCKS4},
		{"socks4a without its host", "\x04\x01\x00\x50\x00\x00\x00\x04me\x00", NeedMore},
		{"not socks4", "\x04\x09\x00\x50", Unknown},
		{"socks5", "\x05\x02\x00\x02", SOCKS5},
		{"socks5 cut", "\x05\x02\x00", NeedMore},
		{"not socks5", "\x05\x01\x00\x02\x07", Unknown},
		{"postgres ssl request", "\x00\x00\x00\x08\x04\xd2\x16\x2f", PostgreSQL},
		{"postgres startup", "\x00\x00\x00\x12\x00\x03\x00\x00user\x00me\x00\x00", PostgreSQL},
		{"not postgres", "\x00\x00\x00\x08\x04\xd2\x16\x2e", Unknown},
		{"mqtt", "\x10\x0c\x00\x04MQTT\x04\x02", MQTT},
		{"mqtt 3.1", "\x10\x80\x01\x00\x06MQIsdp\x03", MQTT},
		{"not mqtt", "\x10\x80\x80\x80\x80\x80", Unknown},
		{"redis", "*1\r\n$4\r\nPING\r\n", Redis},
		{"redis cut", "*1\r\n$", NeedMore},
		{"imap line is not redis", "* OK", Unknown},
		{"rdp", "\x03\x00\x00\x13\x0e\xe0\x00\x00\x00\x00\x00\x01\x00\x08\x00\x03\x00\x00\x00", RDP},
		{"bittorrent", "\x13BitTorrent protocol\x00", BitTorrent},
		{"amqp", "AMQP\x00\x00\x09\x01", AMQP},
		{"rtsp", "OPTIONS rtsp://a/ RTSP/1.0\r\n", RTSP},
		{"sip", "REGISTER sip:a SIP/2.0\r\n", SIP},
	}
	for _, test := range tests {
		if got := TCP([]byte(test.bytes), Hints{}); got != test.want {
			t.Errorf("%s: TCP(%.40q) = %v, want %v", test.name, test.bytes, got, test.want)
		}
	}
}

func TestTCPAnswersEarlyPrefixesConsistently(t *testing.T) {
	for _, whole := range []string{
		"GET /index.html HTTP/1.1\r\n", preface, "SSH-2.0-x\r\n", "\r\n\r\n\x00\r\nQUIT\n", "*1\r\n$4\r\nPING\r\n",
		"\x10\x0c\x00\x04MQTT", "\x00\x00\x00\x08\x04\xd2\x16\x2f", "\x05\x02\x00\x02", "\x16\x03\x01\x00",
	} {
		want := TCP([]byte(whole), Hints{})
		for n := range len(whole) {
			if got := TCP([]byte(whole[:n]), Hints{}); got != NeedMore && got != want {
				t.Errorf("TCP(%q) = %v, want need more or %v", whole[:n], got, want)
			}
		}
	}
}

func TestUDP(t *testing.T) {
	initial := sealInitial(t, QUICv1, []byte("12345678"), 0, cryptoFrame(0, []byte("x")), 1200)
	longHeader := "\xc0\xba\xba\xba\xba" + strings.Repeat("\x00", 20)
	unknownVersion := "\xc0\x12\x34\x56\x78" + strings.Repeat("\x00", 20)
	tests := []struct {
		name  string
		bytes string
		port  uint16
		want  Protocol
	}{
		{"empty", "", 53, Unknown},
		{"dns", dnsQuery, 53, DNS},
		{"mdns answer without question", "\x00\x00\x84\x00\x00\x00\x00\x00\x00\x00\x00\x00", 5353, DNS},
		{"dns elsewhere", dnsQuery, 4000, Unknown},
		{"garbage on port 53", "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", 53, Unknown},
		{"dns cut in its question", dnsQuery[:20], 53, Unknown},
		{"dtls 1.0 record", "\x16\xfe\xff\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01x", 4433, DTLS},
		{"dtls 1.2 record", "\x16\xfe\xfd\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01x", 4433, DTLS},
		{"quic initial", string(initial), 9999, QUIC},
		{"quic greased version", longHeader, 9999, QUIC},
		{"quic unknown version elsewhere", unknownVersion, 9999, Unknown},
		{"quic unknown version on 443", unknownVersion, 443, QUIC},
		{"quic short header on 443", "\x40" + strings.Repeat("\x01", 30), 443, QUIC},
		{"too short for quic", "\xc0\x00\x00\x00\x01\x00\x00", 443, Unknown},
		{"google quic", "\xc3Q046" + strings.Repeat("\x00", 20), 9999, QUIC},
		{"stun", "\x00\x01\x00\x00\x21\x12\xa4\x42" + strings.Repeat("\x07", 12), 3478, STUN},
		{"wireguard", "\x01\x00\x00\x00" + strings.Repeat("\xaa", 144), 443, WireGuard},
		{"anything", "hello", 9999, Unknown},
	}
	for _, test := range tests {
		if got := UDP([]byte(test.bytes), Hints{Port: test.port}); got != test.want {
			t.Errorf("%s: UDP(%.30q, %d) = %v, want %v", test.name, test.bytes, test.port, got, test.want)
		}
	}
}

func TestBanner(t *testing.T) {
	tests := []struct {
		bytes string
		port  uint16
		want  Protocol
	}{
		{"SSH-2.0-OpenSSH_9.2p1\r\n", 0, SSH},
		{"220 mail.example ESMTP Postfix\r\n", 0, SMTP},
		{"220 ProFTPD ready\r\n", 0, FTP},
		{"220 welcome\r\n", 25, SMTP},
		{"220-welcome\r\n", 21, FTP},
		{"220 welcome\r\n", 0, Unknown},
		{"+OK ready\r\n", 0, POP3},
		{"* OK ready\r\n", 0, IMAP},
		{"RFB 003.008\n", 0, VNC},
		{"\xff\xfd\x18", 0, Telnet},
		{"\x4a\x00\x00\x00\x0a8.0.36\x00", 0, MySQL},
		{"\x4a\x00\x00\x00\x0a\x00\x00", 0, Unknown},
		{"HTTP/1.1 400 Bad Request\r\n", 0, HTTP1},
		{"", 25, Unknown},
	}
	for _, test := range tests {
		if got := Banner([]byte(test.bytes), test.port); got != test.want {
			t.Errorf("Banner(%q, %d) = %v, want %v", test.bytes, test.port, got, test.want)
		}
	}
}

func TestServerFirst(t *testing.T) {
	for port, want := range map[uint16]bool{0: false, 22: true, 25: true, 80: false, 443: false, 3306: true, 5901: true, 6000: false} {
		if got := ServerFirst(port); got != want {
			t.Errorf("ServerFirst(%d) = %v", port, got)
		}
	}
}

func TestProtocolString(t *testing.T) {
	for p := Unknown; p <= WireGuard; p++ {
		if p.String() == "" || (p != Unknown && p.String() == "unknown") {
			t.Errorf("Protocol(%d) has no name", p)
		}
	}
	if got := Protocol(200).String(); got != "unknown" {
		t.Errorf("Protocol(200) = %q, want unknown", got)
	}
}

func TestRealTLSClientIsTLS(t *testing.T) {
	if got := TCP(clientStream(t, &tls.Config{ServerName: "a.example"}), Hints{}); got != TLS {
		t.Errorf("crypto/tls client is %v, want tls", got)
	}
}

// dnsQuery asks for example.com A.
const dnsQuery = "\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x07example\x03com\x00\x00\x01\x00\x01"

func FuzzTCP(f *testing.F) {
	for _, seed := range []string{"GET / HTTP/1.1\r\n", preface, "SSH-2.0", "\x16\x03\x01", "*1\r\n$4\r\n", "\x04\x01\x00\x50\x01\x02\x03\x04me\x00"} {
		f.Add([]byte(seed), []byte(nil), uint16(0), false)
	}
	f.Add([]byte("\x00\x1d"+dnsQuery), []byte("220 x"), uint16(53), true)
	f.Fuzz(func(t *testing.T, client, server []byte, port uint16, final bool) {
		p := TCP(client, Hints{Port: port, Server: server, Final: final})
		if p == NeedMore && (final || len(client) >= MaxPeek) {
			t.Errorf("TCP(%q, final %v) still needs more", client, final)
		}
	})
}

func FuzzUDP(f *testing.F) {
	f.Add([]byte(dnsQuery), uint16(53))
	f.Add([]byte("\x16\xfe\xff\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01x"), uint16(443))
	f.Fuzz(func(t *testing.T, datagram []byte, port uint16) {
		if p := UDP(datagram, Hints{Port: port}); p == NeedMore {
			t.Errorf("UDP(%q) needs more", datagram)
		}
	})
}
