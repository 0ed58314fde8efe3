package http1

import (
	"bufio"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"

	"mitm-appliance/flow"
)

func limits() *Config {
	var c Config
	c.defaults()
	return &c
}

func headOf(t testing.TB, text string) (section, error) {
	t.Helper()
	r := &reader{src: strings.NewReader(text)}
	return r.section(limits(), nil, nil)
}

func TestRequestTargets(t *testing.T) {
	for line, want := range map[string]flow.Request{
		"GET / HTTP/1.1":                {Method: "GET", Path: "/"},
		"GET /a?b#c HTTP/1.0":           {Method: "GET", Path: "/a?b#c"},
		"OPTIONS * HTTP/1.1":            {Method: "OPTIONS", Path: "*"},
		"CONNECT a:1 HTTP/1.1":          {Method: "CONNECT", Authority: "a:1"},
		"GET HTTP://A:80/x HTTP/1.1":    {Method: "GET", Scheme: "http", Authority: "A:80", Path: "/x"},
		"GET https://a HTTP/1.1":        {Method: "GET", Scheme: "https", Authority: "a", Path: "/"},
		"GET http://a?x=/ HTTP/1.1":     {Method: "GET", Scheme: "http", Authority: "a", Path: "/?x=/"},
		"OPTIONS http://a HTTP/1.1":     {Method: "OPTIONS", Scheme: "http", Authority: "a", Path: "*"},
		"GET ftp://a/ HTTP/1.9":         {Method: "GET", Scheme: "ftp", Authority: "a", Path: "/"},
		"GET /http://b HTTP/1.1":        {Method: "GET", Path: "/http://b"},
		"GET //b/ HTTP/1.1":             {Method: "GET", Path: "//b/"},
		"get /\x80 HTTP/1.1":            {Method: "get", Path: "/\x80"},
		"GET http://[::1]:80/ HTTP/1.1": {Method: "GET", Scheme: "http", Authority: "[::1]:80", Path: "/"},
		"GET http://u:p@a/ HTTP/1.1":    {Method: "GET", Scheme: "http", Authority: "u:p@a", Path: "/"},
		"GET http://a#frag HTTP/1.1":    {Method: "GET", Scheme: "http", Authority: "a", Path: "/#frag"},
		"PROPFIND /%zz HTTP/1.1":        {Method: "PROPFIND", Path: "/%zz"},
		"GET /" + "a{}|\\^`\" HTTP/1.1": {Method: "GET", Path: "/a{}|\\^`\""},
	} {
		var got flow.Request
		err := requestLine(line, &got)
		version := line[len(line)-8:]
		if err != nil || got.Method != want.Method || got.Scheme != want.Scheme || got.Authority != want.Authority || got.Path != want.Path || got.Version != version {
			t.Errorf("%q = %+v, %v", line, got, err)
		}
	}
	for _, line := range []string{
		"", " ", "GET", "GET /", "GET / ", "GET  / HTTP/1.1", "GET /  HTTP/1.1", "GET / HTTP/1.1 ", " GET / HTTP/1.1", "GET / HTTP/1.10", "GET / HTTP/11",
		"GET / http/1.1", "GET / HTTP/2.0", "GET / HTTP/0.9", "GET a HTTP/1.1", "GET http:/a HTTP/1.1", "GET ://a HTTP/1.1", "G T / HTTP/1.1", "GET\t/ HTTP/1.1",
		"GET /a\tb HTTP/1.1", "GET /\r HTTP/1.1", "GET /\x00 HTTP/1.1", "G(T / HTTP/1.1", "GET http:///x HTTP/1.1",
	} {
		var got flow.Request
		if err := requestLine(line, &got); err == nil {
			t.Errorf("%q is accepted as %+v", line, got)
		}
	}
}

