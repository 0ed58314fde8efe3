//go:build linux

package redirect

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Finding is one line of a doctor's report about what the steering needs.
type Finding struct {
	Name   string // short and stable: "nft-fib", "forward-chain"
	OK     bool
	Detail string // what was found
	Cure   string // the command that cures it; "" when OK
}

// Probe looks for what would keep the steering of cfg from working: a missing
// capability, kernel features and settings, firewalls of others that drop
// what goes into the TUN. It changes nothing. Of cfg TUN (which need not exist
// yet), Interfaces and Name count; that Interfaces exist is the caller's to
// check. It looks in the calling thread's network namespace and needs
// CAP_NET_ADMIN to see everything.
func Probe(cfg Config) []Finding {
	if cfg.TUN == "" {
		cfg.TUN = "mitm0"
	}
	if cfg.Name == "" {
		cfg.Name = DefaultName
	}
	list := []Finding{probeCapability()}
	if list[0].OK {
		list = append(list, probeNftables()...)
	}
	list = append(list, probeForwarding(cfg), probeRPFilter(cfg.TUN), probeIPv6(cfg.TUN))
	if list[0].OK {
		list = append(list, probeConflicts(cfg)...)
	}
	return list
}

func probeCapability() Finding {
	f := Finding{Name: "cap-net-admin", Detail: "CAP_NET_ADMIN is there"}
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&head, &data[0]); err != nil {
		f.Detail = fmt.Sprintf("reading the capabilities failed: %v", err)
		f.Cure = "run as root"
		return f
	}
	f.OK = data[0].Effective&(1<<unix.CAP_NET_ADMIN) != 0
	if !f.OK {
		f.Detail = "CAP_NET_ADMIN is missing: neither nftables nor routes can be changed"
		f.Cure = "run as root, or AmbientCapabilities=CAP_NET_ADMIN in the systemd unit"
	}
	return f
}

// probeNftables tries each feature in a transaction that also removes its
// table again, so that nothing is ever in force.
func probeNftables() []Finding {
	set := func(size nftables.SetDatatype) func(*nftables.Conn, *nftables.Chain) error {
		return func(conn *nftables.Conn, chain *nftables.Chain) error {
			return conn.AddSet(&nftables.Set{Table: chain.Table, ID: 1, Name: "s", KeyType: size, Interval: true, HasTimeout: true}, nil)
		}
	}
	rule := func(exprs ...expr.Any) func(*nftables.Conn, *nftables.Chain) error {
		return func(conn *nftables.Conn, chain *nftables.Chain) error {
			conn.AddRule(&nftables.Rule{Table: chain.Table, Chain: chain, Exprs: exprs})
			return nil
		}
	}
	var list []Finding
	for _, p := range []struct {
		name, what, option string
		queue              func(*nftables.Conn, *nftables.Chain) error
	}{
		{"nftables", "nftables with inet tables", "CONFIG_NF_TABLES_INET", rule()},
		{"nft-fib", "nftables fib expression", "CONFIG_NFT_FIB_INET", rule(&expr.Fib{Register: 1, FlagDADDR: true, ResultADDRTYPE: true})},
		{"nft-set-timeout", "nftables interval sets with timeout", "CONFIG_NF_TABLES", set(nftables.TypeIP6Addr)},
		{"nft-socket-cgroupv2", "nftables socket cgroupv2 expression", "CONFIG_NFT_SOCKET", rule(&expr.Socket{Key: expr.SocketKeyCgroupv2, Level: 1, Register: 1})},
	} {
		list = append(list, featureFinding(p.name, p.what, p.option, tryTransaction(p.queue)))
	}
	probe := newTable("mitm_appliance_probe")
	_, err := probe.createOwned()
	probe.release()
	return append(list, featureFinding("nft-table-owner", "nftables tables with an owner (for fail-open)", "Linux 5.12", err))
}

func tryTransaction(queue func(*nftables.Conn, *nftables.Chain) error) error {
	conn, err := dial()
	if err != nil {
		return err
	}
	table := conn.AddTable(&nftables.Table{Name: "mitm_appliance_probe", Family: nftables.TableFamilyINet})
	chain := conn.AddChain(&nftables.Chain{Table: table, Name: "c"})
	if err := queue(conn, chain); err != nil {
		return err
	}
	conn.DelTable(table)
	return conn.Flush()
}

func featureFinding(name, what, option string, err error) Finding {
	if err != nil {
		return Finding{Name: name, Detail: fmt.Sprintf("%s: %v", what, err), Cure: "use a kernel with " + option}
	}
	return Finding{Name: name, OK: true, Detail: what + " work"}
}

