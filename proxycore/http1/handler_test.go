package http1_test

import (
	"testing"
)

func TestGetThroughExplicitProxy(t *testing.T) {
	k := begin(t, setup{})
	k.clientSends("GET http://HOST/a?b=c HTTP/1.1\r\nhost: HOST\r\nX-Odd:  a \r\nx-odd:b\r\n\r\n")
	k.serverGets("GET /a?b=c HTTP/1.1\r\nhost: HOST\r\nX-Odd: a\r\nx-odd: b\r\n\r\n")
	k.serverSends("HTTP/1.1 200 Fine By Me\r\nCONTENT-length: 5\r\nSet-Cookie: a\r\nset-cookie: b\r\n\r\nhello")
	k.clientGets("HTTP/1.1 200 Fine By Me\r\nCONTENT-length: 5\r\nSet-Cookie: a\r\nset-cookie: b\r\n\r\nhello")
	k.wantHooks("requestheaders request server_connect server_connected responseheaders response")
	f := k.flow(0)
	if f.HTTP.Request.URL() != "http://"+k.host+"/a?b=c" || string(f.HTTP.Response.Body.Data) != "hello" ||
		f.HTTP.Response.Reason != "Fine By Me" || f.Error != nil || f.Server == nil {
		t.Errorf("recorded %+v", f.HTTP)
	}
	// the connection to the server is used again
	k.clientSends("GET /2 HTTP/1.1\r\nHost: HOST\r\n\r\n")
	k.serverGets("GET /2 HTTP/1.1\r\nHost: HOST\r\n\r\n")
	k.serverSends("HTTP/1.1 204 \r\n\r\n")
	k.clientGets("HTTP/1.1 204 \r\n\r\n")
}

func TestTransparentKeepsTarget(t *testing.T) {
	for _, eager := range []bool{false, true} {
		k := begin(t, setup{transparent: true, eager: eager})
		k.clientSends("GET / HTTP/1.1\r\nHost: example.com\r\n\r\n")
		k.serverGets("GET / HTTP/1.1\r\nHost: example.com\r\n\r\n")
		k.serverSends("HTTP/1.0 200 OK\r\n\r\nuntil the end")
		k.server.CloseWrite()
		k.clientGets("HTTP/1.0 200 OK\r\n\r\nuntil the end")
		k.clientEnds()
		if f := k.flow(0); f.HTTP.Request.PrettyURL() == f.HTTP.Request.URL() || string(f.HTTP.Response.Body.Data) != "until the end" {
			t.Errorf("recorded %+v", f.HTTP)
		}
	}
}
