//go:build linux

package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
)

// Ports of the server in the internet.
const (
	sinkPort    = 5001 // swallows, then answers with the number of bytes
	sourcePort  = 5002 // sends for as long as the client listens, once it has heard the greeting
	echoPort    = 5003 // TCP
	udpEchoPort = 5010 // and the ones after it, one for each flow
	udpFlows    = 4
)

// greeting is what every client says first: no protocol that a proxy could know.
func greeting() []byte { return []byte{11, 250, 0, 11, 250, 0, 11, 250} }

func serverWorker([]string) error {
	var err error
	for port, talk := range map[int]func(net.Conn){sinkPort: sink, sourcePort: source, echoPort: echo} {
		err = errors.Join(err, serveTCP(fmt.Sprintf("0.0.0.0:%d", port), talk))
	}
	for i := range udpFlows {
		err = errors.Join(err, serveUDP(netip.AddrPortFrom(netip.IPv4Unspecified(), uint16(udpEchoPort+i)))) //nolint:gosec // small
	}
	if err != nil {
		return err
	}
	return serveUntilStopped()
}

// serveUntilStopped tells the parent that this worker is ready; signals end it.
func serveUntilStopped() error {
	fmt.Println("ready")
	select {}
}

func serveTCP(address string, talk func(net.Conn)) error {
	l, err := net.Listen("tcp4", address)
	if err != nil {
		return err
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				talk(c)
			}()
		}
	}()
	return nil
}

const bulkBuffer = 256 << 10

func sink(c net.Conn) {
	var total uint64
	buf := make([]byte, bulkBuffer)
	for {
		n, err := c.Read(buf)
		total += uint64(n) //nolint:gosec // never negative
		if err == io.EOF {
			break
		}
		if err != nil {
			return
		}
	}
	_, _ = c.Write(binary.BigEndian.AppendUint64(nil, total)) // the client sees that it is missing
}

func source(c net.Conn) {
	if _, err := io.ReadFull(c, greeting()); err != nil {
		return
	}
	buf := payload(bulkBuffer)
	for {
		if _, err := c.Write(buf); err != nil {
			return
		}
	}
}

func payload(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i * 7)
	}
	copy(b, greeting())
	return b
}

func echo(c net.Conn) {
	buf := make([]byte, 4096)
	for {
		n, err := c.Read(buf)
		if err != nil {
			return
		}
		if _, err := c.Write(buf[:n]); err != nil {
			return
		}
	}
}

func serveUDP(address netip.AddrPort) error {
	c, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(address))
	if err != nil {
		return err
	}
	_ = c.SetReadBuffer(4 << 20) // as large as the system lets it be
	go func() {
		buf := make([]byte, 2048)
		for {
			n, from, err := c.ReadFromUDPAddrPort(buf)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				_, _ = c.WriteToUDPAddrPort(buf[:n], from) // lost when it cannot be sent, as on any network
			}
		}
	}()
	return nil
}
