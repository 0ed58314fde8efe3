//go:build linux

package capture

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	initPIDNamespace = "pid:[4026531836]" // PROC_PID_INIT_INO
	firstEphemeral   = 32768              // the kernel's default
)

// begin starts the mechanism that was asked for, or the best there is.
func (c *Capture) begin() (err error) {
	if c.rules, err = compileRules(c.cfg.Spec, c.never(), c.system()); err != nil {
		return err
	}
	var why error
	if c.cfg.Mechanism != NFT {
		why = c.beginKernel()
		if why == nil {
			c.status = Status{Mechanism: EBPF, ThreadNames: c.status.ThreadNames}
			return nil
		}
		if c.cfg.Mechanism == EBPF {
			return fmt.Errorf("capture: %w", why)
		}
		c.log.Warn("eBPF is not available, local capture falls back to nftables", "err", why)
	}
	c.status = Status{Mechanism: NFT, Reason: "it was asked for"}
	if why != nil {
		c.status.Reason = why.Error()
	}
	if err := c.beginNFT(); err != nil {
		return errors.Join(err, why)
	}
	return nil
}

func (c *Capture) beginKernel() (err error) {
	if c.mount == "" {
		return errNoCgroup2
	}
	if ns, err := os.Readlink("/proc/self/ns/pid"); err == nil && ns != initPIDNamespace {
		return errors.New("this process has a process-id namespace of its own, so it cannot tell which process is which: run it on the host or with --pid=host")
	}
	cfg := programConfig{
		mark: c.cfg.Marks.Capture, upstream: c.cfg.Marks.Own, mask: c.cfg.Marks.Mask,
		dns: c.cfg.DNS, netns: netnsCookie(), serverPorts: ephemeralPorts(),
	}
	if cfg.offsets, err = kernelOffsets(); err != nil {
		c.log.Warn("kernel structures are unknown: names of threads stand in for those of processes", "err", err)
	}
	err = c.loadKernel(cfg)
	if err != nil && cfg.offsets != nil {
		// kernel lockdown, or no CAP_PERFMON: programs that read kernel memory are refused
		plain := cfg
		plain.offsets = nil
		if retry := c.loadKernel(plain); retry == nil {
			c.log.Warn("kernel memory cannot be read: names of threads stand in for those of processes", "err", err)
			return nil
		}
	}
	return err
}

func (c *Capture) loadKernel(cfg programConfig) (err error) {
	if c.kernel, err = newKernelSteer(c.cfg.MaxSockets); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.kernel.close())
			c.kernel = nil
		}
	}()
	c.status.ThreadNames = cfg.offsets == nil
	entries, err := c.rules.entries(c.system())
	if err != nil {
		return err
	}
	if err := c.kernel.swap(entries); err != nil {
		return err
	}
	if err := c.noteServers(cfg.serverPorts); err != nil {
		return err
	}
	c.spec = c.cfg.Spec
	dir := c.cfg.Cgroup
	if dir == "" {
		dir = c.mount
	}
	return c.kernel.attach(dir, cfg, c.log)
}

// noteServers remembers the UDP servers that already run: unconnected sockets
// on ports below the ephemeral range.
func (c *Capture) noteServers(below uint16) error {
	list, err := c.diag.list(unix.IPPROTO_UDP, anyState)
	if err != nil {
		return err
	}
	for _, s := range list {
		if s.dst.Port() != 0 || s.src.Port() >= below {
			continue
		}
		if err := c.kernel.servers.Put(s.cookie, uint64(1)); err != nil {
			return fmt.Errorf("capture: note UDP servers: %w", err)
		}
	}
	return nil
}

// netnsCookie names the calling thread's network namespace; 0 before Linux 5.14.
func netnsCookie() uint64 {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0
	}
	defer unix.Close(fd)
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err != nil {
		return 0
	}
	return cookie
}

// ephemeralPorts is the first port the kernel gives to sockets that name none.
func ephemeralPorts() uint16 {
	text, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
	if err != nil {
		return firstEphemeral
	}
	fields := strings.Fields(string(text))
	if len(fields) == 0 {
		return firstEphemeral
	}
	first, err := strconv.ParseUint(fields[0], 10, 16)
	if err != nil {
		return firstEphemeral
	}
	return uint16(first)
}
