package flowfile

import (
	"maps"
	"slices"
	"time"

	"mitm-appliance/flow"
)

// prefix begins the metadata keys of facts that the format has no key for.
const prefix = "mitm-appliance."

// metadata writes the flow's own metadata and our facts.
func (e *encoder) metadata(f *flow.Flow) {
	m := e.open('}')
	own := facts(f)
	for _, k := range slices.Sorted(maps.Keys(f.Metadata)) {
		if !slices.ContainsFunc(own, func(p pair) bool { return prefix+p.name == k }) {
			e.any(f.Metadata[k], 0)
			e.text(k)
		}
	}
	for _, p := range own {
		e.any(p.value, 0)
		e.key(prefix + p.name)
	}
	e.close(m)
}

// set appends an entry unless its value says nothing.
func (r *record) set(name string, value any) {
	switch v := value.(type) {
	case string:
		if v == "" {
			return
		}
	case bool:
		if !v {
			return
		}
	case []any:
		if len(v) == 0 {
			return
		}
	case record:
		if len(v) == 0 {
			return
		}
	}
	*r = append(*r, pair{name, value})
}

// facts lists what FMT-v21 cannot say about a flow. restore is its inverse.
func facts(f *flow.Flow) record {
	var r record
	if c := f.Client; c != nil {
		r.set("feed", c.Feed)
		r.set("device", c.Device)
		r.set("tunnel", c.Tunnel)
		r.set("process", processFacts(c.Process))
		if _, exact := proxyMode(c.Mode); !exact {
			r.set("mode", c.Mode)
		}
		r.set("client_tls", tlsFacts(c.TLS))
	}
	if s := f.Server; s != nil {
		if _, ok := parseVia(s.Via); !ok {
			r.set("via", s.Via)
		}
		r.set("server_tls", tlsFacts(s.TLS))
	}
	switch {
	case f.HTTP != nil:
		r.set("request", messageFacts(&f.HTTP.Request.Message))
		if f.HTTP.Response != nil {
			r.set("response", messageFacts(&f.HTTP.Response.Message))
		}
		r.set("interim", interimFacts(f.HTTP.Interim))
	case f.Stream != nil:
		r.set("stream", streamFacts(f.Stream))
	}
	return r
}

func processFacts(p *flow.Process) record {
	if p == nil {
		return nil
	}
	r := record{{"pid", p.PID}, {"uid", p.UID}}
	r.set("name", p.Name)
	r.set("exe", p.Exe)
	r.set("cgroup", p.Cgroup)
	return r
}

func tlsFacts(t *flow.TLS) record {
	if t == nil {
		return nil
	}
	var r record
	if !slices.Contains(tlsVersions, t.Version) {
		r.set("version", t.Version)
	}
	r.set("ja3", t.JA3)
	r.set("ja4", t.JA4)
	r.set("resumed", t.Resumed)
	r.set("ech", t.ECH)
	return r
}

func messageFacts(m *flow.Message) record {
	var r record
	if m.Body.State == flow.BodyTruncated {
		r.set("truncated", true)
	}
	if m.Body.Size != int64(len(m.Body.Data)) {
		r.set("size", m.Body.Size)
	}
	chunks := make([]any, 0, len(m.Chunks))
	for _, c := range m.Chunks {
		chunks = append(chunks, []any{c.Size, c.Extension})
	}
	r.set("chunks", chunks)
	return r
}

func interimFacts(rs []flow.Response) []any {
	list := make([]any, 0, len(rs))
	for i := range rs {
		r := &rs[i]
		header := make([]any, 0, len(r.Header))
		for _, f := range r.Header {
			header = append(header, []any{f.Name, f.Value})
		}
		list = append(list, record{
			{"http_version", r.Version},
			{"status_code", r.Status},
			{"reason", r.Reason},
			{"headers", header},
			{"timestamp_start", r.Start},
			{"timestamp_end", r.End},
		})
	}
	return list
}

func streamFacts(s *flow.Stream) record {
	var r record
	r.set("protocol", s.Protocol)
	var odd []any
	for i := range s.Messages {
		m := &s.Messages[i]
		if m.Injected || m.Dropped || m.Size != int64(len(m.Data)) {
			odd = append(odd, []any{i, m.Injected, m.Dropped, m.Size})
		}
	}
	if sent, received := streamed(s.Messages); sent != s.Sent || received != s.Received {
		r.set("sent", s.Sent)
		r.set("received", s.Received)
	}
	r.set("messages", odd)
	return r
}

// restore takes our facts out of the metadata and puts them where they belong. What is not as facts
// writes it stays in the metadata: it may be somebody else's.
func restore(f *flow.Flow) {
	take := func(name string, use func(any) bool) {
		if v, ok := f.Metadata[prefix+name]; ok && use(v) {
			delete(f.Metadata, prefix+name)
		}
	}
	text := func(name string, to *string) {
		take(name, func(v any) (ok bool) {
			s, ok := v.(string)
			if ok {
				*to = s
			}
			return ok
		})
	}
	text("feed", &f.Client.Feed)
	text("device", &f.Client.Device)
	text("tunnel", &f.Client.Tunnel)
	text("mode", &f.Client.Mode)
	take("process", func(v any) bool { return restoreProcess(f.Client, v) })
	take("client_tls", func(v any) bool { return restoreTLS(f.Client.TLS, v) })
	if f.Server != nil {
		text("via", &f.Server.Via)
		take("server_tls", func(v any) bool { return restoreTLS(f.Server.TLS, v) })
	}
	if h := f.HTTP; h != nil {
		take("request", func(v any) bool { return restoreMessage(&h.Request.Message, v) })
		if h.Response != nil {
			take("response", func(v any) bool { return restoreMessage(&h.Response.Message, v) })
		}
		take("interim", func(v any) (ok bool) {
			h.Interim, ok = restoreInterim(v)
			return ok
		})
	}
	if f.Stream != nil {
		take("stream", func(v any) bool { return restoreStream(f.Stream, v) })
	}
	if len(f.Metadata) == 0 {
		f.Metadata = nil
	}
}

