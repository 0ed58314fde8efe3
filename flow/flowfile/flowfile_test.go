package flowfile

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	mathrand "math/rand/v2"
	"reflect"
	"strings"
	"testing"
	"testing/iotest"

	"mitm-appliance/flow"
)

func encode(t testing.TB, f *flow.Flow) []byte {
	t.Helper()
	b, err := new(Encoder).Encode(f)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func decoded(t testing.TB, b []byte) *flow.Flow {
	t.Helper()
	f, err := Decode(b)
	if err != nil {
		t.Fatalf("%v\n%q", err, b)
	}
	return f
}

func TestWhatIsWrittenIsReadBack(t *testing.T) {
	for name, f := range samples(t) {
		t.Run(name, func(t *testing.T) {
			got := decoded(t, encode(t, f))
			same(t, got, f)
		})
	}
}

func same(t *testing.T, got, want *flow.Flow) {
	t.Helper()
	if reflect.DeepEqual(got, want) {
		return
	}
	report(t, "flow", reflect.ValueOf(got), reflect.ValueOf(want))
	t.Fail()
}

// report logs the leaves in which two values differ.
func report(t *testing.T, path string, got, want reflect.Value) {
	t.Helper()
	if reflect.DeepEqual(got.Interface(), want.Interface()) {
		return
	}
	switch {
	case got.Kind() == reflect.Pointer && !got.IsNil() && !want.IsNil():
		report(t, path, got.Elem(), want.Elem())
	case got.Kind() == reflect.Struct && got.Type().PkgPath() == reflect.TypeFor[flow.Flow]().PkgPath():
		for i := range got.NumField() {
			report(t, path+"."+got.Type().Field(i).Name, got.Field(i), want.Field(i))
		}
	default:
		t.Logf("%s: got %#v, want %#v", path, got.Interface(), want.Interface())
	}
}

func TestRandomFlowsComeBack(t *testing.T) {
	r := mathrand.New(mathrand.NewPCG(1, 2))
	all := samples(t)
	for range 300 {
		for name, f := range all {
			f = random(r, f)
			same(t, decoded(t, encode(t, f)), f)
			if t.Failed() {
				t.Fatalf("a random %s flow did not come back", name)
			}
		}
	}
}

func TestMapsAreWrittenBackwards(t *testing.T) {
	var e encoder
	m := e.open('}')
	e.int(1)
	e.key("a")
	e.bool(true)
	e.key("b")
	e.close(m)
	if got, want := string(e.bytes()), "19:1:b;4:true!1:a;1:1#}"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestFloatsLookLikePythons(t *testing.T) {
	for f, want := range map[float64]string{
		0: "0.0", 1: "1.0", -1.5: "-1.5", 1e15: "1000000000000000.0", 1e16: "1e+16", 1e-4: "0.0001", 1e-5: "1e-05",
		946681200.25: "946681200.25", 1.1e300: "1.1e+300", math.Inf(1): "inf", math.Inf(-1): "-inf",
	} {
		if got := formatFloat(f); got != want {
			t.Errorf("%v: got %q, want %q", f, got, want)
		}
	}
	if got := formatFloat(math.NaN()); got != "nan" {
		t.Errorf("NaN is %q", got)
	}
}

func TestTextThatIsNoUTF8DoesNotSpoilTheFile(t *testing.T) {
	f := samples(t)["udp"]
	f.Comment = "a\xffb"
	if got := decoded(t, encode(t, f)).Comment; got != "a\uFFFDb" {
		t.Errorf("comment is %q", got)
	}
}

func TestModesThatMitmproxyRefuses(t *testing.T) {
	for spec, want := range map[string]string{
		"regular": "regular", "regular@8080": "regular@8080", "transparent:lan0": "transparent", "transparent:lan0@127.0.0.1:8080": "transparent@127.0.0.1:8080",
		"reverse:https://example.org@8080": "reverse:https://example.org@8080", "reverse:ftp://x": "regular", "upstream:http://[::1]:3128": "upstream:http://[::1]:3128",
		"upstream:socks5://x:1": "regular", "local:curl,!4711": "local:curl,!4711", "local:cgroup=/a": "local", "tun:mitm0": "tun:mitm0",
		"wireguard:/etc/wg.conf@51820": "wireguard:/etc/wg.conf@51820", "dns@nonsense": "dns", "": "regular", "new": "regular",
	} {
		got, exact := proxyMode(spec)
		if got != want || exact != (got == spec) {
			t.Errorf("%q: got %q, exact %v, want %q", spec, got, exact, want)
		}
	}
}

func TestBadCertificatesAreLeftOut(t *testing.T) {
	f := samples(t)["http"]
	tls := *f.Server.TLS
	good := tls.Certificates[0]
	tls.Certificates = [][]byte{good, good[:len(good)-1], nil, {0x30, 0x84, 0, 0, 0, 0}, []byte("junk"), {0x30, 0x81}}
	server := *f.Server
	server.TLS = &tls
	f.Server = &server
	if got := decoded(t, encode(t, f)).Server.TLS.Certificates; len(got) != 1 || !bytes.Equal(got[0], good) {
		t.Errorf("got %d certificates, want the good one", len(got))
	}
}

func TestFlowsWithoutDataAreNotWritten(t *testing.T) {
	if _, err := new(Encoder).Encode(&flow.Flow{Kind: flow.KindHTTP, DNS: &flow.DNS{}}); !errors.Is(err, ErrKind) {
		t.Errorf("got %v, want ErrKind", err)
	}
}

// file writes all samples and says where each begins.
func file(t testing.TB) (data []byte, starts []int) {
	t.Helper()
	var buf bytes.Buffer
	w := NewWriter(&buf)
	for _, f := range samples(t) {
		starts = append(starts, buf.Len())
		if err := w.Write(f); err != nil {
			t.Fatal(err)
		}
	}
	return buf.Bytes(), starts
}

func TestReadingToTheEnd(t *testing.T) {
	data, starts := file(t)
	r := NewReader(iotest.OneByteReader(bytes.NewReader(data)))
	for i, start := range starts {
		if r.Offset() != int64(start) {
			t.Errorf("flow %d begins at %d, Offset says %d", i, start, r.Offset())
		}
		if _, err := r.Next(); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		if _, err := r.Next(); !errors.Is(err, io.EOF) {
			t.Errorf("at the end: %v", err)
		}
	}
}

func TestATruncatedFileGivesItsWholeFlows(t *testing.T) {
	data, starts := file(t)
	for size := 0; size < len(data); size += 13 {
		whole := 0
		for whole < len(starts) && end(data, starts, whole) <= size {
			whole++
		}
		r := NewReader(bytes.NewReader(data[:size]))
		n := 0
		var err error
		for ; err == nil; n++ {
			_, err = r.Next()
		}
		n--
		if n != whole {
			t.Fatalf("%d bytes: %d flows, want %d", size, n, whole)
		}
		at := 0
		if whole > 0 {
			at = end(data, starts, whole-1)
		}
		gotEnd, gotFlows, wholeErr := Whole(bytes.NewReader(data), int64(size))
		if wholeErr != nil || gotEnd != int64(at) || gotFlows != whole {
			t.Fatalf("Whole of %d bytes is %d, %d, %v, want %d, %d", size, gotEnd, gotFlows, wholeErr, at, whole)
		}
		if size == at {
			if !errors.Is(err, io.EOF) {
				t.Fatalf("%d bytes end between flows: %v", size, err)
			}
			continue
		}
		want := fmt.Sprintf("flow file ends in the middle of a flow at byte %d; %d flows were read", at, whole)
		if err.Error() != want {
			t.Fatalf("%d bytes: %v, want %s", size, err, want)
		}
	}
}

func end(data []byte, starts []int, i int) int {
	if i+1 < len(starts) {
		return starts[i+1]
	}
	return len(data)
}

func TestWhatCannotBeRead(t *testing.T) {
	good := string(encode(t, samples(t)["udp"]))
	netstring := func(s string) string { return fmt.Sprintf("%d:%s}", len(s), s) }
	for name, c := range map[string]struct {
		data string
		is   error
		says string
	}{
		"HAR":            {`{"log":{}}`, ErrHAR, "convert"},
		"HAR with BOM":   {"\xef\xbb\xbf{}", ErrHAR, "convert"},
		"no flow file":   {"GIF89a", ErrDamaged, `expected a length, found 'G'`},
		"long length":    {"1234567890123:", ErrDamaged, "12 digits"},
		"not a map":      {"1:1#", ErrDamaged, "expected a map"},
		"huge promise":   {"999999999999:x", ErrTruncated, "middle of a flow at byte 0"},
		"newer version":  {strings.Replace(good, "7:version;2:21#", "7:version;2:22#", 1), ErrVersion, "update it"},
		"older version":  {strings.Replace(good, "7:version;2:21#", "7:version;2:20#", 1), ErrVersion, "version 20"},
		"ancient":        {netstring("7:version,8:1:0#1:2#]"), ErrVersion, "before mitmproxy 4"},
		"no version":     {netstring("1:a;1:1#"), nil, "no version"},
		"unknown type":   {strings.Replace(good, "4:type;3:udp;", "4:type;3:xyz;", 1), nil, `unknown flow type "xyz"`},
		"missing key":    {strings.Replace(good, "6:marked;", "6:markee;", 1), nil, `key "marked" is missing`},
		"wrong type":     {strings.Replace(good, "6:marked;0:;", "6:marked;0:,", 1), nil, `key "marked": expected text, found bytes`},
		"port too large": {strings.Replace(good, "5:50100#", "5:99999#", 1), nil, "99999 is not between 0 and 65535"},
		"bad protocol":   {strings.Replace(good, "18:transport_protocol;3:tcp;", "18:transport_protocol;3:tcx;", 1), nil, "none of"},
	} {
		t.Run(name, func(t *testing.T) {
			if c.data == good {
				t.Fatal("the test changes nothing")
			}
			_, err := NewReader(strings.NewReader(c.data)).Next()
			var where *FileError
			if !errors.As(err, &where) || c.is != nil && !errors.Is(err, c.is) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v, want %q", err, c.says)
			}
		})
	}
}

func TestReadingGoesOnAfterAFlowThatIsNone(t *testing.T) {
	good := string(encode(t, samples(t)["udp"]))
	r := NewReader(strings.NewReader("0:}" + good + "9:1:a;1:1#1}" + good))
	r.MaxFlow = int64(len(good))
	var flows, failures int
	for {
		_, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			failures++
		} else {
			flows++
		}
	}
	if flows != 2 || failures != 2 {
		t.Errorf("%d flows and %d failures, want 2 and 2", flows, failures)
	}
}

