package http1_test

import (
	"context"
	"net"
	"strings"
	"testing"

	"mitm-appliance/flow"
	"mitm-appliance/proxycore"
)

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
