package proxycore

import (
	"bytes"
	"strings"

	"mitm-appliance/proxycore/sniff"
)

// firstName finds the host name that a client's first message carries: the SNI of a TLS, DTLS or
// QUIC ClientHello, or the Host field of an HTTP/1 request (NL-14). more says that the message is
// incomplete. Malformed messages name nobody (NL-15).
func firstName(proto sniff.Protocol, peeked [][]byte) (name string, more bool) {
	if len(peeked) == 0 {
		return "", true
	}
	switch proto {
	case sniff.TLS:
		hello, need, err := sniff.ParseTLS(peeked[0])
		if hello == nil {
			return "", err == nil && need > len(peeked[0])
		}
		return hello.SNI, false
	case sniff.DTLS:
		var c sniff.DTLSCollector
		return helloName(peeked, c.Add)
	case sniff.QUIC:
		var c sniff.InitialCollector
		return helloName(peeked, c.Add)
	case sniff.HTTP1:
		return hostField(peeked[0])
	}
	return "", false
}

func helloName(peeked [][]byte, add func([]byte) (*sniff.ClientHello, error)) (name string, more bool) {
	for _, datagram := range peeked {
		hello, err := add(datagram)
		if hello != nil {
			return hello.SNI, false
		}
		if err != nil {
			return "", false
		}
	}
	return "", true
}

// hostField looks for the Host line in what has arrived of a request head. It is a glance for
// matching names; http1 parses the head for real.
func hostField(head []byte) (host string, more bool) {
	lines := head
	for {
		line, rest, found := bytes.Cut(lines, []byte("\n"))
		line = bytes.TrimSuffix(line, []byte("\r"))
		switch {
		case !found:
			return "", true
		case len(line) == 0:
			return "", false
		}
		if name, value, ok := strings.Cut(string(line), ":"); ok && strings.EqualFold(name, "host") {
			return strings.TrimSpace(value), false
		}
		lines = rest
	}
}
