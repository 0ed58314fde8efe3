//go:build linux

package redirect

import (
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"
)

// Default firewall marks (skb->mark). The mask is two bits wide on purpose:
// tailscale uses 0x40000 and 0x80000, Kubernetes 0x4000 and 0x8000, docker's
// swarm the lowest bits; none of them is touched.
const (
	DefaultMask        = 0x00030000
	DefaultCaptureMark = 0x00010000 // this packet belongs into the TUN
	DefaultOwnMark     = 0x00020000 // this packet is the appliance's own: never capture it
)

// Marks says which bits of the packet mark belong to the appliance and what
// they mean. Bits outside of Mask are neither read nor changed. The zero value
// means the defaults.
type Marks struct {
	Mask    uint32
	Capture uint32
	Own     uint32
}

func (m Marks) withDefaults() Marks {
	if m == (Marks{}) {
		return Marks{Mask: DefaultMask, Capture: DefaultCaptureMark, Own: DefaultOwnMark}
	}
	return m
}

func (m Marks) check() error {
	switch {
	case m.Capture == 0 || m.Own == 0 || m.Capture == m.Own:
		return fmt.Errorf("redirect: marks %#x (capture) and %#x (own) must differ and not be zero", m.Capture, m.Own)
	case m.Capture&^m.Mask != 0 || m.Own&^m.Mask != 0:
		return fmt.Errorf("redirect: marks %#x and %#x must lie inside the mask %#x", m.Capture, m.Own, m.Mask)
	}
	return nil
}

// Control sets the own mark on a new socket: give it to net.Dialer and
// net.ListenConfig of every upstream connection, so that it is never captured.
// It needs CAP_NET_ADMIN (or, since Linux 5.17, CAP_NET_RAW).
func (m Marks) Control(_, _ string, conn syscall.RawConn) error {
	own := m.withDefaults().Own
	var err error
	if ctlErr := conn.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, int(own))
	}); ctlErr != nil {
		return ctlErr
	}
	if err != nil {
		return fmt.Errorf("redirect: mark an upstream socket (needs CAP_NET_ADMIN): %w", err)
	}
	return nil
}
