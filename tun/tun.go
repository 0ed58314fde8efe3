//go:build linux

// Package tun makes a TUN device and the gVisor link endpoint over it.
//
// In go a name, addresses and routes; out comes a Device whose Endpoint moves
// IP packets between the kernel and a network stack. The kernel's segmentation
// and checksum offloads are used in both directions: one read is one packet of
// up to 64 KiB, whatever the MTU is.
//
// The package knows nothing of conversations, marks or policy: what is routed
// into the device is for others to decide (packages redirect and capture, or
// the user).
package tun

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

const (
	devicePath  = "/dev/net/tun"
	defaultName = "tun%d" // the kernel fills in the next free number
	defaultMTU  = 1500
	minMTU      = 1280 // IPv6's, RFC 8200 section 5
	maxMTU      = 65535
	// queueLength is the number of packets that the kernel keeps for the
	// reader; a burst of small ones overflows the kernel's default of 500.
	queueLength = 4096

	tunFlagTSOECN = 0x08 // linux/if_tun.h TUN_F_TSO_ECN
	tunFlagUSO4   = 0x20
	tunFlagUSO6   = 0x40
)

// Config describes the device. The zero value is a device with the kernel's
// next tunN as its name, MTU 1500, and DefaultAddresses.
type Config struct {
	Logger *slog.Logger // nil: nothing is logged

	// Name is the interface's name, at most 15 bytes; a "%d" in it is replaced
	// by the first free number. A persistent device of this name is used if
	// there is one: with its addresses and MTU as they are if it is up and has
	// any, so that root can prepare one for a user (TUN-03).
	Name string
	// MTU is the largest packet that leaves for the kernel, 1280 to 65535
	// bytes; 0 means 1500. Large ones gain nothing, because of the offloads.
	MTU int
	// Addresses are the interface's own; nil means DefaultAddresses. The kernel
	// drops packets that the device answers for others unless it has at least
	// one IPv4 address.
	Addresses []netip.Prefix
	// Routes are added through the device: to the main table, or with OwnMark
	// to one of their own, where packets with that mark do not see them.
	Routes []netip.Prefix
	// OwnMark, compared under OwnMask, is the firewall mark of the packets that
	// the program behind the device sends to servers; 0 means that it has none.
	OwnMark, OwnMask uint32
}

// DefaultAddresses returns 198.18.0.1/30 (from the range for benchmarks, RFC
// 2544, which no network uses) and a unique local IPv6 address.
func DefaultAddresses() []netip.Prefix {
	return []netip.Prefix{
		netip.MustParsePrefix("198.18.0.1/30"),
		netip.MustParsePrefix("fd6d:6974:6d00::1/64"),
	}
}

// Device is an open TUN device. All methods are safe for concurrent use.
type Device struct {
	file     *os.File
	name     string
	index    int
	mtu      int
	attached bool // it was there before and stays
	usable   offloads
	table    int             // of the routes; 0 is the main one
	rules    []*netlink.Rule // of the table
	nl       *netlink.Handle
	endpoint *endpoint

	closeOnce sync.Once
	closeErr  error
}

// offloads is what the kernel agreed to.
type offloads struct{ uso bool }

// Open creates the device, or attaches to a persistent one, in the network
// namespace of the calling thread, configures it and brings it up. It needs
// CAP_NET_ADMIN, or a persistent device that belongs to the user.
func Open(cfg Config) (*Device, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Name == "" {
		cfg.Name = defaultName
	}
	if cfg.MTU == 0 {
		cfg.MTU = defaultMTU
	}
	if cfg.MTU < minMTU || cfg.MTU > maxMTU {
		return nil, fmt.Errorf("tun: MTU %d is not in the range %d to %d", cfg.MTU, minMTU, maxMTU)
	}
	if cfg.Addresses == nil {
		cfg.Addresses = DefaultAddresses()
	}
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("tun: open netlink: %w", err)
	}
	d := &Device{nl: nl, mtu: cfg.MTU}
	if link, err := nl.LinkByName(cfg.Name); err == nil {
		if link.Type() != "tuntap" {
			nl.Close()
			return nil, fmt.Errorf("tun: interface %s exists and is no TUN device; choose another name", cfg.Name)
		}
		d.attached = true
	}
	if err := d.open(cfg.Name); err != nil {
		nl.Close()
		return nil, err
	}
	if err := d.configure(cfg); err != nil {
		_ = d.Close()
		return nil, fmt.Errorf("tun: configure %s: %w", d.name, err)
	}
	d.endpoint = newEndpoint(d.file, d.mtu, cfg.Logger)
	return d, nil
}

