package sniff

import (
	"crypto/tls"
	"net/netip"
	"slices"
	"strings"
)

const ecdsaP256SHA256 = uint16(tls.ECDSAWithP256AndSHA256)

// IsGREASE reports whether v is one of the reserved values that clients sprinkle
// over their offers (RFC 8701, section 2).
func IsGREASE(v uint16) bool { return v&0x0f0f == 0x0a0a && v>>8 == v&0xff }

// MaxVersion returns the highest protocol version offered: of the
// supported_versions extension if there is one, else the legacy version.
// DTLS versions count downwards (0xFEFD is above 0xFEFF).
func (h *ClientHello) MaxVersion() uint16 {
	best := uint16(0)
	for _, v := range h.SupportedVersions {
		if IsGREASE(v) {
			continue
		}
		if best == 0 || (v > best) != (h.Protocol == DTLS) {
			best = v
		}
	}
	if best == 0 {
		return h.Version
	}
	return best
}

// SupportsECDSA reports whether the client can verify a server that signs its
// handshake with an ECDSA P-256 key, given the highest TLS version that the server
// will agree to (0 is no limit). If not, it needs an RSA certificate.
func (h *ClientHello) SupportsECDSA(serverMax uint16) bool {
	version := h.MaxVersion()
	if h.Protocol == DTLS {
		version = dtlsAsTLS(version)
	}
	if serverMax != 0 {
		version = min(version, serverMax)
	}
	signs := slices.Contains(h.SignatureAlgorithms, ecdsaP256SHA256)
	if version >= tls.VersionTLS13 {
		return signs
	}
	if version == tls.VersionTLS12 && !signs {
		return false
	}
	curve := len(h.Groups) == 0 || slices.Contains(h.Groups, uint16(tls.CurveP256))
	return curve && slices.ContainsFunc(h.CipherSuites, isECDHEECDSA)
}

// dtlsAsTLS maps a DTLS version to the TLS version it is derived from.
func dtlsAsTLS(v uint16) uint16 {
	switch v {
	case 0xfefc:
		return tls.VersionTLS13
	case 0xfefd:
		return tls.VersionTLS12
	}
	return tls.VersionTLS11
}

// isECDHEECDSA reports the ECDHE_ECDSA suites that servers still offer.
func isECDHEECDSA(suite uint16) bool {
	switch suite {
	case 0xc007, 0xc008, 0xc009, 0xc00a, // RC4, 3DES, AES-CBC with SHA-1
		0xc023, 0xc024, 0xc02b, 0xc02c, // AES-CBC with SHA-2, AES-GCM
		0xc0ac, 0xc0ad, 0xc0ae, 0xc0af, // AES-CCM
		0xcca9: // ChaCha20-Poly1305
		return true
	}
	return false
}

// validHost reports whether name is an IP address or a host name of labels
// with letters, digits, hyphens and underscores (MODE-10), trailing dot allowed.
func validHost(name string) bool {
	if _, err := netip.ParseAddr(name); err == nil {
		return !strings.Contains(name, "%")
	}
	name = strings.TrimSuffix(name, ".")
	if name == "" || len(name) > 253 {
		return false
	}
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || len(label) > 63 || strings.ContainsFunc(label, notHostRune) {
			return false
		}
	}
	return true
}

func notHostRune(r rune) bool {
	return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_')
}
