//go:build linux

package capture

import (
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
)

// Registers with a fixed role in all programs: they survive helper calls.
const (
	ctx   = asm.R6 // the hook's context
	inner = asm.R8 // the rules in force
	best  = asm.R9 // highest rule value so far; after match, the verdict
)

// Places on the stack, as offsets from the frame pointer.
const (
	slotIndex   = -8   // u32 array index, or u64 socket cookie
	slotMark    = -16  // u64: the mark the socket had
	slotNewMark = -24  // u32: argument of setsockopt
	slotStub    = -32  // u64: address of a DNS stub that is being rewritten, or 0
	slotKinds   = -40  // u64: kinds of rules that occur
	slotPointer = -48  // u64: result of a kernel read
	slotKey     = -72  // ruleKey
	slotOwner   = -112 // owner
	slotFlow    = -152 // flowKey
	slotPacket  = -192 // a packet's first 40 bytes
	slotCookie  = -200 // u64 socket cookie of a packet
)

// assembler collects instructions. Its methods append what they say.
type assembler struct {
	code  asm.Instructions
	label string // for the next instruction
	fresh int
}

func (a *assembler) add(instructions ...asm.Instruction) {
	for _, ins := range instructions {
		if a.label != "" {
			ins = ins.WithSymbol(a.label)
			a.label = ""
		}
		a.code = append(a.code, ins)
	}
}

// at puts a label on the next instruction. Two labels in a row become one jump.
func (a *assembler) at(label string) {
	if a.label != "" {
		a.add(asm.Ja.Label(label))
	}
	a.label = label
}

// newLabel makes a label that occurs once.
func (a *assembler) newLabel() string {
	a.fresh++
	return fmt.Sprintf("l%d", a.fresh)
}

func (a *assembler) store(slot int16, from asm.Register) {
	a.add(asm.StoreMem(asm.RFP, slot, from, asm.DWord))
}

func (a *assembler) storeImm(slot int16, value int32) {
	a.add(asm.Mov.Imm(asm.R1, value))
	a.store(slot, asm.R1)
}

func (a *assembler) load(to asm.Register, slot int16) {
	a.add(asm.LoadMem(to, asm.RFP, slot, asm.DWord))
}

func (a *assembler) address(to asm.Register, slot int32) {
	a.add(asm.Mov.Reg(to, asm.RFP), asm.Add.Imm(to, slot))
}

// lookup finds slot's content in a map; R0 is the value's address or 0.
func (a *assembler) lookup(m *ebpf.Map, slot int32) {
	a.add(asm.LoadMapPtr(asm.R1, m.FD()))
	a.address(asm.R2, slot)
	a.add(asm.FnMapLookupElem.Call())
}

// update writes key and value slots to a map.
func (a *assembler) update(m *ebpf.Map, key, value int32) {
	a.add(asm.LoadMapPtr(asm.R1, m.FD()))
	a.address(asm.R2, key)
	a.address(asm.R3, value)
	a.add(asm.Mov.Imm(asm.R4, 0), asm.FnMapUpdateElem.Call())
}

// cookie stores the socket's cookie.
func (a *assembler) cookie(slot int16) {
	a.add(asm.Mov.Reg(asm.R1, ctx), asm.FnGetSocketCookie.Call())
	a.store(slot, asm.R0)
}

// readKernel copies size bytes of kernel memory at from+offset to a slot.
func (a *assembler) readKernel(slot int32, size int32, from asm.Register, offset int32, failed string) {
	a.add(asm.Mov.Reg(asm.R3, from), asm.Add.Imm(asm.R3, offset))
	a.address(asm.R1, slot)
	a.add(asm.Mov.Imm(asm.R2, size), asm.FnProbeReadKernel.Call(), asm.JNE.Imm(asm.R0, 0, failed))
}

func (a *assembler) ret(value int32) {
	a.add(asm.Mov.Imm(asm.R0, value), asm.Return())
}
