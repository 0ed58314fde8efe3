package http1_test

import (
	"io"
	"strconv"
	"strings"
	"testing"
	"time"

	"mitm-appliance/flow"
	"mitm-appliance/proxycore"
	"mitm-appliance/proxycore/http1"
)

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
