//go:build linux

// Package capture steers this host's own traffic into the appliance's TUN
// device and says which process a flow belongs to.
//
// In goes a [Spec]: which processes (by pid, name, user, cgroup or program
// file). Out comes a mark on the sockets of those processes, from which the
// policy route that package redirect installs leads into the TUN device; and,
// for each flow that arrives there, the [Process] that opened it.
//
// The mark is set by small eBPF programs, written in Go with cilium/ebpf's
// assembler, on a cgroup-v2 directory. Where the kernel cannot do that, an
// nftables output chain does it for users and cgroups only; [Capture.Status]
// says which one runs and why.
//
// Everything fails open: the programs are held by links of this process and
// vanish with it, so applications then talk to the network directly. (A
// fail-closed variant would pin the links in bpffs; it is left out on purpose:
// a crash of the appliance would cut the host, remote shells included, off the
// network until somebody unpins them by hand.)
//
// What stays outside, by the nature of the hooks:
//   - TCP connections established before capture began, and UDP sockets
//     connected before it ([Capture.Kick] brings both in);
//   - the first datagram of an unconnected UDP socket that was created before
//     its process was chosen, since the kernel reads the mark before the hook runs;
//   - raw and packet sockets: ping shows the real network;
//   - connections that others make to this host, UDP servers included: a UDP
//     socket on a port below the ephemeral range that is spoken to before it
//     speaks is a server's;
//   - loopback, multicast, broadcast and IPv6 link-local destinations; the one
//     exception is a DNS stub on 127.0.0.0/8 port 53 when [Config.DNS] is set;
//   - processes in other network namespaces.
//
// One packet too many is taken: the first IPv4 multicast or broadcast datagram
// of a captured UDP socket that names no interface, as its mark, too, is read
// before the hook can see where it goes.
//
// It needs CAP_NET_ADMIN, CAP_BPF and CAP_PERFMON, also after the start, as
// Set makes a new map; CAP_SYS_PTRACE lets it name the program files of other
// users' processes. [Probe] says what is missing.
//
// It knows neither what a flow carries nor who handles it.
package capture
