//go:build linux

package netnstest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

const (
	netlinkTimeout = 10 * time.Second
	dialTimeout    = 10 * time.Second // for contexts without a deadline
	killDelay      = 5 * time.Second  // a command's pipes are closed this long after its context ended
)

// Host is one network namespace with its own interfaces, routes and rules.
type Host struct {
	lab  *Lab
	name string
	path string
	nl   *netlink.Handle
}

// Host makes a host: a fresh network namespace named under /run/netns, with
// the loopback interface up and IPv6 addresses usable without waiting for
// duplicate detection. The name must be unique in the lab.
func (l *Lab) Host(name string) *Host {
	h := &Host{lab: l, name: name, nl: &netlink.Handle{}}
	h.path = filepath.Join(runDir, fmt.Sprintf("%s%d-%s-%s", prefix, os.Getpid(), l.id, name))
	if l.failed() {
		return h
	}
	if err := createNamespace(h.path); err != nil {
		l.check(err)
		return h
	}
	l.mu.Lock()
	l.hosts = append(l.hosts, h)
	l.mu.Unlock()
	ns, err := netns.GetFromPath(h.path)
	if err != nil {
		l.check(fmt.Errorf("netnstest: open %s: %w", h.path, err))
		return h
	}
	defer ns.Close()
	nl, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		l.check(fmt.Errorf("netnstest: netlink in %s: %w", name, err))
		return h
	}
	h.nl = nl
	if err := nl.SetSocketTimeout(netlinkTimeout); err != nil {
		l.check(fmt.Errorf("netnstest: netlink in %s: %w", name, err))
	}
	h.Up("lo")
	for _, key := range []string{"all", "default"} {
		h.Sysctl("net.ipv6.conf."+key+".disable_ipv6", "0")
		h.Sysctl("net.ipv6.conf."+key+".accept_dad", "0")
		h.Sysctl("net.ipv6.conf."+key+".dad_transmits", "0")
	}
	return h
}

// Name returns the name given to Lab.Host.
func (h *Host) Name() string { return h.name }

// Path returns the namespace's file, for "nsenter --net=PATH".
func (h *Host) Path() string { return h.path }

// Netlink returns the host's routing socket, for what Host has no method for.
func (h *Host) Netlink() *netlink.Handle { return h.nl }

// Do runs f with its thread in the host's network namespace: sockets, netlink
// and /proc/sys/net are the host's. Goroutines that f starts are not in the
// namespace; sockets that f makes stay in it and may be used anywhere.
// f may call t.Fatal.
func (h *Host) Do(f func() error) error {
	return onThread(func() error {
		ns, err := os.Open(h.path)
		if err != nil {
			return fmt.Errorf("netnstest: %w", err)
		}
		defer ns.Close()
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("netnstest: enter %s: %w", h.name, err)
		}
		return f()
	})
}

// Go runs f as Do does, on a goroutine that Lab.Close ends by its context and
// waits for. An error other than the context's is returned by Close.
func (h *Host) Go(f func(ctx context.Context) error) {
	h.lab.tasks.Go(func() {
		err := h.Do(func() error { return f(h.lab.ctx) })
		if err != nil && !errors.Is(err, context.Canceled) {
			h.lab.note(fmt.Errorf("netnstest: in %s: %w", h.name, err))
		}
	})
}

// Command returns a command that will run in the host. Only the network is
// exchanged: mounts stay, so cgroups remain visible. It is killed when ctx
// ends and when the lab closes; the pid is that of the command itself.
func (h *Host) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	ctx, cancel := context.WithCancel(ctx)
	context.AfterFunc(h.lab.ctx, cancel)
	cmd := exec.CommandContext(ctx, "nsenter", append([]string{"--net=" + h.path, "--", name}, args...)...)
	cmd.WaitDelay = killDelay
	return cmd
}

// Listen listens in the host, as net.Listen does.
func (h *Host) Listen(network, address string) (l net.Listener, err error) {
	err = h.Do(func() error {
		l, err = new(net.ListenConfig).Listen(h.lab.ctx, network, address)
		return err
	})
	return l, err
}

// ListenPacket opens a datagram socket in the host, as net.ListenPacket does.
func (h *Host) ListenPacket(network, address string) (c net.PacketConn, err error) {
	err = h.Do(func() error {
		c, err = new(net.ListenConfig).ListenPacket(h.lab.ctx, network, address)
		return err
	})
	return c, err
}

// Dial connects from the host to an address given as IP and port: names are
// refused, because they would be resolved outside of the host. Without a
// deadline in ctx it gives up after 10 s.
func (h *Host) Dial(ctx context.Context, network, address string) (c net.Conn, err error) {
	if host, _, err := net.SplitHostPort(address); err != nil || net.ParseIP(strings.SplitN(host, "%", 2)[0]) == nil {
		return nil, fmt.Errorf("netnstest: dial %q: want IP:PORT", address)
	}
	err = h.Do(func() error {
		d := net.Dialer{Timeout: dialTimeout}
		c, err = d.DialContext(ctx, network, address)
		return err
	})
	return c, err
}
