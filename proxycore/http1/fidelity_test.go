package http1_test

import (
	"fmt"
	"strings"
	"testing"

	"mitm-appliance/proxycore"
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

// TestUpgradeWithBody: the request goes out whole before the stream goes raw, however it is sent.
func TestUpgradeWithBody(t *testing.T) {
	for _, streamed := range []bool{false, true} {
		k := begin(t, setup{})
		if streamed {
			k.hooks.on("requestheaders", func(l *proxycore.LiveFlow) { l.StreamBody(nil) })
		}
		body := strings.Repeat("x", 200<<10)
		request := fmt.Sprintf("POST / HTTP/1.1\r\nHost: HOST\r\nUpgrade: chat\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
		k.clientSends(request + "early")
		k.serverGets(request)
		k.serverSends("HTTP/1.1 101 Go\r\nUpgrade: chat\r\n\r\n")
		k.clientGets("HTTP/1.1 101 Go\r\nUpgrade: chat\r\n\r\n")
		k.serverGets("early")
	}
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
