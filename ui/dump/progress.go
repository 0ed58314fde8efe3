package dump

import (
	"net/http"

	"mitm-appliance/flow"
)

// maxProgress bounds the flows that are remembered. What is printed of one that was forgotten and
// changes again is printed twice.
const maxProgress = 1 << 16

// progress remembers what was printed of which flow: states of a flow arrive merged, and each line
// is to be printed once.
type progress struct {
	flows map[flow.ID]*printed
	order []flow.ID // of arrival, a ring once it is full
	next  int       // of the ring
}

// printed is what was printed of one flow.
type printed struct {
	head     bool // request and response, query and answer
	messages int
	end      bool
}

func (g *progress) of(id flow.ID) *printed {
	if done := g.flows[id]; done != nil {
		return done
	}
	if len(g.order) < maxProgress {
		g.order = append(g.order, id)
	} else {
		delete(g.flows, g.order[g.next])
		g.order[g.next] = id
		g.next = (g.next + 1) % maxProgress
	}
	done := &printed{}
	g.flows[id] = done
	return done
}

// print prints what is new in a flow. Intercepted flows are not: what they say may still change.
func (g *progress) print(p *printer, f *flow.Flow) {
	if f.Intercepted {
		return
	}
	done := g.of(f.ID)
	switch {
	case f.HTTP != nil:
		done.http(p, f)
	case f.Stream != nil:
		p.messages(f, done.messages)
		done.messages = max(done.messages, len(f.Stream.Messages))
		if !f.Live && !done.end {
			done.end = true
			p.streamEnd(f)
		}
	case f.DNS != nil:
		if !done.head && (f.DNS.Response != nil || f.Error != nil || !f.Live) {
			done.head = true
			p.lookup(f)
		}
	}
}

func (done *printed) http(p *printer, f *flow.Flow) {
	h := f.HTTP
	answered := h.Response != nil && !h.Response.End.IsZero()
	if !done.head && (answered || f.Error != nil || !f.Live) {
		done.head = true
		if !isTunnel(f) {
			p.exchange(f)
		}
	}
	if !done.head {
		return
	}
	if h.WebSocket == nil {
		if f.Error != nil && !done.end {
			done.end = true
			p.failure(f)
		}
		return
	}
	p.webSocketMessages(f, done.messages)
	done.messages = max(done.messages, len(h.WebSocket.Messages))
	if !f.Live && !done.end {
		done.end = true
		p.webSocketEnd(f)
	}
}

// isTunnel is true for CONNECT requests that did what they should: what passes inside has flows of
// its own.
func isTunnel(f *flow.Flow) bool {
	if f.HTTP.Request.Method != http.MethodConnect || f.Error != nil {
		return false
	}
	r := f.HTTP.Response
	return r == nil || r.Status/100 == 2
}
