package wg

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
)

// socketBuffer is what wireguard-go asks for, too; the kernel may grant less.
const socketBuffer = 7 << 20

// hostBind is one plain UDP socket on one local address. wireguard-go's own bind
// always listens on all addresses, and with receive offload it does not even
// tell which one a packet was sent to.
type hostBind struct {
	host netip.Addr

	mu     sync.Mutex
	socket *net.UDPConn // nil: closed
}

var _ conn.Bind = (*hostBind)(nil)

// Open listens. Port 0 means any.
func (b *hostBind) Open(port uint16) ([]conn.ReceiveFunc, uint16, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.socket != nil {
		return nil, 0, conn.ErrBindAlreadyOpen
	}
	packets, err := new(net.ListenConfig).ListenPacket(context.Background(), "udp", netip.AddrPortFrom(b.host, port).String())
	if err != nil {
		return nil, 0, err
	}
	socket, ok := packets.(*net.UDPConn)
	if !ok {
		return nil, 0, errors.Join(fmt.Errorf("socket is a %T, not UDP", packets), packets.Close())
	}
	// Smaller buffers only cost throughput.
	_ = socket.SetReadBuffer(socketBuffer)
	_ = socket.SetWriteBuffer(socketBuffer)
	b.socket = socket
	receive := func(bufs [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
		n, from, err := socket.ReadFromUDPAddrPort(bufs[0])
		if err != nil {
			return 0, err
		}
		sizes[0], eps[0] = n, &conn.StdNetEndpoint{AddrPort: from}
		return 1, nil
	}
	local := socket.LocalAddr().(*net.UDPAddr) //nolint:forcetypeassert // documented
	return []conn.ReceiveFunc{receive}, uint16(local.Port), nil
}

// Close ends the receive function with net.ErrClosed.
func (b *hostBind) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.socket == nil {
		return nil
	}
	err := b.socket.Close()
	b.socket = nil
	return err
}

// Send sends each buffer as one datagram.
func (b *hostBind) Send(bufs [][]byte, ep conn.Endpoint) error {
	b.mu.Lock()
	socket := b.socket
	b.mu.Unlock()
	if socket == nil {
		return net.ErrClosed
	}
	to, ok := ep.(*conn.StdNetEndpoint)
	if !ok {
		return conn.ErrWrongEndpointType
	}
	for _, buf := range bufs {
		if _, err := socket.WriteToUDPAddrPort(buf, to.AddrPort); err != nil {
			return err
		}
	}
	return nil
}

// SetMark sets SO_MARK.
func (b *hostBind) SetMark(mark uint32) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.socket == nil {
		return nil
	}
	raw, err := b.socket.SyscallConn()
	if err != nil {
		return err
	}
	var serr error
	err = raw.Control(func(fd uintptr) {
		serr = unix.SetsockoptInt(int(fd), syscall.SOL_SOCKET, unix.SO_MARK, int(mark))
	})
	return errors.Join(err, serr)
}

// ParseEndpoint reads IP:PORT.
func (b *hostBind) ParseEndpoint(text string) (conn.Endpoint, error) {
	addr, err := netip.ParseAddrPort(text)
	if err != nil {
		return nil, err
	}
	return &conn.StdNetEndpoint{AddrPort: addr}, nil
}

// BatchSize is 1: plain sockets take one datagram at a time.
func (b *hostBind) BatchSize() int { return 1 }
