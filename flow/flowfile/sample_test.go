package flowfile

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"math/big"
	mathrand "math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"mitm-appliance/flow"
)

// clock gives times that the format can keep exactly.
type clock struct{ quarters int64 }

func (c *clock) tick() time.Time {
	c.quarters++
	return time.Unix(1_750_000_000+c.quarters/4, c.quarters%4*250_000_000)
}

func certificateDER(t testing.TB, name string) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(7), DNSNames: []string{name}, NotAfter: time.Unix(2_000_000_000, 0)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// maker makes samples: flows between the same two ends, each at a time of its own.
type maker struct {
	clock
	client *flow.Client
	server *flow.Server
}

func newMaker(t testing.TB) *maker {
	c := &maker{}
	c.client = &flow.Client{
		Connection: flow.Connection{
			ID: flow.NewID(c.tick()), Transport: "tcp", Peer: netip.MustParseAddrPort("192.168.1.20:50100"),
			Local: netip.MustParseAddrPort("93.184.215.14:443"), Start: c.tick(), End: c.tick(), Error: "client went away",
			TLS: &flow.TLS{
				Version: "TLSv1.3", Cipher: "TLS_AES_128_GCM_SHA256", Ciphers: []string{"TLS_AES_128_GCM_SHA256", "ECDHE-RSA-AES128-GCM-SHA256"},
				SNI: "example.org", ALPN: "h2", ALPNOffers: []string{"h2", "http/1.1"}, Established: c.tick(),
				Resumed: true, JA3: "ada70206e40642a3e4461f35503241d5", JA4: "t13d1516h2_8daaf6152771_02713d6af862", ECH: true,
			},
		},
		Mode: "transparent:lan0@8080", Feed: "transparent", Device: "02:00:5e:10:00:01", Tunnel: "phone",
		Process: &flow.Process{PID: 4711, UID: 1000, Name: "curl", Exe: "/usr/bin/curl", Cgroup: "/user.slice"},
		Leaf:    certificateDER(t, "example.org"),
	}
	c.server = &flow.Server{
		Connection: flow.Connection{
			ID: flow.NewID(c.tick()), Transport: "tcp", Peer: netip.MustParseAddrPort("[2001:db8::1]:443"),
			Local: netip.MustParseAddrPort("[fe80::1%eth0]:40000"), Start: c.tick(), End: c.tick(),
			TLS: &flow.TLS{Version: "TLSv1.2", Established: c.tick(), Certificates: [][]byte{certificateDER(t, "example.org"), certificateDER(t, "CA")}},
		},
		Address: flow.Address{Host: "example.org", Port: 443}, Via: "http://proxy.example:3128", TCPSetup: c.tick(),
	}
	return c
}

func (c *maker) base(kind flow.Kind) *flow.Flow {
	now := c.tick()
	return &flow.Flow{ID: flow.NewID(now), Kind: kind, Client: c.client, Server: c.server, Created: now}
}

func (c *maker) message(body string) flow.Message {
	var data []byte // nil when empty, as the reader has it
	if body != "" {
		data = []byte(body)
	}
	return flow.Message{
		Version: "HTTP/1.1", Header: flow.Header{{Name: "Host", Value: "example.org"}, {Name: "X-Bytes", Value: "\xff\xfe"}, {Name: "x-bytes", Value: ""}},
		Body: flow.BodyOf(data), Trailer: flow.Header{{Name: "Expires", Value: "0"}}, Start: c.tick(), End: c.tick(),
	}
}

// samples returns one flow of every kind with every field in use.
func samples(t testing.TB) map[string]*flow.Flow {
	c := newMaker(t)
	return map[string]*flow.Flow{
		"http": c.http(), "missing": c.missing(), "websocket": c.webSocket(), "tcp": c.tcp(), "udp": c.udp(), "dns": c.dns(),
	}
}

func (c *maker) http() *flow.Flow {
	http := c.base(flow.KindHTTP)
	http.HTTP = &flow.HTTP{
		Request: flow.Request{
			Message: c.message("a=1"), Method: "POST", Scheme: "https", Authority: "example.org", Host: "example.org", Port: 443, Path: "/p?q=\xff",
		},
		Response: &flow.Response{Message: c.message("\x00\x01binary"), Status: 299, Reason: "Fine\xff"},
		Interim:  []flow.Response{{Message: flow.Message{Version: "HTTP/1.1", Header: flow.Header{{Name: "Link", Value: "</a>"}}, Start: c.tick()}, Status: 103, Reason: "Early Hints"}},
	}
	http.HTTP.Response.Chunks = []flow.Chunk{{Size: 8, Extension: ";a=b"}, {}}
	http.Comment, http.Marked, http.Replay, http.Intercepted = "look at this – ünïcode", ":default:", flow.ReplayRequest, true
	http.Error = &flow.Error{Message: "late error", Time: c.tick()}
	http.Metadata = map[string]any{"n": int64(-3), "f": 1.5, "t": "text", "b": true, "none": nil, "list": []any{"a", int64(1)}, "map": map[string]any{"k": "v"}}
	backup := *http
	backup.Comment, backup.Metadata = "", nil
	http.Backup = &backup
	return http
}

// missing has nothing that can be left out.
func (c *maker) missing() *flow.Flow {
	missing := c.base(flow.KindHTTP)
	missing.Server, missing.Client = nil, &flow.Client{Connection: flow.Connection{ID: flow.NewID(c.tick()), Transport: "tcp", Start: c.tick()}, Mode: "regular"}
	missing.HTTP = &flow.HTTP{
		Request:  flow.Request{Message: flow.Message{Version: "HTTP/2.0", Header: flow.Header{}, Start: c.tick()}, Method: "GET", Scheme: "http", Host: "h", Port: 80, Path: "/"},
		Response: &flow.Response{Message: flow.Message{Version: "HTTP/2.0", Header: flow.Header{}, Start: c.tick(), Body: flow.Body{State: flow.BodyMissing, Size: 1 << 40}}, Status: 200},
	}
	missing.HTTP.Request.Body = flow.Body{Data: []byte("begin"), Size: 500, State: flow.BodyTruncated}
	return missing
}

