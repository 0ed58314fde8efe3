package appliance

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"mitm-appliance/redirect"
)

// ownAddresses knows where this process listens, so that no proxied connection is led back to it: not
// to its modes, which would loop, and not to its control plane, which the data plane must never
// reach. It also marks our own sockets while traffic of this host is steered.
type ownAddresses struct {
	marking atomic.Int32 // number of modes that steer by marks

	mu    sync.Mutex
	ports map[string]int // "tcp:8080" -> number of listeners
	local map[netip.Addr]struct{}
	asked time.Time
}

func newOwnAddresses() *ownAddresses { return &ownAddresses{ports: map[string]int{}} }

// ErrOwnAddress says that a connection would have gone to the appliance itself.
var ErrOwnAddress = errors.New("this destination is the appliance itself")

// add notes listeners and returns what forgets them.
func (o *ownAddresses) add(network string, addrs ...string) (remove func()) {
	var keys []string
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, a := range addrs {
		if ap, err := netip.ParseAddrPort(a); err == nil {
			key := fmt.Sprintf("%s:%d", network, ap.Port())
			o.ports[key]++
			keys = append(keys, key)
		}
	}
	return func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		for _, key := range keys {
			if o.ports[key]--; o.ports[key] == 0 {
				delete(o.ports, key)
			}
		}
	}
}

// Control is for every socket to a server, after the name was resolved: proxycore.Config.Control.
func (o *ownAddresses) Control(network, address string, c syscall.RawConn) error {
	ap, err := netip.ParseAddrPort(address)
	if err == nil && o.isOwn(network, ap) {
		return ErrOwnAddress
	}
	if o.marking.Load() == 0 {
		return nil
	}
	return redirect.Marks{}.Control(network, address, c)
}

func (o *ownAddresses) isOwn(network string, ap netip.AddrPort) bool {
	transport := strings.TrimRight(network, "46")
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.ports[fmt.Sprintf("%s:%d", transport, ap.Port())] == 0 {
		return false
	}
	addr := ap.Addr().Unmap().WithZone("")
	if addr.IsLoopback() || addr.IsUnspecified() {
		return true
	}
	const fresh = 5 * time.Second
	if now := time.Now(); o.local == nil || now.Sub(o.asked) > fresh {
		o.local, o.asked = localAddresses(), now
	}
	_, own := o.local[addr]
	return own
}

func localAddresses() map[netip.Addr]struct{} {
	set := map[netip.Addr]struct{}{}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return set // loopback is checked without it
	}
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			set[p.Addr().Unmap()] = struct{}{}
		}
	}
	return set
}
