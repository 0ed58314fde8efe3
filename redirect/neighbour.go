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
)

// How long a reading of the kernel's table is used for what it holds, and for
// what it does not: the first flow of a new device should find it.
const (
	neighbourAge = 2 * time.Second
	strangerAge  = 100 * time.Millisecond
)

// Neighbours tells the hardware address behind a LAN client's IP address: the
// identity of a device. It reads the kernel's neighbour table (ARP and NDP) at
// most ten times a second. Safe for concurrent use.
type Neighbours struct {
	namespace namespace

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
	return &Neighbours{namespace: here}, nil
}

// Lookup returns the hardware address of a directly connected client, or nil
// when the kernel knows none: the client is behind another router, or on a link
// without such addresses. The caller must not change the result.
func (n *Neighbours) Lookup(ip netip.Addr) (net.HardwareAddr, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	ip = ip.Unmap().WithZone("")
	limit := neighbourAge
	if n.known[ip] == nil {
		limit = strangerAge
	}
	if time.Since(n.read) > limit {
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
