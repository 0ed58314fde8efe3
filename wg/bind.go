package wg

import (
	"encoding/binary"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
)

// pacedBind is the network end of both pacers; the link is the other one.
type pacedBind struct {
	conn.Bind
	link *link
}

func (b pacedBind) Send(bufs [][]byte, ep conn.Endpoint) error {
	err := b.Bind.Send(bufs, ep)
	b.link.outward.leave(len(bufs))
	return err
}

func (b pacedBind) Open(port uint16) ([]conn.ReceiveFunc, uint16, error) {
	receive, port, err := b.Bind.Open(port)
	for i, fn := range receive {
		receive[i] = func(bufs [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
			b.link.inward.wait(b.link.done)
			n, err := fn(bufs, sizes, eps)
			b.link.inward.enter(countData(bufs[:n], sizes))
			return n, err
		}
	}
	return receive, port, err
}

// countData counts the messages that carry an inner packet.
func countData(bufs [][]byte, sizes []int) (count int) {
	for i, b := range bufs {
		if sizes[i] > device.MessageKeepaliveSize && binary.LittleEndian.Uint32(b) == device.MessageTransportType {
			count++
		}
	}
	return count
}