func TestFlowsAboveTheLimitAreSkipped(t *testing.T) {
	all := samples(t)
	large, small := encode(t, all["http"]), encode(t, all["udp"])
	r := NewReader(bytes.NewReader(append(bytes.Clone(large), small...)))
	r.MaxFlow = int64(len(small))
	if _, err := r.Next(); !errors.Is(err, ErrTooLarge) {
		t.Fatalf("got %v, want ErrTooLarge", err)
	}
	if f, err := r.Next(); err != nil || f.Kind != flow.KindUDP {
		t.Errorf("then %v, %v, want the small flow", f, err)
	}
}

func TestDeepMetadataIsRefused(t *testing.T) {
	deep := "0:~"
	for range 100_000 {
		deep = fmt.Sprintf("%d:%s]", len(deep), deep)
		if len(deep) > 100_000 {
			break
		}
	}
	el, _, err := cut([]byte(deep))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := el.any(0); err == nil || !strings.Contains(err.Error(), "nested deeper") {
		t.Errorf("got %v", err)
	}
}

func TestFactsThatAreNotOursStayInTheMetadata(t *testing.T) {
	f := samples(t)["udp"]
	f.Client = &flow.Client{Connection: f.Client.Connection, Mode: "regular"}
	f.Client.TLS = nil
	f.Metadata = map[string]any{
		prefix + "process": "curl", prefix + "stream": map[string]any{"messages": []any{[]any{int64(9), true, true, int64(1)}}},
		prefix + "client_tls": map[string]any{"ja3": "x"}, prefix + "future": int64(1),
	}
	want := fmt.Sprint(f.Metadata)
	if got := fmt.Sprint(decoded(t, encode(t, f)).Metadata); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func FuzzDecode(f *testing.F) {
	for _, s := range samples(f) {
		f.Add(bytes.Clone(encode(f, s)))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		first, err := Decode(b)
		if err != nil {
			return
		}
		// What was read once can be written and read again, and then stays as it is.
		again := encode(t, decoded(t, bytes.Clone(encode(t, first))))
		if twice := encode(t, decoded(t, bytes.Clone(again))); !bytes.Equal(again, twice) {
			t.Errorf("a flow changes each time it is saved:\n%q\n%q", again, twice)
		}
	})
}

