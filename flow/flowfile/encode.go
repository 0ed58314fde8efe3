package flowfile

import (
	"errors"
	"slices"

	"mitm-appliance/flow"
)

// Encoder turns flows into bytes and keeps its buffer for the next one. The zero Encoder is ready.
// It is for one goroutine at a time.
type Encoder struct{ e encoder }

// ErrKind says that a flow's Kind and the data it carries do not fit together: a programming error.
var ErrKind = errors.New("flowfile: the flow has no data of its kind")

// keptBuffer is the largest buffer that is kept between flows.
const keptBuffer = 4 << 20

// Encode returns the flow in format version 21. The bytes are valid until the next call.
func (enc *Encoder) Encode(f *flow.Flow) ([]byte, error) {
	if len(enc.e.buf) > keptBuffer {
		enc.e.buf = nil
	}
	enc.e.reset()
	if !hasKind(f) {
		return nil, ErrKind
	}
	enc.e.flow(f, true)
	return enc.e.bytes(), nil
}

func hasKind(f *flow.Flow) bool {
	switch f.Kind {
	case flow.KindHTTP:
		return f.HTTP != nil
	case flow.KindTCP, flow.KindUDP:
		return f.Stream != nil
	case flow.KindDNS:
		return f.DNS != nil
	}
	return false
}

// flow writes the keys of FMT-v21, first to last.
func (e *encoder) flow(f *flow.Flow, withBackup bool) {
	m := e.open('}')
	e.int(Version)
	e.key("version")
	e.scalar(';', f.Kind.String())
	e.key("type")
	e.scalar(';', f.ID.String())
	e.key("id")
	e.failure(f.Error)
	e.key("error")
	e.client(f.Client)
	e.key("client_conn")
	e.server(f.Server, f.ID)
	e.key("server_conn")
	e.bool(f.Intercepted)
	e.key("intercepted")
	e.optText(f.Replay)
	e.key("is_replay")
	e.text(f.Marked)
	e.key("marked")
	e.metadata(f)
	e.key("metadata")
	e.text(f.Comment)
	e.key("comment")
	e.time(f.Created)
	e.key("timestamp_created")
	if withBackup && f.Backup != nil && hasKind(f.Backup) {
		e.flow(f.Backup, false)
	} else {
		e.null()
	}
	e.key("backup")
	switch f.Kind {
	case flow.KindHTTP:
		e.http(f.HTTP)
	case flow.KindDNS:
		e.dns(f.DNS)
	default:
		e.stream(f.Stream)
	}
	e.close(m)
}

func (e *encoder) failure(err *flow.Error) {
	if err == nil {
		e.null()
		return
	}
	m := e.open('}')
	e.text(err.Message)
	e.key("msg")
	e.time(err.Time)
	e.key("timestamp")
	e.close(m)
}

func (e *encoder) http(h *flow.HTTP) {
	e.request(&h.Request)
	e.key("request")
	if h.Response == nil {
		e.null()
	} else {
		e.response(h.Response)
	}
	e.key("response")
	if h.WebSocket == nil {
		e.null()
	} else {
		e.webSocket(h.WebSocket)
	}
	e.key("websocket")
}

func (e *encoder) request(r *flow.Request) {
	m := e.open('}')
	e.message(&r.Message)
	e.text(r.Host)
	e.key("host")
	e.int(int64(r.Port))
	e.key("port")
	e.blob(r.Method)
	e.key("method")
	e.blob(r.Scheme)
	e.key("scheme")
	e.blob(r.Authority)
	e.key("authority")
	e.blob(r.Path)
	e.key("path")
	e.close(m)
}

func (e *encoder) response(r *flow.Response) {
	m := e.open('}')
	e.message(&r.Message)
	e.int(int64(r.Status))
	e.key("status_code")
	e.blob(r.Reason)
	e.key("reason")
	e.close(m)
}

func (e *encoder) message(msg *flow.Message) {
	e.blob(msg.Version)
	e.key("http_version")
	e.header(msg.Header)
	e.key("headers")
	if msg.Body.State == flow.BodyMissing {
		e.null()
	} else {
		e.data(msg.Body.Data)
	}
	e.key("content")
	if msg.Trailer == nil {
		e.null()
	} else {
		e.header(msg.Trailer)
	}
	e.key("trailers")
	e.time(msg.Start)
	e.key("timestamp_start")
	e.optTime(msg.End)
	e.key("timestamp_end")
}

