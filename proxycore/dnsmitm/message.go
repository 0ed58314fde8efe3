package dnsmitm

import (
	"encoding/binary"
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
	wire := make([]byte, dns.Len(rr)+1)
	end, err := dns.PackRR(rr, wire, 0, nil, false)
	if err != nil {
		return flow.DNSRecord{}, fmt.Errorf("dnsmitm: unreadable record of type %d: %w", h.Rrtype, err)
	}
	begin, err := dns.PackDomainName(h.Name, wire, 0, nil, false) // the same bytes again, for their length
	if err != nil {
		return flow.DNSRecord{}, fmt.Errorf("dnsmitm: unreadable name %q: %w", h.Name, err)
	}
	const fixed = 10 // type, class, TTL, length
	return flow.DNSRecord{Name: bare(h.Name), Type: h.Rrtype, Class: h.Class, TTL: h.Ttl, Data: wire[begin+fixed : end]}, nil
}

// pack writes a flow's message as it goes over the wire, without compression (DNS-11).
func pack(m *flow.DNSMessage) ([]byte, error) {
	w := &writer{}
	w.uint16(m.ID)
	w.uint16(flags(m))
	for _, n := range []int{len(m.Questions), len(m.Answers), len(m.Authorities), len(m.Additionals)} {
		w.length(n)
	}
	for _, q := range m.Questions {
		w.name(q.Name)
		w.uint16(q.Type)
		w.uint16(q.Class)
	}
	for _, section := range [][]flow.DNSRecord{m.Answers, m.Authorities, m.Additionals} {
		for _, r := range section {
			w.name(r.Name)
			w.uint16(r.Type)
			w.uint16(r.Class)
			w.wire = binary.BigEndian.AppendUint32(w.wire, r.TTL)
			w.length(len(r.Data))
			w.wire = append(w.wire, r.Data...)
		}
	}
	switch {
	case w.err != nil:
		return nil, fmt.Errorf("dnsmitm: the changed DNS message cannot be written: %w", w.err)
	case len(w.wire) > maxMessage-1:
		return nil, fmt.Errorf("dnsmitm: the changed DNS message has %d bytes, the limit is %d", len(w.wire), maxMessage-1)
	}
	return w.wire, nil
}

// flags is the second word of the header (RFC 1035, section 4.1.1).
func flags(m *flow.DNSMessage) uint16 {
	f := uint16(m.Opcode&0xf)<<11 | uint16(m.Reserved&7)<<4 | uint16(m.Rcode&0xf)
	for _, b := range []struct {
		set bool
		at  uint
	}{{!m.Query, 15}, {m.Authoritative, 10}, {m.Truncated, 9}, {m.RecursionDesired, 8}, {m.RecursionAvailable, 7}} {
		if b.set {
			f |= 1 << b.at
		}
	}
	return f
}

// writer appends wire format and remembers the first thing that does not fit.
type writer struct {
	wire []byte
	err  error
}

func (w *writer) uint16(n uint16) { w.wire = binary.BigEndian.AppendUint16(w.wire, n) }

func (w *writer) length(n int) {
	if n > 0xffff {
		w.err = fmt.Errorf("%d entries or bytes where 65535 is the limit", n)
	}
	w.uint16(uint16(n)) // checked above
}

func (w *writer) name(name string) {
	var buf [256]byte // the longest name has 255 bytes
	n, err := dns.PackDomainName(dns.Fqdn(name), buf[:], 0, nil, false)
	if err != nil && w.err == nil {
		w.err = fmt.Errorf("name %q: %w", name, err)
	}
	w.wire = append(w.wire, buf[:n]...)
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
