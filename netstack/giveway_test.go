package netstack

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// Clients that are never answered fill the budget; a good one gets in all the same, and the handler of
// the oldest learns that it may stop.
func TestTheOldestGivesWay(t *testing.T) {
	const budget = 20
	given := make(chan error, budget+1)
	w := newWorld(t, Config{MaxHalfOpen: budget, MaxHalfOpenPerClient: budget, GiveWayAfter: time.Millisecond}, handlerFuncs{tcp: func(r *TCPRequest) {
		if r.Source().Addr() == client4 {
			if c, err := r.Accept(); err == nil {
				c.Close()
			}
			return
		}
		<-r.Context().Done()
		given <- context.Cause(r.Context())
	}})
	for n := range budget {
		w.inject(segment(netip.AddrPortFrom(client(n*50000).Addr(), 1000), server4, header.TCPFlagSyn, 1, 0))
	}
	eventually(t, "the budget to be used up", func() bool { return w.stack.Stats().TCP.HalfOpen == budget })
	time.Sleep(2 * time.Millisecond) // what is measured: their age
	w.dial(server4).Close()
	if err := <-given; !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the oldest ended with %v", err)
	}
	if st := w.stack.Stats().TCP; st.Expired == 0 || st.HalfOpen > budget {
		t.Errorf("counted %+v", st)
	}
}
