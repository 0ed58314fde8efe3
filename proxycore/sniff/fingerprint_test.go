package sniff

import (
	"testing"
)

func parse(t *testing.T, h testHello) *ClientHello {
	t.Helper()
	hello, _, err := ParseTLS(records(h.message(), maxRecord))
	if err != nil || hello == nil {
		t.Fatalf("ParseTLS: %v", err)
	}
	return hello
}

// The string and its hash are the example in the JA3 README.
func TestJA3(t *testing.T) {
	hello := parse(t, testHello{
		version: 0x0301,
		ciphers: []uint16{0x1a1a, 47, 53, 5, 10, 49161, 49162, 49171, 49172, 50, 56, 19, 4},
		extensions: []Extension{
			{Type: 0x2a2a},
			sniExtension("a.example"), listExtension(extSupportedGroups, 0x3a3a, 23, 24, 25),
			{Type: extPointFormats, Data: []byte{1, 0}},
		},
	})
	if got, want := hello.JA3(), "769,47-53-5-10-49161-49162-49171-49172-50-56-19-4,0-10-11,23-24-25,0"; got != want {
		t.Errorf("JA3 = %s, want %s", got, want)
	}
	if got, want := hello.JA3Hash(), "ada70206e40642a3e4461f35503241d5"; got != want {
		t.Errorf("JA3Hash = %s, want %s", got, want)
	}
}

// The offers and the result are the worked example of the JA4 technical details.
func TestJA4(t *testing.T) {
	extensions := []Extension{
		{Type: 0x9a9a},
		sniExtension("a.example"),
		{Type: 0x0017},
		{Type: 0xff01},
		listExtension(extSupportedGroups, 29),
		{Type: extPointFormats, Data: []byte{1, 0}},
		{Type: 0x0023},
		alpnExtension("h2", "http/1.1"),
		{Type: 0x0005},
		listExtension(extSignatureAlgorithms, 0x0403, 0x0804, 0x0401, 0x0503, 0x0805, 0x0501, 0x0806, 0x0601),
		{Type: 0x0012},
		{Type: extKeyShare},
		{Type: 0x002d},
		listExtension(extSupportedVersions, 0x0a0a, 0x0304, 0x0303),
		{Type: 0x001b},
		{Type: 0x4469},
		{Type: 0xfafa},
		{Type: 0x0015},
	}
	hello := parse(t, testHello{
		version: 0x0303,
		ciphers: []uint16{
			0xdada, 0x1301, 0x1302, 0x1303, 0xc02b, 0xc02f, 0xc02c, 0xc030, 0xcca9, 0xcca8,
			0xc013, 0xc014, 0x009c, 0x009d, 0x002f, 0x0035,
		},
		extensions: extensions,
	})
	if got, want := hello.JA4(), "t13d1516h2_8daaf6152771_e5627efa2ab1"; got != want {
		t.Errorf("JA4 = %s, want %s", got, want)
	}
}

func TestJA4Head(t *testing.T) {
	tests := []struct {
		name  string
		hello testHello
		want  string
	}{
		{"bare tls 1.0", testHello{version: 0x0301, ciphers: []uint16{47}}, "t10i010000"},
		{"alpn of one letter", testHello{version: 0x0303, ciphers: []uint16{47}, extensions: []Extension{alpnExtension("h")}}, "t12i0101hh"},
		{"alpn of odd bytes", testHello{version: 0x0303, ciphers: []uint16{47}, extensions: []Extension{alpnExtension("\xab\xcd")}}, "t12i0101ad"},
		{"alpn half odd", testHello{version: 0x0303, ciphers: []uint16{47}, extensions: []Extension{alpnExtension("0\xab")}}, "t12i01013b"},
		{"100 suites", testHello{version: 0x0303, ciphers: make([]uint16, 100)}, "t12i990000"},
		{"only grease suites", testHello{version: 0x0002, ciphers: []uint16{0x0a0a}}, "ts2i000000"},
	}
	for _, test := range tests {
		if got := parse(t, test.hello).JA4(); got[:10] != test.want {
			t.Errorf("%s: JA4 = %s, want %s...", test.name, got, test.want)
		}
	}
}
