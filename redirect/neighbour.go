//go:build linux

package redirect

import (
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"
)

// neighbourAge is how long a reading of the kernel's table is used for what it
// holds. For an address it does not hold the table is read at once: the first
// flow of a new device should find it, also when it comes right after another's.
// strangers bounds how often that happens, for packets with invented sources.
const (
	neighbourAge    = 2 * time.Second
	strangers       = rate.Limit(10)
	strangersAtOnce = 20
)

// Neighbours tells the hardware address behind a LAN client's IP address: the
// identity of a device. It reads the kernel's neighbour table (ARP and NDP) ten
// times a second in the long run. Safe for concurrent use.
type Neighbours struct {
	namespace namespace
	strangers *rate.Limiter

	mu    sync.Mutex
	read  time.Time
	known map[netip.Addr]net.HardwareAddr // as large as the kernel's table, which has its own limit
}

// NewNeighbours returns a reader for the calling thread's network namespace.
func NewNeighbours() (*Neighbours, error) {
	here, err := currentNamespace()
	if err != nil {
		return nil, err
	}
	return &Neighbours{namespace: here, strangers: rate.NewLimiter(strangers, strangersAtOnce)}, nil
}

// Lookup returns the hardware address of a directly connected client, or nil
// when the kernel knows none: the client is behind another router, or on a link
// without such addresses. The caller must not change the result.
func (n *Neighbours) Lookup(ip netip.Addr) (net.HardwareAddr, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	ip = ip.Unmap().WithZone("")
	if time.Since(n.read) > neighbourAge || n.known[ip] == nil && n.strangers.Allow() {
		if err := n.namespace.do(n.refresh); err != nil {
			return nil, err
		}
	}
	return n.known[ip], nil
}

func (n *Neighbours) refresh() error {
	known := map[netip.Addr]net.HardwareAddr{}
	for _, family := range families() {
		list, err := dump(func() ([]netlink.Neigh, error) { return netlink.NeighList(0, family) })
		if err != nil {
			return fmt.Errorf("redirect: read the neighbour table: %w", err)
		}
		for _, entry := range list {
			ip, ok := netip.AddrFromSlice(entry.IP)
			if ok && len(entry.HardwareAddr) > 0 && entry.State&(unix.NUD_FAILED|unix.NUD_INCOMPLETE|unix.NUD_NOARP) == 0 {
				known[ip.Unmap()] = entry.HardwareAddr
			}
		}
	}
	n.known, n.read = known, time.Now()
	return nil
}
