package dnsmitm

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"mitm-appliance/flow"
	"mitm-appliance/option"
	"mitm-appliance/proxycore"
)

// scene is a name server on loopback and a client that is intercepted on its way to it.
type scene struct {
	t       *testing.T
	core    *proxycore.Core
	options *option.Registry
	server  flow.Address
	asked   chan string

	mu    sync.Mutex
	flows []*flow.Flow
	edit  func(hook string, l *proxycore.LiveFlow)
}

func (s *scene) Record(f *flow.Flow, _ *proxycore.LiveFlow) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if i := slices.IndexFunc(s.flows, func(o *flow.Flow) bool { return o.ID == f.ID }); i >= 0 {
		s.flows[i] = f
		return
	}
	s.flows = append(s.flows, f)
}

func (s *scene) DNSRequest(_ context.Context, l *proxycore.LiveFlow) error {
	s.edit("request", l)
	return nil
}

func (s *scene) DNSResponse(_ context.Context, l *proxycore.LiveFlow) error {
	s.edit("response", l)
	return nil
}

func (s *scene) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	name := q.Question[0].Name
	s.asked <- name
	if strings.HasPrefix(name, "silent.") {
		return
	}
	r := new(dns.Msg)
	r.SetReply(q)
	rr, err := dns.NewRR(name + " 300 IN A 192.0.2.7")
	if err != nil {
		s.t.Error(err)
	}
	r.Answer = append(r.Answer, rr)
	_ = w.WriteMsg(r)
}

func newScene(t *testing.T) *scene {
	s := &scene{t: t, options: option.New(), asked: make(chan string, 100), edit: func(string, *proxycore.LiveFlow) {}}
	udp, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	tcp, err := net.Listen("tcp", udp.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	s.server = flow.AddressOf(udp.LocalAddr().(*net.UDPAddr).AddrPort())
	for _, srv := range []*dns.Server{{PacketConn: udp, Handler: s}, {Listener: tcp, Handler: s}} {
		go func() { _ = srv.ActivateAndServe() }()
		t.Cleanup(func() { _ = srv.Shutdown() })
	}
	s.core = proxycore.New(proxycore.Config{Options: proxycore.DeclareOptions(s.options), Recorder: s})
	s.core.SetAddons(s)
	return s
}

// client returns a DNS connection that is intercepted by h.
func (s *scene) client(network string, h Handler) (c *dns.Conn, ended chan struct{}) {
	s.t.Helper()
	var near net.Conn
	var inner proxycore.Conn
	if network == "udp" {
		near, inner = udpPair(s.t)
	} else {
		near, inner = tcpPair(s.t)
	}
	ended = make(chan struct{})
	go func() {
		defer close(ended)
		s.core.Serve(context.Background(), proxycore.Inbound{
			Network: network, Client: &flow.Client{}, First: h, Target: s.server, LazyUpstream: true,
			Accept: func(context.Context) (proxycore.Conn, error) { return inner, nil },
		})
	}()
	_ = near.SetDeadline(time.Now().Add(20 * time.Second))
	s.t.Cleanup(func() {
		_ = near.Close()
		_ = inner.Close()
		<-ended
	})
	return &dns.Conn{Conn: near}, ended
}

type udpConn struct{ *net.UDPConn }

func (udpConn) CloseWrite() error { return nil }

func udpPair(t *testing.T) (net.Conn, proxycore.Conn) {
	t.Helper()
	local := &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)}
	a, err := net.ListenUDP("udp", local)
	if err != nil {
		t.Fatal(err)
	}
	addr := a.LocalAddr().(*net.UDPAddr)
	b, err := net.DialUDP("udp", local, addr)
	if err != nil {
		t.Fatal(err)
	}
	_ = a.Close()
	c, err := net.DialUDP("udp", addr, b.LocalAddr().(*net.UDPAddr))
	if err != nil {
		t.Fatal(err)
	}
	return c, udpConn{b}
}

