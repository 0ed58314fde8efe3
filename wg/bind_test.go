package wg

import (
	"testing"

	"golang.zx2c4.com/wireguard/device"
)

func TestOnlyDataIsCounted(t *testing.T) {
	message := func(kind byte, size int) []byte { b := make([]byte, size); b[0] = kind; return b }
	bufs := [][]byte{
		message(device.MessageTransportType, 100),
		message(device.MessageTransportType, device.MessageKeepaliveSize),
		message(device.MessageInitiationType, device.MessageInitiationSize),
		message(device.MessageTransportType, 33),
	}
	var sizes []int
	for _, b := range bufs {
		sizes = append(sizes, len(b))
	}
	if got := countData(bufs, sizes); got != 2 {
		t.Errorf("%d messages count as data, want 2", got)
	}
}