// get reads one value of a fact; ok turns false when it is there with another type.
func get[T any](m map[string]any, key string, ok *bool) (value T) {
	v, there := m[key]
	if !there || v == nil {
		return value
	}
	value, right := v.(T)
	*ok = *ok && right
	return value
}

func restoreProcess(c *flow.Client, v any) bool {
	m, ok := v.(map[string]any)
	p := flow.Process{
		PID: int(get[int64](m, "pid", &ok)), UID: int(get[int64](m, "uid", &ok)), Name: get[string](m, "name", &ok),
		Exe: get[string](m, "exe", &ok), Cgroup: get[string](m, "cgroup", &ok),
	}
	if ok {
		c.Process = &p
	}
	return ok
}

func restoreTLS(t *flow.TLS, v any) bool {
	m, ok := v.(map[string]any)
	if t == nil || !ok {
		return false
	}
	next := *t
	if version := get[string](m, "version", &ok); version != "" {
		next.Version = version
	}
	next.JA3, next.JA4 = get[string](m, "ja3", &ok), get[string](m, "ja4", &ok)
	next.Resumed, next.ECH = get[bool](m, "resumed", &ok), get[bool](m, "ech", &ok)
	if ok {
		*t = next
	}
	return ok
}

func restoreMessage(msg *flow.Message, v any) bool {
	m, ok := v.(map[string]any)
	body := msg.Body
	if get[bool](m, "truncated", &ok) && body.State == flow.BodyComplete {
		body.State = flow.BodyTruncated
	}
	if size := get[int64](m, "size", &ok); size > 0 {
		body.Size = size
	}
	var chunks []flow.Chunk
	for _, item := range get[[]any](m, "chunks", &ok) {
		pair, _ := item.([]any)
		if len(pair) != 2 {
			return false
		}
		size, isSize := pair[0].(int64)
		extension, isText := pair[1].(string)
		ok = ok && isSize && isText
		chunks = append(chunks, flow.Chunk{Size: size, Extension: extension})
	}
	if ok {
		msg.Body, msg.Chunks = body, chunks
	}
	return ok
}

func restoreInterim(v any) ([]flow.Response, bool) {
	list, ok := v.([]any)
	var out []flow.Response
	for _, item := range list {
		m, isMap := item.(map[string]any)
		ok = ok && isMap
		r := flow.Response{Status: int(get[int64](m, "status_code", &ok)), Reason: get[string](m, "reason", &ok)}
		r.Version = get[string](m, "http_version", &ok)
		r.Start, r.End = moment(get[float64](m, "timestamp_start", &ok)), moment(get[float64](m, "timestamp_end", &ok))
		for _, field := range get[[]any](m, "headers", &ok) {
			pair, _ := field.([]any)
			if len(pair) != 2 {
				return nil, false
			}
			name, isName := pair[0].(string)
			value, isValue := pair[1].(string)
			ok = ok && isName && isValue
			r.Header = append(r.Header, flow.Field{Name: name, Value: value})
		}
		out = append(out, r)
	}
	return out, ok
}

// moment is the time of seconds in metadata; 0 means "unknown".
func moment(sec float64) time.Time {
	if sec == 0 {
		return time.Time{}
	}
	t, err := element{'^', []byte(formatFloat(sec))}.time()
	if err != nil {
		return time.Time{}
	}
	return t
}

func restoreStream(s *flow.Stream, v any) bool {
	m, ok := v.(map[string]any)
	protocol := get[string](m, "protocol", &ok)
	messages := slices.Clone(s.Messages)
	for _, item := range get[[]any](m, "messages", &ok) {
		f, _ := item.([]any)
		if len(f) != 4 {
			return false
		}
		i, isIndex := f[0].(int64)
		injected, isInjected := f[1].(bool)
		dropped, isDropped := f[2].(bool)
		size, isSize := f[3].(int64)
		if !isIndex || !isInjected || !isDropped || !isSize || i < 0 || i >= int64(len(messages)) || size < 0 {
			return false
		}
		messages[i].Injected, messages[i].Dropped, messages[i].Size = injected, dropped, size
	}
	if !ok {
		return false
	}
	s.Protocol, s.Messages = protocol, messages
	s.Sent, s.Received = streamed(messages)
	if _, there := m["sent"]; there {
		s.Sent, s.Received = get[int64](m, "sent", &ok), get[int64](m, "received", &ok)
	}
	return true
}

// streamed adds up what went each way.
func streamed(messages []flow.StreamMessage) (sent, received int64) {
	for i := range messages {
		if messages[i].FromClient {
			sent += messages[i].Size
		} else {
			received += messages[i].Size
		}
	}
	return sent, received
}