func tcpPair(t *testing.T) (net.Conn, proxycore.Conn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	a, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	b, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return a, b.(*net.TCPConn)
}

func query(id uint16, name string) *dns.Msg {
	m := new(dns.Msg)
	m.SetQuestion(dns.Fqdn(name), dns.TypeA)
	m.Id = id
	return m
}

func (s *scene) ask(c *dns.Conn, m *dns.Msg) *dns.Msg {
	s.t.Helper()
	if err := c.WriteMsg(m); err != nil {
		s.t.Fatal(err)
	}
	r, err := c.ReadMsg()
	if err != nil {
		s.t.Fatal(err)
	}
	return r
}

func TestQuestionsAreAnsweredAndRecorded(t *testing.T) {
	for _, network := range []string{"udp", "tcp"} {
		t.Run(network, func(t *testing.T) {
			s := newScene(t)
			c, ended := s.client(network, Handler{})
			for id := range uint16(3) {
				r := s.ask(c, query(id+1, fmt.Sprintf("host%d.example", id)))
				if r.Id != id+1 || len(r.Answer) != 1 || r.Answer[0].(*dns.A).A.String() != "192.0.2.7" {
					t.Errorf("answer %d: %v", id, r)
				}
			}
			if network == "tcp" {
				_ = c.Conn.(*net.TCPConn).CloseWrite()
				<-ended
			}
			s.eventually(func() bool { return len(s.flows) == 3 && !s.flows[2].Live })
			f := s.flows[1]
			if f.DNS.Request.Questions[0].Name != "host1.example" || f.DNS.Response.Answers[0].TTL != 300 ||
				string(f.DNS.Response.Answers[0].Data) != "\xc0\x00\x02\x07" || f.Server.Address != s.server {
				t.Errorf("recorded %+v from %+v", f.DNS.Response, f.Server)
			}
		})
	}
}

