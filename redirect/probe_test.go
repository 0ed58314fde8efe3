//go:build linux

package redirect

import (
	"errors"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"mitm-appliance/internal/netnstest"
)

func (b *box) probe() []Finding {
	b.t.Helper()
	return b.probeOf(netnstest.LAN(0))
}

func (b *box) probeOf(interfaces ...string) []Finding {
	b.t.Helper()
	var list []Finding
	if err := b.Gateway.Gateway.Do(func() error {
		list = Probe(Config{TUN: testTUN, Interfaces: interfaces})
		return nil
	}); err != nil {
		b.t.Fatal(err)
	}
	return list
}

// complaints returns what is not OK, one line each.
func complaints(list []Finding) string {
	var out strings.Builder
	for _, f := range list {
		if !f.OK {
			out.WriteString(f.Name + ": " + f.Detail + " | " + f.Cure + "\n")
		}
	}
	return out.String()
}

func TestProbeIsContentWithAFreshMachineAndLeavesNoTrace(t *testing.T) {
	b := newBox(t)
	before := b.dump()
	list := b.probe()
	if c := complaints(list); c != "" {
		t.Errorf("complaints:\n%s", c)
	}
	for _, f := range list {
		if f.Name == "" || f.Detail == "" || f.OK != (f.Cure == "") {
			t.Errorf("incomplete: %+v", f)
		}
	}
	if d := diff(before, b.dump()); d != "" {
		t.Errorf("probing left (+) or took (-):\n%s", d)
	}
}

// TestProbeBlamesNoSettingForAMissingInterface: a cure that sets what is not there cures nothing.
func TestProbeBlamesNoSettingForAMissingInterface(t *testing.T) {
	b := newBox(t)
	if c := complaints(b.probeOf(netnstest.LAN(0), "absent0")); c != "" {
		t.Errorf("complaints:\n%s", c)
	}
}

// TestFirewallsOfOthers has a firewall drop what goes into the TUN, expects
// Probe to say so with a cure, runs the cure, and expects traffic to flow.
func TestFirewallsOfOthers(t *testing.T) {
	docker := `
		iptables -P FORWARD DROP; iptables -N DOCKER-USER; iptables -A DOCKER-USER -j RETURN
		iptables -A FORWARD -j DOCKER-USER
		iptables -A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
		iptables -A FORWARD -i docker0 ! -o docker0 -j ACCEPT
		iptables -t nat -N DOCKER; iptables -t nat -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
		iptables -t nat -A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE`
	for _, c := range []struct {
		name, setup string
		server      string
		cure        string // "" means that nothing is wrong
	}{
		{"docker with iptables-nft", strings.ReplaceAll(docker, "iptables", "iptables-nft"), netnstest.Server4, "iptables -I DOCKER-USER -i lan0 -o mitm0 -j ACCEPT"},
		{"iptables-nft for IPv6", "ip6tables-nft -P FORWARD DROP", netnstest.Server6, "ip6tables -I FORWARD -i lan0"},
		{"legacy iptables", "iptables-legacy -A FORWARD -i eth7 -j ACCEPT; iptables-legacy -P FORWARD DROP", netnstest.Server4, "iptables-legacy -I FORWARD -i lan0"},
		{"legacy ip6tables", "ip6tables-legacy -P FORWARD DROP", netnstest.Server6, "ip6tables-legacy -I FORWARD -i lan0"},
		{
			"nftables policy", "nft add table inet fw; nft 'add chain inet fw guard { type filter hook forward priority 0; policy drop; }'; nft add rule inet fw guard ct state established,related accept",
			netnstest.Server6, "nft insert rule inet fw guard iifname lan0",
		},
		{"nftables reject at the end", "nft add table ip fw; nft 'add chain ip fw guard { type filter hook forward priority 0; }'; nft add rule ip fw guard counter reject", netnstest.Server4, "nft insert rule ip fw guard"},
		{"drop in a jumped chain", `nft -f - <<E
table inet fw {
	chain lan { tcp dport 22 accept; drop; }
	chain guard { type filter hook forward priority 0; iifname vmap { "x" : drop }; iifname "lan*" jump lan; }
}
E`, netnstest.Server4, "nft insert rule inet fw guard"},
		{"a gateway's own rules, in sets", `nft -f - <<E
table inet fw {
	set inside { type ifname; elements = { "lan0", "lan1" } }
	chain guard { type filter hook forward priority 0; policy drop; ct state vmap { invalid : drop }; ct state { established, related } accept; ct state established,related accept; iifname @inside oifname { "wan0", "mitm0" } accept; }
}
E`, netnstest.Server4, ""},
		{"a policy at another hook", "nft add table inet fw; nft 'add chain inet fw in { type filter hook input priority 0; policy drop; }'", netnstest.Server4, ""},
		{"a drop for others", `nft add table inet fw; nft 'add chain inet fw guard { type filter hook forward priority 0; }'; nft add rule inet fw guard iifname "docker0" drop; nft add rule inet fw guard ip saddr 10.0.0.0/8 drop; nft add rule inet fw guard ct state invalid drop`, netnstest.Server4, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBox(t)
			b.run(c.setup)
			b.apply(nil)
			list := b.probe()
			if c.cure == "" {
				if got := complaints(list); got != "" {
					t.Errorf("a false alarm:\n%s", got)
				}
				b.want("tun", c.server)
				return
			}
			b.want("nowhere", c.server)
			var cures []string
			for _, f := range list {
				if f.Name == "forward-chain" && !f.OK {
					cures = append(cures, f.Cure)
				}
			}
			if len(cures) != 1 || !strings.HasPrefix(cures[0], c.cure) {
				t.Fatalf("got the cures %q, want one that begins with %q", cures, c.cure)
			}
			b.run(strings.NewReplacer("iptables ", "iptables-nft ", "ip6tables ", "ip6tables-nft ").Replace(cures[0]))
			b.want("tun", c.server)
			if got := complaints(b.probe()); got != "" {
				t.Errorf("after the cure:\n%s", got)
			}
		})
	}
}

