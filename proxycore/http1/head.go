package http1

import (
	"strings"

	"mitm-appliance/flow"
	"mitm-appliance/proxycore/exchange"
)

// cure is how every refusal of a suspicious message ends.
const cure = " It was refused to prevent request smuggling; set validate_inbound_headers to false to let such messages pass."

// refuse says what is suspicious about a message.
func refuse(format string, args ...any) error { return exchange.Invalid(format+cure, args...) }

// parseRequest reads a request head. err means that it is no request at all; invalid that it is one
// that should be refused (HTTP-24, H1-01). The strings of r are parts of s.text.
func parseRequest(s section, r *flow.Request) (invalid, err error) {
	line, rest := cutLine(s.text)
	if err := requestLine(line, r); err != nil {
		return nil, err
	}
	r.Header, invalid, err = parseFields(rest, s.lines-1)
	if s.bare && invalid == nil {
		invalid = refuse("A line of the request ends with LF instead of CRLF.")
	}
	return invalid, err
}

// parseResponse reads a response head, like parseRequest.
func parseResponse(s section, r *flow.Response) (invalid, err error) {
	line, rest := cutLine(s.text)
	version, after, _ := strings.Cut(line, " ")
	if !isVersion1(version) || len(after) < 3 || after[0] < '1' || !isDigit(after[0]) || !isDigit(after[1]) || !isDigit(after[2]) ||
		len(after) > 3 && after[3] != ' ' {
		return nil, exchange.Invalid("Cannot parse HTTP response: bad status line %.200q", line)
	}
	r.Version = version
	r.Status = int(after[0]-'0')*100 + int(after[1]-'0')*10 + int(after[2]-'0')
	if len(after) > 4 {
		r.Reason = after[4:]
	}
	r.Header, invalid, err = parseFields(rest, s.lines-1)
	switch {
	case invalid != nil:
	case s.bare:
		invalid = refuse("A line of the response ends with LF instead of CRLF.")
	case !all(r.Reason, classValue):
		invalid = refuse("The reason phrase has control characters.")
	}
	return invalid, err
}

// cutLine splits off a line; every line of a section has its end.
func cutLine(text string) (line, rest string) {
	line, rest, _ = strings.Cut(text, "\n")
	return strings.TrimSuffix(line, "\r"), rest
}

func isDigit(c byte) bool { return c >= '0' && c <= '9' }

func isVersion1(v string) bool {
	return len(v) == 8 && v[:7] == "HTTP/1." && isDigit(v[7])
}

// requestLine parses "METHOD SP TARGET SP VERSION" (RFC 9112, section 3).
func requestLine(line string, r *flow.Request) error {
	method, rest, _ := strings.Cut(line, " ")
	target, version, ok := strings.Cut(rest, " ")
	switch {
	case !ok || method == "" || target == "" || !all(method, classToken) || !all(target, classTarget):
		return exchange.Invalid("Bad HTTP request line: %.200q", line)
	case !isVersion1(version):
		return exchange.Invalid("Bad HTTP request line: %.200q: only HTTP/1.0 and HTTP/1.1 are spoken here", line)
	}
	r.Method, r.Version = method, version
	if !parseTarget(target, r) {
		return exchange.Invalid("Bad HTTP request line: %.200q: the target has none of the known forms", line)
	}
	return nil
}

// parseTarget tells the four forms of a request target apart (RFC 9112, section 3.2).
func parseTarget(target string, r *flow.Request) bool {
	switch {
	case r.Method == "CONNECT":
		r.Authority = target
		return true
	case target[0] == '/' || target == "*":
		r.Path = target
		return true
	}
	scheme, rest, ok := strings.Cut(target, "://")
	if !ok || scheme == "" || !all(scheme, classToken) {
		return false
	}
	end := strings.IndexAny(rest, "/?#")
	if end < 0 {
		end = len(rest)
	}
	r.Scheme, r.Authority, r.Path = strings.ToLower(scheme), rest[:end], rest[end:]
	switch {
	case r.Authority == "":
		return false
	case r.Path == "" && r.Method == "OPTIONS":
		r.Path = "*"
	case r.Path == "" || r.Path[0] != '/':
		r.Path = "/" + r.Path
	}
	return true
}

// parseFields reads field lines (RFC 9112, section 5). It understands more than it approves of:
// invalid is the first thing that a strict recipient refuses.
func parseFields(text string, lines int) (h flow.Header, invalid, err error) {
	if lines <= 0 {
		return nil, nil, nil
	}
	h = make(flow.Header, 0, lines)
	for text != "" {
		var line string
		line, text = cutLine(text)
		if line[0] == ' ' || line[0] == '\t' {
			if len(h) == 0 {
				return nil, nil, exchange.Invalid("Invalid headers: white space before the first field")
			}
			invalid = first(invalid, "The field %.100q is folded over several lines.", h[len(h)-1].Name)
			h[len(h)-1].Value += "\r\n " + trimOWS(line)
			continue
		}
		colon := strings.IndexByte(line, ':')
		if colon <= 0 {
			return nil, nil, exchange.Invalid("Invalid headers: %.200q is no header line", line)
		}
		f := flow.Field{Name: line[:colon], Value: trimOWS(line[colon+1:])}
		if !all(f.Name, classToken) {
			invalid = first(invalid, "The field name %.100q has characters that are not allowed there.", f.Name)
		}
		if !all(f.Value, classValue) {
			invalid = first(invalid, "The value of the field %.100q has control characters.", f.Name)
		}
		h = append(h, f)
	}
	return h, invalid, nil
}

func first(invalid error, format string, args ...any) error {
	if invalid != nil {
		return invalid
	}
	return refuse(format, args...)
}

// trimOWS removes optional white space around a value (RFC 9110, section 5.6.3).
func trimOWS(s string) string {
	for s != "" && (s[0] == ' ' || s[0] == '\t') {
		s = s[1:]
	}
	for s != "" && (s[len(s)-1] == ' ' || s[len(s)-1] == '\t') {
		s = s[:len(s)-1]
	}
	return s
}
