package tlsmitm

import (
	"crypto/tls"
	"fmt"
	"strings"
)

// VersionName returns a protocol version as mitmproxy writes it (FMT-conn): TLSv1, TLSv1.1, TLSv1.2,
// TLSv1.3; anything else in hex.
func VersionName(v uint16) string {
	switch v {
	case tls.VersionTLS10:
		return "TLSv1"
	case tls.VersionTLS11:
		return "TLSv1.1"
	case tls.VersionTLS12:
		return "TLSv1.2"
	case tls.VersionTLS13:
		return "TLSv1.3"
	case 0x0300:
		return "SSLv3"
	}
	return fmt.Sprintf("0x%04x", v)
}

// CipherName returns a cipher suite as OpenSSL writes it (openssl-ciphers(1)), which is what flows
// carry: TLS_AES_128_GCM_SHA256, ECDHE-RSA-AES128-GCM-SHA256. Suites without a name there are in hex.
func CipherName(id uint16) string {
	if name := opensslName(id); name != "" {
		return name
	}
	return fmt.Sprintf("0x%04x", id)
}

func cipherNames(ids []uint16) []string {
	names := make([]string, len(ids))
	for i, id := range ids {
		names[i] = CipherName(id)
	}
	return names
}

// opensslName covers what clients still offer; the numbers are IANA's. "" is unknown.
func opensslName(id uint16) string {
	for _, s := range [...]struct {
		id   uint16
		name string
	}{
		{0x1301, "TLS_AES_128_GCM_SHA256"},
		{0x1302, "TLS_AES_256_GCM_SHA384"},
		{0x1303, "TLS_CHACHA20_POLY1305_SHA256"},
		{0x1304, "TLS_AES_128_CCM_SHA256"},
		{0x1305, "TLS_AES_128_CCM_8_SHA256"},
		{0x00ff, "TLS_EMPTY_RENEGOTIATION_INFO_SCSV"},
		{0x5600, "TLS_FALLBACK_SCSV"},
		{0xc02b, "ECDHE-ECDSA-AES128-GCM-SHA256"},
		{0xc02c, "ECDHE-ECDSA-AES256-GCM-SHA384"},
		{0xc02f, "ECDHE-RSA-AES128-GCM-SHA256"},
		{0xc030, "ECDHE-RSA-AES256-GCM-SHA384"},
		{0xcca8, "ECDHE-RSA-CHACHA20-POLY1305"},
		{0xcca9, "ECDHE-ECDSA-CHACHA20-POLY1305"},
		{0xccaa, "DHE-RSA-CHACHA20-POLY1305"},
		{0xc009, "ECDHE-ECDSA-AES128-SHA"},
		{0xc00a, "ECDHE-ECDSA-AES256-SHA"},
		{0xc013, "ECDHE-RSA-AES128-SHA"},
		{0xc014, "ECDHE-RSA-AES256-SHA"},
		{0xc023, "ECDHE-ECDSA-AES128-SHA256"},
		{0xc024, "ECDHE-ECDSA-AES256-SHA384"},
		{0xc027, "ECDHE-RSA-AES128-SHA256"},
		{0xc028, "ECDHE-RSA-AES256-SHA384"},
		{0xc008, "ECDHE-ECDSA-DES-CBC3-SHA"},
		{0xc012, "ECDHE-RSA-DES-CBC3-SHA"},
		{0xc007, "ECDHE-ECDSA-RC4-SHA"},
		{0xc011, "ECDHE-RSA-RC4-SHA"},
		{0x009c, "AES128-GCM-SHA256"},
		{0x009d, "AES256-GCM-SHA384"},
		{0x003c, "AES128-SHA256"},
		{0x003d, "AES256-SHA256"},
		{0x002f, "AES128-SHA"},
		{0x0035, "AES256-SHA"},
		{0x000a, "DES-CBC3-SHA"},
		{0x0004, "RC4-MD5"},
		{0x0005, "RC4-SHA"},
		{0x009e, "DHE-RSA-AES128-GCM-SHA256"},
		{0x009f, "DHE-RSA-AES256-GCM-SHA384"},
		{0x0067, "DHE-RSA-AES128-SHA256"},
		{0x006b, "DHE-RSA-AES256-SHA256"},
		{0x0033, "DHE-RSA-AES128-SHA"},
		{0x0039, "DHE-RSA-AES256-SHA"},
		{0x0016, "DHE-RSA-DES-CBC3-SHA"},
	} {
		if s.id == id {
			return s.name
		}
	}
	return ""
}

// defaultCiphers are the suites of mitmproxy's default list (TLS-18) that Go has: all but DHE-RSA-*,
// ECDHE-*-AES256-SHA384 and AES256-SHA256. Go orders them by itself, the best first, which takes
// the place of TLS-21.
func defaultCiphers() []uint16 {
	return []uint16{
		0xc02b, 0xc02f, 0xc02c, 0xc030, 0xcca9, 0xcca8, 0xc023, 0xc027, 0xc009, 0xc013, 0xc00a, 0xc014,
		0x009c, 0x009d, 0x003c, 0x002f, 0x0035, 0x000a,
	}
}

// tls13Ciphers cannot be configured, neither here nor in OpenSSL's list (TLS-17).
func tls13Ciphers() []uint16 { return []uint16{0x1301, 0x1302, 0x1303} }

