//go:build linux

package redirect

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Names inside of the nftables table.
const (
	chainForwarded = "prerouting" // marks what the LAN sends
	chainLocal     = "output"     // marks what this host sends (OutputRules)
	setLAN         = "lan"
	setExempt      = "exempt" // kinds of destination that are never captured
	setBypass4     = "bypass4"
	setBypass6     = "bypass6"
)

// elementsPerMessage keeps the netlink attribute that holds them below 64 KiB.
const elementsPerMessage = 500

// socketBuffer, in bytes, is what one transaction and its answers may need.
const socketBuffer = 4 << 20

// ruleset is the whole content of our table, as data.
type ruleset struct {
	marks  Marks
	lan    []string
	output OutputRules
	bypass []Bypass // ordered as bypasses.list does
	tun    string
}

// table is our nftables table in the kernel. Every operation uses a netlink
// socket of its own, but for a table with an owner, which lives and dies
// with one socket.
type table struct {
	*nftables.Table
	owner   *nftables.Conn             // nil without "flags owner"
	handles map[string][]uint64        // of the rules, by chain: what Verify compares
	sets    map[string]*nftables.Set   // by name
	chains  map[string]*nftables.Chain // by name
}

func newTable(name string) *table {
	t := &table{Table: &nftables.Table{Name: name, Family: nftables.TableFamilyINet}}
	hook := func(name string, typ nftables.ChainType, at *nftables.ChainHook) *nftables.Chain {
		accept := nftables.ChainPolicyAccept
		return &nftables.Chain{Table: t.Table, Name: name, Type: typ, Hooknum: at, Priority: nftables.ChainPriorityMangle, Policy: &accept}
	}
	t.chains = map[string]*nftables.Chain{
		chainForwarded: hook(chainForwarded, nftables.ChainTypeFilter, nftables.ChainHookPrerouting),
		chainLocal:     hook(chainLocal, nftables.ChainTypeRoute, nftables.ChainHookOutput),
		chainKeep:      t.keepChain(),
	}
	// The numbers name the sets inside of one transaction. Left to the nftables
	// module they would come from a counter that all goroutines share unguarded.
	native := binaryutil.NativeEndian
	t.sets = map[string]*nftables.Set{
		setLAN:     {Table: t.Table, ID: 1, Name: setLAN, KeyType: nftables.TypeIFName, KeyByteOrder: native},
		setExempt:  {Table: t.Table, ID: 2, Name: setExempt, KeyType: nftables.TypeFIBAddr, KeyByteOrder: native},
		setBypass4: {Table: t.Table, ID: 3, Name: setBypass4, KeyType: nftables.TypeIPAddr, Interval: true, HasTimeout: true},
		setBypass6: {Table: t.Table, ID: 4, Name: setBypass6, KeyType: nftables.TypeIP6Addr, Interval: true, HasTimeout: true},
	}
	return t
}

// install replaces whatever table of our name there is. Without an owner this
// is one transaction: at no moment does a packet see half of it, or nothing.
func (t *table) install(rules ruleset, owned bool) error {
	t.release()
	var conn *nftables.Conn
	var err error
	if owned {
		if err = t.remove(); err == nil {
			conn, err = t.createOwned()
		}
	} else if conn, err = dial(); err == nil {
		conn.AddTable(t.Table) // so that the deletion cannot fail
		conn.DelTable(t.Table)
		conn.AddTable(t.Table)
	}
	if err != nil {
		return explain("install the nftables table", err)
	}
	if err := t.fill(conn, rules); err != nil {
		return err
	}
	if err := conn.Flush(); err != nil {
		t.release()
		return explain("install the nftables table", err)
	}
	return t.remember()
}

// createOwned makes an empty table with "flags owner": it disappears together
// with the netlink socket, thus with the process, and nobody else can
// change it (Linux 5.12). The nftables module cannot set table flags, so this
// one message goes directly to the socket that it will then use.
func (t *table) createOwned() (*nftables.Conn, error) {
	var socket *netlink.Conn
	conn, err := dial(nftables.AsLasting(), nftables.WithSockOptions(func(c *netlink.Conn) error {
		socket = c
		return nil
	}))
	if err != nil {
		return nil, err
	}
	const flagOwner = 2 // NFT_TABLE_F_OWNER
	attrs, err := netlink.MarshalAttributes([]netlink.Attribute{
		{Type: unix.NFTA_TABLE_NAME, Data: []byte(t.Name + "\x00")},
		{Type: unix.NFTA_TABLE_FLAGS, Data: binaryutil.BigEndian.PutUint32(flagOwner)},
	})
	if err == nil {
		_, err = socket.SendMessages([]netlink.Message{
			nftMessage(unix.NFNL_MSG_BATCH_BEGIN, 0, unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES, nil),
			nftMessage(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWTABLE, netlink.Acknowledge|netlink.Create, byte(t.Family), 0, attrs),
			nftMessage(unix.NFNL_MSG_BATCH_END, 0, unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES, nil),
		})
	}
	if err == nil {
		_, err = socket.Receive()
	}
	if err != nil {
		_ = conn.CloseLasting()
		return nil, err
	}
	t.owner = conn
	return conn, nil
}

