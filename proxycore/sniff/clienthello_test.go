package sniff

import (
	"bytes"
	"crypto/tls"
	"errors"
	"slices"
	"strings"
	"testing"
)

func TestParseTLSOfRealClient(t *testing.T) {
	stream := clientStream(t, &tls.Config{ServerName: "www.example.com", NextProtos: []string{"h2", "http/1.1"}})
	hello, need, err := ParseTLS(stream)
	if err != nil || hello == nil {
		t.Fatalf("ParseTLS = need %d, %v", need, err)
	}
	if hello.SNI != "www.example.com" || !slices.Equal(hello.ALPN, []string{"h2", "http/1.1"}) {
		t.Errorf("SNI %q, ALPN %q", hello.SNI, hello.ALPN)
	}
	if hello.Protocol != TLS || hello.Version != tls.VersionTLS12 || hello.MaxVersion() != tls.VersionTLS13 {
		t.Errorf("protocol %v, version %#x, max %#x", hello.Protocol, hello.Version, hello.MaxVersion())
	}
	if len(hello.SessionID) != 32 || hello.Random == [32]byte{} || !bytes.Equal(hello.CompressionMethods, []byte{0}) {
		t.Errorf("session id %x, random %x, compression %x", hello.SessionID, hello.Random, hello.CompressionMethods)
	}
	if !slices.Contains(hello.CipherSuites, tls.TLS_AES_128_GCM_SHA256) || !slices.Contains(hello.Groups, uint16(tls.X25519)) {
		t.Errorf("cipher suites %x, groups %x", hello.CipherSuites, hello.Groups)
	}
	if len(hello.KeyShares) == 0 || len(hello.KeyShares[0].Data) < 32 || !hello.SupportsECDSA(0) || hello.ECH {
		t.Errorf("key shares %d, ecdsa %v, ech %v", len(hello.KeyShares), hello.SupportsECDSA(0), hello.ECH)
	}
	if !bytes.Equal(hello.Raw, stream[recordHeader:]) || len(hello.Extensions) < 8 {
		t.Errorf("raw has %d bytes of %d, %d extensions", len(hello.Raw), len(stream), len(hello.Extensions))
	}
}

func TestParseTLSByteByByte(t *testing.T) {
	message := clientStream(t, &tls.Config{ServerName: "a.example"})[recordHeader:]
	for _, size := range []int{1, 2, 3, 5, 100, 1000, maxRecord} {
		stream := records(message, size)
		for n, previous := 0, 0; ; n++ {
			hello, need, err := ParseTLS(stream[:n])
			if err != nil {
				t.Fatalf("records of %d, %d bytes: %v", size, n, err)
			}
			if hello != nil {
				if n != len(stream) || hello.SNI != "a.example" || !bytes.Equal(hello.Raw, message) {
					t.Errorf("records of %d: done after %d of %d bytes, SNI %q", size, n, len(stream), hello.SNI)
				}
				break
			}
			if need <= n || need > len(stream) || need < previous {
				t.Fatalf("records of %d, %d of %d bytes: need %d after %d", size, n, len(stream), need, previous)
			}
			previous = need
		}
	}
}

func TestParseTLSRefusesBadInput(t *testing.T) {
	good := testHello{version: 0x0303, ciphers: []uint16{0x1301}}.message()
	change := func(at int, b byte) []byte {
		m := bytes.Clone(good)
		m[at] = b
		return records(m, maxRecord)
	}
	tests := []struct {
		name  string
		bytes []byte
		want  error
	}{
		{"http", []byte("GET / HTTP/1.1\r\n"), ErrMalformed},
		{"server hello", change(0, 2), ErrMalformed},
		{"session id too long", change(38, 33), ErrMalformed},
		{"no cipher suites", change(40, 0), ErrMalformed},
		{"odd cipher suites", change(40, 1), ErrMalformed},
		{"empty record", []byte{22, 3, 1, 0, 0}, ErrMalformed},
		{"record too long", []byte{22, 3, 1, 0x40, 1}, ErrMalformed},
		{"announces too much", []byte{22, 3, 1, 0, 4, 1, 1, 0, 0}, ErrTooLarge},
		{"alert between", append(records(good, 10)[:15], 21, 3, 1, 0, 2, 1, 0), ErrMalformed},
		{"tiny records for ever", records(append([]byte{1, 0, 0xff, 0xf0}, make([]byte, 0xfff0)...), 1), ErrTooLarge},
		{"extensions cut", records(testHello{version: 0x0303, ciphers: []uint16{1}, extensions: []Extension{{Type: 1}}}.message()[:47], 99), nil},
	}
	for _, test := range tests {
		hello, need, err := ParseTLS(test.bytes)
		if !errors.Is(err, test.want) || hello != nil {
			t.Errorf("%s: ParseTLS = %v, %d, %v; want %v", test.name, hello, need, err, test.want)
		}
	}
}