func FuzzTnetstring(f *testing.F) {
	for _, s := range []string{"0:~", "4:true!", "3:1.5^", "12:3:abc,3:abc;]", "12:1:a;5:false!}", "1:5#", "3:inf^", "9:0:]0:}0:~]"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		el, rest, err := cut(b)
		if err != nil {
			return
		}
		if len(el.data)+len(rest)+3 > len(b) {
			t.Fatalf("cut made bytes up: %q %q", el.data, rest)
		}
		v, err := el.any(0)
		if err != nil {
			return
		}
		var e encoder
		e.any(v, 0)
		first := bytes.Clone(e.bytes())
		el, _, err = cut(first)
		if err != nil {
			t.Fatalf("%q: %v", first, err)
		}
		again, err := el.any(0)
		if err != nil {
			t.Fatalf("%q: %v", first, err)
		}
		e.reset()
		e.any(again, 0)
		if !bytes.Equal(first, e.bytes()) {
			t.Errorf("%q became %q", first, e.bytes())
		}
	})
}

func FuzzReader(f *testing.F) {
	data, _ := file(f)
	f.Add(data[:2000], int64(100))
	f.Add([]byte("999999999999:x"), int64(0))
	f.Fuzz(func(t *testing.T, b []byte, limit int64) {
		r := NewReader(bytes.NewReader(b))
		r.MaxFlow = max(0, limit)
		var failed *FileError
		for range len(b) + 1 {
			if _, err := r.Next(); errors.Is(err, io.EOF) || errors.As(err, &failed) && failed.Final() {
				return
			}
		}
		t.Fatal("more flows than bytes")
	})
}

func benchmarkFlow(b *testing.B, body int) *flow.Flow {
	f := samples(b)["http"]
	f.Backup, f.Metadata = nil, nil
	f.HTTP.Response.Body = flow.BodyOf(bytes.Repeat([]byte("x"), body))
	return f
}

func BenchmarkWrite(b *testing.B) {
	for _, size := range []int{1 << 10, 100 << 10} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			f := benchmarkFlow(b, size)
			w := NewWriter(io.Discard)
			b.ReportAllocs()
			for b.Loop() {
				if err := w.Write(f); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkRead(b *testing.B) {
	for _, size := range []int{1 << 10, 100 << 10} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			data := encode(b, benchmarkFlow(b, size))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := Decode(data); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
