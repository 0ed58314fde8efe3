package dump

import (
	"encoding/hex"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"mitm-appliance/flow"
)

// lookup prints a DNS query and its answer.
func (p *printer) lookup(f *flow.Flow) {
	p.client(f)
	p.own(plain, ": ")
	query, name, kind := "QUERY", "", "no question"
	if r := f.DNS.Request; r != nil {
		query = numbered(opcodes, uint16(r.Opcode), "OPCODE")
		if len(r.Questions) > 0 {
			name, kind = r.Questions[0].Name, numbered(dnsTypes, r.Questions[0].Type, "TYPE")
		}
	}
	i := red
	switch kind {
	case "A":
		i = green
	case "AAAA":
		i = magenta
	}
	p.own(i, "DNS "+query+" ("+kind+")")
	p.own(plain, " ")
	p.seen(bold, name)
	p.newline()
	if f.DNS.Response != nil {
		p.answer(f.DNS.Response)
	}
	p.failure(f)
}

func (p *printer) answer(r *flow.DNSMessage) {
	p.own(bold, " << ")
	if len(r.Answers) == 0 {
		p.own(red, numbered(rcodes, uint16(r.Rcode), "RCODE"))
	}
	for i := range r.Answers {
		if i > 0 {
			p.own(plain, ", ")
		}
		p.seen(sky, recordData(&r.Answers[i]))
	}
	p.newline()
	if p.detail < 2 {
		return
	}
	p.records("", r.Answers)
	p.records("authority: ", r.Authorities)
	p.records("additional: ", r.Additionals)
}

func (p *printer) records(section string, rs []flow.DNSRecord) {
	for i := range rs {
		r := &rs[i]
		p.own(plain, indent+section)
		p.seen(blue, r.Name+".")
		p.own(plain, fmt.Sprintf(" %d %s %s ", r.TTL, numbered(dnsClasses, r.Class, "CLASS"), numbered(dnsTypes, r.Type, "TYPE")))
		p.seen(plain, recordData(r))
		p.newline()
	}
}

// The names of IANA's DNS parameters that people meet.
var (
	opcodes    = map[uint16]string{0: "QUERY", 1: "IQUERY", 2: "STATUS", 4: "NOTIFY", 5: "UPDATE", 6: "DSO"}
	dnsClasses = map[uint16]string{1: "IN", 3: "CH", 4: "HS", 254: "NONE", 255: "ANY"}
	rcodes     = map[uint16]string{
		0: "NOERROR", 1: "FORMERR", 2: "SERVFAIL", 3: "NXDOMAIN", 4: "NOTIMP", 5: "REFUSED",
		6: "YXDOMAIN", 7: "YXRRSET", 8: "NXRRSET", 9: "NOTAUTH", 10: "NOTZONE",
	}
	dnsTypes = map[uint16]string{
		1: "A", 2: "NS", 5: "CNAME", 6: "SOA", 12: "PTR", 13: "HINFO", 15: "MX", 16: "TXT", 28: "AAAA", 33: "SRV", 35: "NAPTR",
		39: "DNAME", 41: "OPT", 43: "DS", 46: "RRSIG", 47: "NSEC", 48: "DNSKEY", 50: "NSEC3", 52: "TLSA", 64: "SVCB", 65: "HTTPS",
		99: "SPF", 251: "IXFR", 252: "AXFR", 255: "ANY", 256: "URI", 257: "CAA",
	}
)

// numbered names a number, or writes it as RFC 3597 does.
func numbered(names map[uint16]string, n uint16, prefix string) string {
	if name, ok := names[n]; ok {
		return name
	}
	return prefix + strconv.Itoa(int(n))
}

// recordData is a record's data for people; hexadecimal where its type is unknown or it is malformed.
func recordData(r *flow.DNSRecord) string {
	text, ok := "", false
	switch r.Type {
	case 1, 28:
		var ip netip.Addr
		ip, ok = netip.AddrFromSlice(r.Data)
		text, ok = ip.String(), ok && ip.Is4() == (r.Type == 1)
	case 2, 5, 12, 39:
		text, _, ok = wireName(r.Data)
	case 15:
		text, ok = mailExchange(r.Data)
	case 16, 99:
		text, ok = characterStrings(r.Data)
	case 64, 65:
		text, ok = serviceBinding(r.Data)
	}
	if !ok {
		return "0x" + hex.EncodeToString(r.Data)
	}
	return text
}

// wireName reads an uncompressed name (RFC 1035, section 3.1).
func wireName(b []byte) (name string, rest []byte, ok bool) {
	var labels []string
	for len(b) > 0 {
		n := int(b[0])
		b = b[1:]
		if n == 0 {
			return strings.Join(labels, "."), b, true
		}
		if n > 63 || n > len(b) {
			break
		}
		labels = append(labels, string(b[:n]))
		b = b[n:]
	}
	return "", nil, false
}

func mailExchange(b []byte) (string, bool) {
	if len(b) < 2 {
		return "", false
	}
	name, _, ok := wireName(b[2:])
	return fmt.Sprintf("%d %s", int(b[0])<<8|int(b[1]), name), ok
}

// characterStrings reads the strings of a TXT record (RFC 1035, section 3.3.14).
func characterStrings(b []byte) (string, bool) {
	var parts []string
	for len(b) > 0 {
		n := int(b[0])
		if n >= len(b) {
			return "", false
		}
		parts = append(parts, `"`+string(b[1:1+n])+`"`)
		b = b[1+n:]
	}
	return strings.Join(parts, " "), len(parts) > 0
}

// serviceBinding reads priority, target and the protocols of an HTTPS record (RFC 9460, section 2.2).
func serviceBinding(b []byte) (string, bool) {
	if len(b) < 2 {
		return "", false
	}
	name, params, ok := wireName(b[2:])
	if !ok {
		return "", false
	}
	text := fmt.Sprintf("%d %s.", int(b[0])<<8|int(b[1]), name)
	for len(params) > 0 {
		if len(params) < 4 {
			return "", false
		}
		key, n := int(params[0])<<8|int(params[1]), int(params[2])<<8|int(params[3])
		if n > len(params)-4 {
			return "", false
		}
		value := params[4 : 4+n]
		params = params[4+n:]
		switch key {
		case 1:
			text += " alpn=" + alpnList(value)
		case 5:
			text += " ech"
		default:
			text += fmt.Sprintf(" key%d", key)
		}
	}
	return text, true
}

func alpnList(b []byte) string {
	var ids []string
	for len(b) > 0 && int(b[0]) < len(b) {
		n := int(b[0])
		ids = append(ids, string(b[1:1+n]))
		b = b[1+n:]
	}
	return strings.Join(ids, ",")
}
