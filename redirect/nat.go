//go:build linux

package redirect

import (
	"os"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// chainKeep translates the source of what enters the TUN into itself. The
// kernel settles address translation once per flow and direction, so a
// masquerading rule of others that names no interface ("masquerade" alone, or
// docker's for its own networks) then comes too late, and the client's
// address stays what it is. The chain exists only beside such chains, because
// any translation makes the kernel track every connection.
const chainKeep = "keep_source"

// keepPriority is just before that of all others' source translation.
const keepPriority = 99

func (t *table) keepChain() *nftables.Chain {
	accept := nftables.ChainPolicyAccept
	return &nftables.Chain{
		Table: t.Table, Name: chainKeep, Type: nftables.ChainTypeNAT, Policy: &accept,
		Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityRef(keepPriority),
	}
}

func (t *table) addKeepRules(conn *nftables.Conn, tun string) {
	add := t.adder(conn, chainKeep)
	intoTUN := []expr.Any{
		&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: append([]byte(tun), 0)},
	}
	for _, f := range []struct {
		family         byte
		offset, length uint32 // of the source address
	}{{unix.NFPROTO_IPV4, 12, 4}, {unix.NFPROTO_IPV6, 8, 16}} {
		add("no masquerading", append(slices.Clone(intoTUN),
			&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{f.family}},
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: f.offset, Len: f.length},
			&expr.NAT{Type: expr.NATTypeSourceNAT, Family: uint32(f.family), RegAddrMin: 1},
		)...)
	}
}

// othersTranslate says whether somebody else translates sources.
func (t *table) othersTranslate() (bool, error) {
	for _, names := range []string{"ip_tables_names", "ip6_tables_names"} {
		loaded, err := os.ReadFile("/proc/thread-self/net/" + names)
		if err == nil && slices.Contains(strings.Fields(string(loaded)), "nat") {
			return true, nil
		}
	}
	conn, err := dial()
	if err != nil {
		return false, explain("read the nftables chains", err)
	}
	chains, err := conn.ListChains()
	if err != nil {
		return false, explain("read the nftables chains", err)
	}
	return slices.ContainsFunc(chains, func(c *nftables.Chain) bool {
		return c.Type == nftables.ChainTypeNAT && c.Hooknum != nil && *c.Hooknum == *nftables.ChainHookPostrouting &&
			c.Table != nil && (c.Table.Name != t.Name || c.Table.Family != t.Family)
	}), nil
}
