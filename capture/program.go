//go:build linux

package capture

import (
	"encoding/binary"
	"net/netip"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"
)

// Offsets in the contexts the kernel hands to the programs (linux/bpf.h).
const (
	sockType, sockProtocol, sockMark, sockPort = 8, 12, 16, 44 // struct bpf_sock

	addrIP4, addrIP6, addrPort, addrProtocol, addrSock = 4, 8, 24, 36, 64 // struct bpf_sock_addr

	skbMark = 8 // struct __sk_buff
)

const dnsPort = 53

// programConfig is what is fixed when the programs are loaded.
type programConfig struct {
	mark, upstream, mask uint32
	dns                  netip.AddrPort // inner DNS server, invalid to leave stubs alone
	netns                uint64         // cookie of the one network namespace to act in, 0 for any
	serverPorts          uint16         // UDP ports below are a server's
	offsets              *offsets       // nil: thread names instead of process names, no programs
	rules                *ebpf.Map      // array of one rule map
	owners               *ebpf.Map      // socket cookie -> owner
	servers              *ebpf.Map      // cookies of UDP server sockets
	flows                *ebpf.Map      // flowKey -> socket cookie
}

// socketCreated is cgroup/sock_create: it marks UDP sockets from the start,
// because the first datagram takes the mark before the sendmsg hook runs. TCP
// is marked when it connects, so that servers' sockets never carry the mark.
func socketCreated(c *programConfig) asm.Instructions {
	a := &assembler{}
	a.add(
		asm.Mov.Reg(ctx, asm.R1),
		asm.LoadMem(asm.R1, ctx, sockType, asm.Word), asm.JNE.Imm(asm.R1, unix.SOCK_DGRAM, "allow"),
		asm.LoadMem(asm.R1, ctx, sockProtocol, asm.Word), asm.JNE.Imm(asm.R1, unix.IPPROTO_UDP, "allow"),
	)
	a.match(c, "allow")
	a.add(
		asm.JEq.Imm(best, 0, "allow"),
		asm.LoadMem(asm.R1, ctx, sockMark, asm.Word),
		asm.LoadImm(asm.R2, int64(^c.mask), asm.DWord), asm.And.Reg(asm.R1, asm.R2),
		asm.LoadImm(asm.R2, int64(c.mark), asm.DWord), asm.Or.Reg(asm.R1, asm.R2),
		asm.StoreMem(ctx, sockMark, asm.R1, asm.Word),
	)
	a.at("allow")
	a.ret(1)
	return a.code
}

// socketSends is cgroup/connect4, connect6, sendmsg4 and sendmsg6: it decides
// whether the socket carries our mark from here on.
func socketSends(c *programConfig, v6, datagram bool) asm.Instructions {
	a := &assembler{}
	a.add(
		asm.Mov.Reg(ctx, asm.R1),
		asm.LoadMem(asm.R1, ctx, addrProtocol, asm.Word),
		asm.JEq.Imm(asm.R1, unix.IPPROTO_TCP, "inet"),
		asm.JNE.Imm(asm.R1, unix.IPPROTO_UDP, "allow"),
	)
	a.at("inet")
	a.currentMark(c)
	a.storeImm(slotStub, 0)
	ip4, loopback := int16(addrIP4), "release"
	if datagram { // the mark has no effect there, and the next datagram may go elsewhere
		loopback = "allow"
	}
	if v6 {
		ip4 = addrIP6 + 12
		a.destination6("decide", "release", loopback)
	}
	a.destination4(c, ip4, "decide", "release", loopback)
	a.at("decide")
	a.match(c, "release")
	a.add(asm.JEq.Imm(best, 0, "release"))
	a.cookie(slotIndex)
	if datagram {
		a.lookup(c.servers, slotIndex)
		a.add(asm.JNE.Imm(asm.R0, 0, "release"))
	}
	a.setMark(c, true)
	a.own(c)
	a.rewriteToDNS(c, ip4)
	a.add(asm.Ja.Label("allow"))
	a.at("release")
	a.setMark(c, false)
	a.at("allow")
	a.ret(1)
	return a.code
}

// currentMark stores the socket's mark and leaves when its bits under the mask
// are somebody else's, above all the mark of our own upstream connections.
func (a *assembler) currentMark(c *programConfig) {
	a.add(
		asm.LoadMem(asm.R1, ctx, addrSock, asm.DWord),
		asm.LoadMem(asm.R2, asm.R1, sockMark, asm.Word),
	)
	a.store(slotMark, asm.R2)
	a.add(
		asm.LoadImm(asm.R3, int64(c.mask), asm.DWord), asm.And.Reg(asm.R2, asm.R3),
		asm.JEq.Imm(asm.R2, 0, "ours"),
		asm.LoadImm(asm.R3, int64(c.mark), asm.DWord),
		asm.JNE.Reg(asm.R2, asm.R3, "allow"),
	)
	a.at("ours")
}

