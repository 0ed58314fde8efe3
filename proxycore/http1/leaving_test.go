package http1_test

import (
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"mitm-appliance/proxycore"
	"mitm-appliance/proxycore/http1"
)

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
