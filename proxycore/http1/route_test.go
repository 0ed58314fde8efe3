package http1_test

import (
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"mitm-appliance/flow"
	"mitm-appliance/proxycore"
)

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
			l.HTTP.Response = &flow.Response{
				Status: 407, Reason: "Proxy Authentication Required",
				Message: flow.Message{Header: flow.Header{{Name: "Proxy-Authenticate", Value: "Basic"}}},
			}
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
