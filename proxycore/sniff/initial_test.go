package sniff

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/quic-go/quic-go"
)

// sealInitial builds a protected client Initial packet of at least size bytes.
func sealInitial(t testing.TB, version uint32, dcid []byte, number uint32, frames []byte, size int) []byte {
	t.Helper()
	keys, err := newInitialKeys(version, dcid)
	if err != nil {
		t.Fatal(err)
	}
	first := byte(0xc3)
	if version == QUICv2 {
		first = 0xd3
	}
	head := binary.BigEndian.AppendUint32([]byte{first}, version)
	head = append(append(head, byte(len(dcid))), dcid...)
	head = append(head, 0, 0) // no source connection id, no token
	const pnLength, tagSize = 4, 16
	padding := max(size-len(head)-2-pnLength-len(frames)-tagSize, 0)
	payload := append(bytes.Clone(frames), make([]byte, padding)...)
	head = binary.BigEndian.AppendUint16(head, 0x4000|uint16(pnLength+len(payload)+tagSize))
	pnOffset := len(head)
	head = binary.BigEndian.AppendUint32(head, number)

	nonce := bytes.Clone(keys.iv)
	for i := range 4 {
		nonce[len(nonce)-1-i] ^= byte(number >> (8 * i))
	}
	packet := keys.aead.Seal(bytes.Clone(head), nonce, payload, head)
	var mask [16]byte
	keys.header.Encrypt(mask[:], packet[pnOffset+4:][:16])
	packet[0] ^= mask[0] & 0x0f
	for i := range pnLength {
		packet[pnOffset+i] ^= mask[1+i]
	}
	return packet
}

func cryptoFrame(off int, data []byte) []byte {
	b := []byte{0x06}
	b = binary.BigEndian.AppendUint32(b, 0x80000000|uint32(off))
	b = binary.BigEndian.AppendUint16(b, 0x4000|uint16(len(data)))
	return append(b, data...)
}

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.Join(strings.Fields(s), ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// rfcCrypto is the CRYPTO frame of RFC 9001, appendix A.2.
const rfcCrypto = `060040f1010000ed0303ebf8fa56f12939b9584a3896472ec40bb863cfd3e868
	04fe3a47f06a2b69484c00000413011302010000c000000010000e00000b6578
	616d706c652e636f6dff01000100000a00080006001d00170018001000070005
	04616c706e000500050100000000003300260024001d00209370b2c9caa47fba
	baf4559fedba753de171fa71f50f1ce15d43e994ec74d748002b000302030400
	0d0010000e0403050306030203080408050806002d00020101001c0002400100
	3900320408ffffffffffffffff05048000ffff07048000ffff08011001048000
	75300901100f088394c8f03e51570806048000ffff`

func TestRFCVectors(t *testing.T) {
	tests := []struct {
		rfc         string
		version     uint32
		iv          string
		start, tail string // of the protected packet
	}{
		{
			"9001 A.2", QUICv1, "fa044b2f42a3fd3b46fb255c",
			"c000000001088394c8f03e5157080000449e7b9aec34d1b1c98dd7689fb8ec11d242b123dc9b",
			"e221af44860018ab0856972e194cd934",
		},
		{
			"9369 A.2", QUICv2, "91f73e2351d8fa91660e909f",
			"d76b3343cf088394c8f03e5157080000449ea0c95e82ffe67b6abcdb4298b485dd04de806071",
			"",
		},
	}
	dcid := unhex(t, "8394c8f03e515708")
	for _, test := range tests {
		keys, err := newInitialKeys(test.version, dcid)
		if err != nil {
			t.Fatal(err)
		}
		if got := hex.EncodeToString(keys.iv); got != test.iv {
			t.Errorf("RFC %s: iv %s, want %s", test.rfc, got, test.iv)
		}
		packet := sealInitial(t, test.version, dcid, 2, unhex(t, rfcCrypto), 1200)
		if !bytes.HasPrefix(packet, unhex(t, test.start)) || !bytes.HasSuffix(packet, unhex(t, test.tail)) {
			t.Errorf("RFC %s: packet is %x...%x", test.rfc, packet[:38], packet[len(packet)-16:])
		}
		var c InitialCollector
		hello, err := c.Add(packet)
		if err != nil || hello == nil {
			t.Fatalf("RFC %s: Add = %v, %v", test.rfc, hello, err)
		}
		if hello.SNI != "example.com" || !slices.Equal(hello.ALPN, []string{"alpn"}) {
			t.Errorf("RFC %s: SNI %q, ALPN %q", test.rfc, hello.SNI, hello.ALPN)
		}
		if c.Version() != test.version || !bytes.Equal(c.DCID(), dcid) || len(c.SCID()) != 0 {
			t.Errorf("RFC %s: version %#x, dcid %x, scid %x", test.rfc, c.Version(), c.DCID(), c.SCID())
		}
	}
}

// recorder is a net.PacketConn that hands every datagram written to a channel and
// never receives one.
type recorder struct {
	sent   chan []byte
	closed context.Context
	close  context.CancelFunc
}

func newRecorder() *recorder {
	ctx, cancel := context.WithCancel(context.Background())
	return &recorder{sent: make(chan []byte, 64), closed: ctx, close: cancel}
}

func (r *recorder) WriteTo(b []byte, _ net.Addr) (int, error) {
	select {
	case r.sent <- bytes.Clone(b):
	default:
	}
	return len(b), nil
}

func (r *recorder) ReadFrom([]byte) (int, net.Addr, error) {
	<-r.closed.Done()
	return 0, nil, net.ErrClosed
}
func (r *recorder) Close() error                     { r.close(); return nil }
func (r *recorder) LocalAddr() net.Addr              { return &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1} }
func (r *recorder) SetDeadline(time.Time) error      { return nil }
func (r *recorder) SetReadDeadline(time.Time) error  { r.close(); return nil } // only used to stop reading
func (r *recorder) SetWriteDeadline(time.Time) error { return nil }

