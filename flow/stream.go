package flow

import "time"

// Stream is a raw TCP or UDP conversation as a list of messages: one per read for TCP, one per
// datagram for UDP (TCP-01, UDP-01).
type Stream struct {
	Protocol string // what the first bytes looked like: "ssh", "tls", "quic", ...; "" when unknown
	Messages []StreamMessage
	Sent     int64 // bytes from the client, also those that were not stored
	Received int64 // bytes from the server, likewise
}

// StreamMessage is one piece of a raw conversation.
type StreamMessage struct {
	FromClient bool
	Injected   bool
	Dropped    bool
	Data       []byte // nil with Size > 0: passed but not stored, the budget was used up
	Size       int64
	Time       time.Time
}

func (s *Stream) size() int64 {
	var n int64
	for i := range s.Messages {
		n += int64(len(s.Messages[i].Data))
	}
	return n
}

// Opcode of a WebSocket message (RFC 6455, section 5.2).
type Opcode uint8

// The opcodes that appear in flows.
const (
	OpText   Opcode = 1
	OpBinary Opcode = 2
	OpPing   Opcode = 9
	OpPong   Opcode = 10
)

// WebSocket is what followed an HTTP upgrade (WS-02, WS-08).
type WebSocket struct {
	Messages       []WebSocketMessage
	ClosedByClient *bool // nil while open
	CloseCode      int   // 0 while open
	CloseReason    string
	End            time.Time
}

// WebSocketMessage is one whole message, fragments joined.
type WebSocketMessage struct {
	Opcode     Opcode
	FromClient bool
	Data       []byte
	Time       time.Time
	Dropped    bool
	Injected   bool
}