// destination6 sorts out IPv6 destinations that are never captured, and falls
// through for an IPv4-mapped one.
func (a *assembler) destination6(capture, release, loopback string) {
	a.add(
		asm.LoadMem(asm.R1, ctx, addrIP6, asm.Word), asm.HostTo(asm.BE, asm.R1, asm.Word),
		asm.LoadMem(asm.R2, ctx, addrIP6+4, asm.Word), asm.HostTo(asm.BE, asm.R2, asm.Word),
		asm.LoadMem(asm.R3, ctx, addrIP6+8, asm.Word), asm.HostTo(asm.BE, asm.R3, asm.Word),
		asm.LoadMem(asm.R4, ctx, addrIP6+12, asm.Word), asm.HostTo(asm.BE, asm.R4, asm.Word),
		asm.Mov.Reg(asm.R5, asm.R1), asm.RSh.Imm(asm.R5, 24), asm.JEq.Imm(asm.R5, 0xff, release), // multicast
		asm.Mov.Reg(asm.R5, asm.R1), asm.RSh.Imm(asm.R5, 22), asm.JEq.Imm(asm.R5, 0xfe80>>6, release), // link-local
		asm.Or.Reg(asm.R1, asm.R2),
		asm.JNE.Imm(asm.R1, 0, capture),
		asm.JEq.Imm(asm.R3, 0xffff, "mapped"),
		asm.JNE.Imm(asm.R3, 0, capture),
		asm.JLE.Imm(asm.R4, 1, loopback), // :: and ::1
		asm.Ja.Label(capture),
	)
	a.at("mapped")
}

// destination4 sorts out IPv4 destinations that are never captured. A DNS stub
// on the loopback network is noted for rewriting.
func (a *assembler) destination4(c *programConfig, ip int16, capture, release, loopback string) {
	a.add(
		asm.LoadMem(asm.R1, ctx, ip, asm.Word), asm.Mov.Reg(asm.R2, asm.R1),
		asm.HostTo(asm.BE, asm.R2, asm.Word), asm.RSh.Imm(asm.R2, 24),
		asm.JEq.Imm(asm.R2, 0, loopback),
		asm.JGE.Imm(asm.R2, 224, release), // multicast, reserved, broadcast
		asm.JNE.Imm(asm.R2, 127, capture),
	)
	if !c.dns.IsValid() {
		a.add(asm.Ja.Label(loopback))
		return
	}
	a.add(
		asm.LoadMem(asm.R2, ctx, addrPort, asm.Word), asm.HostTo(asm.BE, asm.R2, asm.Half),
		asm.JNE.Imm(asm.R2, dnsPort, loopback),
	)
	a.store(slotStub, asm.R1)
}

// setMark puts our mark on the socket or takes it off, with one call at most.
func (a *assembler) setMark(c *programConfig, on bool) {
	done := a.newLabel()
	a.load(asm.R1, slotMark)
	a.add(
		asm.Mov.Reg(asm.R2, asm.R1),
		asm.LoadImm(asm.R3, int64(^c.mask), asm.DWord), asm.And.Reg(asm.R2, asm.R3),
	)
	if on {
		a.add(asm.LoadImm(asm.R3, int64(c.mark), asm.DWord), asm.Or.Reg(asm.R2, asm.R3))
	}
	a.add(
		asm.JEq.Reg(asm.R1, asm.R2, done),
		asm.StoreMem(asm.RFP, slotNewMark, asm.R2, asm.Word),
		asm.Mov.Reg(asm.R1, ctx), asm.Mov.Imm(asm.R2, unix.SOL_SOCKET), asm.Mov.Imm(asm.R3, unix.SO_MARK),
	)
	a.address(asm.R4, slotNewMark)
	a.add(asm.Mov.Imm(asm.R5, 4), asm.FnSetsockopt.Call())
	a.at(done)
}

// own records who uses the socket, unless that is known already.
func (a *assembler) own(c *programConfig) {
	write := a.newLabel()
	a.add(asm.FnGetCurrentPidTgid.Call(), asm.RSh.Imm(asm.R0, 32), asm.Mov.Reg(asm.R7, asm.R0))
	a.lookup(c.owners, slotIndex)
	a.load(asm.R1, slotStub)
	a.add(
		asm.JEq.Imm(asm.R0, 0, write),
		asm.LoadMem(asm.R2, asm.R0, ownerStub, asm.Word),
		asm.LoadMem(asm.R3, asm.R0, ownerPID, asm.Word),
	)
	keep, same := a.newLabel(), a.newLabel()
	a.add(
		asm.JNE.Imm(asm.R1, 0, keep),
		asm.Mov.Reg(asm.R1, asm.R2), // a stub once used may still answer
	)
	a.at(keep)
	a.add(asm.JNE.Reg(asm.R1, asm.R2, write), asm.JEq.Reg(asm.R3, asm.R7, same))
	a.at(write)
	a.store(slotOwner+ownerStub, asm.R1)
	a.add(asm.StoreMem(asm.RFP, slotOwner+ownerPID, asm.R7, asm.Word), asm.FnGetCurrentUidGid.Call())
	a.add(asm.StoreMem(asm.RFP, slotOwner+ownerUID, asm.R0, asm.Word), asm.FnGetCurrentCgroupId.Call())
	a.store(slotOwner+ownerCgroup, asm.R0)
	a.taskName(c.offsets, slotOwner+ownerComm)
	a.update(c.owners, slotIndex, slotOwner)
	a.at(same)
}

