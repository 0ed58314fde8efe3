package flowfile

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"math"

	"mitm-appliance/flow"
)

// ErrVersion says that a flow is in a format version that is not read.
var ErrVersion = errors.New("flowfile: unsupported flow format version")

// Decode reads one flow: the bytes of one whole tnetstring, as Encoder gives them. The flow shares
// body and message bytes with b, which must not be changed any more.
func Decode(b []byte) (*flow.Flow, error) {
	el, rest, err := cut(b)
	if err != nil {
		return nil, err
	}
	if len(rest) > 0 {
		return nil, fmt.Errorf("%d bytes after the end of the flow", len(rest))
	}
	return decode(el)
}

// decode dispatches on the version.
func decode(el element) (*flow.Flow, error) {
	version, err := versionOf(el)
	if err != nil {
		return nil, err
	}
	if version != Version {
		return nil, versionError(version)
	}
	return decodeFlow(el, true)
}

// versionOf finds the version of a flow: a number, or before mitmproxy 4 a list of which the first
// number is the one that counts here (FMT-compat).
func versionOf(el element) (int64, error) {
	version := int64(-1)
	err := el.entries(func(key string, value element) (err error) {
		if key != "version" {
			return nil
		}
		if value.tag == ']' {
			version = 0
			return nil
		}
		version, err = value.int()
		return err
	})
	if err == nil && version < 0 {
		err = errors.New("the map has no version: it is not a flow")
	}
	return version, err
}

func versionError(version int64) error {
	if version > Version {
		return fmt.Errorf("%w %d: this program reads version %d, update it", ErrVersion, version, Version)
	}
	name := fmt.Sprint(version)
	if version == 0 {
		name = "from before mitmproxy 4"
	}
	return fmt.Errorf("%w %s: this program reads version %d; convert the file with mitmproxy 12: mitmdump -nr OLD -w NEW",
		ErrVersion, name, Version)
}

// decodeFlow reads FMT-v21. The keys are asked for in the order in which they are written.
func decodeFlow(el element, withBackup bool) (*flow.Flow, error) {
	in := newFields("flow", el)
	in.take("version")
	f := &flow.Flow{}
	f.Kind = read(in, "type", kind)
	f.ID = read(in, "id", identity)
	f.Error = opt(in, "error", failure)
	extra := map[string]any{}
	f.Client = read(in, "client_conn", func(el element) (*flow.Client, error) { return client(el, extra) })
	f.Server = read(in, "server_conn", func(el element) (*flow.Server, error) { return server(el, extra) })
	f.Intercepted = in.bool("intercepted")
	f.Replay = in.optText("is_replay")
	f.Marked = in.text("marked")
	f.Metadata = read(in, "metadata", func(el element) (map[string]any, error) { return el.anyMap(0) })
	f.Comment = in.text("comment")
	f.Created = in.time("timestamp_created")
	backup := in.take("backup")
	if withBackup && !backup.isNull() && in.err == nil {
		f.Backup = decodeBackup(backup)
	}
	switch f.Kind {
	case flow.KindHTTP:
		f.HTTP = &flow.HTTP{
			Request: read(in, "request", request), Response: opt(in, "response", response),
			WebSocket: opt(in, "websocket", webSocket),
		}
	case flow.KindTCP, flow.KindUDP:
		f.Stream = &flow.Stream{Messages: read(in, "messages", list(streamMessage))}
		f.Stream.Sent, f.Stream.Received = streamed(f.Stream.Messages)
	case flow.KindDNS:
		f.DNS = &flow.DNS{Request: read(in, "request", dnsMessage), Response: opt(in, "response", dnsMessage)}
	}
	if err := in.finish(); err != nil {
		return nil, err
	}
	for k, v := range extra {
		f.Metadata[k] = v
	}
	restore(f)
	return f, nil
}

// decodeBackup returns nil for a backup that is not in the current version: mitmproxy leaves it as it
// was when it converts an old flow, and a flow is worth reading without it.
func decodeBackup(el element) *flow.Flow {
	if version, err := versionOf(el); err != nil || version != Version {
		return nil
	}
	f, err := decodeFlow(el, false)
	if err != nil {
		return nil
	}
	return f
}

func kind(el element) (flow.Kind, error) {
	name, err := el.text()
	if err != nil {
		return 0, err
	}
	k, ok := flow.ParseKind(name)
	if !ok {
		return 0, fmt.Errorf("unknown flow type %.20q", name)
	}
	return k, nil
}

// identity reads a UUID. The format allows any text.
func identity(el element) (flow.ID, error) {
	s, err := el.text()
	if err != nil {
		return flow.ID{}, err
	}
	if id, err := flow.ParseID(s); err == nil {
		return id, nil
	}
	sum := sha256.Sum256([]byte(s)) // somebody's own name: connections that share it still do
	return flow.ID(sum[:16]), nil
}

func failure(el element) (*flow.Error, error) {
	in := newFields("error", el)
	e := &flow.Error{Message: in.text("msg"), Time: in.time("timestamp")}
	return e, in.finish()
}

