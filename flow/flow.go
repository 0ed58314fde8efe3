// Package flow is the vocabulary of the appliance as plain data: one Flow is one conversation that
// was seen, and everything that people look at, filter, save and replay is made of the types here.
//
// In: nothing. Out: nouns. It knows no network, no lock, no channel and no context, and imports the
// standard library only. Names follow mitmproxy's fields (FLOW-01, FMT-v21) in Go spelling.
//
// Ownership: a Flow has one owner at a time, the goroutine that serves it while it is live. Others
// hold snapshots made by Snapshot. What a Flow points to is shared between snapshots and therefore
// never written in place: Client, Server, header fields, bodies and messages are replaced, not edited.
package flow

import (
	"maps"
	"time"
)

// Kind says which of HTTP, Stream and DNS a Flow carries.
type Kind uint8

// The kinds of flows, named as mitmproxy names them (FLOW-01).
const (
	KindHTTP Kind = iota + 1
	KindTCP
	KindUDP
	KindDNS
)

// String returns mitmproxy's type name: http, tcp, udp or dns.
func (k Kind) String() string {
	switch k {
	case KindHTTP:
		return "http"
	case KindTCP:
		return "tcp"
	case KindUDP:
		return "udp"
	case KindDNS:
		return "dns"
	}
	return "unknown"
}

// ParseKind is the inverse of Kind.String.
func ParseKind(s string) (Kind, bool) {
	for k := KindHTTP; k <= KindDNS; k++ {
		if k.String() == s {
			return k, true
		}
	}
	return 0, false
}

// The values of Flow.Replay (FLOW-01).
const (
	ReplayRequest  = "request"  // we sent the request again
	ReplayResponse = "response" // we answered from a recording
)

// Killed is the error message of a flow that a person or a rule has cut (FLOW-06).
const Killed = "Connection killed."

// Flow is one recorded conversation. Exactly one of HTTP, Stream and DNS is set, as Kind says.
type Flow struct {
	ID      ID
	Kind    Kind
	Client  *Client // who asked; shared and immutable, never nil in a served flow
	Server  *Server // who answered; shared and immutable, nil until an upstream is involved
	Created time.Time
	Error   *Error // why it ended early; nil when it did not

	Intercepted bool   // held back until somebody resumes it
	Live        bool   // the conversation still runs
	Replay      string // "", ReplayRequest or ReplayResponse
	Marked      string // "" or a marker's short code
	Comment     string
	Metadata    map[string]any // JSON-like values: nil, bool, int64, float64, string, []any, map[string]any

	HTTP   *HTTP
	Stream *Stream
	DNS    *DNS

	Backup *Flow // the flow before people edited it, immutable; nil when nobody did (FMT-v21)
}

// Error is why a flow ended early. Message is free text for people.
type Error struct {
	Message string
	Time    time.Time
}

// Snapshot returns a copy that stays as it is while the owner goes on. It copies structs, not bytes:
// bodies, messages and header fields are shared, which the package's ownership rule makes safe.
func (f *Flow) Snapshot() *Flow {
	c := *f
	c.Metadata = maps.Clone(f.Metadata)
	if f.HTTP != nil {
		c.HTTP = f.HTTP.snapshot()
	}
	if f.Stream != nil {
		s := *f.Stream
		s.Messages = s.Messages[:len(s.Messages):len(s.Messages)]
		c.Stream = &s
	}
	if f.DNS != nil {
		d := *f.DNS
		c.DNS = &d
	}
	return &c
}

// Copy returns an independent flow with a new ID that is not live, as mitmproxy's copy does.
func (f *Flow) Copy(now time.Time) *Flow {
	c := f.Snapshot()
	c.ID, c.Live, c.Intercepted = NewID(now), false, false
	return c
}

// Size is the number of body and message bytes that the flow keeps in memory.
func (f *Flow) Size() int64 {
	switch {
	case f.HTTP != nil:
		return f.HTTP.size()
	case f.Stream != nil:
		return f.Stream.size()
	case f.DNS != nil:
		return f.DNS.size()
	}
	return 0
}
