//go:build linux

package capture

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Kicked counts what Kick did.
type Kicked struct {
	Destroyed int // TCP connections ended, so that the applications connect again
	Marked    int // UDP sockets brought in (or let go) as they are
}

// Kick brings in connections that the captured processes had before: their
// outgoing TCP connections end with an error, as if the peer had reset them,
// and applications usually connect again, now through the TUN; their UDP
// sockets, connected ones included, get the mark. UDP sockets that carry it but
// are no longer wanted lose it. Connections that others made to this host and
// loopback traffic are left alone. It searches all of /proc, so it is for
// the moment after New or Set. It needs CAP_SYS_PTRACE for the UDP part.
func (c *Capture) Kick(ctx context.Context) (Kicked, error) {
	k := kicking{c: c, spec: c.Spec(), ephemeral: ephemeralPorts(), udp: map[uint32]diagSocket{}}
	c.life.RLock()
	defer c.life.RUnlock()
	if c.closed {
		return k.done, ErrClosed
	}
	var err error
	if k.tcp, err = c.outgoing(); err != nil {
		return k.done, err
	}
	udp, err := c.diag.list(unix.IPPROTO_UDP, anyState)
	if err != nil {
		return k.done, err
	}
	for _, s := range udp {
		k.udp[s.inode] = s
	}
	err = eachPID(func(pid int) {
		if pid != os.Getpid() && ctx.Err() == nil {
			k.process(pid)
		}
	})
	return k.done, errors.Join(append(k.errs, err, ctx.Err())...)
}

// kicking is one Kick under way: sockets are listed by inode, and processes say which are theirs.
type kicking struct {
	c         *Capture
	spec      Spec
	ephemeral uint16 // the first port of sockets that name none
	tcp, udp  map[uint32]diagSocket
	done      Kicked
	errs      []error
}

func (k *kicking) process(pid int) {
	p, ok := readProcess(pid, &k.c.users)
	if !ok {
		return
	}
	wanted := k.spec.Match(p) && !k.c.excluded(p)
	sockets(pid, func(fd int, inode uint32) {
		if s, ok := k.tcp[inode]; ok && wanted {
			delete(k.tcp, inode) // shared sockets end once
			k.end(pid, s)
		}
		if s, ok := k.udp[inode]; ok && (s.dst.Port() != 0 || s.src.Port() >= k.ephemeral) {
			k.remark(pid, fd, wanted && !local(s))
		}
	})
}

func (k *kicking) end(pid int, s diagSocket) {
	switch err := k.c.diag.destroy(s); {
	case err == nil:
		k.done.Destroyed++
	case !errors.Is(err, unix.ENOENT): // that one has ended by itself
		k.errs = append(k.errs, fmt.Errorf("capture: end connection %s to %s of process %d: %w", s.src, s.dst, pid, err))
	}
}

func (k *kicking) remark(pid, fd int, wanted bool) {
	changed, err := k.c.remark(pid, fd, wanted)
	if changed {
		k.done.Marked++
	}
	if err != nil {
		k.errs = append(k.errs, fmt.Errorf("capture: mark a UDP socket of process %d: %w", pid, err))
	}
}

func (c *Capture) excluded(p Process) bool {
	for _, item := range c.never() {
		if item.match(p) {
			return true
		}
	}
	return false
}

func local(s diagSocket) bool {
	ip := s.dst.Addr()
	return s.dst.Port() != 0 && (ip.IsLoopback() || ip.IsMulticast() || ip.IsLinkLocalUnicast() && ip.Is6())
}

// outgoing is the TCP connections that began on this host, by inode: those
// whose local port nobody listens on.
func (c *Capture) outgoing() (map[uint32]diagSocket, error) {
	listeners, err := c.diag.list(unix.IPPROTO_TCP, tcpListen)
	if err != nil {
		return nil, err
	}
	listening := map[uint16]bool{}
	for _, s := range listeners {
		listening[s.src.Port()] = true
	}
	connections, err := c.diag.list(unix.IPPROTO_TCP, tcpEstablished|tcpSynSent)
	if err != nil {
		return nil, err
	}
	found := map[uint32]diagSocket{}
	for _, s := range connections {
		if s.inode != 0 && !listening[s.src.Port()] && !local(s) && s.mark&c.cfg.Marks.Mask == 0 {
			found[s.inode] = s
		}
	}
	return found, nil
}

// remark borrows a socket of another process and sets or clears our mark. A
// connected socket then finds a new route for its next datagram.
func (c *Capture) remark(pid, fd int, wanted bool) (changed bool, err error) {
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return false, unlessGone(err)
	}
	defer unix.Close(pidfd)
	socket, err := unix.PidfdGetfd(pidfd, fd, 0)
	if err != nil {
		return false, unlessGone(err)
	}
	defer unix.Close(socket)
	mark, err := unix.GetsockoptInt(socket, unix.SOL_SOCKET, unix.SO_MARK)
	if err != nil {
		return false, unlessGone(err) // the descriptor may be another file by now
	}
	m := c.cfg.Marks
	bits := uint32(mark) & m.Mask
	target := uint32(0)
	if wanted {
		target = m.Capture
	}
	if bits == target || bits != 0 && bits != m.Capture {
		return false, nil
	}
	if err := unix.SetsockoptInt(socket, unix.SOL_SOCKET, unix.SO_MARK, int(uint32(mark)&^m.Mask|target)); err != nil {
		return false, fmt.Errorf("set SO_MARK: %w", err)
	}
	return true, nil
}

func unlessGone(err error) error {
	for _, gone := range []error{unix.ESRCH, unix.EBADF, unix.ENOTSOCK, unix.EINVAL} {
		if errors.Is(err, gone) {
			return nil
		}
	}
	return err
}
