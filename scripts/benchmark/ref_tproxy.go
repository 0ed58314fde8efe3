//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

const tproxyPort = 15001

// tproxyRules steer everything that the client sends elsewhere into the sockets of tproxyWorker.
const tproxyRules = `table ip bench_tproxy {
	chain pre {
		type filter hook prerouting priority mangle; policy accept;
		iifname "lan0" ip daddr != 192.168.50.1 meta l4proto { tcp, udp } tproxy to :15001 meta mark set 1 accept
	}
}`

// tproxyWorker is the kernel's way to be a transparent proxy: TPROXY sockets, and splice(2) between
// two TCP connections, which is what io.Copy does with them.
func tproxyWorker([]string) error {
	lc := net.ListenConfig{Control: transparent}
	address := fmt.Sprintf("0.0.0.0:%d", tproxyPort)
	l, err := lc.Listen(context.Background(), "tcp4", address)
	if err != nil {
		return err
	}
	p, err := lc.ListenPacket(context.Background(), "udp4", address)
	if err != nil {
		return err
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go relayTCP(c.(*net.TCPConn), c.LocalAddr().String())
		}
	}()
	go serveTransparentUDP(p.(*net.UDPConn))
	return serveUntilStopped()
}

func transparent(network, _ string, c syscall.RawConn) (err error) {
	controlErr := c.Control(func(fd uintptr) {
		err = errors.Join(
			unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_TRANSPARENT, 1),
			unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1))
		if network == "udp4" {
			err = errors.Join(err,
				unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_RECVORIGDSTADDR, 1),
				unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, 4<<20))
		}
	})
	return errors.Join(controlErr, err)
}

// relayTCP connects a client with where it wanted to go. Resets pass, so that nothing stays in
// TIME-WAIT.
func relayTCP(client *net.TCPConn, to string) {
	defer client.Close()
	c, err := net.DialTimeout("tcp4", to, dialTimeout)
	if err != nil {
		_ = client.SetLinger(0)
		return
	}
	upstream := c.(*net.TCPConn)
	defer upstream.Close()
	var both sync.WaitGroup
	pass := func(dst, src *net.TCPConn) {
		if _, err := io.Copy(dst, src); err != nil {
			_, _ = dst.SetLinger(0), dst.Close()
			_, _ = src.SetLinger(0), src.Close()
			return
		}
		_ = dst.CloseWrite() // fails only when it is closed already
	}
	both.Go(func() { pass(upstream, client) })
	pass(client, upstream)
	both.Wait()
}

type addresses struct{ client, server netip.AddrPort }

// serveTransparentUDP makes a socket for each new pair of addresses, which then gets their datagrams.
func serveTransparentUDP(l *net.UDPConn) {
	flows := map[addresses]*net.UDPConn{}
	buf, oob := make([]byte, 65536), make([]byte, 256)
	for {
		n, m, _, from, err := l.ReadMsgUDPAddrPort(buf, oob)
		if err != nil {
			return
		}
		to, err := originalDestination(oob[:m])
		if err != nil {
			continue
		}
		key := addresses{from, to}
		upstream := flows[key]
		if upstream == nil {
			if upstream, err = relayUDP(from, to); err != nil {
				continue
			}
			flows[key] = upstream
		}
		_, _ = upstream.Write(buf[:n]) // lost, as on any network
	}
}

func relayUDP(from, to netip.AddrPort) (*net.UDPConn, error) {
	d := net.Dialer{LocalAddr: net.UDPAddrFromAddrPort(to), Control: transparent}
	c, err := d.Dial("udp4", from.String())
	if err != nil {
		return nil, err
	}
	s, err := net.Dial("udp4", to.String())
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	client, upstream := c.(*net.UDPConn), s.(*net.UDPConn)
	pass := func(dst, src *net.UDPConn) {
		buf := make([]byte, 65536)
		for {
			n, err := src.Read(buf)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				_, _ = dst.Write(buf[:n]) // lost, as on any network
			}
		}
	}
	go pass(upstream, client) // both end with the process
	go pass(client, upstream)
	return upstream, nil
}

// originalDestination finds IP_RECVORIGDSTADDR in control messages.
func originalDestination(oob []byte) (netip.AddrPort, error) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return netip.AddrPort{}, err
	}
	for _, m := range messages {
		if m.Header.Level == unix.SOL_IP && m.Header.Type == unix.IP_ORIGDSTADDR && len(m.Data) >= unix.SizeofSockaddrInet4 {
			sa := (*unix.RawSockaddrInet4)(unsafe.Pointer(&m.Data[0])) //nolint:gosec // its length is checked
			port := (*[2]byte)(unsafe.Pointer(&sa.Port))               //nolint:gosec // big endian
			return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(port[0])<<8|uint16(port[1])), nil
		}
	}
	return netip.AddrPort{}, errors.New("no original destination")
}
