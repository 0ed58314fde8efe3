//go:build linux

package capture

import "github.com/cilium/ebpf/asm"

// maxCgroupDepth is how deep below the root a cgroup of an item may lie.
const maxCgroupDepth = 16

// match leaves the rules' verdict on the current task in register best (0 or
// 1), or jumps to outside when the task lives in another network namespace.
func (a *assembler) match(c *programConfig, outside string) {
	a.thisNetns(c, outside)
	a.storeImm(slotIndex, 0)
	a.lookup(c.rules, slotIndex)
	a.add(asm.JEq.Imm(asm.R0, 0, outside), asm.Mov.Reg(inner, asm.R0))

	a.storeImm(slotKey+8, 0)
	a.storeImm(slotKey+16, 0)
	a.lookupRule(kindMeta)
	a.add(
		asm.JEq.Imm(asm.R0, 0, outside),
		asm.LoadMem(best, asm.R0, 0, asm.DWord),
		asm.Mov.Reg(asm.R1, best), asm.RSh.Imm(asm.R1, 8),
		asm.And.Imm(best, 1),
	)
	a.store(slotKinds, asm.R1)

	a.matchPID()
	a.ifKind(uint32(UID), func(string) {
		a.add(asm.FnGetCurrentUidGid.Call(), asm.LSh.Imm(asm.R0, 32), asm.RSh.Imm(asm.R0, 32))
		a.store(slotKey+8, asm.R0)
		a.tryRule(uint32(UID))
	})
	a.ifKind(uint32(Cgroup), a.matchCgroup)
	a.ifKind(uint32(Exe), func(string) { a.matchExe(c.offsets) })
	a.ifKind(uint32(Name), func(string) {
		a.taskName(c.offsets, slotKey+8)
		a.tryRule(uint32(Name))
	})
	a.add(asm.And.Imm(best, 1))
}

func (a *assembler) thisNetns(c *programConfig, outside string) {
	if c.netns == 0 {
		return
	}
	a.add(
		asm.Mov.Reg(asm.R1, ctx), asm.FnGetNetnsCookie.Call(),
		asm.LoadImm(asm.R1, int64(c.netns), asm.DWord),
		asm.JNE.Reg(asm.R0, asm.R1, outside),
	)
}

// lookupRule finds the rule for the key whose value part is already stored.
func (a *assembler) lookupRule(kind uint32) {
	a.storeImm(slotKey, int32(kind))
	a.add(asm.Mov.Reg(asm.R1, inner))
	a.address(asm.R2, slotKey)
	a.add(asm.FnMapLookupElem.Call())
}

// tryRule raises best to the rule found, if that is higher.
func (a *assembler) tryRule(kind uint32) {
	next := a.newLabel()
	a.lookupRule(kind)
	a.add(
		asm.JEq.Imm(asm.R0, 0, next),
		asm.LoadMem(asm.R1, asm.R0, 0, asm.DWord),
		asm.JLE.Reg(asm.R1, best, next),
		asm.Mov.Reg(best, asm.R1),
	)
	a.at(next)
}

// ifKind runs body only when rules of that kind occur; body may jump to next.
func (a *assembler) ifKind(kind uint32, body func(next string)) {
	next := a.newLabel()
	a.load(asm.R1, slotKinds)
	a.add(asm.And.Imm(asm.R1, 1<<kind), asm.JEq.Imm(asm.R1, 0, next))
	body(next)
	a.at(next)
}

func (a *assembler) matchPID() {
	a.add(asm.FnGetCurrentPidTgid.Call(), asm.RSh.Imm(asm.R0, 32))
	a.store(slotKey+8, asm.R0)
	a.tryRule(uint32(PID))
	a.ifKind(uint32(Exe), func(string) { a.tryRule(kindExePID) })
}

// matchCgroup tries the task's cgroup and all above it, from the root down.
func (a *assembler) matchCgroup(next string) {
	for level := range int32(maxCgroupDepth) {
		a.add(
			asm.Mov.Imm(asm.R1, level), asm.FnGetCurrentAncestorCgroupId.Call(),
			asm.JEq.Imm(asm.R0, 0, next),
		)
		a.store(slotKey+8, asm.R0)
		a.tryRule(uint32(Cgroup))
	}
}

// matchExe tries device and inode of the task's program file.
func (a *assembler) matchExe(o *offsets) {
	if o == nil {
		return
	}
	done := a.newLabel()
	follow := func(offset int32) {
		a.load(asm.R7, slotPointer)
		a.readKernel(slotPointer, 8, asm.R7, offset, done)
	}
	a.add(asm.FnGetCurrentTask.Call(), asm.Mov.Reg(asm.R7, asm.R0))
	a.readKernel(slotPointer, 8, asm.R7, o.mm, done)
	follow(o.exeFile)
	follow(o.fileInode)
	a.load(asm.R7, slotPointer)
	a.readKernel(slotKey+16, 8, asm.R7, o.inodeNumber, done)
	a.readKernel(slotPointer, 8, asm.R7, o.inodeSB, done)
	a.load(asm.R7, slotPointer)
	a.storeImm(slotPointer, 0)
	a.readKernel(slotPointer, 4, asm.R7, o.superDev, done)
	a.add(asm.LoadMem(asm.R1, asm.RFP, slotPointer, asm.Word))
	a.store(slotKey+8, asm.R1)
	a.tryRule(uint32(Exe))
	a.at(done)
	a.storeImm(slotKey+16, 0)
}

// taskName stores the process's name (its group leader's), or the thread's
// where the kernel's structures cannot be read.
func (a *assembler) taskName(o *offsets, slot int32) {
	a.storeImm(int16(slot), 0)
	a.storeImm(int16(slot)+8, 0)
	if o == nil {
		a.address(asm.R1, slot)
		a.add(asm.Mov.Imm(asm.R2, 16), asm.FnGetCurrentComm.Call())
		return
	}
	failed := a.newLabel()
	a.add(asm.FnGetCurrentTask.Call(), asm.Mov.Reg(asm.R7, asm.R0))
	a.readKernel(slotPointer, 8, asm.R7, o.groupLeader, failed)
	a.load(asm.R3, slotPointer)
	a.add(asm.Add.Imm(asm.R3, o.comm))
	a.address(asm.R1, slot)
	a.add(asm.Mov.Imm(asm.R2, 16), asm.FnProbeReadKernelStr.Call())
	a.at(failed)
}
