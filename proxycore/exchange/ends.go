package exchange

import (
	"errors"
	"io"
	"time"

	"mitm-appliance/flow"
	"mitm-appliance/proxycore"
)

// Receiver is the rest of a message whose head has been read.
type Receiver interface {
	io.Reader              // the body; io.EOF at the end of the message, other errors for a cut one
	Length() int64         // announced length in bytes, -1 when the sender announced none
	Buffered() int         // how much Read gives without waiting
	SetDeadline(time.Time) // Read fails with os.ErrDeadlineExceeded from then on; zero: never. It can be read on afterwards
	Chunks() []flow.Chunk  // HTTP/1: borders of what was read so far, nil when there is nothing to keep
	Chunk() *flow.Chunk    // HTTP/1: the chunk that the last Read entered, once per chunk; else nil
	Trailer() flow.Header  // after io.EOF
}

// Sender is the rest of a message whose head was begun. What is written may wait in a buffer until
// Flush or End.
type Sender interface {
	io.Writer
	Chunk(flow.Chunk) error // HTTP/1: the next Size bytes are one chunk; size 0 is the last. Others ignore it
	Flush() error
	End(trailer flow.Header) error
}

// Client is a client's end of one exchange. Reading the body and writing the response may happen on
// two goroutines; Abort may be called from any.
type Client interface {
	Sender
	Body() Receiver
	// Interim sends a 1xx response at once.
	Interim(*flow.Response) error
	// Respond sends a whole response.
	Respond(*flow.Request, *flow.Response) error
	// Begin starts a streamed response of length bytes, -1 when unknown. It may adapt framing fields.
	Begin(req *flow.Request, resp *flow.Response, length int64) error
	// Detach ends HTTP on this stream and returns it for whatever comes next.
	Detach() proxycore.Conn
	// Interrupt makes a Read of the body that waits fail, and all later ones.
	Interrupt()
	// Abort resets the stream: nothing more is sent or received.
	Abort(cause error)
}

// Server is a connection to a server, or a stream of one, that carries one exchange at a time.
// Sending and receiving may happen on two goroutines; Abort may be called from any.
type Server interface {
	Sender
	// Send sends a whole request.
	Send(*flow.Request) error
	// Begin starts a streamed request of length bytes, -1 when unknown. It may adapt framing fields.
	Begin(req *flow.Request, length int64) error
	// Receive waits for the next response head, 1xx included, and fills resp with it.
	Receive(req *flow.Request, resp *flow.Response) error
	// Body is that of the response that Receive returned last.
	Body() Receiver
	// Reusable reports whether the exchange is over and another may follow.
	Reusable() bool
	// Stale reports whether a connection that waited in the pool is of no use any more.
	Stale() bool
	// Detach ends HTTP on this connection and returns it with what was read ahead put back.
	Detach() *proxycore.ServerConn
	// Conn is the connection below.
	Conn() *proxycore.ServerConn
	// Close gives the connection up.
	Close()
	// Abort resets it.
	Abort()
}

// What a Server's errors wrap when a request may be sent again on another connection.
var (
	// ErrUnsent says that no byte of the request reached the network.
	ErrUnsent = errors.New("server closed the connection before the request was sent")
	// ErrUnanswered says that the connection ended before the first byte of a response.
	ErrUnanswered = errors.New("server closed the connection without answering")
)
