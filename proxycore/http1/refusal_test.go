package http1_test

import (
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"mitm-appliance/proxycore/http1"
)

// TestRefusedRequests: requestheaders, error, and a page that names the cure (HTTP-26).
func TestRefusedRequests(t *testing.T) {
	for name, c := range map[string]struct{ head, reason string }{
		"length and encoding": {"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n", "both Transfer-Encoding and Content-Length"},
		"two lengths":         {"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\n", "more than one Content-Length"},
		"length list":         {"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3, 3\r\n\r\n", "not a plain decimal number"},
		"length +":            {"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +3\r\n\r\n", "not a plain decimal number"},
		"length 03":           {"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 03\r\n\r\n", "not a plain decimal number"},
		"two encodings":       {"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n", "more than one Transfer-Encoding"},
		"unknown encoding":    {"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n", "forwarded safely"},
		"request identity":    {"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity\r\n\r\n", "forwarded safely"},
		"encoding in 1.0":     {"POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", "HTTP/1.0"},
		"bare lf":             {"GET / HTTP/1.1\nHost: a\r\n\r\n", "LF instead of CRLF"},
		"bare lf at the end":  {"GET / HTTP/1.1\r\nHost: a\r\n\n", "LF instead of CRLF"},
		"folded":              {"GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\n 2\r\n\r\n", "folded"},
		"nul":                 {"GET / HTTP/1.1\r\nHost: a\r\nX: \x00\r\n\r\n", "control characters"},
		"bare cr":             {"GET / HTTP/1.1\r\nHost: a\r\nX: a\rb\r\n\r\n", "control characters"},
		"space before colon":  {"GET / HTTP/1.1\r\nHost : a\r\nHost: b\r\n\r\n", "not allowed there"},
		"two hosts":           {"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", "more than one Host"},
		"bad host":            {"GET / HTTP/1.1\r\nHost: a b\r\n\r\n", "characters that are not allowed there"},
	} {
		t.Run(name, func(t *testing.T) {
			k := begin(t, setup{transparent: true})
			k.clientSends(c.head)
			body := k.clientPage("400 Bad Request")
			if !strings.Contains(body, c.reason) || !strings.Contains(body, "validate_inbound_headers") {
				t.Errorf("page %s\nwant %q and the cure", body, c.reason)
			}
			k.wantHooks("requestheaders error")
			if f := k.flow(0); f.Error == nil || !strings.Contains(f.Error.Message, c.reason) {
				t.Errorf("recorded %+v", f)
			}
		})
	}
}

// TestGarbage is answered at the first line, without hooks, and logged (H1-20).
func TestGarbage(t *testing.T) {
	for _, head := range []string{
		"GARBAGE\r\n", "GET /\r\n", "GET  / HTTP/1.1\r\n", "GET / x HTTP/1.1\r\n\r\n", "GET / HTTP/2.0\r\n", "GET foo HTTP/1.1\r\n\r\n",
		"G\x00T / HTTP/1.1\r\n\r\n", "GET /\x7f HTTP/1.1\r\n\r\n", "GET / HTTP/1.1\r\n: x\r\n\r\n", "GET / HTTP/1.1\r\nnocolon\r\n\r\n",
		"GET / HTTP/1.1\r\n X: y\r\n\r\n", "GET http:// HTTP/1.1\r\n\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "GET\t/\tHTTP/1.1\r\n",
	} {
		k := begin(t, setup{transparent: true})
		k.clientSends(head)
		k.clientPage("400 Bad Request")
		k.finished()
		if k.hooks.list() != "" || !strings.Contains(k.logs.String(), "bad request") {
			t.Errorf("%q: hooks %s, log\n%s", head, k.hooks.list(), k.logs)
		}
	}
}

// TestValidationOff lets ambiguous messages pass; with both framings the encoding wins (HTTP-27).
func TestValidationOff(t *testing.T) {
	k := begin(t, setup{transparent: true, options: []string{"validate_inbound_headers=false"}})
	request := "POST / HTTP/1.1\r\nHost: a\r\nHost : b\r\nContent-Length: 99\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n"
	k.clientSends(request)
	k.serverGets(request)
	k.serverSends("HTTP/1.1 200 OK\nContent-Length: 1\n\nx")
	k.clientGets("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx")
	k.clientSends("GET / HTTP/1.1\nX: a\n\tb\n\n")
	k.serverGets("GET / HTTP/1.1\r\nX: a\r\n b\r\n\r\n")
}