func TestStatusLines(t *testing.T) {
	for line, want := range map[string]flow.Response{
		"HTTP/1.1 200 OK": {Status: 200, Reason: "OK"}, "HTTP/1.0 404": {Status: 404}, "HTTP/1.1 999 ": {Status: 999},
		"HTTP/1.1 200  two": {Status: 200, Reason: " two"}, "HTTP/1.1 200 \xfc": {Status: 200, Reason: "\xfc"},
	} {
		s, err := headOf(t, line+"\r\n\r\n")
		if err != nil {
			t.Fatal(err)
		}
		var got flow.Response
		if invalid, err := parseResponse(s, &got); invalid != nil || err != nil || got.Status != want.Status || got.Reason != want.Reason {
			t.Errorf("%q = %+v, %v, %v", line, got, invalid, err)
		}
	}
	for _, line := range []string{"HTTP/1.1", "HTTP/1.1 ", "HTTP/1.1 20", "HTTP/1.1 2000", "HTTP/1.1 099 x", "HTTP/1.1  200 OK", "HTTP/1.1 2x0 OK", "HTTP/2 200 OK", "ICY 200 OK", "HTTP/1.1 200OK"} {
		s, err := headOf(t, line+"\r\n\r\n")
		if err != nil {
			t.Fatal(err)
		}
		var got flow.Response
		if _, err := parseResponse(s, &got); err == nil {
			t.Errorf("%q is accepted as %+v", line, got)
		}
	}
}

// TestKnownEncodings is the list of HTTP-25.
func TestKnownEncodings(t *testing.T) {
	for v, want := range map[string][2]bool{ // in requests, in responses
		"chunked": {true, true}, "Chunked": {true, true}, "gzip, chunked": {true, true}, "deflate,chunked": {true, true}, "compress , chunked": {true, true},
		"gzip": {false, true}, "identity": {false, true}, "deflate": {false, true}, "compress": {false, true},
		"identity, chunked": {false, false}, "chunked, gzip": {false, false}, "chunked, chunked": {false, false}, "": {false, false},
		"xchunked": {false, false}, "chunked;a": {false, false}, "gzip chunked": {false, false}, "br": {false, false}, "\"chunked\"": {false, false}, "chunked\x0b": {false, false},
	} {
		if got := [2]bool{knownEncoding(v, false), knownEncoding(v, true)}; got != want {
			t.Errorf("%q: %v, want %v", v, got, want)
		}
	}
}

// TestFraming is RFC 9112, section 6.3.
func TestFraming(t *testing.T) {
	field := func(name, value string) flow.Header { return flow.Header{{Name: name, Value: value}} }
	for name, c := range map[string]struct {
		method string
		status int
		h      flow.Header
		kind   kind
		length int64
	}{
		"eof":             {"GET", 200, nil, untilEOF, -1},
		"fixed":           {"GET", 200, field("CONTENT-LENGTH", "7"), fixed, 7},
		"empty":           {"GET", 200, field("Content-Length", "0"), noBody, 0},
		"chunked":         {"GET", 200, field("transfer-encoding", "chunked"), chunked, -1},
		"gzip":            {"GET", 200, field("transfer-encoding", "gzip"), untilEOF, -1},
		"head":            {"HEAD", 200, field("Content-Length", "7"), noBody, 0},
		"head chunked":    {"HEAD", 200, field("transfer-encoding", "chunked"), noBody, 0},
		"204":             {"GET", 204, field("Content-Length", "7"), noBody, 0},
		"304":             {"GET", 304, nil, noBody, 0},
		"101":             {"GET", 101, nil, noBody, 0},
		"connect":         {"CONNECT", 200, field("Content-Length", "7"), noBody, 0},
		"connect refused": {"CONNECT", 407, field("Content-Length", "7"), fixed, 7},
	} {
		r := flow.Response{Status: c.status, Message: flow.Message{Version: "HTTP/1.1", Header: c.h}}
		f := inspect(r.Header)
		if got, err := responseFraming(c.method, &r, &f, true); err != nil || got.kind != c.kind || got.length != c.length {
			t.Errorf("%s: %+v, %v; want %d, %d", name, got, err, c.kind, c.length)
		}
	}
	r := flow.Request{Method: "POST", Message: flow.Message{Version: "HTTP/1.1"}}
	f := inspect(nil)
	if got, err := requestFraming(&r, &f, true); err != nil || got.kind != noBody {
		t.Errorf("a request without framing fields: %+v, %v", got, err)
	}
	for _, v := range []string{"", "x", "-1", "99999999999999999999"} {
		r.Header = field("Content-Length", v)
		f := inspect(r.Header)
		if got, err := requestFraming(&r, &f, false); err == nil {
			t.Errorf("Content-Length %q without validation: %+v", v, got)
		}
	}
}

