package sniff

import "bytes"

// Banner names the protocol of a server that speaks first by its first bytes,
// or returns Unknown. Port breaks the tie of "220 " greetings, which SMTP and
// FTP share; 0 is unknown.
func Banner(server []byte, port uint16) Protocol {
	for _, s := range [...]struct {
		prefix string
		is     Protocol
	}{
		{"SSH-", SSH},
		{"+OK", POP3},
		{"* OK", IMAP},
		{"* PREAUTH", IMAP},
		{"RFB 00", VNC},
		{"HTTP/1.", HTTP1},
	} {
		if matchPrefix(server, s.prefix) == matches {
			return s.is
		}
	}
	switch {
	case len(server) >= 3 && server[0] == 0xff && server[1] >= 0xfb && server[1] <= 0xfe:
		return Telnet // IAC WILL, WONT, DO or DONT (RFC 854)
	case isMySQLGreeting(server):
		return MySQL
	case len(server) >= 4 && string(server[:3]) == "220" && (server[3] == ' ' || server[3] == '-'):
		return greeting220(server, port)
	}
	return Unknown
}

// ServerFirst reports the well-known ports of protocols in which the server speaks first, those of
// Banner: their clients say nothing until it did.
func ServerFirst(port uint16) bool {
	switch port {
	case 21, 22, 23, 25, 110, 143, 587, 2525, 3306:
		return true
	}
	return port >= 5900 && port <= 5999 // VNC displays
}

// isMySQLGreeting recognises HandshakeV10 in packet number 0 of MySQL and MariaDB.
func isMySQLGreeting(b []byte) bool {
	if len(b) < 6 || b[2] != 0 || b[3] != 0 || b[4] != 10 {
		return false
	}
	version, _, ended := bytes.Cut(b[5:min(len(b), 5+64)], []byte{0})
	return ended && len(version) > 0 && isPrintable(version) && version[0] >= '0' && version[0] <= '9'
}

func greeting220(b []byte, port uint16) Protocol {
	text := bytes.ToUpper(b[:min(len(b), 512)])
	switch {
	case bytes.Contains(text, []byte("SMTP")):
		return SMTP
	case bytes.Contains(text, []byte("FTP")):
		return FTP
	}
	switch port {
	case 25, 587, 2525:
		return SMTP
	case 21:
		return FTP
	}
	return Unknown
}
