//go:build linux

package redirect

import (
	"bytes"
	"fmt"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
)

// maxJumps is the kernel's own limit on nested chains (NFT_JUMP_STACK_SIZE).
const maxJumps = 16

// Connection tracking states as nftables numbers them.
const (
	ctEstablished = 1 << 1
	ctNew         = 1 << 3
)

// foreignRules are the tables of others, as far as forwarding is concerned.
type foreignRules struct {
	chains map[string]*foreignChain // by family, table and chain name
	sets   map[string][][]byte      // elements of the interface sets in use, likewise
}

type foreignChain struct {
	*nftables.Chain
	rules []*nftables.Rule
}

func chainKey(t *nftables.Table, name string) string {
	return fmt.Sprintf("%d %s %s", t.Family, t.Name, name)
}

// readForeignRules reads every IP table but our own.
func readForeignRules(own string) (*foreignRules, error) {
	conn, err := dial()
	if err != nil {
		return nil, err
	}
	chains, err := conn.ListChains()
	if err != nil {
		return nil, err
	}
	f := &foreignRules{chains: map[string]*foreignChain{}, sets: map[string][][]byte{}}
	families := []nftables.TableFamily{nftables.TableFamilyINet, nftables.TableFamilyIPv4, nftables.TableFamilyIPv6}
	for _, chain := range chains {
		if chain.Table == nil || !slices.Contains(families, chain.Table.Family) || chain.Table.Name == own {
			continue
		}
		rules, err := conn.GetRules(chain.Table, chain)
		if err != nil {
			rules = nil // it vanished, or holds something the library cannot read
		}
		f.chains[chainKey(chain.Table, chain.Name)] = &foreignChain{chain, rules}
		for _, rule := range rules {
			f.readSets(conn, chain.Table, rule)
		}
	}
	return f, nil
}

// readSets reads the sets that a rule compares interface names with.
func (f *foreignRules) readSets(conn *nftables.Conn, table *nftables.Table, rule *nftables.Rule) {
	for i, e := range rule.Exprs {
		lookup, ok := e.(*expr.Lookup)
		if !ok || i == 0 || lookup.IsDestRegSet {
			continue
		}
		meta, ok := rule.Exprs[i-1].(*expr.Meta)
		if !ok || meta.Key != expr.MetaKeyIIFNAME && meta.Key != expr.MetaKeyOIFNAME {
			continue
		}
		elements, err := conn.GetSetElements(&nftables.Set{Table: table, Name: lookup.SetName})
		if err != nil {
			continue
		}
		key := chainKey(table, lookup.SetName)
		for _, element := range elements {
			f.sets[key] = append(f.sets[key], element.Key)
		}
	}
}

// conflicts evaluates every base chain at the forward hook for the first packet
// of a flow and for its reply. It is a judgement, not a simulation: rules with
// conditions on anything but interfaces and connection state are taken as not
// matching.
func (f *foreignRules) conflicts(lan, tun string) []Finding {
	var list []Finding
	for _, chain := range f.chains {
		if chain.Hooknum == nil || *chain.Hooknum != *nftables.ChainHookForward || chain.Type != nftables.ChainTypeFilter {
			continue
		}
		there := f.judge(chain, packet{lan, tun, ctNew}, 0)
		back := f.judge(chain, packet{tun, lan, ctEstablished}, 0)
		if there == dropped || back == dropped {
			list = append(list, Finding{
				Name:   "forward-chain",
				Detail: fmt.Sprintf("table %s %s, chain %s drops what is forwarded between %s and %s", familyName(chain.Table.Family), chain.Table.Name, chain.Name, lan, tun),
				Cure:   f.cure(chain, lan, tun),
			})
		}
	}
	slices.SortFunc(list, func(a, b Finding) int { return strings.Compare(a.Detail, b.Detail) })
	return list
}

// packet is what the judgement knows of one.
type packet struct {
	in, out string
	state   uint32
}

type fate int

const (
	undecided fate = iota
	accepted
	dropped
	returned
)

func (f *foreignRules) judge(chain *foreignChain, p packet, depth int) fate {
	if chain == nil || depth > maxJumps {
		return undecided
	}
	for _, rule := range chain.rules {
		switch result := f.judgeRule(rule, p, depth); result {
		case undecided:
			continue
		case returned:
			return f.end(chain)
		default:
			return result
		}
	}
	return f.end(chain)
}

// end is what happens after the last rule: the policy, or back to the caller.
func (f *foreignRules) end(chain *foreignChain) fate {
	switch {
	case chain.Hooknum == nil:
		return undecided
	case chain.Policy != nil && *chain.Policy == nftables.ChainPolicyDrop:
		return dropped
	}
	return accepted
}

// judgeRule walks the expressions of a rule; what is loaded is what the last
// one put into the register.
func (f *foreignRules) judgeRule(rule *nftables.Rule, p packet, depth int) fate {
	var loaded any
	for _, e := range rule.Exprs {
		matches := true
		switch e := e.(type) {
		case *expr.Counter, *expr.Log:
		case *expr.Meta:
			loaded = p.meta(e.Key)
		case *expr.Ct:
			loaded = p.ct(e.Key)
		case *expr.Bitwise:
			loaded = mask(loaded, e.Mask)
		case *expr.Cmp:
			matches = compare(loaded, e)
		case *expr.Lookup:
			matches = f.lookup(rule.Table, loaded, e)
		case *expr.Match: // an iptables match
			matches = p.state == ctEstablished && (e.Name == "conntrack" || e.Name == "state")
		case *expr.Reject:
			return dropped
		case *expr.Verdict:
			return f.follow(rule.Table, e, p, depth)
		default:
			matches = false
		}
		if !matches {
			return undecided
		}
	}
	return undecided
}

