package dnsmitm

import (
	"encoding/hex"
	"fmt"
	"reflect"
	"strings"
	"time"

	"github.com/miekg/dns"

	"mitm-appliance/flow"
)

// parse reads a DNS message (RFC 1035, section 4.1) into a flow's form.
func parse(wire []byte, now time.Time) (*flow.DNSMessage, error) {
	var m dns.Msg
	if err := m.Unpack(wire); err != nil {
		return nil, fmt.Errorf("dnsmitm: unreadable DNS message: %w", err)
	}
	out := &flow.DNSMessage{
		ID: m.Id, Query: !m.Response, Opcode: uint8(m.Opcode),
		Authoritative: m.Authoritative, Truncated: m.Truncated,
		RecursionDesired: m.RecursionDesired, RecursionAvailable: m.RecursionAvailable,
		Reserved: bit(m.Zero, 2) | bit(m.AuthenticatedData, 1) | bit(m.CheckingDisabled, 0),
		Rcode:    uint8(m.Rcode & 0xf), // an extended code's upper bits stay in the OPT record
		Time:     now,
	}
	for _, q := range m.Question {
		out.Questions = append(out.Questions, flow.DNSQuestion{Name: bare(q.Name), Type: q.Qtype, Class: q.Qclass})
	}
	for _, section := range []struct {
		from []dns.RR
		to   *[]flow.DNSRecord
	}{{m.Answer, &out.Answers}, {m.Ns, &out.Authorities}, {m.Extra, &out.Additionals}} {
		for _, rr := range section.from {
			r, err := record(rr)
			if err != nil {
				return nil, err
			}
			*section.to = append(*section.to, r)
		}
	}
	return out, nil
}

func bit(set bool, n uint) uint8 {
	if set {
		return 1 << n
	}
	return 0
}

func bare(name string) string { return strings.TrimSuffix(name, ".") }

// record takes a resource record apart; names inside its data are no longer compressed (DNS-11).
func record(rr dns.RR) (flow.DNSRecord, error) {
	h := rr.Header()
	var raw dns.RFC3597
	if err := raw.ToRFC3597(rr); err != nil {
		return flow.DNSRecord{}, fmt.Errorf("dnsmitm: unreadable record of type %d: %w", h.Rrtype, err)
	}
	data, err := hex.DecodeString(raw.Rdata)
	if err != nil {
		return flow.DNSRecord{}, fmt.Errorf("dnsmitm: unreadable record of type %d: %w", h.Rrtype, err)
	}
	return flow.DNSRecord{Name: bare(h.Name), Type: h.Rrtype, Class: h.Class, TTL: h.Ttl, Data: data}, nil
}

// pack writes a flow's message as it goes over the wire. Names in records are compressed only where
// RFC 3597 allows it.
func pack(m *flow.DNSMessage) ([]byte, error) {
	out := dns.Msg{MsgHdr: dns.MsgHdr{
		Id: m.ID, Response: !m.Query, Opcode: int(m.Opcode), Authoritative: m.Authoritative,
		Truncated: m.Truncated, RecursionDesired: m.RecursionDesired, RecursionAvailable: m.RecursionAvailable,
		Zero: m.Reserved&4 != 0, AuthenticatedData: m.Reserved&2 != 0, CheckingDisabled: m.Reserved&1 != 0,
		Rcode: int(m.Rcode),
	}, Compress: true}
	for _, q := range m.Questions {
		out.Question = append(out.Question, dns.Question{Name: dns.Fqdn(q.Name), Qtype: q.Type, Qclass: q.Class})
	}
	out.Answer, out.Ns, out.Extra = rawRecords(m.Answers), rawRecords(m.Authorities), rawRecords(m.Additionals)
	wire, err := out.Pack()
	if err != nil {
		return nil, fmt.Errorf("dnsmitm: the changed DNS message cannot be written: %w", err)
	}
	return wire, nil
}

func rawRecords(records []flow.DNSRecord) []dns.RR {
	var out []dns.RR
	for _, r := range records {
		out = append(out, &dns.RFC3597{
			Hdr: dns.RR_Header{
				Name: dns.Fqdn(r.Name), Rrtype: r.Type, Class: r.Class, Ttl: r.TTL,
				Rdlength: uint16(len(r.Data)), //nolint:gosec // a parsed record fits; a changed one fails in Pack
			},
			Rdata: hex.EncodeToString(r.Data),
		})
	}
	return out
}

// reply is an answer of ours to a query, without records.
func reply(query *flow.DNSMessage, rcode int, now time.Time) *flow.DNSMessage {
	return &flow.DNSMessage{
		ID: query.ID, Opcode: query.Opcode, RecursionDesired: query.RecursionDesired, RecursionAvailable: true,
		Rcode: uint8(rcode), Questions: query.Questions, Time: now,
	}
}

// same reports whether a hook left a message as it came, so that its original bytes can be sent.
func same(a, b *flow.DNSMessage) bool { return reflect.DeepEqual(a, b) }

// clone copies a message deep enough to notice every change.
func clone(m *flow.DNSMessage) *flow.DNSMessage {
	c := *m
	c.Questions = append([]flow.DNSQuestion(nil), m.Questions...)
	for _, s := range []*[]flow.DNSRecord{&c.Answers, &c.Authorities, &c.Additionals} {
		*s = append([]flow.DNSRecord(nil), *s...)
	}
	return &c
}
