package dump

import (
	"net/http"
	"strconv"
	"strings"
	"unicode/utf8"

	"mitm-appliance/flow"
)

// style is how flows are printed.
type style struct {
	detail   int  // flow_detail
	showHost bool // showhost
	color    bool
	width    int // of the terminal, in characters
	lines    int // content_view_lines_cutoff
}

// printer prints flows onto a page.
type printer struct {
	page
	style
}

func newPrinter(s style) *printer { return &printer{page: page{color: s.color}, style: s} }

// client prints who asked and returns how many characters that took.
func (p *printer) client(f *flow.Flow) int {
	if f.Replay == flow.ReplayRequest {
		p.own(yellow.with(bold), "[replay]")
		return len("[replay]")
	}
	name, from := noAddress, ""
	if f.Client != nil {
		name, from = endpoint(f.Client.Peer), escaped(origin(f.Client))
	}
	p.seen(plain, name)
	if from == "" {
		return utf8.RuneCountInString(name)
	}
	p.own(plain, " ")
	p.own(cyan, from)
	return utf8.RuneCountInString(name) + 1 + utf8.RuneCountInString(from)
}

// exchange prints a request and its responses.
func (p *printer) exchange(f *flow.Flow) {
	h := f.HTTP
	column := p.requestLine(f)
	p.message(&h.Request.Message)
	if p.detail >= 2 {
		for i := range h.Interim {
			p.responseLine(f, &h.Interim[i], column)
			p.header(h.Interim[i].Header)
		}
	}
	if h.Response != nil {
		p.responseLine(f, h.Response, column)
		p.message(&h.Response.Message)
	}
}

// requestLine returns the column at which the method stands.
func (p *printer) requestLine(f *flow.Flow) int {
	r := &f.HTTP.Request
	column := p.client(f) + 2
	p.own(plain, ": ")
	i := magenta
	switch strings.ToUpper(r.Method) {
	case "GET":
		i = green
	case "DELETE":
		i = red
	}
	p.seen(i.with(bold), r.Method)
	p.own(plain, " ")
	url := r.URL()
	if p.showHost {
		url = r.PrettyURL()
	}
	if p.detail == 1 {
		url = cut(url, max(p.width-25, 50))
	}
	p.seen(bold, url)
	answered := "HTTP/1.1"
	if f.HTTP.Response != nil {
		answered = f.HTTP.Response.Version
	}
	if !isHTTP1(r.Version) || r.Version != answered {
		p.own(plain, " ")
		p.seen(plain, r.Version)
	}
	p.newline()
	return column
}

func isHTTP1(version string) bool { return version == "HTTP/1.0" || version == "HTTP/1.1" }

func (p *printer) responseLine(f *flow.Flow, r *flow.Response, column int) {
	var replay, version string
	if f.Replay == flow.ReplayResponse {
		replay = "[replay]"
	}
	if !isHTTP1(r.Version) || r.Version != f.HTTP.Request.Version {
		version = escaped(r.Version) + " "
	}
	p.own(yellow.with(bold), replay)
	if p.detail == 1 { // the status stands below the method
		pad := column - len(" << ") - len(replay) - utf8.RuneCountInString(version)
		p.own(plain, strings.Repeat(" ", max(0, pad)))
	}
	p.own(bold, " << ")
	p.own(plain, version)
	i := statusInk(r.Status)
	code := i.with(bold)
	if r.Status == http.StatusTeapot {
		code = code.with(blink)
	}
	p.own(code, strconv.Itoa(r.Status))
	reason := r.Reason
	if !isHTTP1(r.Version) {
		reason = http.StatusText(r.Status)
	}
	if reason != "" {
		p.own(plain, " ")
		p.seen(i.with(bold), reason)
	}
	p.own(plain, " ")
	p.own(bold, bodySize(r.Body))
	p.newline()
}

func statusInk(code int) ink {
	switch code / 100 {
	case 2:
		return green
	case 3:
		return magenta
	case 4, 5:
		return red
	}
	return plain
}

func bodySize(b flow.Body) string {
	switch {
	case b.State == flow.BodyMissing && b.Size > 0:
		return size(b.Size) + " (content missing)"
	case b.State == flow.BodyMissing:
		return "(content missing)"
	case b.State == flow.BodyTruncated:
		return size(b.Size) + " (" + size(int64(len(b.Data))) + " stored)"
	}
	return size(int64(len(b.Data)))
}

// message prints header, body and trailers as far as the detail goes.
func (p *printer) message(m *flow.Message) {
	if p.detail < 2 {
		return
	}
	p.header(m.Header)
	if p.detail >= 3 {
		p.content(decoded(m))
	}
	if len(m.Trailer) > 0 {
		p.own(plain, indent)
		p.own(magenta, "--- HTTP Trailers")
		p.newline()
		p.header(m.Trailer)
	}
}

func (p *printer) header(h flow.Header) {
	for i := range h {
		p.own(plain, indent)
		p.seen(blue, h[i].Name)
		p.own(plain, ": ")
		p.seen(plain, h[i].Value)
		p.newline()
	}
}

func (p *printer) failure(f *flow.Flow) {
	if f.Error == nil {
		return
	}
	p.own(red.with(bold), " << ")
	p.seen(red.with(bold), f.Error.Message)
	p.newline()
}
