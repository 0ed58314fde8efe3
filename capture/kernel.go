//go:build linux

package capture

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf/btf"
)

// offsets say where this kernel keeps what the programs read of a task. They
// differ between kernels, so they come from its own type information (BTF).
type offsets struct {
	groupLeader, comm, mm int32 // task_struct
	exeFile               int32 // mm_struct
	fileInode             int32 // file
	inodeNumber, inodeSB  int32 // inode
	superDev              int32 // super_block
}

// kernelOffsets reads the offsets of the running kernel.
func kernelOffsets() (*offsets, error) {
	spec, err := btf.LoadKernelSpec()
	if err != nil {
		return nil, fmt.Errorf("read the kernel's type information: %w", err)
	}
	var o offsets
	for _, want := range []struct {
		typ, member string
		to          *int32
	}{
		{"task_struct", "group_leader", &o.groupLeader},
		{"task_struct", "comm", &o.comm},
		{"task_struct", "mm", &o.mm},
		{"mm_struct", "exe_file", &o.exeFile},
		{"file", "f_inode", &o.fileInode},
		{"inode", "i_ino", &o.inodeNumber},
		{"inode", "i_sb", &o.inodeSB},
		{"super_block", "s_dev", &o.superDev},
	} {
		var typ *btf.Struct
		if err := spec.TypeByName(want.typ, &typ); err != nil {
			return nil, fmt.Errorf("find struct %s in the kernel's type information: %w", want.typ, err)
		}
		bits, ok := memberOffset(typ.Members, want.member)
		if !ok {
			return nil, fmt.Errorf("the kernel's struct %s has no member %s", want.typ, want.member)
		}
		if bits%8 != 0 {
			return nil, errors.New("a member of the kernel's structs is a bit field")
		}
		*want.to = int32(bits / 8)
	}
	return &o, nil
}

// memberOffset looks for a member by name, also inside anonymous members.
func memberOffset(members []btf.Member, name string) (btf.Bits, bool) {
	for _, m := range members {
		if m.Name == name {
			return m.Offset, true
		}
		if m.Name != "" {
			continue
		}
		var inner []btf.Member
		switch typ := btf.UnderlyingType(m.Type).(type) {
		case *btf.Struct:
			inner = typ.Members
		case *btf.Union:
			inner = typ.Members
		}
		if offset, ok := memberOffset(inner, name); ok {
			return m.Offset + offset, true
		}
	}
	return 0, false
}
