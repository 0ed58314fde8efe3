//go:build linux

package redirect

import (
	"fmt"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// maxOutputRules bounds each list of OutputRules: the kernel walks them for
// every packet that this host sends.
const maxOutputRules = 256

// OutputRules capture packets of this host's own processes without eBPF, by an
// nftables chain of type route at the output hook. A packet is captured when
// All is set or when its socket is one of the named; the Except lists win. What
// already carries one of our marks, goes to loopback, to this host or to a
// group is never captured. The zero value captures nothing.
//
// Connections are judged by their first packet, with the kernel's connection
// tracking: older ones, and what services of this host answer, are left alone.
//
// Unlike with eBPF the client address seen behind the TUN is the host's own,
// and a process that is moved into a cgroup is matched only by the sockets
// it makes afterwards.
type OutputRules struct {
	All           bool
	UIDs          []uint32
	Cgroups       []Cgroup
	ExceptUIDs    []uint32
	ExceptCgroups []Cgroup
}

// Cgroup names a version 2 cgroup and everything below it.
type Cgroup struct {
	ID    uint64 // inode number of its directory
	Level uint32 // how many levels it lies below the root of the cgroup2 tree, at least 1
}

func (o OutputRules) empty() bool { return !o.All && len(o.UIDs) == 0 && len(o.Cgroups) == 0 }

func (o OutputRules) clone() OutputRules {
	o.UIDs, o.Cgroups = slices.Clone(o.UIDs), slices.Clone(o.Cgroups)
	o.ExceptUIDs, o.ExceptCgroups = slices.Clone(o.ExceptUIDs), slices.Clone(o.ExceptCgroups)
	return o
}

func (o OutputRules) check() error {
	for _, n := range []int{len(o.UIDs), len(o.Cgroups), len(o.ExceptUIDs), len(o.ExceptCgroups)} {
		if n > maxOutputRules {
			return fmt.Errorf("redirect: %d users or cgroups to capture: the limit is %d; put the processes into one cgroup", n, maxOutputRules)
		}
	}
	for _, c := range slices.Concat(o.Cgroups, o.ExceptCgroups) {
		if c.ID == 0 || c.Level == 0 || c.Level > 255 {
			return fmt.Errorf("redirect: cgroup id %d at level %d: the id must not be 0 and the level must be 1 to 255", c.ID, c.Level)
		}
	}
	return nil
}

func (t *table) addLocalRules(conn *nftables.Conn, m Marks, o OutputRules) {
	add := t.adder(conn, chainLocal)
	add("loopback", &expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte("lo\x00")}, verdict(expr.VerdictReturn))
	add("the appliance's own", &expr.Meta{Key: expr.MetaKeyMARK, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(m.Mask), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)}, verdict(expr.VerdictReturn))
	t.addExemptions(add)
	t.addConnectionRules(add, m)
	for _, match := range socketMatches(o.ExceptUIDs, o.ExceptCgroups) {
		add("excepted", append(match, verdict(expr.VerdictReturn))...)
	}
	capture := append(rememberCapture(m), setMark(m)...)
	if o.All {
		add("into the TUN", capture...)
		return
	}
	for _, match := range socketMatches(o.UIDs, o.Cgroups) {
		add("into the TUN", append(match, capture...)...)
	}
}

// addConnectionRules makes the chain judge connections, not packets: what a service of this host
// answers, and connections that were there before, are never captured; one that was captured stays so,
// whatever its process does.
func (t *table) addConnectionRules(add func(comment string, exprs ...expr.Any), m Marks) {
	const ctDirReply, ctEstablished, tcpSYN = 1, 1 << 1, 0x02 // linux/netfilter/nf_conntrack_common.h, RFC 9293
	add("answers", &expr.Ct{Key: expr.CtKeyDIRECTION, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{ctDirReply}}, verdict(expr.VerdictReturn))
	captured := append(masked(&expr.Ct{Key: expr.CtKeyMARK, Register: 1}, m.Mask),
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(m.Capture)})
	add("captured connections", slices.Concat(captured, setMark(m), []expr.Any{verdict(expr.VerdictReturn)})...)
	add("older connections", append(masked(&expr.Ct{Key: expr.CtKeySTATE, Register: 1}, ctEstablished),
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)}, verdict(expr.VerdictReturn))...)
	// Connection tracking may begin with our rules and then takes an old connection for a new one.
	add("older TCP connections", &expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_TCP}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 13, Len: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 1, Mask: []byte{tcpSYN}, Xor: []byte{0}},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{0}}, verdict(expr.VerdictReturn))
}

