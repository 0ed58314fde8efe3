package dump

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"mitm-appliance/api"
	"mitm-appliance/flow"
	"mitm-appliance/option"
)

var update = flag.Bool("update", false, "rewrite the golden files")

var noon = time.Date(2026, 1, 2, 12, 0, 0, 345_000_000, time.UTC)

func client() *flow.Client {
	return &flow.Client{Connection: flow.Connection{Peer: netip.MustParseAddrPort("192.168.1.20:50100")}, Mode: "regular"}
}

func server() *flow.Server {
	return &flow.Server{
		Connection: flow.Connection{Peer: netip.MustParseAddrPort("93.184.215.14:443")},
		Address:    flow.Address{Host: "example.org", Port: 443},
	}
}

func base(kind flow.Kind) *flow.Flow {
	return &flow.Flow{ID: flow.NewID(noon), Kind: kind, Client: client(), Server: server(), Created: noon}
}

func message(body string, fields ...string) flow.Message {
	m := flow.Message{Version: "HTTP/1.1", Body: flow.BodyOf([]byte(body)), Start: noon, End: noon}
	for i := 0; i < len(fields); i += 2 {
		m.Header.Add(fields[i], fields[i+1])
	}
	return m
}

func exchange(method, path, body string, status int, reason, answer string) *flow.Flow {
	f := base(flow.KindHTTP)
	f.HTTP = &flow.HTTP{
		Request: flow.Request{
			Message: message(body, "Host", "example.org", "User-Agent", "curl/8.5.0"),
			Method:  method, Scheme: "https", Host: "93.184.215.14", Port: 443, Path: path,
		},
		Response: &flow.Response{Message: message(answer, "Content-Type", "text/plain", "X-Raw", "a\xff\x1b[31m"), Status: status, Reason: reason},
	}
	return f
}

func zipped(level int, text string) string {
	var b bytes.Buffer
	w, err := gzip.NewWriterLevel(&b, level)
	if err != nil {
		panic(err)
	}
	_, err = w.Write([]byte(text))
	if err := errors.Join(err, w.Close()); err != nil {
		panic(err)
	}
	return b.String()
}

// samples are the flows of the golden files.
func samples() map[string]*flow.Flow {
	all := httpSamples()
	maps.Copy(all, streamSamples())
	maps.Copy(all, dnsSamples())
	return all
}

func httpSamples() map[string]*flow.Flow {
	get := exchange("GET", "/a/"+strings.Repeat("long/", 20), "", 200, "OK", "line one\nline two\tafter a tab\r\nline three\nline four\n")
	get.HTTP.Response.Trailer = flow.Header{{Name: "Expires", Value: "0"}}
	get.HTTP.Interim = []flow.Response{{Message: message("", "Link", "</style.css>"), Status: 103, Reason: "Early Hints"}}

	post := exchange("POST", "/", "a=1&b=2", 404, "Not Found", "\x00\x01\x02\xff binary \x80\x90\xa0\xb0\xc0\xd0\xe0\xf0")
	post.Client.Feed, post.Client.Process = "local", &flow.Process{PID: 4711, Name: "curl"}
	post.Replay = flow.ReplayResponse

	h2 := exchange("DELETE", "/x", "", 302, "ignored", "moved")
	h2.HTTP.Request.Version, h2.HTTP.Request.Authority, h2.HTTP.Response.Version = "HTTP/2.0", "example.org", "HTTP/1.1"
	h2.HTTP.Response.Body = flow.Body{State: flow.BodyMissing, Size: 5 << 20}
	h2.Client.Feed, h2.Client.Tunnel = "wireguard", "Anna's phone"

	packed := exchange("GET", "/gzip", "", 200, "OK", zipped(gzip.NoCompression, `{"packed": true}`))
	packed.HTTP.Response.Header.Set("Content-Encoding", "gzip")
	packed.Client.Feed, packed.Client.Device = "transparent", "02:00:5e:10:00:01"

	failed := exchange("GET", "/down", "", 0, "", "")
	failed.HTTP.Response, failed.Server = nil, nil
	failed.Error = &flow.Error{Message: "connect: connection refused\x1b]0;title\x07", Time: noon}

	ws := exchange("GET", "/chat", "", 101, "Switching Protocols", "")
	byClient := true
	ws.HTTP.WebSocket = &flow.WebSocket{
		Messages: []flow.WebSocketMessage{
			{Opcode: flow.OpText, FromClient: true, Data: []byte("hello\nworld")},
			{Opcode: flow.OpBinary, Data: []byte{0, 1, 2, 255}, Dropped: true},
		},
		ClosedByClient: &byClient, CloseCode: 1000, CloseReason: "bye\x9b",
	}
	broken := exchange("GET", "/chat", "", 101, "Switching Protocols", "")
	broken.HTTP.WebSocket = &flow.WebSocket{CloseCode: 1011, CloseReason: "oops"}
	return map[string]*flow.Flow{
		"http-get": get, "http-post": post, "http2": h2, "http-gzip": packed, "http-error": failed, "websocket": ws, "websocket-error": broken,
	}
}

