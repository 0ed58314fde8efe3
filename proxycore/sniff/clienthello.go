package sniff

import (
	"errors"
	"fmt"

	"golang.org/x/crypto/cryptobyte"
)

// MaxClientHello limits the bytes, framing included, that a ClientHello may
// take on the wire. Real ones are below 20 KB even with several post-quantum key shares.
const MaxClientHello = 64 << 10

// Errors of the hello parsers, wrapped with detail.
var (
	// ErrMalformed means that the bytes can never become a ClientHello.
	ErrMalformed = errors.New("malformed client hello")
	// ErrTooLarge means that MaxClientHello or a limit on fragments was passed.
	ErrTooLarge = errors.New("client hello too large")
)

// Extension is one TLS extension as it was sent. Data aliases ClientHello.Raw.
type Extension struct {
	Type uint16
	Data []byte
}

// KeyShare is one entry of the key_share extension (RFC 8446, section 4.2.8).
type KeyShare struct {
	Group uint16
	Data  []byte
}

// ClientHello is what a client offers. Numbers are IANA code points in the
// order sent, GREASE values (RFC 8701) included; see [IsGREASE]. Slices alias Raw and
// must not be changed. A field whose extension is absent or malformed is empty:
// judging that is the TLS stack's job.
type ClientHello struct {
	Protocol Protocol // TLS, DTLS or QUIC: where the hello was found

	Version            uint16 // legacy_version, e.g. 0x0303, or 0xFEFD for DTLS 1.2
	Random             [32]byte
	SessionID          []byte
	Cookie             []byte // DTLS only
	CipherSuites       []uint16
	CompressionMethods []byte
	Extensions         []Extension

	SNI                 string // "" unless exactly one valid host_name was sent (TLS-05)
	ALPN                []string
	SupportedVersions   []uint16
	Groups              []uint16
	PointFormats        []byte
	SignatureAlgorithms []uint16
	KeyShares           []KeyShare
	ECH                 bool // an encrypted_client_hello extension is present; SNI is then the outer name

	// Raw is the handshake message with its header (DTLS: a 12-byte header as
	// if it had come in one fragment).
	Raw []byte
}

// Extension types that are looked into (IANA TLS ExtensionType values).
const (
	extServerName          = 0
	extSupportedGroups     = 10
	extPointFormats        = 11
	extSignatureAlgorithms = 13
	extALPN                = 16
	extSupportedVersions   = 43
	extKeyShare            = 51
	extECH                 = 0xfe0d
)

const (
	typeClientHello  = 1
	handshakeHeader  = 4
	dtlsHandshakeHdr = 12
)

// parseHello parses a whole handshake message: header of the given size, then
// the body (RFC 8446, section 4.1.2; RFC 6347, section 4.2.1).
func parseHello(raw []byte, header int, p Protocol) (*ClientHello, error) {
	h := &ClientHello{Protocol: p, Raw: raw}
	s := cryptobyte.String(raw[header:])
	var random, session, cookie, ciphers, compression cryptobyte.String
	if !s.ReadUint16(&h.Version) || !s.ReadBytes((*[]byte)(&random), len(h.Random)) ||
		!s.ReadUint8LengthPrefixed(&session) || len(session) > 32 {
		return nil, fmt.Errorf("%w: version, random or session id cut short", ErrMalformed)
	}
	if p == DTLS && !s.ReadUint8LengthPrefixed(&cookie) {
		return nil, fmt.Errorf("%w: cookie cut short", ErrMalformed)
	}
	if !s.ReadUint16LengthPrefixed(&ciphers) || len(ciphers)%2 != 0 || len(ciphers) == 0 {
		return nil, fmt.Errorf("%w: bad cipher suite list", ErrMalformed)
	}
	if !s.ReadUint8LengthPrefixed(&compression) || len(compression) == 0 {
		return nil, fmt.Errorf("%w: bad compression method list", ErrMalformed)
	}
	copy(h.Random[:], random)
	h.SessionID, h.Cookie, h.CompressionMethods = session, cookie, compression
	h.CipherSuites = uint16s(ciphers)
	if err := h.splitExtensions(s); err != nil {
		return nil, err
	}
	h.readExtensions()
	return h, nil
}