func TestChunkLines(t *testing.T) {
	for line, want := range map[string]struct {
		size      int64
		extension string
	}{
		"0\r\n": {0, ""}, "aF\r\n": {0xaf, ""}, "5;a=b\r\n": {5, ";a=b"}, "5 ;a\r\n": {5, " ;a"}, "005\r\n": {5, ""}, "fffffffffffffff\r\n": {1<<60 - 1, ""},
	} {
		size, ext, err := parseChunkLine([]byte(line), true)
		if err != nil || size != want.size || string(ext) != want.extension {
			t.Errorf("%q = %d, %q, %v", line, size, ext, err)
		}
	}
	for _, line := range []string{"\r\n", "x\r\n", "-1\r\n", "+1\r\n", "0x1\r\n", " 1\r\n", "1 \r\n", "1\n", "1;\x00\r\n", "1;\r\r\n", "1\r;\r\n", "1000000000000000\r\n", "1a\vb\r\n", "1,2\r\n", "5 5\r\n"} {
		if size, ext, err := parseChunkLine([]byte(line), true); err == nil {
			t.Errorf("%q is accepted as %d, %q", line, size, ext)
		}
	}
}

// FuzzRequest compares with net/http: what we accept in strict mode, it has to understand in the same
// way, or other servers may not; and what we write again is what we read.
func FuzzRequest(f *testing.F) {
	for _, seed := range []string{
		"GET / HTTP/1.1\r\nHost: a\r\n\r\n", "POST http://a/b HTTP/1.0\r\nContent-Length: 3\r\n\r\nabc", "CONNECT a:1 HTTP/1.1\r\n\r\n",
		"PUT /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n0\r\nT: u\r\n\r\n",
		"GET / HTTP/1.1\r\nA: b\r\n c\r\n\r\n", "GET / HTTP/1.1\nHost: a\n\n", "GET / HTTP/1.1\r\nConnection: close, x\r\nHost: a\r\n\r\n",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		req, end, data, ok := readAll(t, text)
		if !ok {
			return
		}
		again := string(appendRequest(nil, req))
		again2, _, _, ok := readAll(t, again+text[min(len(text), headEnd(text)):])
		if !ok || string(appendRequest(nil, again2)) != again {
			t.Fatalf("%q is written as %q, which is read differently", text, again)
		}
		compareWithStd(t, text, req, end, data)
	})
}

func headEnd(text string) int { return strings.Index(text, "\r\n\r\n") + 4 }

// readAll parses a request and its body in strict mode.
func readAll(t *testing.T, text string) (*flow.Request, framing, []byte, bool) {
	t.Helper()
	cfg := limits()
	r := &reader{src: strings.NewReader(text)}
	s, err := r.section(cfg, nil, nil)
	if err != nil {
		return nil, framing{}, nil, false
	}
	req := new(flow.Request)
	invalid, err := parseRequest(s, req)
	if invalid != nil || err != nil {
		return nil, framing{}, nil, false
	}
	fs := inspect(req.Header)
	end, err := requestFraming(req, &fs, true)
	if err != nil {
		return nil, framing{}, nil, false
	}
	var b body
	b.reset(r, cfg, end, true)
	data, err := io.ReadAll(&b)
	return req, end, data, err == nil
}

func compareWithStd(t *testing.T, text string, req *flow.Request, end framing, data []byte) {
	t.Helper()
	std, err := http.ReadRequest(bufio.NewReader(strings.NewReader(text)))
	if err != nil {
		return // it checks more than framing: URLs, protocol versions, Host
	}
	body, err := io.ReadAll(std.Body)
	if err != nil {
		return
	}
	if std.Method != req.Method || string(body) != string(data) && end.kind != noBody {
		t.Fatalf("%q: we read %s %q, net/http %s %q", text, req.Method, data, std.Method, body)
	}
	if end.kind == noBody && len(body) > 0 {
		t.Fatalf("%q: we read no body, net/http %q", text, body)
	}
	for name, values := range std.Header {
		if got := req.Header.Values(name); len(got) != len(values) {
			t.Fatalf("%q: we read %s %q, net/http %q", text, name, got, values)
		}
	}
}

func FuzzResponse(f *testing.F) {
	for _, seed := range []string{
		"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc", "HTTP/1.0 404\r\n\r\nuntil", "HTTP/1.1 103 E\r\nLink: x\r\n\r\n",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n", "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nx",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		cfg := limits()
		r := &reader{src: strings.NewReader(text)}
		s, err := r.section(cfg, nil, nil)
		if err != nil {
			return
		}
		var resp flow.Response
		invalid, err := parseResponse(s, &resp)
		if invalid != nil || err != nil {
			return
		}
		fs := inspect(resp.Header)
		end, err := responseFraming("GET", &resp, &fs, true)
		if err != nil {
			return
		}
		var b body
		b.reset(r, cfg, end, true)
		data, err := io.ReadAll(&b)
		if err != nil {
			return
		}
		std, err := http.ReadResponse(bufio.NewReader(strings.NewReader(text)), &http.Request{Method: "GET"})
		if err != nil {
			return
		}
		defer std.Body.Close()
		body, err := io.ReadAll(std.Body)
		if err != nil || std.StatusCode == 101 { // its 101 hands out the stream
			return
		}
		if std.StatusCode != resp.Status || string(body) != string(data) {
			t.Fatalf("%q: we read %d %q, net/http %d %q", text, resp.Status, data, std.StatusCode, body)
		}
	})
}

