//go:build linux

package capture

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Numbers of linux/sock_diag.h and linux/inet_diag.h.
const (
	sockDiagByFamily = 20
	sockDestroy      = 21

	inetDiagMark = 15

	diagRequestSize = 56 // struct inet_diag_req_v2
	diagMessageSize = 72 // struct inet_diag_msg
)

// States of TCP sockets (net/tcp_states.h), as bits of a mask.
const (
	tcpEstablished = 1 << 1
	tcpSynSent     = 1 << 2
	tcpListen      = 1 << 10
	anyState       = 0xffffffff
)

var errNoSocket = errors.New("no such socket")

// diagSocket is a socket as sock_diag(7) describes it.
type diagSocket struct {
	protocol uint8
	src, dst netip.AddrPort // IPv4-mapped addresses are unmapped
	cookie   uint64
	uid      uint32
	inode    uint32
	mark     uint32   // 0 unless we have CAP_NET_ADMIN
	id       [48]byte // struct inet_diag_sockid, to name it again
	family   uint8
}

// diag asks the kernel about sockets of the network namespace it was opened
// in. Its methods may be called from any goroutine.
type diag struct{ conn *netlink.Conn }

func openDiag() (*diag, error) {
	conn, err := netlink.Dial(unix.NETLINK_SOCK_DIAG, nil)
	if err != nil {
		return nil, fmt.Errorf("capture: open sock_diag: %w", err)
	}
	return &diag{conn}, nil
}

func (d *diag) close() error { return d.conn.Close() }

func diagRequest(family, protocol uint8, states uint32) []byte {
	b := make([]byte, diagRequestSize)
	b[0], b[1] = family, protocol
	binary.NativeEndian.PutUint32(b[4:], states)
	binary.NativeEndian.PutUint64(b[48:], ^uint64(0)) // no cookie
	return b
}

// get finds the socket of one flow. A socket of IPv6 that talks IPv4 is found too.
func (d *diag) get(protocol uint8, src, dst netip.AddrPort) (diagSocket, error) {
	family := uint8(unix.AF_INET)
	if src.Addr().Is6() {
		family = unix.AF_INET6
	}
	b := diagRequest(family, protocol, anyState)
	from, to := src, dst
	if protocol == unix.IPPROTO_UDP {
		from, to = dst, src // the kernel looks UDP up as if a packet had come in
	}
	binary.BigEndian.PutUint16(b[8:], from.Port())
	binary.BigEndian.PutUint16(b[10:], to.Port())
	copy(b[12:28], from.Addr().AsSlice())
	copy(b[28:44], to.Addr().AsSlice())
	messages, err := d.conn.Execute(netlink.Message{
		Header: netlink.Header{Type: sockDiagByFamily, Flags: netlink.Request},
		Data:   b,
	})
	if errors.Is(err, unix.ENOENT) {
		return diagSocket{}, errNoSocket
	}
	if err != nil {
		return diagSocket{}, fmt.Errorf("capture: sock_diag: %w", err)
	}
	for _, m := range messages {
		if s, ok := parseDiag(protocol, m.Data); ok {
			return s, nil
		}
	}
	return diagSocket{}, errNoSocket
}

// list is all sockets of a protocol, both families.
func (d *diag) list(protocol uint8, states uint32) ([]diagSocket, error) {
	var all []diagSocket
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		messages, err := d.conn.Execute(netlink.Message{
			Header: netlink.Header{Type: sockDiagByFamily, Flags: netlink.Request | netlink.Dump},
			Data:   diagRequest(family, protocol, states),
		})
		if err != nil {
			return nil, fmt.Errorf("capture: list sockets: %w", err)
		}
		for _, m := range messages {
			if s, ok := parseDiag(protocol, m.Data); ok {
				all = append(all, s)
			}
		}
	}
	return all, nil
}

// destroy ends a TCP connection as if its peer had reset it.
func (d *diag) destroy(s diagSocket) error {
	b := diagRequest(s.family, s.protocol, anyState)
	copy(b[8:], s.id[:])
	_, err := d.conn.Execute(netlink.Message{
		Header: netlink.Header{Type: sockDestroy, Flags: netlink.Request | netlink.Acknowledge},
		Data:   b,
	})
	return err
}

// parseDiag reads a struct inet_diag_msg.
func parseDiag(protocol uint8, b []byte) (diagSocket, bool) {
	if len(b) < diagMessageSize {
		return diagSocket{}, false
	}
	s := diagSocket{protocol: protocol, family: b[0]}
	copy(s.id[:], b[4:52])
	addr := func(at int) netip.Addr {
		if s.family == unix.AF_INET {
			return netip.AddrFrom4([4]byte(b[at : at+4]))
		}
		return netip.AddrFrom16([16]byte(b[at : at+16])).Unmap()
	}
	s.src = netip.AddrPortFrom(addr(8), binary.BigEndian.Uint16(b[4:]))
	s.dst = netip.AddrPortFrom(addr(24), binary.BigEndian.Uint16(b[6:]))
	s.cookie = uint64(binary.NativeEndian.Uint32(b[44:])) | uint64(binary.NativeEndian.Uint32(b[48:]))<<32
	s.uid = binary.NativeEndian.Uint32(b[64:])
	s.inode = binary.NativeEndian.Uint32(b[68:])
	if attrs, err := netlink.UnmarshalAttributes(b[diagMessageSize:]); err == nil {
		for _, attr := range attrs {
			if attr.Type == inetDiagMark && len(attr.Data) >= 4 {
				s.mark = binary.NativeEndian.Uint32(attr.Data)
			}
		}
	}
	return s, true
}
