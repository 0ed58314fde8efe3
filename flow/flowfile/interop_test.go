//go:build interop

package flowfile

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"mitm-appliance/flow"
)

// These tests talk to the real mitmproxy: go test -tags interop ./flow/flowfile. They install it with
// pip into a virtual environment in the user's cache directory, once. MITM_INTEROP_PYTHON names a
// Python of at least 3.12 where PATH has none.

// requirement is what pip installs: the releases with flow format 21.
const requirement = "mitmproxy>=12,<13"

func python(t testing.TB) string {
	t.Helper()
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = os.TempDir()
	}
	venv := filepath.Join(cache, "mitm-appliance", "interop-mitmproxy-12")
	interpreter := filepath.Join(venv, "bin", "python")
	if exec.Command(interpreter, "-c", "import mitmproxy.io").Run() == nil {
		return interpreter
	}
	run(t, systemPython(t), "-m", "venv", venv)
	run(t, interpreter, "-m", "pip", "install", "-q", "--disable-pip-version-check", requirement)
	return interpreter
}

func systemPython(t testing.TB) string {
	t.Helper()
	for _, name := range []string{os.Getenv("MITM_INTEROP_PYTHON"), "python3.14", "python3.13", "python3.12", "python3"} {
		if name != "" && exec.Command(name, "-c", "import sys; sys.exit(sys.version_info < (3, 12))").Run() == nil {
			return name
		}
	}
	t.Fatal("mitmproxy 12 needs Python 3.12 or later: name one in MITM_INTEROP_PYTHON")
	return ""
}

func run(t testing.TB, name string, args ...string) []byte {
	t.Helper()
	var out, errs bytes.Buffer
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, errs.Bytes())
	}
	return out.Bytes()
}

func driver(t testing.TB, args ...string) []byte {
	t.Helper()
	return run(t, python(t), append([]string{filepath.Join("testdata", "interop.py")}, args...)...)
}

// hostile are flows that are hard to write so that mitmproxy accepts the file.
func hostile(t testing.TB) []*flow.Flow {
	var all []*flow.Flow
	for _, mode := range []string{
		"regular", "regular:x", "transparent:lan0,lan1@8080", "upstream:socks5://x:1", "upstream:http://a b", "reverse:ftp://x", "reverse:http://[::1]:80",
		"reverse:udp://x", "reverse:dtls://host:1@[::]:5", "local:cgroup=/x", "local:!1,curl", "local:a b", "tun:x y", "wireguard:/a", "nonsense", "", "dns@x", "socks5@65536",
		"reverse:https://-bad-.example", "upstream:https://ex_ample:1",
	} {
		f := samples(t)["http"]
		client := *f.Client
		client.Mode = mode
		f.Client = &client
		all = append(all, f)
	}
	odd := samples(t)["http"]
	server := *odd.Server
	tls := *server.TLS
	tls.Version, tls.Certificates = "TLSv9", [][]byte{[]byte("junk"), nil}
	server.TLS, server.Via, server.Transport = &tls, "socks5://x:1", "quic"
	server.Address.Host = "b\xffd"
	odd.Server = &server
	odd.HTTP.Request.Method, odd.HTTP.Request.Host, odd.HTTP.Request.Scheme = "\x00\xff", "h\xff", ""
	odd.Comment, odd.Error.Message = "\xff\x00", "\xff"
	odd.Metadata = map[string]any{"\xff": "\xff", "odd": make(chan int)}
	ws := samples(t)["websocket"]
	ws.HTTP.WebSocket.Messages[0].Opcode = 5
	ws.HTTP.WebSocket.CloseCode, ws.HTTP.WebSocket.ClosedByClient = 0, nil
	dns := samples(t)["dns"]
	dns.DNS.Request, dns.DNS.Response.Questions[0].Name = nil, "\xff"
	empty := &flow.Flow{Kind: flow.KindTCP, Stream: &flow.Stream{}}
	return append(all, odd, ws, dns, empty)
}

func TestMitmproxyReadsWhatWeWrite(t *testing.T) {
	var all []*flow.Flow
	for _, f := range samples(t) {
		all = append(all, f)
	}
	all = append(all, hostile(t)...)
	ours := filepath.Join(t.TempDir(), "ours")
	written := write(t, ours, all)

	// mitmproxy turns maps without fixed keys round each time it saves: twice is as before.
	once, twice := ours+"1", ours+"2"
	driver(t, "resave", ours, once)
	driver(t, "resave", once, twice)
	again, err := os.ReadFile(twice)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(written, again) {
		t.Errorf("mitmproxy saves %d bytes of ours as %d others", len(written), len(again))
		sameFlows(t, readAll(t, again), readAll(t, written))
	}
	sameFlows(t, readAll(t, again), readAll(t, written))
	lines := bytes.Split(bytes.TrimSpace(driver(t, "show", ours)), []byte("\n"))
	if len(lines) != len(all) {
		t.Fatalf("mitmproxy sees %d flows, want %d", len(lines), len(all))
	}
	for i, f := range all {
		var state map[string]any
		numbers := json.NewDecoder(bytes.NewReader(lines[i]))
		numbers.UseNumber()
		if err := numbers.Decode(&state); err != nil {
			t.Fatal(err)
		}
		seen(t, f, state)
	}
}

