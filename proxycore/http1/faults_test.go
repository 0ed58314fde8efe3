package http1_test

import (
	"flag"
	"fmt"
	"io"
	"os"
	"runtime"
	"runtime/pprof"
	"strings"
	"testing"
	"time"

	"mitm-appliance/flow"
	"mitm-appliance/proxycore"
	"mitm-appliance/proxycore/http1"
)

// TestMain fails when tests leave goroutines behind: each has an owner that waits for it.
func TestMain(m *testing.M) {
	before := runtime.NumGoroutine()
	code := m.Run()
	if flag.Lookup("test.fuzz").Value.String() != "" {
		os.Exit(code) // the fuzzing engine keeps goroutines of its own
	}
	for end := time.Now().Add(patience); runtime.NumGoroutine() > before && code == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			_ = pprof.Lookup("goroutine").WriteTo(os.Stderr, 1)
			fmt.Fprintf(os.Stderr, "%d goroutines are left, %d were there before\n", runtime.NumGoroutine(), before)
			code = 1
		}
	}
	os.Exit(code)
}

const (
	faultRequest  = "POST / HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\n\r\n3;x\r\nabc\r\n0\r\nT: 1\r\n\r\n"
	faultResponse = "HTTP/1.1 100 C\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n"
)

// oneEnd checks that each flow has exactly one terminal hook: with a response, or with an error that
// says why.
func (k *talk) oneEnd(what string) {
	k.t.Helper()
	flows, ended := k.kept.finished(), k.hooks.ends()
	for i, f := range flows {
		ends := ended[f.ID]
		switch {
		case len(ends) != 1:
			k.t.Errorf("%s: flow %d ends %d times, hooks %s", what, i, len(ends), k.hooks.list())
		case ends[0] == "response" && f.HTTP.Response == nil:
			k.t.Errorf("%s: no response in flow %d", what, i)
		case ends[0] == "error" && (f.Error == nil || f.Error.Message == ""):
			k.t.Errorf("%s: no reason in flow %d", what, i)
		}
	}
	if len(ended) != len(flows) {
		k.t.Errorf("%s: %d flows ended, %d are recorded as such", what, len(ended), len(flows))
	}
}

// TestClientResetsAtEveryByte and its sibling: never a hang, a leak or a second end.
func TestClientResetsAtEveryByte(t *testing.T) {
	for _, streamed := range []bool{false, true} {
		for i := range len(faultRequest) {
			k := faulty(t, streamed)
			k.clientSends(k.text(faultRequest)[:i])
			if i%2 == 0 {
				proxycore.Abort(k.client)
			}
			k.finished()
			k.oneEnd(fmt.Sprintf("streamed %v, byte %d", streamed, i))
		}
	}
}

func TestServerResetsAtEveryByte(t *testing.T) {
	for _, streamed := range []bool{false, true} {
		for i := range len(faultResponse) {
			k := faulty(t, streamed)
			k.clientSends(faultRequest)
			k.serverGets(faultRequest)
			k.serverSends(faultResponse[:i])
			if i%2 == 0 {
				k.cutServer()
			} else {
				k.server.Close()
			}
			_ = k.client.SetReadDeadline(time.Now().Add(patience))
			_, _ = io.Copy(io.Discard, k.client) // a page, a cut response: whatever, but an end
			k.finished()
			k.oneEnd(fmt.Sprintf("streamed %v, byte %d", streamed, i))
		}
	}
}

func faulty(t *testing.T, streamed bool) *talk {
	k := begin(t, setup{limits: http1.Config{Linger: time.Millisecond}})
	if streamed {
		k.hooks.on("requestheaders", func(l *proxycore.LiveFlow) { l.StreamBody(nil) })
		k.hooks.on("responseheaders", func(l *proxycore.LiveFlow) { l.StreamBody(nil) })
	}
	return k
}

// FuzzConversation lets both sides say anything: it ends, without a crash, and each flow ends once.
func FuzzConversation(f *testing.F) {
	f.Add(get, "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx", false)
	f.Add(faultRequest+get, faultResponse, true)
	f.Add("GET / HTTP/1.1\r\nUpgrade: a\r\n\r\nraw", "HTTP/1.1 101 X\r\n\r\nraw", false)
	f.Add("POST / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\nabc", "HTTP/1.0 200\r\n\r\n", true)
	f.Add(faultRequest+"GET / HTTP/1.1\r\nHo\x00\x00: HOST\r\n\r\n", faultResponse, true) // a good flow, then a bad one
	f.Fuzz(func(t *testing.T, client, server string, streamed bool) {
		k := begin(t, setup{transparent: true, limits: http1.Config{Linger: time.Millisecond}, patience: 5 * time.Millisecond})
		if streamed {
			k.hooks.on("requestheaders", func(l *proxycore.LiveFlow) { l.StreamBody(nil) })
			k.hooks.on("responseheaders", func(l *proxycore.LiveFlow) { l.StreamBody(nil) })
		}
		answered := make(chan struct{})
		go func() {
			defer close(answered)
			for {
				c, err := k.ln.AcceptTCP()
				if err != nil {
					return
				}
				_, _ = io.WriteString(c, server)
				_ = c.CloseWrite()
				_, _ = io.Copy(io.Discard, c)
				c.Close()
			}
		}()
		_, _ = io.WriteString(k.client, k.text(client))
		_ = k.client.CloseWrite()
		_ = k.client.SetReadDeadline(time.Now().Add(patience))
		_, _ = io.Copy(io.Discard, k.client)
		k.finished()
		k.ln.Close()
		<-answered
		k.oneEnd(fmt.Sprintf("%q, %q", client, server))
	})
}