func (e *encoder) header(h flow.Header) {
	m := e.open(']')
	for i := len(h) - 1; i >= 0; i-- {
		pair := e.open(']')
		e.blob(h[i].Value)
		e.blob(h[i].Name)
		e.close(pair)
	}
	e.close(m)
}

func (e *encoder) webSocket(ws *flow.WebSocket) {
	m := e.open('}')
	messages := e.open(']')
	for i := len(ws.Messages) - 1; i >= 0; i-- {
		e.webSocketMessage(&ws.Messages[i])
	}
	e.close(messages)
	e.key("messages")
	if ws.ClosedByClient == nil {
		e.null()
	} else {
		e.bool(*ws.ClosedByClient)
	}
	e.key("closed_by_client")
	if ws.CloseCode == 0 {
		e.null()
	} else {
		e.int(int64(ws.CloseCode))
	}
	e.key("close_code")
	if ws.CloseCode == 0 && ws.CloseReason == "" {
		e.null()
	} else {
		e.text(ws.CloseReason)
	}
	e.key("close_reason")
	e.optTime(ws.End)
	e.key("timestamp_end")
	e.close(m)
}

func (e *encoder) webSocketMessage(msg *flow.WebSocketMessage) {
	opcode := msg.Opcode
	if !knownOpcode(int64(opcode)) {
		opcode = flow.OpBinary // mitmproxy refuses reserved ones
	}
	m := e.open(']')
	e.bool(msg.Injected)
	e.bool(msg.Dropped)
	e.time(msg.Time)
	e.data(msg.Data)
	e.bool(msg.FromClient)
	e.int(int64(opcode))
	e.close(m)
}

// knownOpcode is the closed set of RFC 6455, section 11.8.
func knownOpcode(op int64) bool { return op >= 0 && op <= 2 || op >= 8 && op <= 10 }

func (e *encoder) stream(s *flow.Stream) {
	list := e.open(']')
	for i := len(s.Messages) - 1; i >= 0; i-- {
		msg := &s.Messages[i]
		m := e.open(']')
		e.time(msg.Time)
		e.data(msg.Data)
		e.bool(msg.FromClient)
		e.close(m)
	}
	e.close(list)
	e.key("messages")
}

func (e *encoder) dns(d *flow.DNS) {
	if d.Request == nil {
		e.dnsMessage(&flow.DNSMessage{Query: true}) // the format has no DNS flow without a query
	} else {
		e.dnsMessage(d.Request)
	}
	e.key("request")
	if d.Response == nil {
		e.null()
	} else {
		e.dnsMessage(d.Response)
	}
	e.key("response")
}

func (e *encoder) dnsMessage(d *flow.DNSMessage) {
	m := e.open('}')
	e.int(int64(d.ID))
	e.key("id")
	e.bool(d.Query)
	e.key("query")
	e.int(int64(d.Opcode))
	e.key("op_code")
	e.bool(d.Authoritative)
	e.key("authoritative_answer")
	e.bool(d.Truncated)
	e.key("truncation")
	e.bool(d.RecursionDesired)
	e.key("recursion_desired")
	e.bool(d.RecursionAvailable)
	e.key("recursion_available")
	e.int(int64(d.Reserved))
	e.key("reserved")
	e.int(int64(d.Rcode))
	e.key("response_code")
	questions := e.open(']')
	for _, q := range slices.Backward(d.Questions) {
		e.dnsQuestion(q)
	}
	e.close(questions)
	e.key("questions")
	e.dnsRecords("answers", d.Answers)
	e.dnsRecords("authorities", d.Authorities)
	e.dnsRecords("additionals", d.Additionals)
	e.optTime(d.Time)
	e.key("timestamp")
	e.close(m)
}

func (e *encoder) dnsQuestion(q flow.DNSQuestion) {
	m := e.open('}')
	e.text(q.Name)
	e.key("name")
	e.int(int64(q.Type))
	e.key("type")
	e.int(int64(q.Class))
	e.key("class_")
	e.close(m)
}

func (e *encoder) dnsRecords(key string, rs []flow.DNSRecord) {
	l := e.open(']')
	for i := len(rs) - 1; i >= 0; i-- {
		m := e.open('}')
		e.text(rs[i].Name)
		e.key("name")
		e.int(int64(rs[i].Type))
		e.key("type")
		e.int(int64(rs[i].Class))
		e.key("class_")
		e.int(int64(rs[i].TTL))
		e.key("ttl")
		e.data(rs[i].Data)
		e.key("data")
		e.close(m)
	}
	e.close(l)
	e.key(key)
}
