//go:build linux

package lab

import (
	"errors"
	"net"
	"strings"

	"github.com/miekg/dns"
)

// zone is what the lab's name server knows; any other name under lab.test does not exist.
func zone() map[string][]string {
	return map[string][]string{
		Web:       {Web4, Web6},
		Untrusted: {Untrusted4, Untrusted6},
		Silent:    {Silent4, Silent6},
		Web4Only:  {Web4},
		Web6Only:  {Web6},
		API:       {Web4, Web6},
	}
}

// serveDNS answers on port 53 over UDP and TCP.
func (w *World) serveDNS(ip string) error {
	address := net.JoinHostPort(ip, "53")
	datagrams, err := w.Internet.ListenPacket("udp", address)
	if err != nil {
		return err
	}
	stream, err := w.Internet.Listen("tcp", address)
	if err != nil {
		return errors.Join(err, datagrams.Close())
	}
	names := zone()
	for _, s := range []*dns.Server{{PacketConn: datagrams}, {Listener: stream}} {
		s.Handler = dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) { _ = w.WriteMsg(answer(names, q)) })
		started := make(chan struct{})
		s.NotifyStartedFunc = func() { close(started) }
		go func() { _ = s.ActivateAndServe() }()
		<-started
		w.onClose(func() { _ = s.Shutdown() })
	}
	return nil
}

func answer(names map[string][]string, q *dns.Msg) *dns.Msg {
	m := new(dns.Msg).SetReply(q)
	m.RecursionAvailable = true
	if len(q.Question) != 1 {
		m.Rcode = dns.RcodeFormatError
		return m
	}
	question := q.Question[0]
	name := strings.ToLower(strings.TrimSuffix(question.Name, "."))
	addrs, ok := names[name]
	if !ok {
		m.Rcode = dns.RcodeNameError
		return m
	}
	for _, a := range addrs {
		ip := net.ParseIP(a)
		head := dns.RR_Header{Name: question.Name, Rrtype: question.Qtype, Class: dns.ClassINET, Ttl: 60}
		switch {
		case question.Qtype == dns.TypeA && ip.To4() != nil:
			m.Answer = append(m.Answer, &dns.A{Hdr: head, A: ip})
		case question.Qtype == dns.TypeAAAA && ip.To4() == nil:
			m.Answer = append(m.Answer, &dns.AAAA{Hdr: head, AAAA: ip})
		}
	}
	return m
}