// nftMessage builds a message with the nfgenmsg header of nfnetlink.
func nftMessage(typ, flags netlink.HeaderFlags, family byte, resource uint16, attrs []byte) netlink.Message {
	head := []byte{family, unix.NFNETLINK_V0, byte(resource >> 8), byte(resource)}
	return netlink.Message{
		Header: netlink.Header{Type: netlink.HeaderType(typ), Flags: netlink.Request | flags},
		Data:   append(head, attrs...),
	}
}

// conn returns the socket to change the table with.
func (t *table) conn() (*nftables.Conn, error) {
	if t.owner != nil {
		return t.owner, nil
	}
	return dial()
}

// dial returns a connection that can send a full set of bypassed destinations
// in one transaction.
func dial(opts ...nftables.ConnOption) (*nftables.Conn, error) {
	return nftables.New(append(opts, nftables.WithSockOptions(func(c *netlink.Conn) error {
		return errors.Join(c.SetWriteBuffer(socketBuffer), c.SetReadBuffer(socketBuffer))
	}))...)
}

// release lets an owned table go.
func (t *table) release() {
	if t.owner != nil {
		_ = t.owner.CloseLasting()
		t.owner = nil
	}
}

// remove deletes the table; that there is none is no error.
func (t *table) remove() error {
	t.release()
	conn, err := dial()
	if err != nil {
		return explain("remove the nftables table", err)
	}
	conn.DelTable(t.Table)
	if err := conn.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
		return explain("remove the nftables table", err)
	}
	return nil
}

// fill queues sets, chains and rules.
func (t *table) fill(conn *nftables.Conn, rules ruleset) error {
	elements := map[string][]nftables.SetElement{
		setLAN:     interfaceElements(rules.lan),
		setExempt:  exemptElements(),
		setBypass4: nil,
		setBypass6: nil,
	}
	for name, initial := range elements {
		if err := conn.AddSet(t.sets[name], initial); err != nil {
			return fmt.Errorf("redirect: set %s: %w", name, err)
		}
	}
	if err := t.addBypasses(conn, rules.bypass); err != nil {
		return err
	}
	conn.AddChain(t.chains[chainForwarded])
	t.addForwardedRules(conn, rules.marks)
	if !rules.output.empty() {
		conn.AddChain(t.chains[chainLocal])
		t.addLocalRules(conn, rules.marks, rules.output)
	}
	others, err := t.othersTranslate()
	if err != nil {
		return err
	}
	if others {
		conn.AddChain(t.chains[chainKeep])
		t.addKeepRules(conn, rules.tun)
	}
	return nil
}

func (t *table) addForwardedRules(conn *nftables.Conn, m Marks) {
	add := t.adder(conn, chainForwarded)
	lan := t.sets[setLAN]
	add("only the LAN", &expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1},
		&expr.Lookup{SourceRegister: 1, SetName: lan.Name, SetID: lan.ID, Invert: true}, verdict(expr.VerdictReturn))
	t.addExemptions(add)
	add("into the TUN", setMark(m)...)
}

// addExemptions lets through what the kernel must deliver itself: to this
// host, to everybody on the link, and what the user exempted.
func (t *table) addExemptions(add func(comment string, exprs ...expr.Any)) {
	exempt := t.sets[setExempt]
	add("this host and groups", &expr.Fib{Register: 1, FlagDADDR: true, ResultADDRTYPE: true},
		&expr.Lookup{SourceRegister: 1, SetName: exempt.Name, SetID: exempt.ID}, verdict(expr.VerdictReturn))
	for _, p := range []string{"169.254.0.0/16", "fe80::/10"} {
		add("link-local", append(destinationIn(netip.MustParsePrefix(p)), verdict(expr.VerdictReturn))...)
	}
	for _, name := range []string{setBypass4, setBypass6} {
		set := t.sets[name]
		exprs := loadDestination(set.KeyType.Bytes == 4)
		add("bypassed", append(exprs, &expr.Lookup{SourceRegister: 1, SetName: set.Name, SetID: set.ID}, verdict(expr.VerdictReturn))...)
	}
}

// adder returns a function that queues a rule with a comment.
func (t *table) adder(conn *nftables.Conn, chain string) func(string, ...expr.Any) {
	return func(comment string, exprs ...expr.Any) {
		conn.AddRule(&nftables.Rule{
			Table: t.Table, Chain: t.chains[chain], Exprs: exprs,
			UserData: userdata.AppendString(nil, userdata.TypeComment, comment),
		})
	}
}

func verdict(kind expr.VerdictKind) expr.Any { return &expr.Verdict{Kind: kind} }