// seen compares some fields by the meaning that mitmproxy gives them.
func seen(t *testing.T, f *flow.Flow, state map[string]any) {
	t.Helper()
	check := func(want any, path ...any) {
		t.Helper()
		var v any = state
		for _, p := range path {
			switch step := p.(type) {
			case string:
				m, _ := v.(map[string]any)
				v = m[step]
			case int:
				l, _ := v.([]any)
				if step >= len(l) {
					t.Errorf("%v: only %d items", path, len(l))
					return
				}
				v = l[step]
			}
		}
		if b, ok := want.([]byte); ok {
			text, _ := json.Marshal(map[string]any{"bytes": b})
			got, _ := json.Marshal(v)
			if !bytes.Equal(text, got) {
				t.Errorf("%v: mitmproxy sees %s, want %s", path, got, text)
			}
			return
		}
		if fmt.Sprint(v) != fmt.Sprint(want) {
			t.Errorf("%v: mitmproxy sees %v, want %v", path, v, want)
		}
	}
	check(f.ID.String(), "id")
	check(f.Kind.String(), "type")
	switch f.Kind {
	case flow.KindHTTP:
		check([]byte(f.HTTP.Request.Path), "request", "path")
		check([]byte(f.HTTP.Request.Method), "request", "method")
		check(f.HTTP.Response.Status, "response", "status_code")
		if f.HTTP.Response.Body.State == flow.BodyComplete {
			check(append([]byte{}, f.HTTP.Response.Body.Data...), "response", "content")
		}
	case flow.KindTCP, flow.KindUDP:
		for i, m := range f.Stream.Messages {
			check(m.FromClient, "messages", i, 0)
			check(append([]byte{}, m.Data...), "messages", i, 1)
		}
	case flow.KindDNS:
		check(f.DNS.Response.Answers[0].TTL, "response", "answers", 0, "ttl")
	}
	if f.Client != nil && f.Client.Process != nil {
		check(f.Client.Process.Name, "metadata", "mitm-appliance.process", "name")
		check(f.Client.Feed, "metadata", "mitm-appliance.feed")
		check(f.Client.Peer.Addr().String(), "client_conn", "peername", 0)
	}
}

func TestWeReadWhatMitmproxyWrites(t *testing.T) {
	theirs := filepath.Join(t.TempDir(), "theirs")
	driver(t, "write", theirs)
	data, err := os.ReadFile(theirs)
	if err != nil {
		t.Fatal(err)
	}
	flows := readAll(t, data)
	if len(flows) < 20 {
		t.Fatalf("only %d flows", len(flows))
	}
	ours := theirs + "-again"
	write(t, ours, flows)
	driver(t, "compare", theirs, ours)
}

func write(t testing.TB, path string, flows []*flow.Flow) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := NewWriter(&buf)
	for _, f := range flows {
		if err := w.Write(f); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(path, buf.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func readAll(t testing.TB, data []byte) []*flow.Flow {
	t.Helper()
	var all []*flow.Flow
	r := NewReader(bytes.NewReader(data))
	for {
		f, err := r.Next()
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, f)
	}
}

func sameFlows(t *testing.T, got, want []*flow.Flow) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%d flows, want %d", len(got), len(want))
	}
	for i := range got {
		if !reflect.DeepEqual(got[i], want[i]) {
			report(t, fmt.Sprintf("flow %d", i), reflect.ValueOf(got[i]), reflect.ValueOf(want[i]))
			t.Fail()
		}
	}
}

func BenchmarkAgainstMitmproxy(b *testing.B) {
	f := benchmarkFlow(b, 1<<10)
	path := filepath.Join(b.TempDir(), "flow")
	data := write(b, path, []*flow.Flow{f})
	var theirs struct{ Write, Read float64 }
	if err := json.Unmarshal(driver(b, "bench", path), &theirs); err != nil {
		b.Fatal(err)
	}
	b.Run("write", func(b *testing.B) {
		w := NewWriter(io.Discard)
		for b.Loop() {
			if err := w.Write(f); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(b.N)/b.Elapsed().Seconds()/theirs.Write, "times-mitmproxy")
	})
	b.Run("read", func(b *testing.B) {
		for b.Loop() {
			if _, err := Decode(data); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(b.N)/b.Elapsed().Seconds()/theirs.Read, "times-mitmproxy")
	})
}