// masked loads 32 bits into register 1 and keeps those in mask.
func masked(load expr.Any, mask uint32) []expr.Any {
	return []expr.Any{load, &expr.Bitwise{
		SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(mask), Xor: make([]byte, 4),
	}}
}

// rememberCapture sets the capture mark of the connection, under the mask.
func rememberCapture(m Marks) []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeyMARK, Register: 1},
		&expr.Bitwise{
			SourceRegister: 1, DestRegister: 1, Len: 4,
			Mask: binaryutil.NativeEndian.PutUint32(^m.Mask), Xor: binaryutil.NativeEndian.PutUint32(m.Capture),
		},
		&expr.Ct{Key: expr.CtKeyMARK, Register: 1, SourceRegister: true},
	}
}

func socketMatches(uids []uint32, cgroups []Cgroup) [][]expr.Any {
	var list [][]expr.Any
	for _, uid := range uids {
		list = append(list, []expr.Any{
			&expr.Meta{Key: expr.MetaKeySKUID, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(uid)},
		})
	}
	for _, c := range cgroups {
		list = append(list, []expr.Any{
			&expr.Socket{Key: expr.SocketKeyCgroupv2, Level: c.Level, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.NativeEndian.PutUint64(c.ID)},
		})
	}
	return list
}

// setOutput replaces the chain for local traffic in one transaction.
func (t *table) setOutput(m Marks, o OutputRules) error {
	err := t.change("change what is captured on this host", func(conn *nftables.Conn) error {
		chain := t.chains[chainLocal]
		conn.AddChain(chain)
		conn.FlushChain(chain)
		if o.empty() {
			conn.DelChain(chain)
		} else {
			t.addLocalRules(conn, m, o)
		}
		return nil
	})
	if err != nil {
		return err
	}
	return t.remember()
}

// remember notes the handles of our rules: the kernel never gives a handle
// twice, so any change by somebody else shows.
func (t *table) remember() error {
	var err error
	t.handles, err = t.readHandles()
	return err
}

func (t *table) readHandles() (map[string][]uint64, error) {
	conn, err := dial()
	if err != nil {
		return nil, explain("read the nftables table", err)
	}
	chains, err := conn.ListChainsOfTableFamily(t.Family)
	if err != nil {
		return nil, explain("read the nftables table", err)
	}
	handles := map[string][]uint64{}
	for _, chain := range chains {
		if chain.Table == nil || chain.Table.Name != t.Name {
			continue
		}
		rules, err := conn.GetRules(t.Table, chain)
		if err != nil && !isGone(err) {
			return nil, explain("read the nftables table", err)
		}
		for _, rule := range rules {
			handles[chain.Name] = append(handles[chain.Name], rule.Handle)
		}
	}
	return handles, nil
}

// interfaces reads which LAN interfaces the kernel's set names.
func (t *table) interfaces() ([]string, error) {
	conn, err := dial()
	if err != nil {
		return nil, explain("read the nftables table", err)
	}
	elements, err := conn.GetSetElements(t.sets[setLAN])
	if err != nil && !isGone(err) {
		return nil, explain("read the nftables table", err)
	}
	var names []string
	for _, e := range elements {
		names = append(names, unix.ByteSliceToString(e.Key))
	}
	slices.Sort(names)
	return names, nil
}
