package sniff

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"slices"
	"strings"
	"testing"
	"time"
)

// dtlsRecord wraps handshake fragments into one record.
func dtlsRecord(epoch uint16, fragments ...[]byte) []byte {
	body := bytes.Join(fragments, nil)
	b := []byte{recordHandshake, 0xfe, 0xff}
	b = binary.BigEndian.AppendUint16(b, epoch)
	b = append(b, 0, 0, 0, 0, 0, 0)
	b = binary.BigEndian.AppendUint16(b, uint16(len(body)))
	return append(b, body...)
}

// dtlsFragment cuts body[from:to] out of a hello.
func dtlsFragment(sequence uint16, body []byte, from, to int) []byte {
	head := wholeHeader(uint32(len(body)), sequence)
	head[7], head[8] = byte(from>>8), byte(from)
	head[10], head[11] = byte((to-from)>>8), byte(to-from)
	return append(head, body[from:to]...)
}

func TestDTLSCollector(t *testing.T) {
	body := testHello{version: 0xfefd, dtls: true, ciphers: []uint16{0xc02b}, extensions: []Extension{sniExtension("d.example")}}.message()[4:]
	again := testHello{version: 0xfefd, dtls: true, cookie: "biscuit", ciphers: []uint16{0xc02b}, extensions: []Extension{sniExtension("d.example")}}.message()[4:]
	n := len(body)
	a, b, c := dtlsFragment(0, body, 0, 20), dtlsFragment(0, body, 20, 50), dtlsFragment(0, body, 50, n)
	tests := []struct {
		name      string
		datagrams [][]byte
		done      bool
		err       error
		cookie    string
	}{
		{"whole", [][]byte{dtlsRecord(0, dtlsFragment(0, body, 0, n))}, true, nil, ""},
		{"fragments in order", [][]byte{dtlsRecord(0, a), dtlsRecord(0, b), dtlsRecord(0, c)}, true, nil, ""},
		{"fragments out of order", [][]byte{dtlsRecord(0, c), dtlsRecord(0, a), dtlsRecord(0, a), dtlsRecord(0, b)}, true, nil, ""},
		{"fragments in one record", [][]byte{dtlsRecord(0, a, b, c)}, true, nil, ""},
		{"records in one datagram", [][]byte{slices.Concat(dtlsRecord(0, a), dtlsRecord(0, b), dtlsRecord(0, c))}, true, nil, ""},
		{"encrypted record skipped", [][]byte{dtlsRecord(1, []byte("xyz")), dtlsRecord(0, a, b, c)}, true, nil, ""},
		{"one missing", [][]byte{dtlsRecord(0, a), dtlsRecord(0, c)}, false, nil, ""},
		{"again with a cookie", [][]byte{dtlsRecord(0, a, b, c), dtlsRecord(0, dtlsFragment(1, again, 0, len(again)))}, true, nil, "biscuit"},
		{"cookie after an incomplete hello", [][]byte{dtlsRecord(0, a), dtlsRecord(0, dtlsFragment(1, again, 0, len(again)))}, true, nil, "biscuit"},
		{"garbage", [][]byte{[]byte("hello world, this is not dtls")}, false, ErrMalformed, ""},
		{"garbage between", [][]byte{dtlsRecord(0, a), []byte("garbage"), dtlsRecord(0, b), dtlsRecord(0, c)}, true, nil, ""},
		{"garbage behind", [][]byte{slices.Concat(dtlsRecord(0, a, b, c), []byte("garbage"))}, true, nil, ""},
		{"record cut short", [][]byte{dtlsRecord(0, a)[:30]}, false, ErrMalformed, ""},
		{"server hello", [][]byte{dtlsRecord(0, append([]byte{2}, a[1:]...))}, false, ErrMalformed, ""},
		{"announces too much", [][]byte{dtlsRecord(0, []byte{1, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0})}, false, ErrTooLarge, ""},
		{"fragment beyond its message", [][]byte{dtlsRecord(0, []byte{1, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 1, 7})}, false, ErrMalformed, ""},
		{"empty", [][]byte{{}}, false, nil, ""},
	}
	for _, test := range tests {
		var collector DTLSCollector
		var hello *ClientHello
		var err error
		for _, d := range test.datagrams {
			hello, err = collector.Add(d)
		}
		if (hello != nil) != test.done || !errors.Is(err, test.err) {
			t.Errorf("%s: got hello %v, error %v; want %v, %v", test.name, hello != nil, err, test.done, test.err)
			continue
		}
		if hello != nil && (hello.SNI != "d.example" || hello.Protocol != DTLS || string(hello.Cookie) != test.cookie || hello.JA4()[:4] != "dd2d") {
			t.Errorf("%s: SNI %q, protocol %v, cookie %q, JA4 %s", test.name, hello.SNI, hello.Protocol, hello.Cookie, hello.JA4())
		}
	}
}

