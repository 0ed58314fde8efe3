//go:build linux

package capture

import (
	"encoding/binary"
	"net/netip"

	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"
)

// owner is who used a socket last: pid u32, uid u32, cgroup id u64, comm
// [16]byte, DNS stub u64 (its address in network order in the first four bytes).
const (
	ownerPID    = 0
	ownerUID    = 4
	ownerCgroup = 8
	ownerComm   = 16
	ownerStub   = 32
	ownerSize   = 40
)

// flowKey is what identifies a captured packet's conversation: source address,
// destination address (16 bytes each, IPv4 mapped), both ports, protocol.
type flowKey [40]byte

func newFlowKey(protocol uint8, src, dst netip.AddrPort) (k flowKey) {
	s, d := src.Addr().As16(), dst.Addr().As16()
	copy(k[0:], s[:])
	copy(k[16:], d[:])
	binary.BigEndian.PutUint16(k[32:], src.Port())
	binary.BigEndian.PutUint16(k[34:], dst.Port())
	binary.NativeEndian.PutUint32(k[36:], uint32(protocol))
	return k
}

// packetLeaves is cgroup_skb/egress: for the first packets of captured flows
// it stores which socket they come from. It sees the final addresses, before
// the packet reaches the TUN device, so whoever reads there finds the entry.
func packetLeaves(c *programConfig) asm.Instructions {
	a := &assembler{}
	a.add(
		asm.LoadMem(asm.R2, asm.R1, skbMark, asm.Word),
		asm.LoadImm(asm.R3, int64(c.mask), asm.DWord), asm.And.Reg(asm.R2, asm.R3),
		asm.LoadImm(asm.R3, int64(c.mark), asm.DWord), asm.JNE.Reg(asm.R2, asm.R3, "allow"),
		asm.Mov.Reg(ctx, asm.R1),
	)
	a.packetKey()
	a.cookie(slotCookie)
	a.lookup(c.flows, slotFlow)
	a.load(asm.R2, slotCookie)
	a.add(
		asm.JEq.Imm(asm.R0, 0, "store"),
		asm.LoadMem(asm.R1, asm.R0, 0, asm.DWord),
		asm.JEq.Reg(asm.R1, asm.R2, "allow"),
	)
	a.at("store")
	a.update(c.flows, slotFlow, slotCookie)
	a.at("allow")
	a.ret(1)
	return a.code
}

// packetKey fills in the flowKey of a UDP packet or a TCP SYN, and leaves for
// any other packet.
func (a *assembler) packetKey() {
	for slot := int16(slotFlow); slot < slotFlow+40; slot += 8 {
		a.storeImm(slot, 0)
	}
	a.add(asm.Mov.Imm(asm.R2, 0))
	a.packetBytes(slotPacket, 20)
	a.packetByte(asm.R1, 0)
	a.add(asm.RSh.Imm(asm.R1, 4), asm.JEq.Imm(asm.R1, 4, "v4"), asm.JNE.Imm(asm.R1, 6, "allow"))

	a.add(asm.Mov.Imm(asm.R2, 0))
	a.packetBytes(slotPacket, 40)
	for i := int16(0); i < 32; i += 4 {
		a.packetWord(i, 8+i)
	}
	a.packetByte(asm.R8, 6)        // next header
	a.add(asm.Mov.Imm(asm.R7, 40)) // where the transport header starts
	a.add(asm.Ja.Label("transport"))

	a.at("v4")
	a.add(asm.Mov.Imm(asm.R1, 0xffff), asm.HostTo(asm.BE, asm.R1, asm.Word))
	a.add(asm.StoreMem(asm.RFP, slotFlow+8, asm.R1, asm.Word), asm.StoreMem(asm.RFP, slotFlow+24, asm.R1, asm.Word))
	a.packetWord(12, 12)
	a.packetWord(28, 16)
	a.packetByte(asm.R8, 9) // protocol
	a.packetByte(asm.R7, 0)
	a.add(asm.And.Imm(asm.R7, 0xf), asm.LSh.Imm(asm.R7, 2))

	a.at("transport")
	a.add(asm.JEq.Imm(asm.R8, unix.IPPROTO_UDP, "ports"), asm.JNE.Imm(asm.R8, unix.IPPROTO_TCP, "allow"))
	a.add(asm.Mov.Reg(asm.R2, asm.R7), asm.Add.Imm(asm.R2, 13)) // flags
	a.packetBytes(slotPacket, 1)
	a.packetByte(asm.R1, 0)
	a.add(asm.And.Imm(asm.R1, 0x12), asm.JNE.Imm(asm.R1, 0x02, "allow")) // SYN without ACK
	a.at("ports")
	a.add(asm.Mov.Reg(asm.R2, asm.R7))
	a.packetBytes(slotFlow+32, 4)
	a.add(asm.StoreMem(asm.RFP, slotFlow+36, asm.R8, asm.Word))
}

// packetBytes copies size bytes of the packet, from the offset in R2, to a slot.
func (a *assembler) packetBytes(slot, size int32) {
	a.add(asm.Mov.Reg(asm.R1, ctx))
	a.address(asm.R3, slot)
	a.add(asm.Mov.Imm(asm.R4, size), asm.FnSkbLoadBytes.Call(), asm.JNE.Imm(asm.R0, 0, "allow"))
}

// packetByte loads byte n of what was copied.
func (a *assembler) packetByte(to asm.Register, n int16) {
	a.add(asm.LoadMem(to, asm.RFP, slotPacket+n, asm.Byte))
}

// packetWord moves four bytes of what was copied into the flowKey.
func (a *assembler) packetWord(to, from int16) {
	a.add(asm.LoadMem(asm.R1, asm.RFP, slotPacket+from, asm.Word), asm.StoreMem(asm.RFP, slotFlow+to, asm.R1, asm.Word))
}
