//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/link/channel"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
)

const naiveDevice = "naive0"

// naiveWorker is what one gets by putting gVisor's channel endpoint behind a TUN device: packets of
// the MTU's size, one system call for each, checksums in software, and the device's own queue length. The
// stack itself is tuned as the product's.
func naiveWorker([]string) error {
	tun, err := openPlainTUN(naiveDevice)
	if err != nil {
		return err
	}
	link := channel.New(1024, 1500, "")
	s, err := naiveStack(link)
	if err != nil {
		return err
	}
	forwarder := tcp.NewForwarder(s, 0, 4096, func(r *tcp.ForwarderRequest) { go naiveRelay(r) })
	s.SetTransportProtocolHandler(tcp.ProtocolNumber, forwarder.HandlePacket)
	go func() {
		buf := make([]byte, 65536)
		for {
			n, err := tun.Read(buf)
			if err != nil {
				return
			}
			pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(buf[:n])})
			link.InjectInbound(header.IPv4ProtocolNumber, pkt)
			pkt.DecRef()
		}
	}()
	go func() {
		for {
			pkt := link.ReadContext(context.Background())
			if pkt == nil {
				return
			}
			view := pkt.ToView()
			_, _ = tun.Write(view.AsSlice()) // lost, as on any network
			view.Release()
			pkt.DecRef()
		}
	}()
	return serveUntilStopped()
}

func openPlainTUN(name string) (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	request, err := unix.NewIfreq(name)
	if err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, request); err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), "/dev/net/tun"), nil //nolint:gosec // a descriptor
}

func naiveStack(link stack.LinkEndpoint) (*stack.Stack, error) {
	s := stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol},
	})
	sack, recovery := tcpip.TCPSACKEnabled(true), tcpip.TCPRecovery(0)
	reno, moderate := tcpip.CongestionControlOption("reno"), tcpip.TCPModerateReceiveBufferOption(true)
	receive := tcpip.TCPReceiveBufferSizeRangeOption{Min: tcp.MinBufferSize, Default: 1 << 20, Max: 8 << 20}
	send := tcpip.TCPSendBufferSizeRangeOption{Min: tcp.MinBufferSize, Default: 1 << 20, Max: 6 << 20}
	for _, o := range []tcpip.SettableTransportProtocolOption{&sack, &recovery, &reno, &moderate, &receive, &send} {
		if err := s.SetTransportProtocolOption(tcp.ProtocolNumber, o); err != nil {
			return nil, fmt.Errorf("%T: %v", o, err)
		}
	}
	s.SetRouteTable([]tcpip.Route{{Destination: header.IPv4EmptySubnet, NIC: 1}})
	for what, err := range map[string]tcpip.Error{
		"1 nic": s.CreateNIC(1, link), "2 promiscuous": s.SetPromiscuousMode(1, true), "3 spoofing": s.SetSpoofing(1, true),
	} {
		if err != nil {
			return nil, fmt.Errorf("%s: %v", what, err)
		}
	}
	return s, nil
}

func naiveRelay(r *tcp.ForwarderRequest) {
	id := r.ID()
	to := net.JoinHostPort(id.LocalAddress.String(), fmt.Sprint(id.LocalPort))
	upstream, err := net.DialTimeout("tcp4", to, dialTimeout)
	if err != nil {
		r.Complete(true)
		return
	}
	defer upstream.Close()
	var queue waiter.Queue
	ep, tcpErr := r.CreateEndpoint(&queue)
	if tcpErr != nil {
		r.Complete(true)
		return
	}
	r.Complete(false)
	client := gonet.NewTCPConn(&queue, ep)
	defer client.Close()
	var both sync.WaitGroup
	both.Go(func() {
		_, err := io.CopyBuffer(struct{ io.Writer }{upstream}, struct{ io.Reader }{client}, make([]byte, 64<<10))
		finish(upstream.(*net.TCPConn), err, client)
	})
	_, err = io.CopyBuffer(struct{ io.Writer }{client}, struct{ io.Reader }{upstream}, make([]byte, 64<<10))
	if err != nil {
		_ = client.SetDeadline(time.Unix(1, 0)) // ends the other direction
	} else {
		_ = client.CloseWrite() // fails only when it is closed already
	}
	both.Wait()
}

func finish(upstream *net.TCPConn, err error, client *gonet.TCPConn) {
	if err == nil {
		_ = upstream.CloseWrite() // fails only when it is closed already
		return
	}
	_, _ = upstream.SetLinger(0), upstream.Close()
	_ = client.SetDeadline(time.Unix(1, 0)) // ends the other direction
}