// rewriteToDNS sends what was meant for a DNS stub to the inner DNS server.
func (a *assembler) rewriteToDNS(c *programConfig, ip int16) {
	if !c.dns.IsValid() {
		return
	}
	a.load(asm.R1, slotStub)
	a.add(asm.JEq.Imm(asm.R1, 0, "allow"))
	a.add(
		asm.LoadImm(asm.R1, int64(raw4(c.dns.Addr())), asm.DWord),
		asm.StoreMem(ctx, ip, asm.R1, asm.Word),
		asm.Mov.Imm(asm.R1, int32(raw16(c.dns.Port()))),
		asm.StoreMem(ctx, addrPort, asm.R1, asm.Word),
	)
}

// socketReceives is cgroup/recvmsg4, recvmsg6, getpeername4 and getpeername6:
// it shows the DNS stub's address where the inner DNS server's would appear. On
// receive it also finds out which UDP sockets are servers'.
func socketReceives(c *programConfig, v6, datagram bool) asm.Instructions {
	a := &assembler{}
	a.add(asm.Mov.Reg(ctx, asm.R1))
	ip4 := int16(addrIP4)
	if v6 {
		ip4 = addrIP6 + 12
	}
	if c.dns.IsValid() {
		a.rewriteFromDNS(c, v6, ip4)
	}
	a.at("other")
	if datagram {
		a.noteServer(c, v6, ip4)
	}
	a.at("allow")
	a.ret(1)
	return a.code
}

func (a *assembler) rewriteFromDNS(c *programConfig, v6 bool, ip4 int16) {
	if v6 { // only ::ffff:a.b.c.d
		a.add(
			asm.LoadMem(asm.R1, ctx, addrIP6+8, asm.Word), asm.HostTo(asm.BE, asm.R1, asm.Word),
			asm.JNE.Imm(asm.R1, 0xffff, "other"),
		)
	}
	a.add(
		asm.LoadMem(asm.R1, ctx, ip4, asm.Word),
		asm.LoadImm(asm.R2, int64(raw4(c.dns.Addr())), asm.DWord),
		asm.JNE.Reg(asm.R1, asm.R2, "other"),
		asm.LoadMem(asm.R1, ctx, addrPort, asm.Word), asm.And.Imm(asm.R1, 0xffff),
		asm.JNE.Imm(asm.R1, int32(raw16(c.dns.Port())), "other"),
	)
	a.cookie(slotIndex)
	a.lookup(c.owners, slotIndex)
	a.add(
		asm.JEq.Imm(asm.R0, 0, "other"),
		asm.LoadMem(asm.R1, asm.R0, ownerStub, asm.Word),
		asm.JEq.Imm(asm.R1, 0, "other"),
		asm.StoreMem(ctx, ip4, asm.R1, asm.Word),
		asm.Mov.Imm(asm.R1, int32(raw16(dnsPort))),
		asm.StoreMem(ctx, addrPort, asm.R1, asm.Word),
		asm.Ja.Label("allow"),
	)
}

// noteServer remembers a UDP socket on a low port that is spoken to before we
// saw it speak: its answers must not be captured.
func (a *assembler) noteServer(c *programConfig, v6 bool, ip4 int16) {
	a.add(
		asm.LoadMem(asm.R1, ctx, addrSock, asm.DWord),
		asm.LoadMem(asm.R2, asm.R1, sockPort, asm.Word),
		asm.JGE.Imm(asm.R2, int32(c.serverPorts), "allow"),
		asm.LoadMem(asm.R2, asm.R1, sockMark, asm.Word),
	)
	a.store(slotMark, asm.R2)
	if !v6 { // who speaks on the loopback network says nothing about the others
		a.add(
			asm.LoadMem(asm.R1, ctx, ip4, asm.Word), asm.HostTo(asm.BE, asm.R1, asm.Word),
			asm.RSh.Imm(asm.R1, 24), asm.JEq.Imm(asm.R1, 127, "allow"),
		)
	}
	a.thisNetns(c, "allow")
	a.cookie(slotIndex)
	a.lookup(c.owners, slotIndex)
	a.add(asm.JNE.Imm(asm.R0, 0, "allow"))
	a.lookup(c.servers, slotIndex)
	a.add(asm.JNE.Imm(asm.R0, 0, "allow"))
	a.storeImm(slotPointer, 1)
	a.update(c.servers, slotIndex, slotPointer)
	a.load(asm.R1, slotMark)
	a.add(
		asm.LoadImm(asm.R2, int64(c.mask), asm.DWord), asm.And.Reg(asm.R1, asm.R2),
		asm.LoadImm(asm.R2, int64(c.mark), asm.DWord), asm.JNE.Reg(asm.R1, asm.R2, "allow"),
	)
	a.setMark(c, false)
}

// raw4 and raw16 are numbers as they lie in memory in network order.
func raw4(ip netip.Addr) uint32 {
	b := ip.As4()
	return binary.NativeEndian.Uint32(b[:])
}

func raw16(n uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, n))
}