func request(el element) (flow.Request, error) {
	in := newFields("request", el)
	r := flow.Request{Message: message(in)}
	r.Host = in.text("host")
	r.Port = uint16(in.number("port", math.MaxUint16))
	r.Method = in.blob("method")
	r.Scheme = in.blob("scheme")
	r.Authority = in.blob("authority")
	r.Path = in.blob("path")
	return r, in.finish()
}

func response(el element) (*flow.Response, error) {
	in := newFields("response", el)
	r := &flow.Response{Message: message(in)}
	r.Status = int(in.number("status_code", math.MaxInt32))
	r.Reason = in.blob("reason")
	return r, in.finish()
}

func message(in *fields) flow.Message {
	m := flow.Message{Version: in.blob("http_version"), Header: read(in, "headers", header)}
	m.Body = read(in, "content", body)
	m.Trailer = opt(in, "trailers", header)
	m.Start = in.time("timestamp_start")
	m.End = in.optTime("timestamp_end")
	return m
}

func body(el element) (flow.Body, error) {
	if el.isNull() {
		return flow.Body{State: flow.BodyMissing}, nil
	}
	data, err := el.blob()
	if len(data) == 0 {
		data = nil
	}
	return flow.BodyOf(data), err
}

// header never returns nil without an error: no trailers and an empty list of them are not the same.
func header(el element) (flow.Header, error) {
	h := flow.Header{}
	err := el.each(func(item element) error {
		name, rest, err := cut(item.data)
		if err != nil {
			return err
		}
		value, rest, err := cut(rest)
		if err != nil {
			return err
		}
		if item.tag != ']' || name.tag != ',' || value.tag != ',' || len(rest) > 0 {
			return errors.New("a header field is not a pair of bytes")
		}
		h = append(h, flow.Field{Name: string(name.data), Value: string(value.data)})
		return nil
	})
	return h, err
}

func webSocket(el element) (*flow.WebSocket, error) {
	in := newFields("websocket", el)
	ws := &flow.WebSocket{Messages: read(in, "messages", list(webSocketMessage))}
	ws.ClosedByClient = opt(in, "closed_by_client", func(el element) (*bool, error) {
		b, err := el.bool()
		return &b, err
	})
	ws.CloseCode = int(in.optNumber("close_code", math.MaxInt32))
	ws.CloseReason = in.optText("close_reason")
	ws.End = in.optTime("timestamp_end")
	return ws, in.finish()
}

func webSocketMessage(el element) (m flow.WebSocketMessage, err error) {
	t, err := el.tuple(6, 6)
	if err != nil {
		return m, err
	}
	op, err := ranged(t[0], 15)
	if err == nil && !knownOpcode(op) {
		err = fmt.Errorf("unknown WebSocket opcode %d", op)
	}
	m.Opcode = flow.Opcode(op)
	var errs [5]error
	m.FromClient, errs[0] = t[1].bool()
	m.Data, errs[1] = t[2].blob()
	m.Time, errs[2] = wholeTime(t[3])
	m.Dropped, errs[3] = t[4].bool()
	m.Injected, errs[4] = t[5].bool()
	return m, errors.Join(append(errs[:], err)...)
}

func streamMessage(el element) (m flow.StreamMessage, err error) {
	t, err := el.tuple(3, 3)
	if err != nil {
		return m, err
	}
	var errs [3]error
	m.FromClient, errs[0] = t[0].bool()
	m.Data, errs[1] = t[1].blob()
	m.Time, errs[2] = wholeTime(t[2])
	m.Size = int64(len(m.Data))
	if m.Size == 0 {
		m.Data = nil
	}
	return m, errors.Join(errs[:]...)
}

func dnsMessage(el element) (*flow.DNSMessage, error) {
	in := newFields("dns message", el)
	d := &flow.DNSMessage{ID: uint16(in.number("id", math.MaxUint16)), Query: in.bool("query")}
	d.Opcode = uint8(in.number("op_code", math.MaxUint8))
	d.Authoritative = in.bool("authoritative_answer")
	d.Truncated = in.bool("truncation")
	d.RecursionDesired = in.bool("recursion_desired")
	d.RecursionAvailable = in.bool("recursion_available")
	d.Reserved = uint8(in.number("reserved", math.MaxUint8))
	d.Rcode = uint8(in.number("response_code", math.MaxUint8))
	d.Questions = read(in, "questions", list(dnsQuestion))
	d.Answers = read(in, "answers", list(dnsRecord))
	d.Authorities = read(in, "authorities", list(dnsRecord))
	d.Additionals = read(in, "additionals", list(dnsRecord))
	d.Time = in.optTime("timestamp")
	return d, in.finish()
}

func dnsQuestion(el element) (flow.DNSQuestion, error) {
	in := newFields("question", el)
	q := flow.DNSQuestion{
		Name: in.text("name"), Type: uint16(in.number("type", math.MaxUint16)),
		Class: uint16(in.number("class_", math.MaxUint16)),
	}
	return q, in.finish()
}

func dnsRecord(el element) (flow.DNSRecord, error) {
	in := newFields("record", el)
	r := flow.DNSRecord{
		Name: in.text("name"), Type: uint16(in.number("type", math.MaxUint16)),
		Class: uint16(in.number("class_", math.MaxUint16)), TTL: uint32(in.number("ttl", math.MaxUint32)),
		Data: []byte(in.blob("data")),
	}
	return r, in.finish()
}