func streamSamples() map[string]*flow.Flow {
	tcp := base(flow.KindTCP)
	tcp.Stream = &flow.Stream{Messages: []flow.StreamMessage{
		{FromClient: true, Data: []byte("SSH-2.0-OpenSSH\r\n"), Size: 17}, {Data: []byte("\x00\x00\x01\x02\xfe"), Size: 5}, {Size: 65536, Injected: true},
	}}
	tcp.Error = &flow.Error{Message: "reset by peer", Time: noon}
	udp := base(flow.KindUDP)
	udp.Server.Address = flow.Address{}
	udp.Stream = &flow.Stream{Messages: []flow.StreamMessage{{FromClient: true, Data: []byte("ping"), Size: 4}, {Data: []byte("pong"), Size: 4}}}
	quic := base(flow.KindTCP)
	quic.Client.TLS, quic.Metadata = &flow.TLS{Version: "QUICv1"}, map[string]any{"quic_stream_id_client": int64(4), "quic_stream_id_server": int64(8)}
	quic.Stream = &flow.Stream{Messages: []flow.StreamMessage{{FromClient: true, Data: []byte("x"), Size: 1}}}
	return map[string]*flow.Flow{"tcp": tcp, "udp": udp, "quic": quic}
}

func dnsSamples() map[string]*flow.Flow {
	dns := base(flow.KindDNS)
	dns.DNS = &flow.DNS{
		Request: &flow.DNSMessage{Query: true, Questions: []flow.DNSQuestion{{Name: "example.org", Type: 1, Class: 1}}},
		Response: &flow.DNSMessage{
			Answers: []flow.DNSRecord{
				{Name: "example.org", Type: 5, Class: 1, TTL: 60, Data: []byte("\x03www\x07example\x03org\x00")},
				{Name: "www.example.org", Type: 1, Class: 1, TTL: 60, Data: []byte{93, 184, 215, 14}},
				{Name: "www.example.org", Type: 28, Class: 1, TTL: 60, Data: netip.MustParseAddr("2001:db8::1").AsSlice()},
				{Name: "example.org", Type: 15, Class: 1, TTL: 60, Data: []byte("\x00\x0a\x04mail\x00")},
				{Name: "example.org", Type: 16, Class: 1, TTL: 60, Data: []byte("\x05hello\x06\x1b[31mx")},
				{Name: "example.org", Type: 65, Class: 1, TTL: 60, Data: []byte("\x00\x01\x00\x00\x01\x00\x06\x02h2\x02h3\x00\x05\x00\x01x\x00\x03\x00\x02\x01\xbb")},
				{Name: "example.org", Type: 1, Class: 1, TTL: 60, Data: []byte{1, 2, 3}},
				{Name: "example.org", Type: 65280, Class: 1, TTL: 60, Data: []byte{0xca, 0xfe}},
			},
			Authorities: []flow.DNSRecord{{Name: "org", Type: 2, Class: 1, TTL: 3600, Data: []byte("\x02ns\x00")}},
		},
	}
	nx := base(flow.KindDNS)
	nx.DNS = &flow.DNS{
		Request:  &flow.DNSMessage{Query: true, Questions: []flow.DNSQuestion{{Name: "none.example", Type: 28, Class: 1}}},
		Response: &flow.DNSMessage{Rcode: 3},
	}
	nx.Replay = flow.ReplayRequest
	silent := base(flow.KindDNS)
	silent.DNS = &flow.DNS{Request: &flow.DNSMessage{Query: true, Opcode: 5}}
	silent.Error = &flow.Error{Message: "no answer", Time: noon}
	return map[string]*flow.Flow{"dns": dns, "dns-nxdomain": nx, "dns-error": silent}
}

