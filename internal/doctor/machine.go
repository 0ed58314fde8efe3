//go:build linux

package doctor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"mitm-appliance/capture"
	"mitm-appliance/redirect"
	"mitm-appliance/wg"
)

// machine is what the checks ask. Tests give answers that no machine at hand has.
type machine struct {
	capabilities func() (effective uint64, err error)
	tryTUN       func() (udpOffload bool, err error)
	link         func(name string) (kind string, err error)
	links        func(without ...string) ([]string, error)
	probeSteer   func(redirect.Config) []redirect.Finding
	probeCapture func() []capture.Finding
	listen       func(network, address string) error
	lowestPort   func() int // that needs no capability
	loadPeers    func(path string) error
	openFiles    func() (hard uint64, err error)
}

func thisMachine() machine {
	return machine{
		capabilities: effectiveCapabilities,
		tryTUN:       tryTUN,
		link:         linkKind,
		links:        redirect.DefaultInterfaces,
		probeSteer:   redirect.Probe,
		probeCapture: capture.Probe,
		listen:       tryListen,
		lowestPort:   lowestPort,
		loadPeers:    loadPeers,
		openFiles:    openFiles,
	}
}

func effectiveCapabilities() (uint64, error) {
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&head, &data[0]); err != nil {
		return 0, fmt.Errorf("read the capabilities: %w", err)
	}
	return uint64(data[0].Effective) | uint64(data[1].Effective)<<32, nil
}

const (
	tunPath = "/dev/net/tun"
	// Offloads of linux/if_tun.h.
	offloadTCP = unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6
	offloadUDP = offloadTCP | 0x20 | 0x40 // TUN_F_USO4, TUN_F_USO6: Linux 6.2
)

// tryTUN makes a device as package tun does, which is gone when it is closed. It is never up.
func tryTUN() (udpOffload bool, err error) {
	fd, err := unix.Open(tunPath, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return false, fmt.Errorf("open %s: %w", tunPath, err)
	}
	defer unix.Close(fd)
	req, err := unix.NewIfreq("mitmprobe%d")
	if err != nil {
		return false, err
	}
	req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
		return false, fmt.Errorf("make a TUN device: %w", err)
	}
	if err := unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, offloadTCP); err != nil {
		return false, fmt.Errorf("switch on TCP offload of a TUN device: %w", err)
	}
	return unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, offloadUDP) == nil, nil
}

func linkKind(name string) (string, error) {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return "", err
	}
	return link.Type(), nil
}

func tryListen(network, address string) error {
	if network == "udp" {
		c, err := new(net.ListenConfig).ListenPacket(context.Background(), network, address)
		if err != nil {
			return err
		}
		return c.Close()
	}
	l, err := new(net.ListenConfig).Listen(context.Background(), network, address)
	if err != nil {
		return err
	}
	return l.Close()
}

// lowestPort is net.ipv4.ip_unprivileged_port_start, which counts for IPv6 too.
func lowestPort() int {
	const always = 1024
	text, err := os.ReadFile("/proc/sys/net/ipv4/ip_unprivileged_port_start")
	if err != nil {
		return always
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return always
	}
	return n
}

// loadPeers says what is wrong with a WireGuard configuration; one that does not exist will be made.
func loadPeers(path string) error {
	_, err := wg.Load(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

func openFiles() (uint64, error) {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return 0, fmt.Errorf("read RLIMIT_NOFILE: %w", err)
	}
	return limit.Max, nil // the Go runtime raises the soft limit to it
}