// setMark sets the capture mark and leaves the bits outside of the mask alone.
func setMark(m Marks) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: 1},
		&expr.Bitwise{
			SourceRegister: 1, DestRegister: 1, Len: 4,
			Mask: binaryutil.NativeEndian.PutUint32(^m.Mask),
			Xor:  binaryutil.NativeEndian.PutUint32(m.Capture),
		},
		&expr.Meta{Key: expr.MetaKeyMARK, Register: 1, SourceRegister: true},
	}
}

// loadDestination matches the family and loads the destination address.
func loadDestination(v4 bool) []expr.Any {
	family, offset, length := byte(unix.NFPROTO_IPV6), uint32(24), uint32(16)
	if v4 {
		family, offset, length = unix.NFPROTO_IPV4, 16, 4
	}
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{family}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: length},
	}
}

func destinationIn(p netip.Prefix) []expr.Any {
	network := p.Masked().Addr().AsSlice()
	mask := make([]byte, len(network))
	for bit := range p.Bits() {
		mask[bit/8] |= 0x80 >> (bit % 8)
	}
	return append(loadDestination(p.Addr().Is4()),
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: uint32(len(network)), Mask: mask, Xor: make([]byte, len(network))},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: network})
}

func interfaceElements(names []string) []nftables.SetElement {
	var list []nftables.SetElement
	for _, name := range names {
		key := make([]byte, unix.IFNAMSIZ)
		copy(key, name)
		list = append(list, nftables.SetElement{Key: key})
	}
	return list
}

// exemptElements are the kinds of destination, in the words of rtnetlink, that
// are never captured.
func exemptElements() []nftables.SetElement {
	var list []nftables.SetElement
	for _, kind := range []uint32{unix.RTN_LOCAL, unix.RTN_BROADCAST, unix.RTN_ANYCAST, unix.RTN_MULTICAST} {
		list = append(list, nftables.SetElement{Key: binaryutil.NativeEndian.PutUint32(kind)})
	}
	return list
}

// setInterfaces replaces the LAN interfaces in one transaction.
func (t *table) setInterfaces(names []string) error {
	return t.change("change the LAN interfaces", func(conn *nftables.Conn) error {
		conn.FlushSet(t.sets[setLAN])
		if len(names) == 0 {
			return nil
		}
		return conn.SetAddElements(t.sets[setLAN], interfaceElements(names))
	})
}

// setBypasses replaces all bypassed destinations in one transaction.
func (t *table) setBypasses(list []Bypass) error {
	return t.change("change the bypassed destinations", func(conn *nftables.Conn) error {
		conn.FlushSet(t.sets[setBypass4])
		conn.FlushSet(t.sets[setBypass6])
		return t.addBypasses(conn, list)
	})
}

// addBypass adds a destination that overlaps no other.
func (t *table) addBypass(entry Bypass) error {
	return t.change("bypass a destination", func(conn *nftables.Conn) error {
		return t.addBypasses(conn, []Bypass{entry})
	})
}

func (t *table) change(what string, queue func(*nftables.Conn) error) error {
	conn, err := t.conn()
	if err == nil {
		if err = queue(conn); err == nil {
			err = conn.Flush()
		}
	}
	if err != nil {
		return explain(what, err)
	}
	return nil
}

func (t *table) addBypasses(conn *nftables.Conn, list []Bypass) error {
	elements := map[string][]nftables.SetElement{}
	now := time.Now()
	split := slices.IndexFunc(list, func(b Bypass) bool { return b.Prefix.Addr().Is6() })
	if split < 0 {
		split = len(list)
	}
	for _, s := range slices.Concat(spans(list[:split]), spans(list[split:])) {
		name := setBypass4
		if s.first.Is6() {
			name = setBypass6
		}
		start := nftables.SetElement{Key: s.first.AsSlice()}
		if !s.expires.IsZero() {
			start.Timeout = max(s.expires.Sub(now), time.Millisecond)
		}
		elements[name] = append(elements[name], start)
		if end := s.last.Next(); end.IsValid() { // else it is open to the end of the address space
			elements[name] = append(elements[name], nftables.SetElement{Key: end.AsSlice(), IntervalEnd: true})
		}
	}
	for name, all := range elements {
		for chunk := range slices.Chunk(all, elementsPerMessage) {
			if err := conn.SetAddElements(t.sets[name], chunk); err != nil {
				return fmt.Errorf("redirect: set %s: %w", name, err)
			}
		}
	}
	return nil
}

// explain adds the cure where the cause is known.
func explain(what string, err error) error {
	switch {
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return fmt.Errorf("redirect: %s: %w (needs CAP_NET_ADMIN: run as root or grant it to the service)", what, err)
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOENT), errors.Is(err, unix.EAFNOSUPPORT):
		return fmt.Errorf("redirect: %s: %w (does the kernel have nf_tables with inet and fib? see doctor)", what, err)
	}
	return fmt.Errorf("redirect: %s: %w", what, err)
}
