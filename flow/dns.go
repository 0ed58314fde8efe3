package flow

import "time"

// DNS is one question and what came of it (DNS-02).
type DNS struct {
	Request  *DNSMessage
	Response *DNSMessage // nil until answered
}

// DNSMessage is a DNS message in the fields of RFC 1035, section 4.1. Codes are kept as numbers so
// that unknown ones survive (DNS-16).
type DNSMessage struct {
	ID                 uint16
	Query              bool
	Opcode             uint8
	Authoritative      bool
	Truncated          bool
	RecursionDesired   bool
	RecursionAvailable bool
	Reserved           uint8 // the three bits Z, AD, CD
	Rcode              uint8
	Questions          []DNSQuestion
	Answers            []DNSRecord
	Authorities        []DNSRecord
	Additionals        []DNSRecord // EDNS's OPT is kept here as it is
	Time               time.Time
}

// DNSQuestion is an entry of the question section. Name has no trailing dot; the root is "".
type DNSQuestion struct {
	Name        string
	Type, Class uint16
}

// DNSRecord is a resource record. Data is the record data with names in it decompressed (DNS-11).
type DNSRecord struct {
	Name        string
	Type, Class uint16
	TTL         uint32
	Data        []byte
}

func (d *DNS) size() int64 {
	var n int64
	for _, m := range []*DNSMessage{d.Request, d.Response} {
		if m == nil {
			continue
		}
		for _, section := range [][]DNSRecord{m.Answers, m.Authorities, m.Additionals} {
			for i := range section {
				n += int64(len(section[i].Data))
			}
		}
	}
	return n
}