func TestSNIRules(t *testing.T) {
	tests := []struct {
		name       string
		extensions []Extension
		want       string
	}{
		{"one name", []Extension{sniExtension("a.example")}, "a.example"},
		{"underscore and hyphen", []Extension{sniExtension("_a-b.example")}, "_a-b.example"},
		{"address", []Extension{sniExtension("192.0.2.1")}, "192.0.2.1"},
		{"trailing dot", []Extension{sniExtension("a.example.")}, "a.example."},
		{"none", nil, ""},
		{"two names", []Extension{sniExtension("a.example", "b.example")}, ""},
		{"two extensions", []Extension{sniExtension("a.example"), sniExtension("b.example")}, ""},
		{"empty name", []Extension{sniExtension("")}, ""},
		{"control byte", []Extension{sniExtension("a\x00.example")}, ""},
		{"line end", []Extension{sniExtension("a.example\r\nX: y")}, ""},
		{"slash", []Extension{sniExtension("../../etc/passwd")}, ""},
		{"wildcard", []Extension{sniExtension("*.example")}, ""},
		{"zone", []Extension{sniExtension("fe80::1%eth0")}, ""},
		{"empty label", []Extension{sniExtension("a..example")}, ""},
		{"long label", []Extension{sniExtension(strings.Repeat("a", 64) + ".example")}, ""},
		{"long name", []Extension{sniExtension(strings.Repeat("abcdefg.", 32) + "example")}, ""},
		{"bad list", []Extension{{Type: extServerName, Data: []byte{0, 9, 0}}}, ""},
	}
	for _, test := range tests {
		stream := records(testHello{version: 0x0303, ciphers: []uint16{0x1301}, extensions: test.extensions}.message(), maxRecord)
		hello, _, err := ParseTLS(stream)
		if err != nil || hello == nil || hello.SNI != test.want {
			t.Errorf("%s: got %v, %v; want SNI %q", test.name, hello, err, test.want)
		}
	}
}

func TestSupportsECDSA(t *testing.T) {
	const rsaSuite, ecdsaSuite, suite13 = 0xc02f, 0xc02b, 0x1301
	const rsaPSS, ecdsaP256, grease = 0x0804, 0x0403, 0x2a2a
	algorithms := func(v ...uint16) Extension { return listExtension(extSignatureAlgorithms, v...) }
	groups := func(v ...uint16) Extension { return listExtension(extSupportedGroups, v...) }
	versions := func(v ...uint16) Extension { return listExtension(extSupportedVersions, v...) }
	tests := []struct {
		name       string
		version    uint16
		ciphers    []uint16
		extensions []Extension
		serverMax  uint16
		want       bool
	}{
		{"1.3", 0x0303, []uint16{suite13}, []Extension{algorithms(ecdsaP256), versions(grease, 0x0304)}, 0, true},
		{"1.3 without ecdsa", 0x0303, []uint16{suite13, ecdsaSuite}, []Extension{algorithms(rsaPSS), versions(0x0304)}, 0, false},
		{"1.3 but the server stops at 1.2", 0x0303, []uint16{suite13, rsaSuite}, []Extension{algorithms(ecdsaP256), versions(0x0304, 0x0303)}, 0x0303, false},
		{"1.2", 0x0303, []uint16{ecdsaSuite}, []Extension{algorithms(ecdsaP256), groups(23)}, 0, true},
		{"1.2 rsa suites only", 0x0303, []uint16{rsaSuite}, []Extension{algorithms(ecdsaP256)}, 0, false},
		{"1.2 another curve only", 0x0303, []uint16{ecdsaSuite}, []Extension{algorithms(ecdsaP256), groups(29)}, 0, false},
		{"1.2 no signature algorithms", 0x0303, []uint16{ecdsaSuite}, nil, 0, false},
		{"1.0", 0x0301, []uint16{0xc009}, nil, 0, true},
		{"1.0 rsa", 0x0301, []uint16{0x002f}, nil, 0, false},
	}
	for _, test := range tests {
		message := testHello{version: test.version, ciphers: test.ciphers, extensions: test.extensions}.message()
		hello, _, err := ParseTLS(records(message, maxRecord))
		if err != nil {
			t.Fatalf("%s: %v", test.name, err)
		}
		if got := hello.SupportsECDSA(test.serverMax); got != test.want {
			t.Errorf("%s: SupportsECDSA(%#x) = %v, want %v", test.name, test.serverMax, got, test.want)
		}
	}
}

func TestAnswer(t *testing.T) {
	tests := []struct {
		bytes string
		want  ServerAnswer
		alert uint8
	}{
		{"", AnswerNeedMore, 0},
		{"\x16", AnswerNeedMore, 0},
		{"\x16\x03\x03\x00\x7a", AnswerTLS, 0},
		{"\x15\x03\x01\x00\x02\x02", AnswerNeedMore, 0},
		{"\x15\x03\x01\x00\x02\x02\x46", AnswerAlert, 70},
		{"HTTP/1.1 400 Bad Request\r\n", AnswerNotTLS, 0},
		{"220 mail\r\n", AnswerNotTLS, 0},
		{"\x15\x02", AnswerNotTLS, 0},
	}
	for _, test := range tests {
		if got, alert := Answer([]byte(test.bytes)); got != test.want || alert != test.alert {
			t.Errorf("Answer(%q) = %d, %d; want %d, %d", test.bytes, got, alert, test.want, test.alert)
		}
	}
}

func FuzzParseTLS(f *testing.F) {
	good := testHello{version: 0x0303, ciphers: []uint16{0x1301, 0x2a2a}, extensions: []Extension{
		sniExtension("a.example"), alpnExtension("h2"), listExtension(extSupportedVersions, 0x0304),
		listExtension(extSupportedGroups, 29), listExtension(extSignatureAlgorithms, 0x0403),
	}}.message()
	f.Add(records(good, maxRecord))
	f.Add(records(good, 7))
	f.Add([]byte("GET / HTTP/1.1\r\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		hello, need, err := ParseTLS(b)
		switch {
		case hello != nil && (err != nil || need != 0):
			t.Errorf("a hello, need %d and %v", need, err)
		case hello == nil && err == nil && (need <= len(b) || need > MaxClientHello):
			t.Errorf("%d bytes need %d", len(b), need)
		case hello != nil:
			_ = hello.JA3Hash() + hello.JA4()
			_ = hello.SupportsECDSA(0)
			if hello.SNI != "" && !validHost(hello.SNI) {
				t.Errorf("SNI %q", hello.SNI)
			}
		}
	})
}