func TestRealQUICClient(t *testing.T) {
	t.Setenv("QUIC_GO_DISABLE_RECEIVE_BUFFER_WARNING", "true")
	long := make([]string, 20)
	for i := range long {
		long[i] = strings.Repeat(string(rune('a'+i)), 200)
	}
	tests := []struct {
		name    string
		version quic.Version
		alpn    []string
	}{
		{"version 1", quic.Version1, []string{"h3"}},
		{"version 2", quic.Version2, []string{"h3"}},
		{"hello of five packets", quic.Version1, append(long, "h3")},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			conn := newRecorder()
			ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
			done := make(chan struct{})
			go func() {
				defer close(done)
				_, _ = quic.Dial(ctx, conn, &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 443}, // fails: nobody answers
					&tls.Config{ServerName: "quic.example", NextProtos: test.alpn},
					&quic.Config{Versions: []quic.Version{test.version}})
			}()
			defer func() { cancel(); <-done; conn.Close() }()
			var c InitialCollector
			for datagrams := 1; ; datagrams++ {
				datagram := <-conn.sent
				if got := UDP(datagram, Hints{Port: 9999}); got != QUIC {
					t.Fatalf("datagram %d is %v", datagrams, got)
				}
				hello, err := c.Add(datagram)
				if err != nil {
					t.Fatalf("datagram %d: %v", datagrams, err)
				}
				if hello == nil {
					continue
				}
				if hello.SNI != "quic.example" || !slices.Equal(hello.ALPN, test.alpn) {
					t.Errorf("SNI %q, ALPN %q", hello.SNI, hello.ALPN)
				}
				if c.Version() != uint32(test.version) || len(c.DCID()) < 8 {
					t.Errorf("version %#x, dcid %x", c.Version(), c.DCID())
				}
				if !strings.HasPrefix(hello.JA4(), "q13d") {
					t.Errorf("JA4 %s", hello.JA4())
				}
				if len(hello.Raw) > 1200 && datagrams < 2 {
					t.Errorf("%d bytes of hello in %d datagrams", len(hello.Raw), datagrams)
				}
				return
			}
		})
	}
}