func (s *scene) eventually(ok func() bool) {
	s.t.Helper()
	for range 500 {
		s.mu.Lock()
		done := ok()
		s.mu.Unlock()
		if done {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	s.t.Fatalf("not within 5 s; flows: %+v", s.flows)
}

func TestHooksEditAnswerAndQuestion(t *testing.T) {
	s := newScene(t)
	s.edit = func(hook string, l *proxycore.LiveFlow) {
		switch {
		case hook == "request":
			l.DNS.Request.Questions = []flow.DNSQuestion{{Name: "other.example", Type: 1, Class: 1}}
		case hook == "response":
			l.DNS.Response.Answers = []flow.DNSRecord{{Name: "edited.example", Type: 1, Class: 1, TTL: 5, Data: []byte{10, 0, 0, 1}}}
		}
	}
	c, _ := s.client("udp", Handler{})
	r := s.ask(c, query(7, "mine.example"))
	if asked := <-s.asked; asked != "other.example." {
		t.Errorf("the server was asked for %q", asked)
	}
	if r.Id != 7 || len(r.Answer) != 1 || r.Answer[0].(*dns.A).A.String() != "10.0.0.1" {
		t.Errorf("the client got %v", r)
	}
}

func TestAHookAnswersWithoutTheServer(t *testing.T) {
	s := newScene(t)
	s.edit = func(hook string, l *proxycore.LiveFlow) {
		if hook == "request" {
			l.DNS.Response = reply(l.DNS.Request, dns.RcodeNameError, time.Now())
		}
	}
	c, _ := s.client("tcp", Handler{})
	if r := s.ask(c, query(1, "blocked.example")); r.Rcode != dns.RcodeNameError {
		t.Errorf("the client got %v", r)
	}
	if len(s.asked) != 0 {
		t.Error("the server was asked")
	}
}

func TestAServerThatIsNotThereGivesSERVFAIL(t *testing.T) {
	s := newScene(t)
	s.server = flow.Address{Host: "127.0.0.1", Port: 1}
	c, _ := s.client("tcp", Handler{})
	if r := s.ask(c, query(1, "x.example")); r.Rcode != dns.RcodeServerFailure {
		t.Errorf("the client got %v", r)
	}
	s.eventually(func() bool { return len(s.flows) == 1 && s.flows[0].Error != nil })
}

func TestARepeatedQuestionIsOneFlow(t *testing.T) {
	s := newScene(t)
	c, _ := s.client("udp", Handler{})
	for range 2 {
		if err := c.WriteMsg(query(9, "silent.example")); err != nil {
			t.Fatal(err)
		}
		<-s.asked // both reach the server
	}
	s.eventually(func() bool { return len(s.flows) == 1 })
}

func TestGarbageIsNoQuestion(t *testing.T) {
	s := newScene(t)
	c, _ := s.client("udp", Handler{})
	for _, junk := range []string{"", "x", strings.Repeat("\xff", 100)} {
		if _, err := c.Conn.Write([]byte(junk)); err != nil {
			t.Fatal(err)
		}
	}
	if r := s.ask(c, query(2, "fine.example")); len(r.Answer) != 1 {
		t.Errorf("after garbage the client got %v", r)
	}
	tcp, ended := s.client("tcp", Handler{})
	if _, err := tcp.Conn.Write([]byte("\x00\x01x")); err != nil {
		t.Fatal(err)
	}
	<-ended // a stream cannot go on after it
}

func TestOurResolverReadsTheHostsFileAndAsksTheNameServer(t *testing.T) {
	s := newScene(t)
	dir := t.TempDir()
	hosts := filepath.Join(dir, "hosts")
	if err := os.WriteFile(hosts, []byte("# comment\n192.0.2.99 Router.lan router # x\n2001:db8::1 router.lan\nbad line\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	opts := DeclareOptions(s.options)
	if err := s.options.SetText("dns_name_servers=" + s.server.String()); err != nil {
		t.Fatal(err)
	}
	c, _ := s.client("udp", Handler{Resolver: &Resolver{Options: opts, HostsFile: hosts}})
	if r := s.ask(c, query(1, "ROUTER.lan")); len(r.Answer) != 1 || r.Answer[0].(*dns.A).A.String() != "192.0.2.99" {
		t.Errorf("from the hosts file: %v", r)
	}
	if r := s.ask(c, query(2, "elsewhere.example")); len(r.Answer) != 1 || r.Answer[0].(*dns.A).A.String() != "192.0.2.7" {
		t.Errorf("from the name server: %v", r)
	}
	if err := s.options.SetText("dns_name_servers=nonsense"); err == nil {
		t.Error("a name server that is no address was accepted")
	}
}

func FuzzMessage(f *testing.F) {
	m := query(1, "seed.example")
	m.SetEdns0(1232, true)
	wire, err := m.Pack()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(wire)
	r := new(dns.Msg)
	r.SetReply(m)
	for _, text := range []string{"a.example. 1 IN MX 10 b.example.", "a.example. 1 IN HTTPS 1 . alpn=h2", "a.example. 1 IN TXT \"x\" \"y\"", "a.example. 1 IN TYPE65000 \\# 2 abcd"} {
		rr, err := dns.NewRR(text)
		if err != nil {
			f.Fatal(err)
		}
		r.Answer = append(r.Answer, rr)
	}
	if wire, err = r.Pack(); err != nil {
		f.Fatal(err)
	}
	f.Add(wire)
	f.Fuzz(func(t *testing.T, wire []byte) {
		m, err := parse(wire, time.Time{})
		if err != nil {
			return
		}
		again, err := pack(m)
		if err != nil {
			return // a name that only fits into a message when compressed
		}
		back, err := parse(again, time.Time{})
		if err != nil {
			t.Fatalf("our own message cannot be read: %v", err)
		}
		if !same(m, back) {
			t.Errorf("\n%+v came back as\n%+v", m, back)
		}
	})
}