// FuzzChunks reads chunked bodies in pieces of every size: pieces must not matter, and what was
// written from it is read back with the same borders, extensions and trailers.
func FuzzChunks(f *testing.F) {
	f.Add("3\r\nabc\r\n0\r\n\r\n", 1, true)
	f.Add("3;x\r\nabc\r\n2 ;y=\"z\"\r\nde\r\n0;l\r\nT: u\r\nT: v\r\n\r\n", 2, true)
	f.Add("1\nx\n0\n\n", 3, false)
	f.Add("ffffffffffffffff\r\n", 1, true)
	f.Fuzz(func(t *testing.T, text string, piece int, strict bool) {
		whole, data, err := readChunks(text, 1<<20, strict)
		parts, data2, err2 := readChunks(text, max(1, piece%64), strict)
		if (err == nil) != (err2 == nil) || err == nil && string(data) != string(data2) {
			t.Fatalf("%q at once: %q, %v; in pieces of %d: %q, %v", text, data, err, piece, data2, err2)
		}
		if err != nil || !strict {
			return
		}
		var out strings.Builder
		w := writer{dst: &out, pool: &New(Config{}).buffers}
		m := flow.Message{Body: flow.BodyOf(data), Chunks: parts.chunks, Trailer: parts.trailer}
		if err := w.whole(&m, chunked); err != nil {
			t.Fatal(err)
		}
		again, data3, err := readChunks(out.String(), 7, true)
		if err != nil || string(data3) != string(data) || len(again.chunks) != len(whole.chunks) || len(again.trailer) != len(whole.trailer) {
			t.Fatalf("%q was written as %q: %v", text, out.String(), err)
		}
		for i := range again.chunks {
			if again.chunks[i] != whole.chunks[i] {
				t.Fatalf("chunk %d of %q became %+v", i, text, again.chunks[i])
			}
		}
	})
}

func readChunks(text string, piece int, strict bool) (*body, []byte, error) {
	r := &reader{src: &slow{strings.NewReader(text), piece}}
	var b body
	b.reset(r, limits(), framing{chunked, -1}, strict)
	data, err := io.ReadAll(&b)
	return &b, data, err
}

// slow gives a few bytes at a time.
type slow struct {
	r     io.Reader
	piece int
}

func (s *slow) Read(p []byte) (int, error) { return s.r.Read(p[:min(len(p), s.piece)]) }

func TestEndless(t *testing.T) {
	for name, text := range map[string]string{
		"line":             "GET /" + strings.Repeat("x", 70<<10),
		"fields":           "GET / HTTP/1.1\r\n" + strings.Repeat("a: b\r\n", 20<<10),
		"short lines":      strings.Repeat("a\n", 100<<10),
		"without any line": strings.Repeat("\x00", 100<<10),
	} {
		r := &reader{src: strings.NewReader(text)}
		if _, err := r.section(limits(), nil, nil); err == nil || errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%s: %v", name, err)
		}
		if len(r.buf) > 256<<10 {
			t.Errorf("%s: the buffer grew to %d bytes", name, len(r.buf))
		}
	}
	extensions := strings.Repeat("1;"+strings.Repeat("e", 4000)+"\r\nx\r\n", 100)
	if b, _, err := readChunks(extensions, 1<<20, true); err == nil || !strings.Contains(err.Error(), "chunk extensions") || len(b.chunks) > 20 {
		t.Errorf("a flood of extensions: %v, %d kept", err, len(b.chunks))
	}
	tiny := strings.Repeat("1\r\nx\r\n", 3*maxBorders) + "0\r\n\r\n"
	if b, data, err := readChunks(tiny, 1<<20, true); err != nil || len(data) != 3*maxBorders || b.Chunks() != nil {
		t.Errorf("a flood of chunks: %v, %d bytes, %d borders", err, len(data), len(b.chunks))
	}
}