func printOne(s style, f *flow.Flow) []byte {
	p := newPrinter(s)
	g := progress{flows: map[flow.ID]*printed{}}
	g.print(p, f)
	return p.b
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name+".golden")
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v (go test -update writes it)", err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s: got\n%s\nwant\n%s", path, got, want)
	}
}

func TestGolden(t *testing.T) {
	for name, f := range samples() {
		for detail := 1; detail <= 4; detail++ {
			t.Run(fmt.Sprintf("%s-%d", name, detail), func(t *testing.T) {
				s := style{detail: detail, width: 100, lines: 3, showHost: name == "http2"}
				golden(t, fmt.Sprintf("%s-%d", name, detail), printOne(s, f))
			})
		}
		t.Run(name+" in colour", func(t *testing.T) {
			golden(t, name+"-color", printOne(style{detail: 2, width: 100, lines: 3, color: true}, f))
		})
	}
}

// states prints successive states of one flow and returns the lines after each.
func states(fs ...*flow.Flow) []string {
	g := progress{flows: map[flow.ID]*printed{}}
	var out []string
	for _, f := range fs {
		p := newPrinter(style{detail: 1, width: 100, lines: 3})
		g.print(p, f)
		out = append(out, string(p.b))
	}
	return out
}

func TestEachLineIsPrintedOnce(t *testing.T) {
	whole := samples()["websocket"]
	state := func(change func(*flow.Flow)) *flow.Flow {
		f := whole.Snapshot()
		f.Live = true
		change(f)
		return f
	}
	got := states(
		state(func(f *flow.Flow) { f.HTTP.Response, f.HTTP.WebSocket = nil, nil }),
		state(func(f *flow.Flow) { f.HTTP.Response.End, f.HTTP.WebSocket = time.Time{}, nil }),
		state(func(f *flow.Flow) { f.HTTP.WebSocket, f.Intercepted = nil, true }),
		state(func(f *flow.Flow) { f.HTTP.WebSocket.Messages = nil }),
		state(func(f *flow.Flow) { f.HTTP.WebSocket.Messages = f.HTTP.WebSocket.Messages[:1] }),
		state(func(*flow.Flow) {}),
		whole, whole,
	)
	for i, want := range []string{"", "", "", "GET", "text message", "binary message", "closed by client", ""} {
		if want == "" && got[i] != "" || !strings.Contains(got[i], want) || strings.Count(got[i], "\n") > 2 {
			t.Errorf("state %d prints %q, want %q", i, got[i], want)
		}
	}
}

func TestAnErrorAfterTheResponseIsPrinted(t *testing.T) {
	answered := samples()["http-get"]
	failed := answered.Snapshot()
	failed.Error = &flow.Error{Message: "client went away"}
	if got := states(answered, failed, failed); got[1] != " << client went away\n" || got[2] != "" {
		t.Errorf("got %q", got[1:])
	}
}

func TestTunnelsArePrintedOnlyWhenTheyFail(t *testing.T) {
	good := exchange("CONNECT", "", "", 200, "Connection established", "")
	refused := exchange("CONNECT", "", "", 403, "Forbidden", "")
	broken := exchange("CONNECT", "", "", 200, "Connection established", "")
	broken.Error = &flow.Error{Message: "refused"}
	for i, lines := range []int{0, 2, 3} {
		f := []*flow.Flow{good, refused, broken}[i]
		if got := states(f)[0]; strings.Count(got, "\n") != lines {
			t.Errorf("flow %d prints %q, want %d lines", i, got, lines)
		}
	}
}

func TestProgressIsBounded(t *testing.T) {
	g := progress{flows: map[flow.ID]*printed{}}
	for i := range maxProgress * 2 {
		g.of(flow.ID{byte(i), byte(i >> 8), byte(i >> 16), byte(i >> 24)})
	}
	if len(g.flows) != maxProgress || len(g.order) != maxProgress {
		t.Errorf("%d flows are remembered", len(g.flows))
	}
}

// story is an API that tells events.
type story struct {
	api.API
	events []api.Event
}

func (s story) Watch(_ context.Context, f func(api.Event) error) error {
	for _, e := range s.events {
		if err := f(e); err != nil {
			return err
		}
	}
	return nil
}