// readDTLSHello reads datagrams until the collector has a hello, which must take several.
func readDTLSHello(t *testing.T, server net.PacketConn, collector *DTLSCollector) (*ClientHello, net.Addr) {
	t.Helper()
	for buffer, datagrams := make([]byte, 4096), 1; ; datagrams++ {
		n, from, err := server.ReadFrom(buffer)
		if err != nil {
			t.Fatalf("read datagram %d: %v", datagrams, err)
		}
		if got := UDP(buffer[:n], Hints{}); got != DTLS {
			t.Fatalf("datagram %d is %v", datagrams, got)
		}
		hello, err := collector.Add(buffer[:n])
		if err != nil {
			t.Fatalf("datagram %d: %v", datagrams, err)
		}
		if hello != nil {
			if datagrams < 2 {
				t.Errorf("the hello came in %d datagram", datagrams)
			}
			return hello, from
		}
	}
}

// A real client is answered with a HelloVerifyRequest and comes back with the cookie.
// A small MTU makes it fragment its hello.
func TestRealDTLSClient(t *testing.T) {
	for _, version := range []string{"-dtls1", "-dtls1_2"} {
		t.Run(version, func(t *testing.T) {
			server, err := net.ListenPacket("udp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer server.Close()
			if err := server.SetDeadline(time.Now().Add(60 * time.Second)); err != nil {
				t.Fatal(err)
			}
			startOpenSSL(t, "s_client", version, "-cipher", "ALL:@SECLEVEL=0", "-mtu", "256", "-alpn", strings.Repeat("abcdefgh,", 30)+"x",
				"-servername", "dtls.example", "-connect", server.LocalAddr().String())

			var collector DTLSCollector
			hello, from := readDTLSHello(t, server, &collector)
			if hello.SNI != "dtls.example" || len(hello.ALPN) != 31 || len(hello.Cookie) != 0 {
				t.Errorf("SNI %q, %d ALPN names, cookie %q", hello.SNI, len(hello.ALPN), hello.Cookie)
			}
			if want := map[string]uint16{"-dtls1": 0xfeff, "-dtls1_2": 0xfefd}[version]; hello.MaxVersion() != want {
				t.Errorf("version %#x, want %#x", hello.MaxVersion(), want)
			}
			verify := []byte{3, 0, 0, 10, 0, 0, 0, 0, 0, 0, 0, 10, 0xfe, 0xff, 7, 'b', 'i', 's', 'c', 'u', 'i', 't'}
			if _, err := server.WriteTo(dtlsRecord(0, verify), from); err != nil {
				t.Fatal(err)
			}
			for hello.Cookie = nil; len(hello.Cookie) == 0; { // a repeated first hello may come before
				hello, _ = readDTLSHello(t, server, &collector)
			}
			if string(hello.Cookie) != "biscuit" || hello.SNI != "dtls.example" {
				t.Errorf("second hello: cookie %q, SNI %q", hello.Cookie, hello.SNI)
			}
		})
	}
}

func FuzzDTLSCollector(f *testing.F) {
	body := testHello{version: 0xfefd, dtls: true, ciphers: []uint16{0xc02b}}.message()[4:]
	f.Add(dtlsRecord(0, dtlsFragment(0, body, 0, 20)), dtlsRecord(0, dtlsFragment(0, body, 20, len(body))))
	f.Add([]byte("garbage"), []byte{})
	f.Fuzz(func(t *testing.T, first, second []byte) {
		var c DTLSCollector
		for _, datagram := range [][]byte{first, second, first} {
			if hello, err := c.Add(datagram); hello != nil && len(hello.Raw) < dtlsHandshakeHdr {
				t.Errorf("hello of %d bytes, %v", len(hello.Raw), err)
			}
		}
		if len(c.body.pieces) > maxPieces {
			t.Errorf("%d pieces", len(c.body.pieces))
		}
	})
}