// TestBadRequestAfterGoodOne: what is wrong with the second request is told in its own flow.
func TestBadRequestAfterGoodOne(t *testing.T) {
	k := faulty(t, true)
	k.clientSends(faultRequest + "GET / HTTP/1.1\r\nHo\x00\x00: HOST\r\n\r\n")
	k.serverGets(faultRequest)
	k.serverSends(faultResponse)
	k.clientGets(faultResponse)
	k.clientPage("400 Bad Request")
	k.finished()
	k.oneEnd("pipelined")
	if f := k.flow(0); f.Error != nil || f.HTTP.Response.Status != 200 {
		t.Errorf("the first flow: %+v, %+v", f.Error, f.HTTP.Response)
	}
	if f := k.flow(1); f.Error == nil || !strings.Contains(f.Error.Message, "Ho") {
		t.Errorf("the second flow: %+v", f.Error)
	}
}

// TestKillWhileStreaming cuts both directions in the middle of a body.
func TestKillWhileStreaming(t *testing.T) {
	for _, upload := range []bool{false, true} {
		k := begin(t, setup{})
		if upload {
			k.hooks.on("requestheaders", func(l *proxycore.LiveFlow) { l.StreamBody(nil) })
			head := "POST / HTTP/1.1\r\nHost: HOST\r\nContent-Length: 100\r\n\r\nabc"
			k.clientSends(head)
			k.serverGets(head)
		} else {
			k.clientSends(get)
			k.serverGets(get)
			head := "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\nabc"
			k.serverSends(head)
			k.clientGets(head)
		}
		if err := k.live(0).Kill(nil); err != nil {
			t.Fatal(err)
		}
		k.cut("client", k.client)
		k.cut("server", k.server)
		if f := k.flow(0); f.Error == nil || f.Error.Message != flow.Killed || !strings.HasSuffix(k.hooks.list(), " error") {
			t.Errorf("upload %v: %+v, hooks %s", upload, f.Error, k.hooks.list())
		}
	}
}

// TestGigabyte streams a gigabyte each way through a few megabytes of memory.
func TestGigabyte(t *testing.T) {
	const total = 1 << 30
	if testing.Short() {
		t.Skip("a gigabyte takes a few seconds")
	}
	for _, c := range []struct{ name, request, response string }{
		{"down, fixed", get, fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n", total)},
		{"down, until the end", get, "HTTP/1.1 200 OK\r\n\r\n"},
		{"up, fixed", fmt.Sprintf("POST / HTTP/1.1\r\nHost: HOST\r\nContent-Length: %d\r\n\r\n", total), ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			k := begin(t, setup{options: []string{"store_streamed_bodies=false"}})
			from, to := io.Writer(k.client), io.Reader(nil)
			k.clientSends(c.request)
			k.serverGets(c.request)
			to = k.server
			if c.response != "" {
				k.serverSends(c.response)
				from, to = k.server, k.client
			}
			all := int64(total + len(c.response))
			_, _ = k.client.SetReadDeadline(time.Time{}), k.server.SetReadDeadline(time.Time{})
			var before, peak runtime.MemStats
			runtime.ReadMemStats(&before)
			done := make(chan int64)
			go func() {
				n, _ := io.CopyBuffer(struct{ io.Writer }{io.Discard}, io.LimitReader(to, all), make([]byte, 256<<10))
				done <- n
			}()
			piece := make([]byte, 256<<10)
			for range total / len(piece) {
				if _, err := from.Write(piece); err != nil {
					t.Fatal(err)
				}
			}
			if n := <-done; n != all {
				t.Fatalf("%d bytes arrived", n)
			}
			runtime.ReadMemStats(&peak)
			if grown := int64(peak.Sys) - int64(before.Sys); grown > 64<<20 {
				t.Errorf("memory grew by %d MB", grown>>20)
			}
		})
	}
}

// TestBackpressure: a client that does not read stops the server.
func TestBackpressure(t *testing.T) {
	k := begin(t, setup{})
	_ = k.client.SetReadBuffer(64 << 10)
	k.clientSends(get)
	k.serverGets(get)
	k.serverSends("HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
	piece, sent := make([]byte, 64<<10), 0
	for {
		_ = k.server.SetWriteDeadline(time.Now().Add(500 * time.Millisecond))
		n, err := k.server.Write(piece)
		sent += n
		if err != nil {
			break
		}
		if sent > 64<<20 {
			t.Fatal("the server never had to wait")
		}
	}
}