func (c *maker) webSocket() *flow.Flow {
	ws := c.base(flow.KindHTTP)
	byClient := true
	ws.HTTP = &flow.HTTP{
		Request:  flow.Request{Message: c.message(""), Method: "GET", Scheme: "https", Host: "example.org", Port: 443, Path: "/ws"},
		Response: &flow.Response{Message: c.message(""), Status: 101, Reason: "Switching Protocols"},
		WebSocket: &flow.WebSocket{
			Messages: []flow.WebSocketMessage{
				{Opcode: flow.OpText, FromClient: true, Data: []byte("hello"), Time: c.tick()},
				{Opcode: flow.OpBinary, Data: []byte{0, 255}, Time: c.tick(), Dropped: true, Injected: true},
				{Opcode: flow.OpPing, Data: []byte{}, Time: c.tick()},
			},
			ClosedByClient: &byClient, CloseCode: 1001, CloseReason: "bye", End: c.tick(),
		},
	}
	return ws
}

func (c *maker) tcp() *flow.Flow {
	tcp := c.base(flow.KindTCP)
	tcp.Stream = &flow.Stream{
		Protocol: "ssh", Sent: 3, Received: 70_000,
		Messages: []flow.StreamMessage{
			{FromClient: true, Data: []byte("SSH"), Size: 3, Time: c.tick()},
			{Size: 65_536, Time: c.tick()},
			{Data: []byte("x"), Size: 1, Time: c.tick(), Injected: true},
			{Data: []byte("y"), Size: 1, Time: c.tick(), Dropped: true},
		},
	}
	return tcp
}

func (c *maker) udp() *flow.Flow {
	udp := c.base(flow.KindUDP)
	udp.Stream = &flow.Stream{Sent: 2, Messages: []flow.StreamMessage{{FromClient: true, Data: []byte("hi"), Size: 2, Time: c.tick()}}}
	udp.Error = &flow.Error{Message: flow.Killed, Time: c.tick()}
	return udp
}

func (c *maker) dns() *flow.Flow {
	dns := c.base(flow.KindDNS)
	question := []flow.DNSQuestion{{Name: "example.org", Type: 1, Class: 1}}
	dns.DNS = &flow.DNS{
		Request: &flow.DNSMessage{ID: 65535, Query: true, RecursionDesired: true, Questions: question, Time: c.tick()},
		Response: &flow.DNSMessage{
			ID: 65535, Opcode: 2, Authoritative: true, Truncated: true, RecursionDesired: true, RecursionAvailable: true, Reserved: 5, Rcode: 3,
			Questions: question, Answers: []flow.DNSRecord{{Name: "example.org", Type: 1, Class: 1, TTL: 4_000_000_000, Data: []byte{93, 184, 215, 14}}},
			Authorities: []flow.DNSRecord{{Type: 2, Class: 1, Data: []byte{}}}, Additionals: []flow.DNSRecord{{Type: 41, Class: 1232, Data: []byte{0}}}, Time: c.tick(),
		},
	}
	return dns
}

// random changes a sample at random, within what the format keeps.
func random(r *mathrand.Rand, f *flow.Flow) *flow.Flow {
	f = f.Snapshot()
	f.Comment = randomText(r)
	f.Metadata = map[string]any{"k" + randomText(r): randomValue(r, 4), "x": randomValue(r, 2)}
	if r.IntN(2) == 0 {
		f.Server = nil
	}
	client := *f.Client
	client.Feed, client.Device = randomText(r), randomText(r)
	if r.IntN(3) == 0 {
		client.TLS, client.Process, client.Leaf = nil, nil, nil
	}
	client.Mode = []string{"regular", "local:!4711", "tun:x@1", "reverse:tcp://[::1]:5", "upstream:socks5://a:1", "wireguard:/a b"}[r.IntN(6)]
	f.Client = &client
	if f.HTTP != nil {
		f.HTTP.Request.Header = f.HTTP.Request.Header[:r.IntN(len(f.HTTP.Request.Header)+1)]
		f.HTTP.Request.Path, f.HTTP.Request.Method = randomBytes(r), randomBytes(r)
		f.HTTP.Request.Body = flow.BodyOf([]byte(randomBytes(r) + "x"))
		f.HTTP.Request.Trailer = nil
	}
	if f.Stream != nil && r.IntN(2) == 0 {
		f.Stream.Messages, f.Stream.Sent = nil, r.Int64N(100)
	}
	return f
}

func randomBytes(r *mathrand.Rand) string {
	b := make([]byte, r.IntN(40))
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return string(b)
}

func randomText(r *mathrand.Rand) string {
	runes := make([]rune, r.IntN(12))
	for i := range runes {
		runes[i] = rune(r.IntN(0xd7ff))
	}
	return string(runes)
}

func randomValue(r *mathrand.Rand, depth int) any {
	if depth == 0 {
		return nil
	}
	switch r.IntN(6) {
	case 0:
		return r.Int64()
	case 1:
		return r.NormFloat64() * 1e20
	case 2:
		return randomText(r)
	case 3:
		return []any{randomValue(r, depth-1), randomValue(r, depth-1)}
	case 4:
		return map[string]any{randomText(r): randomValue(r, depth-1)}
	}
	return r.IntN(2) == 0
}