func TestInitialCollector(t *testing.T) {
	message := testHello{version: 0x0303, ciphers: []uint16{0x1301}, extensions: []Extension{
		sniExtension("a.example"), {Type: 0x1234, Data: bytes.Repeat([]byte{9}, 2500)},
	}}.message()
	dcid := []byte("8bytesid")
	part := func(number uint32, frames ...[]byte) []byte {
		return sealInitial(t, QUICv1, dcid, number, bytes.Join(frames, nil), 0)
	}
	third := len(message) / 3
	a, b, c := cryptoFrame(0, message[:third]), cryptoFrame(third, message[third:2*third]), cryptoFrame(2*third, message[2*third:])
	padding, ping, ack := make([]byte, 30), []byte{1}, []byte{3, 5, 0, 1, 0, 1, 1, 0, 0, 0}
	retry := append([]byte("\xf0\x00\x00\x00\x01\x00\x00"), make([]byte, 30)...)
	otherKey := sealInitial(t, QUICv1, []byte("otherkey"), 9, a, 0)
	forged := part(7, a)
	forged[len(forged)-1] ^= 1

	tests := []struct {
		name      string
		datagrams [][]byte
		done      bool
		err       error // of the last datagram
	}{
		{"in order", [][]byte{part(0, a), part(1, b), part(2, c)}, true, nil},
		{"out of order", [][]byte{part(2, c), part(0, a), part(1, b)}, true, nil},
		{"duplicates", [][]byte{part(0, a), part(0, a), part(3, a, b), part(1, b, c)}, true, nil},
		{"coalesced", [][]byte{slices.Concat(part(0, a), part(1, b), part(2, c))}, true, nil},
		{"other frames", [][]byte{part(0, padding, ping, a), part(1, ack, b, padding), part(2, ping, c)}, true, nil},
		{"overlapping", [][]byte{part(0, cryptoFrame(0, message[:third+50])), part(1, cryptoFrame(third-50, message[third-50:]))}, true, nil},
		{"coalesced with garbage", [][]byte{slices.Concat(part(0, a, b, c), make([]byte, 99))}, true, nil},
		{"large packet number", [][]byte{part(1<<30, a, b, c)}, true, nil},
		{"one missing", [][]byte{part(0, a), part(2, c)}, false, nil},
		{"stray packet between", [][]byte{part(0, a), otherKey, part(1, b), part(2, c)}, true, nil},
		{"forged packet first", [][]byte{forged, part(0, a), part(1, b), part(2, c)}, true, nil},
		{"forged", [][]byte{forged}, false, ErrUndecryptable},
		{"cut", [][]byte{part(0, a)[:100]}, false, ErrNotQUIC},
		{"short header", [][]byte{append([]byte{0x40}, make([]byte, 50)...)}, false, ErrNotQUIC},
		{"empty", [][]byte{{}}, false, nil},
		{"retry only", [][]byte{retry}, false, nil},
		{"beyond the limit", [][]byte{part(0, cryptoFrame(MaxClientHello, []byte("x")))}, false, ErrTooLarge},
		{"too large announced", [][]byte{part(0, cryptoFrame(0, []byte{1, 1, 0, 0}))}, false, ErrTooLarge},
		{"server hello", [][]byte{part(0, cryptoFrame(0, []byte{2, 0, 0, 0}))}, false, ErrMalformed},
		{"stream frame", [][]byte{part(0, []byte{0x08, 0, 0, 0})}, false, ErrMalformed},
		{"frame cut short", [][]byte{part(0, []byte{0x06, 0x40, 0x00, 0x7f, 1, 1})}, false, ErrMalformed},
		{"ack with endless ranges", [][]byte{part(0, []byte{0x02, 0, 0, 0xbf, 0xff, 0xff, 0xff, 0})}, false, ErrMalformed},
		{"connection close", [][]byte{part(0, []byte{0x1c, 0, 0, 0})}, false, ErrMalformed},
	}
	for _, test := range tests {
		var collector InitialCollector
		var hello *ClientHello
		var err error
		for _, d := range test.datagrams {
			before := bytes.Clone(d)
			hello, err = collector.Add(d)
			if !bytes.Equal(before, d) {
				t.Errorf("%s: the datagram was changed", test.name)
			}
		}
		if (hello != nil) != test.done || !errors.Is(err, test.err) {
			t.Errorf("%s: got hello %v, error %v; want %v, %v", test.name, hello != nil, err, test.done, test.err)
		}
		if hello != nil && (hello.SNI != "a.example" || !bytes.Equal(hello.Raw, message)) {
			t.Errorf("%s: SNI %q", test.name, hello.SNI)
		}
	}
}