func run(t *testing.T, settings string, events ...api.Event) (out, log string) {
	t.Helper()
	t.Setenv("COLUMNS", "100")
	r := option.New()
	o := DeclareOptions(r)
	r.Bool("showhost", false, "")
	if err := r.SetText(strings.Fields(settings)...); err != nil {
		t.Fatal(err)
	}
	var outBuf, logBuf bytes.Buffer
	if err := New(o, &outBuf, &logBuf).Run(t.Context(), story{events: events}); err != nil {
		t.Fatal(err)
	}
	return outBuf.String(), logBuf.String()
}

func TestEventsBecomeLines(t *testing.T) {
	f := samples()["dns-nxdomain"]
	record := func(l slog.Level, msg, client string, attrs ...api.LogField) api.Event {
		return api.Event{Kind: api.EventLog, Log: &api.LogRecord{Time: noon, Level: l, Message: msg, Client: client, Attrs: attrs}}
	}
	events := []api.Event{
		record(slog.LevelInfo, "client connect", "10.0.0.2:5", api.LogField{Key: "mode", Value: "regular"}),
		record(slog.LevelDebug, "detail", ""),
		record(slog.LevelError, "failed", "", api.LogField{Key: "err", Value: "two\n[12:00:00.000] lines\x1b[2J"}, api.LogField{Key: "mode", Value: "tun x"}),
		{Kind: api.EventFlow, Flow: f},
		{Kind: api.EventMissed, Missed: 7},
		{Kind: api.EventModes},
	}
	out, log := run(t, "", events...)
	if want := "[replay]: DNS QUERY (AAAA) none.example\n << NXDOMAIN\n"; out != want {
		t.Errorf("out %q, want %q", out, want)
	}
	log = regexp.MustCompile(`\[[0-9:.]{12}\] 7 `).ReplaceAllString(log, "[now] 7 ")
	want := "[12:00:00.345][10.0.0.2:5] client connect\n" +
		"[12:00:00.345] failed: two\n    [12:00:00.000] lines\\x1b[2J mode=\"tun x\"\n" +
		"[now] 7 flows were not printed, as printing is slower than the traffic\n"
	if log != want {
		t.Errorf("log\n%s\nwant\n%s", log, want)
	}
	for settings, lines := range map[string]int{
		"termlog_verbosity=error": 2, "termlog_verbosity=warn": 3, "termlog_verbosity=alert": 3, "termlog_verbosity=info": 4, "termlog_verbosity=debug": 5,
	} {
		if _, log := run(t, settings, events...); strings.Count(log, "\n") != lines {
			t.Errorf("%s: %q, want %d lines", settings, log, lines)
		}
	}
	if out, _ := run(t, "flow_detail=0", events...); out != "" {
		t.Errorf("at detail 0: %q", out)
	}
}

func TestShowHost(t *testing.T) {
	e := api.Event{Kind: api.EventFlow, Flow: exchange("GET", "/p", "", 200, "OK", "")}
	for settings, url := range map[string]string{"showhost=false": "https://93.184.215.14/p", "showhost=true": "https://example.org/p"} {
		if out, _ := run(t, settings, e); !strings.Contains(out, " "+url+"\n") {
			t.Errorf("%s: %q, want %s", settings, out, url)
		}
	}
}

func TestOutputThatIsGoneEndsTheRun(t *testing.T) {
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	d := New(DeclareOptions(option.New()), full, &bytes.Buffer{})
	err = d.Run(t.Context(), story{events: []api.Event{{Kind: api.EventFlow, Flow: samples()["udp"]}}})
	if err == nil || !strings.Contains(err.Error(), "printing flows") {
		t.Errorf("got %v", err)
	}
}

func TestSizes(t *testing.T) {
	for n, want := range map[int64]string{
		0: "0b", 1023: "1023b", 1024: "1.0k", 102_400: "100k", 1 << 20: "1.0m", 1_000_000_000: "954m", 10_000_000_000_000: "9.1t", 1 << 62: "4194304t",
	} {
		if got := size(n); got != want {
			t.Errorf("%d: got %s, want %s", n, got, want)
		}
	}
}

func TestWhatLooksBinary(t *testing.T) {
	for text, want := range map[string]bool{
		"": false, "plain text\n": false, "größer als früher": false, "日本語のテキスト": false, "\x00\x01\x02\x03abc": true,
		"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR": true, strings.Repeat("日本", 40): false,
	} {
		if got := looksBinary([]byte(text)); got != want {
			t.Errorf("%q: got %v", text, got)
		}
	}
}

