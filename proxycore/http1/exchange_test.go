package http1_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"

	"mitm-appliance/flow"
	"mitm-appliance/proxycore"
	"mitm-appliance/proxycore/http1"
)

const get = "GET / HTTP/1.1\r\nHost: HOST\r\n\r\n"

// TestPassesUnchanged sends messages through and expects every byte on the other side.
func TestPassesUnchanged(t *testing.T) {
	for name, c := range map[string]struct{ request, response string }{
		"post":               {"POST /p HTTP/1.1\r\nHost: HOST\r\nContent-Length: 3\r\n\r\nabc", "HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n"},
		"chunked both ways":  {"POST / HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", "HTTP/1.1 200 OK\r\ntransfer-encoding: CHUNKED\r\n\r\n3\r\nxyz\r\n0\r\n\r\n"},
		"borders":            {"POST / HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n2\r\nbc\r\n0\r\n\r\n", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nxy\r\n1\r\nz\r\n0\r\n\r\n"},
		"chunk extensions":   {"POST / HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\n\r\n1;a=b;c=\"d\"\r\na\r\n0;last\r\n\r\n", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2 ; x\r\nxy\r\n0;end=1\r\n\r\n"},
		"trailers":           {"POST / HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nX-Sum: 1\r\nx-sum: 2\r\n\r\n", "HTTP/1.1 200 OK\r\nTrailer: T\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nT: end\r\n\r\n"},
		"head":               {"HEAD / HTTP/1.1\r\nHost: HOST\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"},
		"head chunked":       {"HEAD / HTTP/1.1\r\nHost: HOST\r\n\r\n", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"},
		"not modified":       {get, "HTTP/1.1 304 Not Modified\r\nContent-Length: 77\r\nETag: \"x\"\r\n\r\n"},
		"empty reason":       {get, "HTTP/1.1 299 \r\nContent-Length: 0\r\n\r\n"},
		"options *":          {"OPTIONS * HTTP/1.1\r\nHost: HOST\r\n\r\n", "HTTP/1.1 204 No Content\r\nAllow: GET\r\n\r\n"},
		"early hints":        {get, "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx"},
		"bytes above ascii":  {"GET /\xff\xfe HTTP/1.1\r\nHost: HOST\r\nX: \xe4\xf6\r\n\r\n", "HTTP/1.1 200 \xfcber\r\nContent-Length: 0\r\nX: \xff\r\n\r\n"},
		"empty values":       {"GET / HTTP/1.1\r\nHost: HOST\r\nX: \r\n\r\n", "HTTP/1.1 200 OK\r\nX: \r\nContent-Length: 0\r\n\r\n"},
		"odd method":         {"M-SEARCH / HTTP/1.1\r\nHost: HOST\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"},
		"http/1.0 kept open": {"GET / HTTP/1.0\r\nHost: HOST\r\nConnection: Keep-Alive\r\n\r\n", "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 1\r\n\r\nx"},
	} {
		t.Run(name, func(t *testing.T) {
			for _, streamed := range []bool{false, true} {
				k := begin(t, setup{})
				if streamed {
					k.hooks.on("requestheaders", func(l *proxycore.LiveFlow) { l.StreamBody(nil) })
					k.hooks.on("responseheaders", func(l *proxycore.LiveFlow) { l.StreamBody(nil) })
				}
				for range 2 { // the connection stays in order
					k.clientSends(c.request)
					k.serverGets(c.request)
					k.serverSends(c.response)
					k.clientGets(c.response)
				}
				if f := k.flow(1); f.Error != nil {
					t.Errorf("streamed %v: error %q", streamed, f.Error.Message)
				}
			}
		})
	}
}

// TestByteByByte sends one byte per packet.
func TestByteByByte(t *testing.T) {
	k := begin(t, setup{})
	request := k.text("\r\nPOST / HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\n\r\n3;x\r\nabc\r\n0\r\nT: 1\r\n\r\n")
	response := "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n"
	_ = k.client.SetNoDelay(true)
	for i := range len(request) {
		k.clientSends(request[i : i+1])
	}
	k.serverGets(request[2:])
	for i := range len(response) {
		k.serverSends(response[i : i+1])
	}
	k.clientGets(response)
	f := k.flow(0)
	if len(f.HTTP.Interim) != 1 || f.HTTP.Interim[0].Status != 100 || len(f.HTTP.Request.Chunks) != 2 || f.HTTP.Request.Trailer.Get("t") != "1" {
		t.Errorf("recorded %+v", f.HTTP)
	}
}

// TestPipelining: requests wait, answers come in order (H1-10).
func TestPipelining(t *testing.T) {
	k := begin(t, setup{})
	one := func(i int) string { return fmt.Sprintf("GET /%d HTTP/1.1\r\nHost: HOST\r\n\r\n", i) }
	k.clientSends(one(1) + one(2) + one(3))
	for i := 1; i <= 3; i++ {
		k.serverGets(one(i))
		answer := fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n%d", i)
		k.serverSends(answer)
		k.clientGets(answer)
	}
}

// TestEmptyLinesBeforeRequest: QUIRK-03 is not copied.
func TestEmptyLinesBeforeRequest(t *testing.T) {
	k := begin(t, setup{})
	k.clientSends("\r\n\r\n" + get)
	k.serverGets(get)
	k.serverSends("HTTP/1.1 204 No Content\r\n\r\n")
	k.clientGets("HTTP/1.1 204 No Content\r\n\r\n")
}

func TestPersistence(t *testing.T) {
	for name, c := range map[string]struct {
		request, response string
		stays             bool
	}{
		"1.1":                     {get, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", true},
		"1.1 request closes":      {"GET / HTTP/1.1\r\nHost: HOST\r\nConnection: Close\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", false},
		"1.1 response closes":     {get, "HTTP/1.1 200 OK\r\nConnection: x, CLOSE\r\nContent-Length: 0\r\n\r\n", false},
		"1.0":                     {"GET / HTTP/1.0\r\nHost: HOST\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", false},
		"1.0 response":            {get, "HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n", false},
		"1.0 response kept alive": {get, "HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\nContent-Length: 0\r\n\r\n", true},
	} {
		t.Run(name, func(t *testing.T) {
			k := begin(t, setup{})
			k.clientSends(c.request)
			k.serverGets(c.request)
			k.serverSends(c.response)
			k.clientGets(c.response)
			if !c.stays {
				k.clientEnds()
				k.serverEnds()
				return
			}
			k.clientSends(get)
			k.serverGets(get)
		})
	}
}

// TestHTTP10ClientGetsNoChunks: such a client cannot read them.
func TestHTTP10ClientGetsNoChunks(t *testing.T) {
	for _, streamed := range []bool{false, true} {
		k := begin(t, setup{})
		if streamed {
			k.hooks.on("responseheaders", func(l *proxycore.LiveFlow) { l.StreamBody(nil) })
		}
		k.clientSends("GET / HTTP/1.0\r\nHost: HOST\r\n\r\n")
		k.serverGets("GET / HTTP/1.0\r\nHost: HOST\r\n\r\n")
		k.serverSends("HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n")
		if streamed {
			k.clientGets("HTTP/1.1 200 OK\r\n\r\nabc")
		} else {
			k.clientGets("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc")
		}
		k.clientEnds()
	}
}

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

// TestDestinations of an explicit proxy.
func TestDestinations(t *testing.T) {
	for name, c := range map[string]struct{ request, page, hooks string }{
		"no host":       {"GET / HTTP/1.1\r\n\r\n", "no host header", ""},
		"other scheme":  {"GET ftp://HOST/ HTTP/1.1\r\n\r\n", "unknown scheme", "requestheaders error"},
		"user in url":   {"GET http://u@HOST/ HTTP/1.1\r\n\r\n", "not a host", "requestheaders error"},
		"bad port":      {"GET http://a:x/ HTTP/1.1\r\n\r\n", "not a host", "requestheaders error"},
		"connect path":  {"CONNECT /x HTTP/1.1\r\n\r\n", "not a host", ""},
		"connect alone": {"CONNECT a HTTP/1.1\r\n\r\n", "needs a port", ""},
	} {
		t.Run(name, func(t *testing.T) {
			k := begin(t, setup{})
			k.clientSends(c.request)
			if body := k.clientPage("400 Bad Request"); !strings.Contains(body, c.page) {
				t.Errorf("page %s\nwant %q", body, c.page)
			}
			k.wantHooks(c.hooks)
		})
	}
}

// TestRequestTargetWins over another Host field (RFC 9112, section 3.2.2).
func TestRequestTargetWins(t *testing.T) {
	for _, c := range []struct{ sent, want string }{
		{"GET http://HOST/ HTTP/1.1\r\nA: b\r\nHost: other\r\n\r\n", "GET / HTTP/1.1\r\nA: b\r\nHost: HOST\r\n\r\n"},
		{"GET http://HOST HTTP/1.1\r\nA: b\r\n\r\n", "GET / HTTP/1.1\r\nHost: HOST\r\nA: b\r\n\r\n"},
		{"GET http://HOST?q HTTP/1.1\r\nHost: HOST\r\n\r\n", "GET /?q HTTP/1.1\r\nHost: HOST\r\n\r\n"},
		{"OPTIONS http://HOST HTTP/1.1\r\nHost: HOST\r\n\r\n", "OPTIONS * HTTP/1.1\r\nHost: HOST\r\n\r\n"},
	} {
		k := begin(t, setup{})
		k.clientSends(c.sent)
		k.serverGets(c.want)
	}
}

func TestConnectInTransparentMode(t *testing.T) {
	k := begin(t, setup{transparent: true})
	k.clientSends("CONNECT a:1 HTTP/1.1\r\n\r\n")
	if body := k.clientPage("400 Bad Request"); !strings.Contains(body, "regular") {
		t.Errorf("page %s lacks the hint", body)
	}
	k.wantHooks("requestheaders error")
}

// TestConnectTunnel: what the client sends behind CONNECT reaches the protocol inside (HOOK-12, H1-13).
func TestConnectTunnel(t *testing.T) {
	for eager, want := range map[bool]string{
		true:  "http_connect server_connect server_connected http_connected requestheaders request responseheaders response",
		false: "http_connect http_connected requestheaders request server_connect server_connected responseheaders response",
	} {
		k := begin(t, setup{eager: eager})
		k.clientSends("CONNECT HOST HTTP/1.0\r\nHost: HOST\r\n\r\n\r\n" + get)
		k.clientGets("HTTP/1.0 200 Connection established\r\n\r\n")
		k.serverGets(get)
		k.serverSends("HTTP/1.1 204 No Content\r\n\r\n")
		k.clientGets("HTTP/1.1 204 No Content\r\n\r\n")
		k.wantHooks(want)
		if f := k.flow(0); f.HTTP.Request.Method != "GET" {
			t.Errorf("the CONNECT flow was recorded: %+v", f.HTTP)
		}
	}
}

// TestConnectRefused: the reason, a hint, and another try on the same connection (HTTP-13).
func TestConnectRefused(t *testing.T) {
	k := begin(t, setup{eager: true})
	closed := closedPort(t)
	k.clientSends("CONNECT " + closed + " HTTP/1.1\r\n\r\n")
	k.clientGets("HTTP/1.1 502 Bad Gateway\r\nServer: mitm-appliance\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: ")
	rest := make([]byte, 4096)
	n, _ := k.client.Read(rest)
	if text := string(rest[:n]); !strings.Contains(text, "Cannot connect to "+closed) || !strings.Contains(text, "connection refused") || !strings.Contains(text, "connection_strategy") {
		t.Errorf("got %q", text)
	}
	k.wantHooks("http_connect server_connect http_connect_error")
	if f := k.flow(0); f.Error == nil || f.Server.Error == "" {
		t.Errorf("recorded %+v", f)
	}
	k.clientSends("CONNECT HOST HTTP/1.1\r\n\r\n")
	k.clientGets("HTTP/1.1 200 Connection established\r\n\r\n")
}

// TestConnectDenied by a hook, as authentication does.
func TestConnectDenied(t *testing.T) {
	k := begin(t, setup{eager: true})
	k.hooks.on("http_connect", func(l *proxycore.LiveFlow) {
		if !l.HTTP.Request.Header.Has("proxy-authorization") {
			l.HTTP.Response = &flow.Response{Status: 407, Reason: "Proxy Authentication Required",
				Message: flow.Message{Header: flow.Header{{Name: "Proxy-Authenticate", Value: "Basic"}}}}
		}
	})
	k.clientSends("CONNECT HOST HTTP/1.1\r\n\r\n")
	k.clientGets("HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic\r\nContent-Length: 0\r\n\r\n")
	k.clientSends("CONNECT HOST HTTP/1.1\r\nProxy-Authorization: x\r\n\r\n")
	k.clientGets("HTTP/1.1 200 Connection established\r\n\r\n")
	k.wantHooks("http_connect http_connect_error http_connect server_connect server_connected http_connected")
}

func closedPort(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

func TestServerUnreachable(t *testing.T) {
	k := begin(t, setup{})
	closed := closedPort(t)
	k.clientSends("GET http://" + closed + "/ HTTP/1.1\r\nHost: " + closed + "\r\n\r\n")
	if body := k.clientPage("502 Bad Gateway"); !strings.Contains(body, "connection refused") {
		t.Errorf("page %s", body)
	}
	k.wantHooks("requestheaders request server_connect error")
	if f := k.flow(0); f.Error == nil || f.Server == nil || !strings.Contains(f.Server.Error, "refused") {
		t.Errorf("recorded %+v", f)
	}
}

// TestServerErr: why an outer layer could not reach the server is told to the client (TLS-02).
func TestServerErr(t *testing.T) {
	k := begin(t, setup{transparent: true, serverErr: errors.New("certificate expired")})
	k.clientSends(get)
	if body := k.clientPage("502 Bad Gateway"); !strings.Contains(body, "certificate expired") {
		t.Errorf("page %s", body)
	}
	k.wantHooks("requestheaders request error")
}

// TestLastHooks: the client's end comes before its servers' (HOOK-11, HOOK-21).
func TestLastHooks(t *testing.T) {
	k := begin(t, setup{})
	ends := &ends{hooks: k.hooks}
	k.core.SetAddons(ends)
	k.clientSends(get)
	k.serverGets(get)
	k.serverSends("HTTP/1.1 204 \r\n\r\n")
	k.clientGets("HTTP/1.1 204 \r\n\r\n")
	k.finished()
	k.wantHooks("client_disconnected server_disconnected")
}

// ends is an addon that notes only how a conversation ends.
type ends struct{ hooks *hooks }

func (e *ends) ClientDisconnected(context.Context, *proxycore.ClientData) error {
	return e.hooks.note("client_disconnected", nil)
}
func (e *ends) ServerDisconnected(context.Context, *proxycore.ServerData) error {
	return e.hooks.note("server_disconnected", nil)
}

// TestAmbiguousByHook: a hook that leaves two framings behind does not smuggle.
func TestAmbiguousByHook(t *testing.T) {
	k := begin(t, setup{})
	k.hooks.on("request", func(l *proxycore.LiveFlow) {
		l.HTTP.Request.Header.Add("Transfer-Encoding", "chunked")
	})
	k.hooks.on("response", func(l *proxycore.LiveFlow) {
		l.HTTP.Response.Header.Add("Transfer-Encoding", "chunked")
	})
	k.clientSends("POST / HTTP/1.1\r\nHost: HOST\r\nContent-Length: 1\r\n\r\na")
	k.serverGets("POST / HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n")
	k.serverSends("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx")
	k.clientGets("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n")
}

// TestHookAnswers: no server is contacted (HTTP-03).
func TestHookAnswers(t *testing.T) {
	for _, at := range []string{"requestheaders", "request"} {
		k := begin(t, setup{})
		k.hooks.on(at, func(l *proxycore.LiveFlow) {
			l.HTTP.Response = &flow.Response{Status: 418, Reason: "No", Message: flow.Message{Body: flow.BodyOf([]byte("teapot"))}}
		})
		for range 2 {
			k.clientSends("POST / HTTP/1.1\r\nHost: HOST\r\nContent-Length: 3\r\n\r\nabc")
			k.clientGets("HTTP/1.1 418 No\r\nContent-Length: 6\r\n\r\nteapot")
		}
		const once = "requestheaders request responseheaders response"
		k.wantHooks(once + " " + once)
		if f := k.flow(0); string(f.HTTP.Request.Body.Data) != "abc" || f.Server != nil {
			t.Errorf("recorded %+v", f)
		}
	}
}

// TestHookEdits: changed bodies get a true length, and lose their chunk borders.
func TestHookEdits(t *testing.T) {
	k := begin(t, setup{})
	k.hooks.on("request", func(l *proxycore.LiveFlow) {
		l.HTTP.Request.Body = flow.BodyOf([]byte("changed"))
		l.HTTP.Request.Path = "/other"
		l.HTTP.Request.Header.Set("x", "2")
	})
	k.hooks.on("response", func(l *proxycore.LiveFlow) { l.HTTP.Response.Body = flow.BodyOf([]byte("new")) })
	k.clientSends("POST / HTTP/1.1\r\nHost: HOST\r\nX: 1\r\nContent-Length: 1\r\n\r\na")
	k.serverGets("POST /other HTTP/1.1\r\nHost: HOST\r\nX: 2\r\nContent-Length: 7\r\n\r\nchanged")
	k.serverSends("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;x\r\na\r\n4\r\nbcde\r\n0\r\n\r\n")
	k.clientGets("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nnew\r\n0\r\n\r\n")
	k.clientSends(get)
	k.serverGets("GET /other HTTP/1.1\r\nHost: HOST\r\nx: 2\r\nContent-Length: 7\r\n\r\nchanged")
}

// TestHookRedirects to another server, and back to the first one's connection (HTTP-08).
func TestHookRedirects(t *testing.T) {
	other := begin(t, setup{})
	k := begin(t, setup{transparent: true, eager: true})
	k.hooks.on("request", func(l *proxycore.LiveFlow) {
		if l.HTTP.Request.Path == "/elsewhere" {
			l.HTTP.Request.Host, l.HTTP.Request.Port = "127.0.0.1", uint16(other.ln.Addr().(*net.TCPAddr).Port)
		}
	})
	k.clientSends(get)
	k.serverGets(get)
	k.serverSends("HTTP/1.1 204 \r\n\r\n")
	k.clientGets("HTTP/1.1 204 \r\n\r\n")
	k.clientSends("GET /elsewhere HTTP/1.1\r\nHost: x\r\n\r\n")
	other.serverGets("GET /elsewhere HTTP/1.1\r\nHost: x\r\n\r\n")
	other.serverSends("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
	k.clientGets("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
	k.clientSends(get)
	k.serverGets(get)
}

// TestKill at each hook resets both sides; afterwards the error hook runs, or has no business any
// more (FLOW-06, FLOW-07).
func TestKill(t *testing.T) {
	for at, want := range map[string]string{
		"requestheaders":  "requestheaders error",
		"request":         "requestheaders request error",
		"responseheaders": "requestheaders request server_connect server_connected responseheaders error",
		"response":        "requestheaders request server_connect server_connected responseheaders response",
	} {
		t.Run(at, func(t *testing.T) {
			k := begin(t, setup{})
			k.hooks.on(at, func(l *proxycore.LiveFlow) { _ = l.Kill(nil) })
			k.clientSends(get)
			if strings.HasPrefix(at, "response") {
				k.serverGets(get)
				k.serverSends("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx")
				k.cut("server", k.server)
			}
			k.cut("client", k.client)
			k.wantHooks(want)
			if f := k.flow(0); f.Error == nil || f.Error.Message != flow.Killed {
				t.Errorf("recorded %+v", f.Error)
			}
		})
	}
}

// TestKillWhileWaiting cuts at once: for the server's answer, and for a person (QUIRK-02).
func TestKillWhileWaiting(t *testing.T) {
	for _, intercepted := range []bool{false, true} {
		k := begin(t, setup{})
		if intercepted {
			k.hooks.on("request", func(l *proxycore.LiveFlow) { l.Intercept() })
		}
		k.clientSends(get)
		if !intercepted {
			k.serverGets(get)
		}
		if err := k.live(0).Kill(nil); err != nil {
			t.Fatal(err)
		}
		k.cut("client", k.client)
		if !intercepted {
			k.cut("server", k.server)
		}
		if f := k.flow(0); f.Error == nil || f.Error.Message != flow.Killed {
			t.Errorf("recorded %+v", f.Error)
		}
	}
}

// TestInterceptAndEdit: a person changes a request that waits.
func TestInterceptAndEdit(t *testing.T) {
	k := begin(t, setup{})
	k.hooks.on("request", func(l *proxycore.LiveFlow) { l.Intercept() })
	k.clientSends(get)
	l := k.live(0)
	if err := l.Edit(func(f *flow.Flow) { f.HTTP.Request.Path = "/edited" }); err != nil {
		t.Fatal(err)
	}
	l.Resume()
	k.serverGets("GET /edited HTTP/1.1\r\nHost: HOST\r\n\r\n")
}

// TestClientLeaves while it waits for its response (HTTP-21).
func TestClientLeaves(t *testing.T) {
	k := begin(t, setup{})
	k.clientSends(get)
	k.serverGets(get)
	proxycore.Abort(k.client)
	k.cutOrEnd(k.server)
	if f := k.flow(0); f.Error == nil || f.Error.Message != "Client disconnected." {
		t.Errorf("recorded %+v", f.Error)
	}
	k.wantHooks("requestheaders request server_connect server_connected error")
}

// TestClientLeavesForGood: a half-closed client is given a while.
func TestClientLeavesForGood(t *testing.T) {
	k := begin(t, setup{limits: http1.Config{HalfClose: time.Millisecond}})
	k.clientSends(get)
	k.serverGets(get)
	_ = k.client.CloseWrite()
	k.cutOrEnd(k.server)
	if f := k.flow(0); f.Error == nil || f.Error.Message != "Client disconnected." {
		t.Errorf("recorded %+v", f.Error)
	}
}

// TestHalfClosedClientGetsItsAnswer: better than H1-19.
func TestHalfClosedClientGetsItsAnswer(t *testing.T) {
	for _, late := range []time.Duration{0, 300 * time.Millisecond} { // before and after somebody looks
		k := begin(t, setup{})
		k.clientSends(get)
		_ = k.client.CloseWrite()
		k.serverGets(get)
		time.Sleep(late)
		k.serverSends("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
		k.clientGets("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
		k.clientEnds()
		if f := k.flow(0); f.Error != nil {
			t.Errorf("recorded %+v", f.Error)
		}
	}
}

// TestPipelinedWhileWaiting: what the look-out for the client reads is not lost.
func TestPipelinedWhileWaiting(t *testing.T) {
	k := begin(t, setup{})
	k.clientSends(get)
	k.serverGets(get)
	time.Sleep(300 * time.Millisecond) // the look-out has begun
	k.clientSends("GET /2 HTTP/1.1\r\nHost: HOST\r\n\r\n")
	time.Sleep(10 * time.Millisecond)
	k.serverSends("HTTP/1.1 204 \r\n\r\n")
	k.clientGets("HTTP/1.1 204 \r\n\r\n")
	k.serverGets("GET /2 HTTP/1.1\r\nHost: HOST\r\n\r\n")
}

// TestStaleConnection: a request that meets a connection which died in the pool goes out again, when
// the server cannot have acted on it.
func TestStaleConnection(t *testing.T) {
	warm := func(t *testing.T) *talk {
		k := begin(t, setup{})
		k.clientSends(get)
		k.serverGets(get)
		k.serverSends("HTTP/1.1 204 \r\n\r\n")
		k.clientGets("HTTP/1.1 204 \r\n\r\n")
		return k
	}
	post := "POST / HTTP/1.1\r\nHost: HOST\r\nContent-Length: 1\r\n\r\nx"
	t.Run("closed before the request", func(t *testing.T) {
		for _, request := range []string{get, post} {
			k := warm(t)
			k.server.Close()
			k.server = nil
			time.Sleep(10 * time.Millisecond) // let the end arrive
			k.clientSends(request)
			k.serverGets(request)
		}
	})
	t.Run("closed on the request", func(t *testing.T) {
		k := warm(t)
		k.clientSends(get)
		k.serverGets(get)
		k.server.Close()
		k.server = nil
		k.serverGets(get)
		k.serverSends("HTTP/1.1 204 \r\n\r\n")
		k.clientGets("HTTP/1.1 204 \r\n\r\n")
	})
	t.Run("not twice for post", func(t *testing.T) {
		k := warm(t)
		k.clientSends(post)
		k.serverGets(post)
		k.server.Close()
		k.server = nil
		k.clientPage("502 Bad Gateway")
	})
	t.Run("not on a fresh connection", func(t *testing.T) {
		k := begin(t, setup{})
		k.clientSends(get)
		k.serverGets(get)
		k.server.Close()
		k.server = nil
		k.clientPage("502 Bad Gateway")
	})
}

// TestUnaskedData on an idle connection makes it useless (H1-14).
func TestUnaskedData(t *testing.T) {
	k := begin(t, setup{})
	k.clientSends(get)
	k.serverGets(get)
	k.serverSends("HTTP/1.1 204 \r\n\r\nHTTP/1.1 200 Evil\r\nContent-Length: 0\r\n\r\n")
	k.clientGets("HTTP/1.1 204 \r\n\r\n")
	k.cutOrEnd(k.server)
	k.server = nil
	k.clientSends(get)
	k.serverGets(get)
}

func TestExpect(t *testing.T) {
	head := "POST / HTTP/1.1\r\nHost: HOST\r\nExpect: 100-Continue\r\nContent-Length: 2\r\n\r\n"
	t.Run("collected: we answer", func(t *testing.T) {
		k := begin(t, setup{})
		k.clientSends(head)
		k.clientGets("HTTP/1.1 100 Continue\r\n\r\n")
		k.clientSends("hi")
		k.serverGets("POST / HTTP/1.1\r\nHost: HOST\r\nContent-Length: 2\r\n\r\nhi")
	})
	t.Run("streamed: the server answers", func(t *testing.T) {
		k := begin(t, setup{})
		k.hooks.on("requestheaders", func(l *proxycore.LiveFlow) { l.StreamBody(nil) })
		k.clientSends(head)
		k.serverGets(head)
		k.serverSends("HTTP/1.1 100 Go On\r\nA: b\r\n\r\n")
		k.clientGets("HTTP/1.1 100 Go On\r\nA: b\r\n\r\n")
		k.clientSends("hi")
		k.serverGets("hi")
		k.serverSends("HTTP/1.1 204 \r\n\r\n")
		k.clientGets("HTTP/1.1 204 \r\n\r\n")
		k.wantHooks("requestheaders server_connect server_connected request responseheaders response")
		if f := k.flow(0); len(f.HTTP.Interim) != 1 || f.HTTP.Interim[0].Reason != "Go On" {
			t.Errorf("recorded %+v", f.HTTP.Interim)
		}
	})
	t.Run("streamed: the server refuses", func(t *testing.T) {
		k := begin(t, setup{limits: http1.Config{Linger: 10 * time.Millisecond}})
		k.hooks.on("requestheaders", func(l *proxycore.LiveFlow) { l.StreamBody(nil) })
		k.clientSends(head)
		k.serverGets(head)
		k.serverSends("HTTP/1.1 417 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
		k.server.Close()
		k.clientGets("HTTP/1.1 417 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
		k.clientSends("hi") // it may send the body all the same
		k.clientEnds()
		k.server = nil
	})
	t.Run("a hook refuses", func(t *testing.T) {
		k := begin(t, setup{limits: http1.Config{Linger: 10 * time.Millisecond}})
		k.hooks.on("requestheaders", func(l *proxycore.LiveFlow) {
			l.HTTP.Response = &flow.Response{Status: 417, Reason: "No"}
		})
		k.clientSends(head)
		k.clientGets("HTTP/1.1 417 No\r\nContent-Length: 0\r\n\r\n")
	})
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

// TestLateStreaming: what was collected before the threshold goes out first, borders and all (HTTP-35).
func TestLateStreaming(t *testing.T) {
	k := begin(t, setup{options: []string{"stream_large_bodies=4b"}, prefix: 3})
	head := "POST / HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\n\r\n"
	k.clientSends(head + "3\r\nabc\r\n4;x\r\nde")
	k.serverGets(head + "3\r\nabc\r\n4;x\r\nde")
	k.clientSends("fg\r\n0\r\n\r\n")
	k.serverGets("fg\r\n0\r\n\r\n")
	answer := "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n4\r\ncdef\r\n"
	k.serverSends(answer)
	k.clientGets(answer)
	k.serverSends("0;e\r\nT: 1\r\n\r\n")
	k.clientGets("0;e\r\nT: 1\r\n\r\n")
	f := k.flow(0)
	want := flow.Body{Data: []byte("abc"), Size: 7, State: flow.BodyTruncated}
	if got := f.HTTP.Request.Body; string(got.Data) != "abc" || got.Size != want.Size || got.State != want.State {
		t.Errorf("request body %+v, want %+v", got, want)
	}
	if f.HTTP.Response.Trailer.Get("T") != "1" {
		t.Errorf("trailer %v", f.HTTP.Response.Trailer)
	}
}

// TestEventStream is passed on event by event, whatever the options say.
func TestEventStream(t *testing.T) {
	k := begin(t, setup{})
	k.clientSends(get)
	k.serverGets(get)
	head := "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n\r\n"
	k.serverSends(head)
	k.clientGets(head)
	for i := range 3 {
		event := "data: " + strconv.Itoa(i) + "\n\n"
		k.serverSends(event)
		k.clientGets(event)
	}
	k.server.CloseWrite()
	k.clientEnds()
	if f := k.flow(0); f.HTTP.Response.Body.State != flow.BodyComplete || len(f.HTTP.Response.Body.Data) != 27 {
		t.Errorf("recorded %+v", f.HTTP.Response.Body)
	}
}

// TestEndlessResponse that nobody announced as one is passed on after a while.
func TestEndlessResponse(t *testing.T) {
	k := begin(t, setup{patience: 20 * time.Millisecond})
	k.clientSends(get)
	k.serverGets(get)
	head := "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab"
	k.serverSends(head)
	k.clientGets(head)
	k.serverSends("cde\r\n")
	k.clientGets("cde\r\n")
	time.Sleep(30 * time.Millisecond) // the limit is for collecting only
	k.serverSends("0\r\n\r\n")
	k.clientGets("0\r\n\r\n")
	k.wantHooks("requestheaders request server_connect server_connected responseheaders response")
	head = "POST / HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n"
	k.clientSends(head)
	k.serverGets(head)
	k.clientSends("0\r\n\r\n")
	k.serverGets("0\r\n\r\n")
}

// TestTransform rewrites streamed bodies; their length is not known any more.
func TestTransform(t *testing.T) {
	k := begin(t, setup{})
	upper := func(r io.Reader) io.Reader { return &upperReader{r} }
	k.hooks.on("requestheaders", func(l *proxycore.LiveFlow) { l.StreamBody(upper) })
	k.hooks.on("responseheaders", func(l *proxycore.LiveFlow) { l.StreamBody(upper) })
	k.clientSends("POST / HTTP/1.1\r\nHost: HOST\r\nContent-Length: 3\r\n\r\nabc")
	k.serverGets("POST / HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nABC\r\n0\r\n\r\n")
	k.serverSends("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nxy")
	k.clientGets("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nXY\r\n0\r\n\r\n")
	if f := k.flow(0); string(f.HTTP.Request.Body.Data) != "ABC" || string(f.HTTP.Response.Body.Data) != "XY" {
		t.Errorf("recorded %+v", f.HTTP)
	}
}

type upperReader struct{ r io.Reader }

func (u *upperReader) Read(p []byte) (int, error) {
	n, err := u.r.Read(p)
	copy(p, strings.ToUpper(string(p[:n])))
	return n, err
}

// TestEarlyAnswer: the response is passed on while the upload goes on (H1-18).
func TestEarlyAnswer(t *testing.T) {
	k := begin(t, setup{})
	k.hooks.on("requestheaders", func(l *proxycore.LiveFlow) { l.StreamBody(nil) })
	head := "POST / HTTP/1.1\r\nHost: HOST\r\nContent-Length: 6\r\n\r\n"
	k.clientSends(head + "abc")
	k.serverGets(head + "abc")
	k.serverSends("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
	k.clientGets("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
	k.clientSends("def")
	k.serverGets("def")
	k.wantHooks("requestheaders server_connect server_connected responseheaders response request")
	if f := k.flow(0); string(f.HTTP.Request.Body.Data) != "abcdef" || f.Error != nil {
		t.Errorf("recorded %+v", f.HTTP.Request.Body)
	}
	k.clientSends(get) // and the connection goes on
	k.serverGets(get)
}

// TestEarlyRefusal: the server answers and hangs up in the middle of an upload.
func TestEarlyRefusal(t *testing.T) {
	for _, streamed := range []bool{false, true} {
		k := begin(t, setup{})
		body := strings.Repeat("x", 8<<20)
		if streamed {
			k.hooks.on("requestheaders", func(l *proxycore.LiveFlow) { l.StreamBody(nil) })
		}
		head := fmt.Sprintf("POST / HTTP/1.1\r\nHost: HOST\r\nContent-Length: %d\r\n\r\n", len(body))
		sent := make(chan error, 1)
		go func() {
			_, err := io.WriteString(k.client, k.text(head)+body)
			sent <- err
		}()
		k.serverGets(head)
		answer := "HTTP/1.1 413 Too Much\r\nConnection: close\r\nContent-Length: 2\r\n\r\nno"
		k.serverSends(answer)
		k.clientGets(answer)
		k.cutServer()
		k.flow(0)
		k.client.Close()
		<-sent
	}
}

func (k *talk) cutServer() {
	proxycore.Abort(k.server)
	k.server = nil
}

// TestUploadLosesClient: a client that leaves in the middle of a streamed upload.
func TestUploadLosesClient(t *testing.T) {
	k := begin(t, setup{})
	k.hooks.on("requestheaders", func(l *proxycore.LiveFlow) { l.StreamBody(nil) })
	head := "POST / HTTP/1.1\r\nHost: HOST\r\nContent-Length: 6\r\n\r\n"
	k.clientSends(head + "abc")
	k.serverGets(head + "abc")
	k.client.Close()
	k.cutOrEnd(k.server)
	k.wantHooks("requestheaders server_connect server_connected error")
	if f := k.flow(0); f.Error == nil || f.Error.Message != "Client disconnected." {
		t.Errorf("recorded %+v", f.Error)
	}
}

// TestUploadLosesServer: the client is told although it still sends.
func TestUploadLosesServer(t *testing.T) {
	k := begin(t, setup{limits: http1.Config{Linger: 10 * time.Millisecond}})
	k.hooks.on("requestheaders", func(l *proxycore.LiveFlow) { l.StreamBody(nil) })
	head := "POST / HTTP/1.1\r\nHost: HOST\r\nContent-Length: 6\r\n\r\n"
	k.clientSends(head + "abc")
	k.serverGets(head + "abc")
	k.cutServer()
	k.clientPage("502 Bad Gateway")
	k.wantHooks("requestheaders server_connect server_connected error")
}

// TestUpgrade: raw in both directions, with what was sent too early on either side (H1-17).
func TestUpgrade(t *testing.T) {
	k := begin(t, setup{})
	request := "GET / HTTP/1.1\r\nHost: HOST\r\nConnection: Upgrade\r\nUpgrade: chat\r\n\r\n"
	answer := "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: chat\r\n\r\n"
	k.clientSends(request + "early client")
	k.serverGets(request)
	k.serverSends(answer + "early server")
	k.clientGets(answer + "early server")
	k.serverGets("early client")
	k.clientSends("ping")
	k.serverGets("ping")
	_ = k.client.CloseWrite()
	k.ends("server", k.server)
	k.serverSends("pong")
	_ = k.server.CloseWrite()
	k.clientGets("pong")
	k.clientEnds()
	k.wantHooks("requestheaders request server_connect server_connected responseheaders response")
}

func TestUpgradeRefused(t *testing.T) {
	k := begin(t, setup{})
	request := "GET / HTTP/1.1\r\nHost: HOST\r\nConnection: Upgrade\r\nUpgrade: chat\r\n\r\n"
	for range 2 {
		k.clientSends(request)
		k.serverGets(request)
		k.serverSends("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nno")
		k.clientGets("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nno")
	}
}

// TestTruncatedStream: a client must see that a streamed response was cut (HTTP-40).
func TestTruncatedStream(t *testing.T) {
	for _, c := range []struct {
		head  string
		reset bool // the length says nothing, so only a reset tells
	}{
		{"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 100\r\n\r\nabc", false},
		{"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", false},
		{"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\nabc", true},
	} {
		k := begin(t, setup{})
		k.clientSends(get)
		k.serverGets(get)
		k.serverSends(c.head)
		k.clientGets(c.head)
		k.cutServer()
		if c.reset {
			k.cut("client", k.client)
		} else {
			k.clientEnds()
		}
		k.wantHooks("requestheaders request server_connect server_connected responseheaders error")
	}
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