func (f *foreignRules) follow(table *nftables.Table, v *expr.Verdict, p packet, depth int) fate {
	switch v.Kind {
	case expr.VerdictAccept:
		return accepted
	case expr.VerdictDrop:
		return dropped
	case expr.VerdictReturn:
		return returned
	case expr.VerdictJump:
		return f.judge(f.chains[chainKey(table, v.Chain)], p, depth+1)
	case expr.VerdictGoto:
		if result := f.judge(f.chains[chainKey(table, v.Chain)], p, depth+1); result != undecided {
			return result
		}
		return returned
	}
	return undecided
}

func (p packet) meta(key expr.MetaKey) any {
	switch key {
	case expr.MetaKeyIIFNAME:
		return p.in
	case expr.MetaKeyOIFNAME:
		return p.out
	}
	return nil
}

func (p packet) ct(key expr.CtKey) any {
	if key == expr.CtKeySTATE {
		return p.state
	}
	return nil
}

func mask(loaded any, bits []byte) any {
	if state, ok := loaded.(uint32); ok && len(bits) == 4 {
		return state & binaryutil.NativeEndian.Uint32(bits)
	}
	return nil
}

func compare(loaded any, c *expr.Cmp) bool {
	var equal bool
	switch value := loaded.(type) {
	case string:
		equal = sameName(value, c.Data)
	case uint32:
		equal = len(c.Data) == 4 && value == binaryutil.NativeEndian.Uint32(c.Data)
	default:
		return false
	}
	return c.Op == expr.CmpOpEq && equal || c.Op == expr.CmpOpNeq && !equal
}

// sameName compares with a name in a rule; one without a final NUL stands for
// all that begin with it ("eth*").
func sameName(name string, data []byte) bool {
	if text, _, exact := bytes.Cut(data, []byte{0}); exact {
		return name == string(text)
	}
	return strings.HasPrefix(name, string(data))
}

func (f *foreignRules) lookup(table *nftables.Table, loaded any, l *expr.Lookup) bool {
	name, ok := loaded.(string)
	elements, known := f.sets[chainKey(table, l.SetName)]
	if !ok || !known || l.IsDestRegSet {
		return false
	}
	found := slices.ContainsFunc(elements, func(key []byte) bool { return sameName(name, key) })
	return found != l.Invert
}

func familyName(family nftables.TableFamily) string {
	switch family {
	case nftables.TableFamilyIPv4:
		return "ip"
	case nftables.TableFamilyIPv6:
		return "ip6"
	}
	return "inet"
}

// cure is the command for the program that owns the chain.
func (f *foreignRules) cure(chain *foreignChain, lan, tun string) string {
	has := func(name string) bool { return f.chains[chainKey(chain.Table, name)] != nil }
	iptables := "iptables"
	if chain.Table.Family == nftables.TableFamilyIPv6 {
		iptables = "ip6tables"
	}
	both := func(format string) string {
		return fmt.Sprintf(format, lan, tun) + " && " + fmt.Sprintf(format, tun, lan)
	}
	switch {
	case has("DOCKER-USER"):
		return both(iptables + " -I DOCKER-USER -i %s -o %s -j ACCEPT")
	case has("ufw-user-forward"), has("ufw6-user-forward"):
		return both("ufw route allow in on %s out on %s")
	case chain.Table.Name == "firewalld":
		return fmt.Sprintf("firewall-cmd --permanent --zone=trusted --add-interface=%s && firewall-cmd --permanent --new-policy=mitm && "+
			"firewall-cmd --permanent --policy=mitm --add-ingress-zone=ANY && firewall-cmd --permanent --policy=mitm --add-egress-zone=trusted && "+
			"firewall-cmd --permanent --policy=mitm --set-target=ACCEPT && firewall-cmd --reload", tun)
	case chain.Table.Name == "filter" && chain.Name == "FORWARD":
		return both(iptables + " -I FORWARD -i %s -o %s -j ACCEPT")
	}
	rule := fmt.Sprintf("nft insert rule %s %s %s", familyName(chain.Table.Family), chain.Table.Name, chain.Name)
	return both(rule + " iifname %s oifname %s accept")
}

// sourceChecks finds strict reverse-path filters made of rules (firewalld has
// one for IPv6): replies out of the TUN have sources that are routed elsewhere.
func (f *foreignRules) sourceChecks() []Finding {
	var list []Finding
	for _, chain := range f.chains {
		if chain.Hooknum == nil || *chain.Hooknum != *nftables.ChainHookPrerouting || !slices.ContainsFunc(chain.rules, checksSource) {
			continue
		}
		cure := fmt.Sprintf("nft insert rule %s %s %s iifname TUN accept", familyName(chain.Table.Family), chain.Table.Name, chain.Name)
		if chain.Table.Name == "firewalld" {
			cure = "set IPv6_rpfilter=loose in /etc/firewalld/firewalld.conf && systemctl restart firewalld"
		}
		list = append(list, Finding{
			Name:   "source-check",
			Detail: fmt.Sprintf("table %s %s, chain %s drops packets whose source is routed elsewhere, as replies out of the TUN are", familyName(chain.Table.Family), chain.Table.Name, chain.Name),
			Cure:   cure,
		})
	}
	return list
}

func checksSource(rule *nftables.Rule) bool {
	return slices.ContainsFunc(rule.Exprs, func(e expr.Any) bool {
		switch e := e.(type) {
		case *expr.Fib:
			return e.FlagSADDR && e.FlagIIF && (e.ResultOIF || e.ResultOIFNAME)
		case *expr.Match:
			return e.Name == "rpfilter"
		}
		return false
	})
}