func TestBodiesThatAreNotWhatTheySay(t *testing.T) {
	m := message("no gzip at all", "Content-Encoding", "gzip")
	if got := string(decoded(&m)); got != "no gzip at all" {
		t.Errorf("got %q", got)
	}
	bomb := message(zipped(gzip.BestSpeed, strings.Repeat("\x00", maxDecoded+100)), "Content-Encoding", "x-gzip")
	if got := len(decoded(&bomb)); got != maxDecoded {
		t.Errorf("a bomb grew to %d bytes", got)
	}
	half := message(zipped(gzip.BestSpeed, strings.Repeat("text ", 10_000)), "Content-Encoding", "gzip")
	half.Body.Data, half.Body.State = half.Body.Data[:len(half.Body.Data)-20], flow.BodyTruncated
	if got := string(decoded(&half)); !strings.HasPrefix(got, "text text") {
		t.Errorf("got %.20q", got)
	}
}

// FuzzNothingReachesTheTerminal puts captured bytes everywhere and looks for what a terminal obeys.
func FuzzNothingReachesTheTerminal(f *testing.F) {
	f.Add("\x1b[31m", "\x9b31m", "\u009b\u202e\n\r\x07")
	f.Add("\xc2", "\x9b", "\x7f\x00\t\v")
	f.Add("\U000e0041", "\u2066", "\ufeff")
	f.Fuzz(func(t *testing.T, a, b, c string) {
		for name, s := range hostile(a, b, c) {
			for detail := 1; detail <= 4; detail++ {
				clean(t, name, string(printOne(style{detail: detail, width: 100, lines: 5, showHost: detail%2 == 0}, s)))
			}
		}
		var p page
		p.logLine(&api.LogRecord{Message: a, Client: b, Attrs: []api.LogField{{Key: "err", Value: c}, {Key: a, Value: b}}})
		clean(t, "log", string(p.b))
	})
}

func clean(t *testing.T, name, out string) {
	t.Helper()
	if !utf8.ValidString(out) {
		t.Fatalf("%s prints no UTF-8: %q", name, out)
	}
	for _, r := range out {
		if r != '\n' && r != '\t' && !unicode.IsPrint(r) {
			t.Fatalf("%s prints %U: %q", name, r, out)
		}
	}
}

func hostile(a, b, c string) map[string]*flow.Flow {
	all := samples()
	for _, f := range all {
		f.Client.Feed, f.Client.Tunnel, f.Client.Device, f.Client.Process = a, b, c, &flow.Process{Name: a + b}
		f.Metadata = map[string]any{"quic_stream_id_client": a, "quic_stream_id_server": map[string]any{b: c}}
		f.Error = &flow.Error{Message: a + c}
		if f.Server != nil {
			f.Server.Address = flow.Address{Host: b + c, Port: 1}
		}
		if h := f.HTTP; h != nil {
			r := &h.Request
			r.Method, r.Scheme, r.Host, r.Path, r.Authority, r.Version = a, b, c, a+b, c, b+a
			r.Message.Header, r.Message.Body = flow.Header{{Name: a, Value: b}, {Name: "host", Value: c}}, flow.BodyOf([]byte(a+b+c))
			if h.Response != nil {
				h.Response.Reason, h.Response.Version, h.Response.Trailer = b, c, flow.Header{{Name: b, Value: a}}
			}
			if h.WebSocket != nil {
				h.WebSocket.CloseReason = c
				h.WebSocket.Messages = []flow.WebSocketMessage{{Opcode: 1, Data: []byte(b + c)}}
			}
		}
		if f.Stream != nil {
			f.Stream.Messages = []flow.StreamMessage{{Data: []byte(a)}, {Data: []byte(c)}}
		}
		if d := f.DNS; d != nil {
			d.Request.Questions = []flow.DNSQuestion{{Name: a, Type: 1}}
			d.Response = &flow.DNSMessage{}
			for _, kind := range []uint16{1, 2, 5, 15, 16, 28, 64, 65, 99, 999} {
				d.Response.Answers = append(d.Response.Answers,
					flow.DNSRecord{Name: b, Type: kind, Data: []byte(c)},
					flow.DNSRecord{Name: b, Type: kind, Data: []byte("\x00\x01" + string(rune(len(a)&63)) + a + "\x00")})
			}
		}
	}
	return all
}