// available finds the suite below TLS 1.3 that Go implements under an OpenSSL or IANA name.
func available(name string) (id uint16, ok bool) {
	for _, list := range [][]*tls.CipherSuite{tls.CipherSuites(), tls.InsecureCipherSuites()} {
		for _, s := range list {
			below13 := s.SupportedVersions[0] < tls.VersionTLS13
			if below13 && (strings.EqualFold(name, opensslName(s.ID)) || strings.EqualFold(name, s.Name)) {
				return s.ID, true
			}
		}
	}
	return 0, false
}

// parseCiphers reads an OpenSSL cipher list (TLS-17). Suites that OpenSSL has and Go has not are passed
// over as OpenSSL passes over what it was built without; an unknown name is an error, and so is a
// list of which nothing is left.
func parseCiphers(text string) ([]uint16, error) {
	var list []uint16
	banned := map[uint16]bool{}
	for _, word := range strings.FieldsFunc(text, func(r rune) bool { return strings.ContainsRune(": ,", r) }) {
		name := strings.TrimLeft(word, "!-+")
		ids, err := parseCipher(name)
		ban := word[0] == '!' || word[0] == '-'
		switch {
		case ban: // OpenSSL does not mind an unknown one either
			for _, id := range ids {
				banned[id] = true
			}
		case err != nil:
			return nil, err
		default:
			list = append(list, ids...)
		}
	}
	kept := list[:0]
	for _, id := range list {
		if !banned[id] {
			kept = append(kept, id)
			banned[id] = true // once is enough
		}
	}
	if len(kept) == 0 {
		return nil, fmt.Errorf("none of %q is available (DHE, CCM, Camellia and PSK suites are not)", text)
	}
	return kept, nil
}

// parseCipher reads one word of a cipher list.
func parseCipher(name string) ([]uint16, error) {
	switch {
	case strings.HasPrefix(name, "@"): // @SECLEVEL, @STRENGTH: OpenSSL's own rules
		return nil, nil
	case name == "DEFAULT" || name == "ALL" || name == "HIGH":
		return defaultCiphers(), nil
	case strings.HasPrefix(name, "TLS_AES_") || strings.HasPrefix(name, "TLS_CHACHA20_"):
		return nil, fmt.Errorf("%s belongs to TLS 1.3, whose cipher suites cannot be configured", name)
	}
	if id, ok := available(name); ok {
		return []uint16{id}, nil
	}
	if onlyInOpenSSL(name) {
		return nil, nil
	}
	return nil, fmt.Errorf("no cipher suite is called %q (names are OpenSSL's: ECDHE-RSA-AES128-GCM-SHA256)", name)
}

// onlyInOpenSSL reports whether a name looks like one of OpenSSL's suites or groups of suites that Go's TLS lacks.
func onlyInOpenSSL(name string) bool {
	for _, prefix := range []string{"DHE-", "EDH-", "ADH-", "AECDH-", "DH-", "PSK-", "RSA-PSK-", "ECDHE-PSK-", "SRP-", "kRSA", "kE", "kDH", "aRSA", "aECDSA", "aDSS"} {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	for _, part := range []string{"CCM", "CAMELLIA", "ARIA", "SEED", "IDEA", "NULL"} {
		if strings.Contains(name, part) {
			return true
		}
	}
	switch name {
	case "AES256-SHA256", "ECDHE-RSA-AES256-SHA384", "ECDHE-ECDSA-AES256-SHA384",
		"MEDIUM", "LOW", "EXPORT", "EXP", "MD5", "RC4", "3DES", "DES", "DSS", "SHA1", "ECDHE", "EECDH", "COMPLEMENTOFDEFAULT":
		return true
	}
	return false
}

// curve is a key exchange group under its names: OpenSSL's, its aliases, and Go's.
type curve struct {
	id    tls.CurveID
	names []string
}

func curves() []curve {
	return []curve{
		{tls.X25519, []string{"X25519"}},
		{tls.CurveP256, []string{"prime256v1", "secp256r1", "P-256"}},
		{tls.CurveP384, []string{"secp384r1", "P-384"}},
		{tls.CurveP521, []string{"secp521r1", "P-521"}},
		{tls.X25519MLKEM768, []string{"X25519MLKEM768"}},
		{tls.SecP256r1MLKEM768, []string{"SecP256r1MLKEM768"}},
		{tls.SecP384r1MLKEM1024, []string{"SecP384r1MLKEM1024"}},
	}
}

func parseCurve(name string) (tls.CurveID, error) {
	var valid []string
	for _, c := range curves() {
		for _, n := range c.names {
			if strings.EqualFold(n, name) {
				return c.id, nil
			}
		}
		valid = append(valid, c.names[0])
	}
	return 0, fmt.Errorf("no curve is called %q, valid are: %s", name, strings.Join(valid, ", "))
}

// versionBound reads an option's TLS version; 0 is no bound. SSL 3.0 cannot be spoken, so as a lower
// bound it means the same as none.
func versionBound(name string) uint16 {
	switch name {
	case "TLS1":
		return tls.VersionTLS10
	case "TLS1_1":
		return tls.VersionTLS11
	case "TLS1_2":
		return tls.VersionTLS12
	case "TLS1_3":
		return tls.VersionTLS13
	}
	return 0
}