func TestProbeSeesSourceChecks(t *testing.T) {
	b := newBox(t)
	b.run(`nft add table inet firewalld; nft 'add chain inet firewalld pre { type filter hook prerouting priority raw; }'; nft add rule inet firewalld pre meta nfproto ipv6 fib saddr . mark . iif oif missing drop`)
	if got := complaints(b.probe()); !strings.Contains(got, "source-check") || !strings.Contains(got, "IPv6_rpfilter=loose") {
		t.Errorf("got %q, want a source-check with firewalld's cure", got)
	}
}

func TestProbeSeesDisabledIPv6(t *testing.T) {
	b := newBox(t)
	b.Gateway.Gateway.Sysctl("net.ipv6.conf."+testTUN+".disable_ipv6", "1")
	if got := complaints(b.probe()); !strings.Contains(got, "sysctl -w net.ipv6.conf.mitm0.disable_ipv6=0") {
		t.Errorf("got %q, want the cure for disabled IPv6", got)
	}
	b.apply(nil) // IPv4 works, and IPv6 stays closed
	b.want("tun", netnstest.Server4)
	b.want("nowhere", netnstest.Server6)
}

// TestProbeWithoutRights runs Probe and Apply in a process that has no
// capability and cannot write /proc/sys.
func TestProbeWithoutRights(t *testing.T) {
	if os.Getenv("REDIRECT_TEST_POWERLESS") == "1" {
		t.Logf("\n%s", complaints(Probe(Config{Interfaces: []string{netnstest.LAN(0)}})))
		return
	}
	b := newBox(t)
	cmd := exec.Command("nsenter", "--net="+b.Gateway.Gateway.Path(), "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--bounding-set=-all",
		"/proc/self/fd/3", "-test.run=^TestProbeWithoutRights$", "-test.v")
	self, err := os.Open(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	defer self.Close()
	cmd.ExtraFiles = []*os.File{self}
	cmd.Env = append(os.Environ(), "REDIRECT_TEST_POWERLESS=1")
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	for _, want := range []string{"cap-net-admin", "AmbientCapabilities=CAP_NET_ADMIN", "forwarding: forwarding is off", "ProtectKernelTunables=no"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("missing %q in:\n%s", want, out)
		}
	}
}
