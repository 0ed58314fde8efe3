//go:build linux

package redirect

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Socket options of the old iptables, the same numbers for both families.
const (
	getInfo    = 64 // IPT_SO_GET_INFO
	getEntries = 65 // IPT_SO_GET_ENTRIES

	tableNameSize = 32
	infoSize      = tableNameSize + 4 + 5*4 + 5*4 + 4 + 4 // struct ipt_getinfo
	entriesHead   = tableNameSize + 8                     // struct ipt_get_entries, aligned
	maxLegacySize = 16 << 20

	// A verdict is stored as -verdict-1 (linux/netfilter/x_tables.h).
	verdictDrop   = -1
	verdictAccept = -2
)

// legacyEntry says where things lie in the kernel's ipt_entry and ip6t_entry
// (linux/netfilter_ipv4/ip_tables.h, linux/netfilter_ipv6/ip6_tables.h).
type legacyEntry struct {
	family, level   int
	names, tool     string
	in, out, target int // offsets of the interface names and of target_offset
}

// legacyConflicts looks into the old iptables, which nftables does not show. It
// knows the policy of FORWARD and rules that name both interfaces.
func legacyConflicts(lan, tun string) []Finding {
	var list []Finding
	for _, l := range []legacyEntry{
		{unix.AF_INET, unix.SOL_IP, "ip_tables_names", "iptables-legacy", 16, 32, 88},
		{unix.AF_INET6, unix.SOL_IPV6, "ip6_tables_names", "ip6tables-legacy", 64, 80, 140},
	} {
		drops, table, err := l.read()
		if err != nil || !drops || l.accepts(table, lan, tun) && l.accepts(table, tun, lan) {
			continue
		}
		format := l.tool + " -I FORWARD -i %s -o %s -j ACCEPT"
		list = append(list, Finding{
			Name:   "forward-chain",
			Detail: fmt.Sprintf("%s: chain FORWARD drops what is forwarded between %s and %s", l.tool, lan, tun),
			Cure:   fmt.Sprintf(format, lan, tun) + " && " + fmt.Sprintf(format, tun, lan),
		})
	}
	return list
}

// accepts looks for a rule that accepts exactly these interfaces.
func (l legacyEntry) accepts(table []byte, in, out string) bool {
	for len(table) >= l.target+4 {
		target := int(binary.NativeEndian.Uint16(table[l.target:]))
		next := int(binary.NativeEndian.Uint16(table[l.target+2:]))
		if next <= 0 || next > len(table) {
			return false
		}
		if v, ok := legacyVerdict(table[:next], target); ok && v == verdictAccept &&
			unix.ByteSliceToString(table[l.in:l.in+unix.IFNAMSIZ]) == in && unix.ByteSliceToString(table[l.out:l.out+unix.IFNAMSIZ]) == out {
			return true
		}
		table = table[next:]
	}
	return false
}

// legacyVerdict reads the verdict of a standard target (the one without a name).
func legacyVerdict(entry []byte, target int) (int32, bool) {
	const head = 32 // struct xt_entry_target
	if target < 0 || target+head+4 > len(entry) || entry[target+2] != 0 {
		return 0, false
	}
	return int32(binary.NativeEndian.Uint32(entry[target+head:])), true
}

// read returns the rules of the old filter table and whether the policy of
// FORWARD is drop. A table that is not loaded is not asked for: asking would
// load it.
func (l legacyEntry) read() (drops bool, table []byte, err error) {
	names, err := os.ReadFile("/proc/thread-self/net/" + l.names)
	if err != nil || !slices.Contains(strings.Fields(string(names)), "filter") {
		return false, nil, err
	}
	fd, err := unix.Socket(l.family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return false, nil, fmt.Errorf("redirect: open a raw socket (needs CAP_NET_RAW): %w", err)
	}
	defer unix.Close(fd)
	info := make([]byte, infoSize)
	copy(info, "filter")
	if err := getsockopt(fd, l.level, getInfo, info); err != nil {
		return false, nil, err
	}
	const forward = 2 // NF_INET_FORWARD
	underflow := int(binary.NativeEndian.Uint32(info[tableNameSize+4+5*4+forward*4:]))
	size := int(binary.NativeEndian.Uint32(info[infoSize-4:]))
	if size > maxLegacySize || underflow < 0 || underflow >= size {
		return false, nil, errors.New("redirect: the old filter table is too large to read")
	}
	entries := make([]byte, entriesHead+size)
	copy(entries, "filter")
	binary.NativeEndian.PutUint32(entries[tableNameSize:], uint32(size))
	if err := getsockopt(fd, l.level, getEntries, entries); err != nil {
		return false, nil, err
	}
	table = entries[entriesHead:]
	policy := table[underflow:]
	if len(policy) < l.target+4 {
		return false, nil, errors.New("redirect: the old filter table has no policy")
	}
	verdict, ok := legacyVerdict(policy, int(binary.NativeEndian.Uint16(policy[l.target:])))
	return ok && verdict == verdictDrop, table, nil
}

// getsockopt fills buf, which also says what is asked for.
func getsockopt(fd, level, option int, buf []byte) error {
	length := uint32(len(buf))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), uintptr(option),
		uintptr(unsafe.Pointer(&buf[0])), uintptr(unsafe.Pointer(&length)), 0)
	runtime.KeepAlive(buf)
	if errno != 0 {
		return fmt.Errorf("redirect: read the old filter table: %w", errno)
	}
	return nil
}