// splitExtensions reads the extension block, which is optional before TLS 1.3.
func (h *ClientHello) splitExtensions(s cryptobyte.String) error {
	if s.Empty() {
		return nil
	}
	var extensions cryptobyte.String
	if !s.ReadUint16LengthPrefixed(&extensions) || !s.Empty() {
		return fmt.Errorf("%w: bad extension block", ErrMalformed)
	}
	for !extensions.Empty() {
		var e Extension
		if !extensions.ReadUint16(&e.Type) || !extensions.ReadUint16LengthPrefixed((*cryptobyte.String)(&e.Data)) {
			return fmt.Errorf("%w: extension cut short", ErrMalformed)
		}
		h.Extensions = append(h.Extensions, e)
	}
	return nil
}

// readExtensions fills the fields that are derived from extensions.
func (h *ClientHello) readExtensions() {
	var names []string
	for _, e := range h.Extensions {
		s := cryptobyte.String(e.Data)
		switch e.Type {
		case extServerName:
			names = append(names, hostNames(s)...)
		case extSupportedGroups:
			h.Groups = uint16List(s)
		case extPointFormats:
			var list cryptobyte.String
			if s.ReadUint8LengthPrefixed(&list) {
				h.PointFormats = list
			}
		case extSignatureAlgorithms:
			h.SignatureAlgorithms = uint16List(s)
		case extALPN:
			h.ALPN = protocolNames(s)
		case extSupportedVersions:
			var list cryptobyte.String
			if s.ReadUint8LengthPrefixed(&list) {
				h.SupportedVersions = uint16s(list)
			}
		case extKeyShare:
			h.KeyShares = keyShares(s)
		case extECH:
			h.ECH = true
		}
	}
	if len(names) == 1 && validHost(names[0]) {
		h.SNI = names[0]
	}
}

// hostNames returns the host_name entries of a server_name extension (RFC 6066, section 3).
func hostNames(s cryptobyte.String) (names []string) {
	var list cryptobyte.String
	if !s.ReadUint16LengthPrefixed(&list) {
		return nil
	}
	for !list.Empty() {
		var kind uint8
		var name cryptobyte.String
		if !list.ReadUint8(&kind) || !list.ReadUint16LengthPrefixed(&name) {
			return nil
		}
		if kind == 0 {
			names = append(names, string(name))
		}
	}
	return names
}

// protocolNames parses an ALPN extension (RFC 7301, section 3.1).
func protocolNames(s cryptobyte.String) (names []string) {
	var list cryptobyte.String
	if !s.ReadUint16LengthPrefixed(&list) {
		return nil
	}
	for !list.Empty() {
		var name cryptobyte.String
		if !list.ReadUint8LengthPrefixed(&name) || len(name) == 0 {
			return nil
		}
		names = append(names, string(name))
	}
	return names
}

func keyShares(s cryptobyte.String) (shares []KeyShare) {
	var list cryptobyte.String
	if !s.ReadUint16LengthPrefixed(&list) {
		return nil
	}
	for !list.Empty() {
		var k KeyShare
		if !list.ReadUint16(&k.Group) || !list.ReadUint16LengthPrefixed((*cryptobyte.String)(&k.Data)) {
			return nil
		}
		shares = append(shares, k)
	}
	return shares
}

// uint16List parses a list of numbers behind a two-byte length.
func uint16List(s cryptobyte.String) []uint16 {
	var list cryptobyte.String
	if !s.ReadUint16LengthPrefixed(&list) {
		return nil
	}
	return uint16s(list)
}

// uint16s parses numbers up to the end; an odd last byte is dropped.
func uint16s(s cryptobyte.String) []uint16 {
	list := make([]uint16, 0, len(s)/2)
	var v uint16
	for s.ReadUint16(&v) {
		list = append(list, v)
	}
	return list
}
