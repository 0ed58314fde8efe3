//go:build linux

package capture

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// Process finds the process that opened a captured flow: network is "tcp" or
// "udp", src and dst are the addresses of the flow's first packet as they
// appear on the TUN device. It works while the application still waits for its
// connection, and also when it has ended since (Exe may then be empty). False
// means unknown.
//
// It may be called from any goroutine. It takes microseconds when the kernel
// noted the flow, but may search all of /proc when it did not: so call it from
// the flow's goroutine and not from the packet goroutine.
func (c *Capture) Process(network string, src, dst netip.AddrPort) (Process, bool) {
	protocol := uint8(unix.IPPROTO_TCP)
	switch network {
	case "tcp", "tcp4", "tcp6":
	case "udp", "udp4", "udp6":
		protocol = unix.IPPROTO_UDP
	default:
		return Process{}, false
	}
	if !src.Addr().IsValid() || !dst.Addr().IsValid() {
		return Process{}, false
	}
	c.life.RLock()
	defer c.life.RUnlock()
	if c.closed {
		return Process{}, false
	}
	src = netip.AddrPortFrom(src.Addr().Unmap(), src.Port())
	dst = netip.AddrPortFrom(dst.Addr().Unmap(), dst.Port())
	if p, ok := c.noted(protocol, src, dst); ok {
		return p, true
	}
	return c.searched(protocol, src, dst)
}

// noted uses what the eBPF programs wrote down about the flow.
func (c *Capture) noted(protocol uint8, src, dst netip.AddrPort) (Process, bool) {
	if c.kernel == nil {
		return Process{}, false
	}
	var cookie uint64
	if c.kernel.flows.Lookup(newFlowKey(protocol, src, dst), &cookie) != nil {
		return Process{}, false
	}
	return c.ownerOf(cookie)
}

// ownerOf describes who used a socket last, from the record and from /proc.
func (c *Capture) ownerOf(cookie uint64) (Process, bool) {
	var raw [ownerSize]byte
	if c.kernel == nil || c.kernel.owners.Lookup(cookie, &raw) != nil {
		return Process{}, false
	}
	comm, _, _ := bytes.Cut(raw[ownerComm:ownerStub], []byte{0})
	p := Process{
		PID:  int(binary.NativeEndian.Uint32(raw[ownerPID:])),
		Name: string(comm),
		UID:  binary.NativeEndian.Uint32(raw[ownerUID:]),
	}
	p.User = c.users.name(p.UID)
	// A process that has ended may have left its number to another, or have
	// become another program: then /proc says nothing about our flow.
	if now, err := readComm(p.PID); err == nil && (now == p.Name || c.status.ThreadNames) {
		p.Exe = readExe(p.PID)
		p.Name = fullName(now, p.Exe)
		p.Cgroup = readCgroup(p.PID)
	}
	if p.Cgroup == "" {
		p.Cgroup = cgroupPath(c.mount, binary.NativeEndian.Uint64(raw[ownerCgroup:]))
	}
	return p, true
}

// searched asks the kernel for the flow's socket and looks for who holds it.
func (c *Capture) searched(protocol uint8, src, dst netip.AddrPort) (Process, bool) {
	s, err := c.diag.get(protocol, src, dst)
	if err != nil {
		return Process{}, false
	}
	if p, ok := c.ownerOf(s.cookie); ok {
		return p, true
	}
	if s.inode == 0 {
		return Process{}, false
	}
	return c.holderOf(s.inode)
}

// holderOf searches all processes for a socket. Who is captured with it
// matters little: sockets are rarely shared, and then between relatives.
func (c *Capture) holderOf(inode uint32) (Process, bool) {
	holder := 0
	_ = eachPID(func(pid int) {
		if holder != 0 || pid == os.Getpid() {
			return
		}
		sockets(pid, func(_ int, i uint32) {
			if i == inode {
				holder = pid
			}
		})
	})
	if holder == 0 {
		return Process{}, false
	}
	return readProcess(holder, &c.users)
}
