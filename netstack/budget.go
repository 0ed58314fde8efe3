package netstack

import (
	"net/netip"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// warnInterval is the least time between two log lines about limits: a flood
// of packets must not become one of lines.
const warnInterval = 10 * time.Second

// overLimit counts a packet that a limit has cost, and says so from time to
// time.
func (s *Stack) overLimit(count *atomic.Uint64, limit string, id stack.TransportEndpointID) {
	dropped := count.Add(1)
	now, last := time.Now().UnixNano(), s.warned.Load()
	if now-last < int64(warnInterval) || !s.warned.CompareAndSwap(last, now) {
		return
	}
	s.cfg.Logger.Warn("packet dropped, limit reached", "limit", limit, "dropped", dropped,
		"client", addrPort(id.RemoteAddress, id.RemotePort), "destination", addrPort(id.LocalAddress, id.LocalPort))
}

// budget counts holders of a bounded resource, in total and per client. It has
// no lock of its own: Stack.mu guards it.
type budget struct {
	max, maxPerClient int
	total             int
	perClient         map[netip.Addr]int
}

func newBudget(limit, perClient int) budget {
	return budget{max: limit, maxPerClient: perClient, perClient: make(map[netip.Addr]int)}
}

// verdict says which bound, if any, a holder would exceed.
type verdict int

const (
	within verdict = iota
	aboveTotal
	aboveClient
	aboveLive // of connections, which have a bound of their own
	again     // it is a holder already
)

// take adds a holder if both bounds allow it.
func (b *budget) take(client netip.Addr) verdict {
	if b.total >= b.max {
		return aboveTotal
	}
	if b.perClient[client] >= b.maxPerClient {
		return aboveClient
	}
	b.total++
	b.perClient[client]++
	return within
}

// give removes a holder that take added.
func (b *budget) give(client netip.Addr) {
	b.total--
	if b.perClient[client]--; b.perClient[client] == 0 {
		delete(b.perClient, client)
	}
}
