package appliance

import (
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// kernelActive is when the kernel last received or sent data on a TCP socket.
func kernelActive(c net.Conn) time.Time {
	t, ok := c.(*net.TCPConn)
	if !ok {
		return time.Time{}
	}
	raw, err := t.SyscallConn()
	if err != nil {
		return time.Time{}
	}
	var last time.Time
	_ = raw.Control(func(fd uintptr) { // a closed socket leaves the zero time
		info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		if err == nil {
			last = time.Now().Add(-time.Duration(min(info.Last_data_recv, info.Last_data_sent)) * time.Millisecond)
		}
	})
	return last
}