// open gets the file descriptor of the interface and sets its offloads.
func (d *Device) open(name string) error {
	fd, err := unix.Open(devicePath, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("tun: open %s: %w (load the module with: modprobe tun)", devicePath, err)
	}
	request, err := attach(fd, name)
	if err != nil {
		unix.Close(fd)
		return explainAttach(name, err)
	}
	d.name = request.Name()
	const basic = unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6 | tunFlagTSOECN
	d.usable.uso = true
	err = unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, basic|tunFlagUSO4|tunFlagUSO6)
	if errors.Is(err, unix.EINVAL) { // before Linux 6.2
		d.usable.uso = false
		err = unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, basic)
	}
	if err != nil {
		unix.Close(fd)
		return fmt.Errorf("tun: set offloads of %s: %w", d.name, err)
	}
	// Only now: the poller must see the descriptor as that of an interface.
	d.file = os.NewFile(uintptr(fd), devicePath)
	return nil
}

// attach makes fd the interface of that name, created if there is none.
func attach(fd int, name string) (*unix.Ifreq, error) {
	request, err := unix.NewIfreq(name)
	if err != nil {
		return nil, err
	}
	const flags = unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR
	request.SetUint16(flags)
	err = unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
	if errors.Is(err, unix.EINVAL) { // a persistent device may have several queues; we use one
		request.SetUint16(flags | unix.IFF_MULTI_QUEUE)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
	}
	return request, err
}

func explainAttach(name string, err error) error {
	switch {
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("tun: create %[1]s: %[2]w (run as root or with CAP_NET_ADMIN, or let root prepare it with: "+
			"ip tuntap add dev %[1]s mode tun user USER && ip addr add 198.18.0.1/30 dev %[1]s && ip link set %[1]s up)", name, err)
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("tun: create %s: %w (another process has it open; stop it or choose another name)", name, err)
	}
	return fmt.Errorf("tun: create %s: %w", name, err)
}

// Name returns the interface's name.
func (d *Device) Name() string { return d.name }

// Index returns the interface's index.
func (d *Device) Index() int { return d.index }

// MTU returns the interface's MTU, bytes.
func (d *Device) MTU() int { return d.mtu }

// Attached reports whether the device was there before Open. Such a device
// stays when it is closed.
func (d *Device) Attached() bool { return d.attached }

// Endpoint returns the link endpoint for a network stack. It starts to read
// when a stack attaches itself, and belongs to one stack at a time; closing the
// stack leaves the device open.
func (d *Device) Endpoint() stack.LinkEndpoint { return d.endpoint }

// Stats returns the device's counters.
func (d *Device) Stats() Stats { return d.endpoint.count.snapshot() }

// Close stops the reader, waits for it and closes the device, which removes the
// interface and all of its routes unless it was Attached, and its rules.
func (d *Device) Close() error {
	d.closeOnce.Do(func() {
		if d.endpoint != nil {
			d.endpoint.shutdown()
		}
		if err := d.file.Close(); err != nil {
			d.closeErr = fmt.Errorf("tun: close %s: %w", d.name, err)
		}
		if err := d.unsteer(); err != nil && d.closeErr == nil {
			d.closeErr = fmt.Errorf("tun: rules of %s: %w", d.name, err)
		}
		d.nl.Close()
	})
	return d.closeErr
}