// TestBadResponses end in a 502 and a closed server connection.
func TestBadResponses(t *testing.T) {
	for name, c := range map[string]struct{ response, reason string }{
		"garbage":             {"NOT HTTP\r\n\r\n", "Cannot parse HTTP response"},
		"http/2":              {"HTTP/2 200 OK\r\n\r\n", "Cannot parse HTTP response"},
		"length and encoding": {"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", "both Transfer-Encoding and Content-Length"},
		"two lengths":         {"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx", "more than one Content-Length"},
		"encoding with 204":   {"HTTP/1.1 204 No\r\nTransfer-Encoding: chunked\r\n\r\n", "not allowed in a response with status 204"},
		"bare lf":             {"HTTP/1.1 200 OK\nContent-Length: 0\r\n\r\n", "LF instead of CRLF"},
		"bad chunk":           {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "no chunk size"},
		"chunk with bare lf":  {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\nx\r\n0\r\n\r\n", "LF instead of CRLF"},
		"chunk too long":      {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nxyz\r\n", "longer than its size"},
		"length in trailer":   {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nContent-Length: 1\r\n\r\n", "belongs in the head"},
		"short body":          {"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabcEOF", "received 3 bytes, expected 10"},
		"short chunks":        {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabEOF", "incomplete chunked read"},
		"short head":          {"HTTP/1.1 200 OK\r\nConEOF", "in the middle of a response head"},
		"nothing":             {"EOF", "without answering"},
		"unasked upgrade":     {"HTTP/1.1 101 Switching Protocols\r\n\r\n", "without being asked"},
	} {
		t.Run(name, func(t *testing.T) {
			k := begin(t, setup{})
			post := "POST / HTTP/1.1\r\nHost: HOST\r\nContent-Length: 1\r\n\r\nx"
			k.clientSends(post)
			k.serverGets(post)
			text, eof := strings.CutSuffix(c.response, "EOF")
			k.serverSends(text)
			if eof {
				_ = k.server.CloseWrite()
			}
			if body := k.clientPage("502 Bad Gateway"); !strings.Contains(body, c.reason) {
				t.Errorf("page %s\nwant %q", body, c.reason)
			}
			k.cutOrEnd(k.server)
			if f := k.flow(0); f.Error == nil || !strings.HasSuffix(k.hooks.list(), " error") {
				t.Errorf("hooks %s, flow %+v", k.hooks.list(), f)
			}
		})
	}
}

func (k *talk) cutOrEnd(c net.Conn) {
	k.t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(patience))
	if _, err := io.Copy(io.Discard, c); err != nil {
		var timeout net.Error
		if errors.As(err, &timeout) && timeout.Timeout() {
			k.t.Fatal("connection stays open")
		}
	}
}

// TestBodySizeLimit in all four places (HTTP-29).
func TestBodySizeLimit(t *testing.T) {
	body := strings.Repeat("x", 11)
	chunks := "b\r\n" + body + "\r\n0\r\n\r\n"
	limit := []string{"body_size_limit=10b", "stream_large_bodies=1b"} // the limit takes precedence
	for _, c := range []struct {
		request, response, status, hooks string
	}{
		{"POST / HTTP/1.1\r\nHost: HOST\r\nContent-Length: 11\r\n\r\n" + body, "", "413 Request Entity Too Large", "requestheaders error"},
		{get, "HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\n" + body, "502 Bad Gateway", "requestheaders request server_connect server_connected responseheaders error"},
	} {
		k := begin(t, setup{options: limit})
		k.clientSends(c.request)
		if c.response != "" {
			k.serverGets(c.request)
			k.serverSends(c.response)
		}
		if body := k.clientPage(c.status); !strings.Contains(body, "body_size_limit") {
			t.Errorf("page %s", body)
		}
		k.wantHooks(c.hooks)
	}
	k := begin(t, setup{options: limit[:1]})
	k.clientSends("POST / HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks)
	k.clientPage("413 Request Entity Too Large")
	k = begin(t, setup{options: limit[:1]})
	k.clientSends(get)
	k.serverGets(get)
	k.serverSends("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks)
	k.clientPage("502 Bad Gateway")
	k.cutOrEnd(k.server)
}

// TestLimits of heads are answered, not stored.
func TestLimits(t *testing.T) {
	small := http1.Config{MaxHead: 200, MaxLine: 100, MaxFields: 5, MaxChunkLine: 50, Linger: time.Millisecond}
	for name, c := range map[string]struct{ request, status string }{
		"line":   {"GET /" + strings.Repeat("a", 101), "414 Request URI Too Long"},
		"head":   {"GET / HTTP/1.1\r\nHost: a\r\nX: " + strings.Repeat("a", 80) + "\r\nY: " + strings.Repeat("a", 80) + "\r\nZ: " + strings.Repeat("a", 80), "431 Request Header Fields Too Large"},
		"fields": {"GET / HTTP/1.1\r\nHost: a\r\n" + strings.Repeat("a: b\r\n", 8) + "\r\n", "431 Request Header Fields Too Large"},
		"chunk":  {"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1;" + strings.Repeat("a", 100), "400 Bad Request"},
		"empty":  {strings.Repeat("\r\n", 200), "400 Bad Request"},
	} {
		t.Run(name, func(t *testing.T) {
			k := begin(t, setup{transparent: true, limits: small})
			k.clientSends(c.request)
			_ = k.client.CloseWrite()
			k.clientPage(c.status)
		})
	}
}

func TestSlowHead(t *testing.T) {
	k := begin(t, setup{limits: http1.Config{HeadTimeout: 20 * time.Millisecond}})
	k.clientSends("GET / HT")
	k.clientEnds()
}