func probeForwarding(cfg Config) Finding {
	f := Finding{Name: "forwarding", OK: true, Detail: "forwarding is on or can be switched on"}
	var off []string
	for _, s := range wantedSettings(cfg.TUN, cfg.Interfaces, false) {
		if strings.HasSuffix(s.Key, "/forwarding") && !reachable(s, cfg.TUN) {
			off = append(off, s.Key+"=1")
		}
	}
	if len(off) > 0 {
		f.OK, f.Detail = false, "forwarding is off and cannot be switched on: /proc/sys is read-only here"
		f.Cure = "sysctl -w " + strings.Join(off, " ") + "; in the systemd unit ProtectKernelTunables=no"
	}
	return f
}

// reachable says that a setting has its value or that it can be written. The
// settings of a TUN that does not exist yet are judged by those of "all". Those of
// another interface that does not exist are no obstacle: the interface is.
func reachable(s setting, tun string) bool {
	key := s.Key
	if _, err := readSysctl(key); errors.Is(err, os.ErrNotExist) {
		if !strings.Contains(key, "/"+tun+"/") {
			return true
		}
		key = strings.Replace(key, "/"+tun+"/", "/all/", 1)
	} else if value, err := readSysctl(key); err == nil && value == s.New {
		return true
	}
	file, err := os.OpenFile("/proc/sys/"+key, os.O_WRONLY, 0)
	if err != nil {
		return false
	}
	_ = file.Close()
	return true
}

func probeRPFilter(tun string) Finding {
	f := Finding{Name: "rp-filter", OK: true}
	own, err := readSysctl("net/ipv4/conf/" + tun + "/rp_filter")
	all, _ := readSysctl("net/ipv4/conf/all/rp_filter")
	f.Detail = fmt.Sprintf("reverse-path filter: all=%s, %s=%s", all, tun, own)
	if err != nil {
		f.Detail = fmt.Sprintf("reverse-path filter: all=%s; %s does not exist yet", all, tun)
	}
	s := setting{Key: "net/ipv4/conf/" + tun + "/rp_filter", New: "2"}
	strict := all == "1" || own == "1"
	if strict && !reachable(s, tun) {
		f.OK = false
		f.Detail += ": replies out of the TUN would be dropped"
		f.Cure = "sysctl -w net.ipv4.conf." + tun + ".rp_filter=2; in the systemd unit ProtectKernelTunables=no"
	}
	return f
}

func probeIPv6(tun string) Finding {
	f := Finding{Name: "ipv6", Detail: "IPv6 is on", OK: true}
	for _, name := range []string{"all", tun} {
		value, err := readSysctl("net/ipv6/conf/" + name + "/disable_ipv6")
		switch {
		case err != nil && name == "all":
			return Finding{
				Name: "ipv6", Detail: "the kernel has no IPv6: IPv6 traffic is not captured",
				Cure: "remove ipv6.disable=1 from the kernel command line",
			}
		case err == nil && value != "0":
			return Finding{
				Name: "ipv6", Detail: "IPv6 is disabled on " + name + ": IPv6 traffic is not captured",
				Cure: "sysctl -w net.ipv6.conf." + name + ".disable_ipv6=0",
			}
		}
	}
	return f
}

// probeConflicts looks for firewalls of others that drop what is forwarded
// between the LAN interfaces and the TUN.
func probeConflicts(cfg Config) []Finding {
	ruleset, err := readForeignRules(cfg.Name)
	if err != nil {
		return []Finding{{Name: "forward-chain", Detail: fmt.Sprintf("reading the ruleset failed: %v", err), Cure: "run as root"}}
	}
	interfaces := cfg.Interfaces
	if len(interfaces) == 0 {
		interfaces, _ = DefaultInterfaces(cfg.TUN)
	}
	if len(interfaces) == 0 {
		interfaces = []string{"LAN"} // the cure then says where the interface's name belongs
	}
	var list []Finding
	for _, lan := range interfaces {
		list = append(list, ruleset.conflicts(lan, cfg.TUN)...)
		list = append(list, legacyConflicts(lan, cfg.TUN)...)
	}
	list = append(list, ruleset.sourceChecks()...)
	if !slices.ContainsFunc(list, func(f Finding) bool { return !f.OK }) {
		list = append(list, Finding{Name: "forward-chain", OK: true, Detail: "no firewall drops what goes into the TUN"})
	}
	return list
}