func TestInitialCollectorLimitsFragments(t *testing.T) {
	var c InitialCollector
	for number := range uint32(1000) {
		_, err := c.Add(sealInitial(t, QUICv1, []byte("8bytesid"), number, cryptoFrame(2*int(number)+10, []byte("x")), 60))
		if errors.Is(err, ErrTooLarge) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	t.Error("1000 separate bytes were kept")
}

func TestVersionError(t *testing.T) {
	var c InitialCollector
	_, err := c.Add(append([]byte("\xc0\x0a\x1a\x2a\x3a\x00\x00"), make([]byte, 1200)...))
	var version *VersionError
	if !errors.As(err, &version) || version.Version != 0x0a1a2a3a {
		t.Errorf("greased version: %v", err)
	}
}

func TestQUICHeaderTypes(t *testing.T) {
	tests := []struct {
		bytes string
		want  PacketType
	}{
		{"\xc0\x00\x00\x00\x01\x00\x00\x00\x01x", PacketInitial},
		{"\xd0\x00\x00\x00\x01\x00\x00\x01x", PacketZeroRTT},
		{"\xe0\x00\x00\x00\x01\x00\x00\x01x", PacketHandshake},
		{"\xf0\x00\x00\x00\x01\x00\x00", PacketRetry},
		{"\xd0\x6b\x33\x43\xcf\x00\x00\x00\x01x", PacketInitial},
		{"\xc0\x6b\x33\x43\xcf\x00\x00", PacketRetry},
		{"\x80\x00\x00\x00\x00\x00\x00", PacketVersionNegotiation},
		{"\x80\x12\x34\x56\x78\x00\x00", PacketUnknown},
	}
	for _, test := range tests {
		header, _, err := ParseQUICHeader([]byte(test.bytes))
		if err != nil || header.Type != test.want {
			t.Errorf("ParseQUICHeader(%q) = %d, %v; want %d", test.bytes, header.Type, err, test.want)
		}
	}
}

func TestDecodePacketNumber(t *testing.T) {
	if got := decodePacketNumber(0xa82f30ea, 0x9b32, 16); got != 0xa82f9b32 { // RFC 9000, appendix A.3
		t.Errorf("got %#x, want 0xa82f9b32", got)
	}
}

func FuzzInitialCollector(f *testing.F) {
	hello := testHello{version: 0x0303, ciphers: []uint16{0x1301}, extensions: []Extension{sniExtension("a.example")}}.message()
	f.Add(cryptoFrame(0, hello), []byte("\x00\x01"), uint16(40))
	f.Add([]byte{3, 5, 0, 1, 0, 1, 1, 0, 0, 0}, []byte{}, uint16(0))
	f.Fuzz(func(t *testing.T, frames, raw []byte, cut uint16) {
		var c InitialCollector
		_, _ = c.Add(raw) // any answer will do: it must end and stay within its limits
		if len(frames) < 1<<13 {
			packet := sealInitial(t, QUICv1, []byte("8bytesid"), 0, frames, 60)
			_, _ = c.Add(packet[:min(len(packet), int(cut))])
			if h, err := c.Add(packet); h != nil && err != nil {
				t.Errorf("both a hello and the error %v", err)
			}
		}
		if len(c.crypto.pieces) > maxPieces {
			t.Errorf("%d pieces", len(c.crypto.pieces))
		}
	})
}

func FuzzQUICHeader(f *testing.F) {
	f.Add([]byte("\xc0\x00\x00\x00\x01\x00\x00\x00\x01x"))
	f.Fuzz(func(t *testing.T, b []byte) {
		header, rest, err := ParseQUICHeader(b)
		if err == nil && len(header.packet)+len(rest) > len(b) {
			t.Errorf("packet of %d and rest of %d bytes in %d", len(header.packet), len(rest), len(b))
		}
	})
}
