//go:build linux

package redirect

import (
	"errors"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"mitm-appliance/internal/netnstest"
)

var (
	servers = []string{netnstest.Server4, netnstest.Far4, netnstest.Server6, netnstest.Far6}
	nobody  = []string{netnstest.None4, netnstest.None6}
)

func TestForwardedTrafficGoesIntoTheTUN(t *testing.T) {
	b := newBox(t)
	b.apply(nil)
	b.want("tun", servers...)
	b.want("tun", nobody...) // destinations that do not exist are captured too

	lan4, lan6 := netnstest.LANAddrs(0)
	b.want("gateway", lan4, lan6, "203.0.113.1") // the router's own addresses are not
	if got := b.where(b.Clients[1], netnstest.Server6); got != "internet" {
		t.Errorf("an interface that was not named: arrives at %s, want internet", got)
	}
}

func TestGroupsAndLinkLocalStayOutOfTheTUN(t *testing.T) {
	b := newBox(t)
	b.Client().Route("169.254.0.0/16", "192.168.50.1", "") // a client that routes what must not be routed
	b.run(`nft -f - <<E
table inet watch {
	chain after { type filter hook prerouting priority dstnat; meta mark & 0x00030000 != 0 fib daddr type { local, broadcast, anycast, multicast } counter name marked; }
	counter marked {}
}
E`)
	b.apply(nil)
	for _, ip := range []string{"192.168.50.255", "255.255.255.255", "224.0.0.251", "239.255.255.250", "ff02::fb%eth0", "ff0e::1%eth0", "169.254.169.254", "2001:db8:50::"} {
		err := b.Client().Do(func() error {
			c, err := net.Dial("udp", net.JoinHostPort(ip, "7777"))
			if err != nil {
				return err
			}
			defer c.Close()
			_, err = c.Write([]byte("to " + ip))
			return err
		})
		if err != nil {
			t.Fatalf("%s: %v", ip, err)
		}
	}
	if err := send(b.Client(), netnstest.Server4, "last"); err != nil {
		t.Fatal(err)
	}
	for deadline := time.After(10 * time.Second); ; {
		select {
		case a := <-b.arrivals:
			if a.where == "tun" && a.payload == "last" {
				if out := b.run("nft list counter inet watch marked"); !strings.Contains(out, "packets 0 ") {
					t.Errorf("groups are marked:\n%s", out)
				}
				return
			}
			if a.where == "tun" {
				t.Errorf("the datagram %q went into the TUN", a.payload)
			}
		case <-deadline:
			t.Fatal("the datagram after the others did not arrive")
		}
	}
}

func TestForeignMarkBitsSurvive(t *testing.T) {
	b := newBox(t)
	b.run(`nft -f - <<E
table inet other {
	chain early { type filter hook prerouting priority raw; iifname lan0 meta mark set 0x004c4007; }
	chain late { type filter hook forward priority filter; oifname mitm0 meta mark 0x004d4007 counter name good; oifname mitm0 meta mark != 0x004d4007 counter name bad; }
	counter good {}
	counter bad {}
}
E`)
	b.apply(nil)
	b.want("tun", netnstest.Server4, netnstest.Server6)
	out := b.run("nft list counters")
	if !strings.Contains(out, "counter bad {\n\t\tpackets 0") || strings.Contains(out, "counter good {\n\t\tpackets 0") {
		t.Errorf("bits outside of the mask were changed, or the mark is not set:\n%s", out)
	}
}

func TestUndoLeavesNoTrace(t *testing.T) {
	for _, open := range []bool{false, true} {
		t.Run(map[bool]string{false: "fail-closed", true: "fail-open"}[open], func(t *testing.T) {
			b := newBox(t)
			b.run(`nft add table inet other; ip rule add pref 5180 fwmark 7 lookup 99; ip route add 192.0.2.0/24 via 203.0.113.10 table 99
				echo 1 >/proc/sys/net/ipv6/conf/lan1/forwarding; echo 1 >/proc/sys/net/ipv4/conf/wan0/forwarding`)
			before := b.dump()
			r := b.apply(func(c *Config) { c.FailOpen = open; c.Bypass = []Bypass{{Prefix: prefix("203.0.113.11/32")}} })
			if b.dump() == before {
				t.Fatal("applying changed nothing: the comparison proves nothing")
			}
			steps := []func() error{
				func() error { return r.SetInterfaces([]string{netnstest.LAN(0), netnstest.LAN(1)}) },
				func() error { return r.SetInterfaces([]string{netnstest.LAN(1)}) },
				func() error { return r.SetOutput(OutputRules{UIDs: []uint32{12345}}) },
				func() error { return r.AddBypass(prefix("10.0.0.0/8"), time.Hour) },
				r.Apply, r.Verify, r.Undo, r.Undo,
			}
			for i, step := range steps {
				if err := step(); err != nil {
					t.Fatalf("step %d: %v", i, err)
				}
			}
			if d := diff(before, b.dump()); d != "" {
				t.Errorf("undoing left (+) or took (-):\n%s", d)
			}
			if left, err := os.ReadDir(r.cfg.StateDir); err != nil || len(left) > 0 {
				t.Errorf("files left: %v, %v", left, err)
			}
		})
	}
}

func TestLiveChangeOfInterfaces(t *testing.T) {
	b := newBox(t)
	r := b.apply(nil)
	both := []string{netnstest.LAN(0), netnstest.LAN(1)}
	for _, c := range []struct {
		names         []string
		first, second string
	}{
		{both, "tun", "tun"},
		{both[1:], "nowhere", "tun"}, // not captured, and forwarding is off again
		{nil, "nowhere", "nowhere"},
		{both[:1], "tun", "nowhere"},
	} {
		if err := r.SetInterfaces(c.names); err != nil {
			t.Fatal(err)
		}
		for i, want := range []string{c.first, c.second} {
			if got := b.where(b.Clients[i], netnstest.Server4); got != want {
				t.Errorf("with %v, client %d: datagrams arrive at %s, want %s", c.names, i, got, want)
			}
		}
		if err := r.Verify(); err != nil {
			t.Errorf("with %v: %v", c.names, err)
		}
	}
	b.run("ip link set lan1 down; ip link set lan1 name lan.7; ip link set lan.7 up") // as VLANs are named
	if err := r.SetInterfaces([]string{"lan.7"}); err != nil {
		t.Fatal(err)
	}
	if got := b.where(b.Clients[1], netnstest.Server4); got != "tun" {
		t.Errorf("an interface with a dot in its name: arrives at %s, want tun", got)
	}
	b.run("ip link set lan.7 down; ip link set lan.7 name lan1; ip link set lan1 up")
	if err := r.SetInterfaces(both[:1]); err != nil {
		t.Fatal(err)
	}
	err := r.SetInterfaces([]string{"eth9"})
	if !errors.Is(err, ErrNoInterface) || !strings.Contains(err.Error(), "lan0, lan1, wan0") {
		t.Errorf("unknown interface: got %v, want ErrNoInterface and the list of existing ones", err)
	}
	if got := r.Interfaces(); len(got) != 1 || got[0] != netnstest.LAN(0) {
		t.Errorf("after a refused change: got %v", got)
	}
}

func TestBypassedDestinationsSkipTheTUNAndExpire(t *testing.T) {
	b := newBox(t)
	r := b.apply(func(c *Config) { c.Bypass = []Bypass{{Prefix: prefix("203.0.113.11/32")}} })
	b.want("internet", "203.0.113.11")
	b.want("tun", "203.0.113.12", "2001:db8:1::12")
	add := func(p string, d time.Duration) {
		t.Helper()
		if err := r.AddBypass(prefix(p), d); err != nil {
			t.Fatal(err)
		}
	}
	const life = 2 * time.Second
	added := time.Now()
	add("203.0.113.12/32", life)
	add("2001:db8:1::12/128", life)
	gone := time.Now().Add(life)
	add("2001:db8:2::/48", 0)
	if n := len(r.Bypasses()); n != 4 {
		t.Errorf("got %d bypasses, want 4: %v", n, r.Bypasses())
	}
	for _, ip := range []string{"203.0.113.12", "2001:db8:1::12", netnstest.Far6} {
		if got := b.where(b.Client(), ip); got != "internet" && time.Since(added) < life {
			t.Errorf("bypassed %s: arrives at %s, want internet", ip, got)
		}
	}
	time.Sleep(time.Until(gone.Add(200 * time.Millisecond))) // the time is what is tested
	b.want("tun", "203.0.113.12", "2001:db8:1::12")
	b.want("internet", netnstest.Far6, "203.0.113.11")

	add("203.0.113.0/24", 0) // overlaps one that is there
	b.want("internet", "203.0.113.12", "203.0.113.11")
	if known, err := r.RemoveBypass(prefix("203.0.113.0/24")); !known || err != nil {
		t.Errorf("remove: %v, %v", known, err)
	}
	b.want("tun", "203.0.113.12")
	b.want("internet", "203.0.113.11")
	if known, err := r.RemoveBypass(prefix("203.0.113.0/24")); known || err != nil {
		t.Errorf("remove again: %v, %v; want false", known, err)
	}
	add("255.255.255.255/32", time.Hour) // the end of the address space, with and without neighbours
	add("128.0.0.0/1", time.Minute)
	b.want("internet", "203.0.113.12")
	if err := r.Verify(); err != nil {
		t.Error(err)
	}
}

func TestManyBypasses(t *testing.T) {
	b := newBox(t)
	r := b.steer(func(c *Config) { c.MaxBypass = 5000 })
	for i := range 5000 {
		p := prefix("10.0.0.0/30")
		bytes := p.Addr().As4()
		bytes[1], bytes[2], bytes[3] = byte(i>>8), byte(i), 4
		if err := r.AddBypass(prefix(net.IP(bytes[:]).String()+"/31"), time.Hour); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.Apply(); err != nil {
		t.Fatal(err)
	}
	if err := r.AddBypass(prefix("192.0.2.1/32"), 0); !errors.Is(err, ErrBypassFull) {
		t.Errorf("one too many: got %v, want ErrBypassFull", err)
	}
	if got := strings.Count(b.run("nft list set inet mitm_appliance bypass4"), "10."); got < 4900 {
		t.Errorf("the kernel holds %d destinations, want 5000", got)
	}
}

func TestVerifyNoticesWhatOthersDestroy(t *testing.T) {
	b := newBox(t)
	r := b.apply(nil)
	if err := r.Verify(); err != nil {
		t.Fatalf("untouched: %v", err)
	}
	for _, c := range []struct{ command, missing string }{
		{"nft flush ruleset", "rules of the nftables table"},
		{"nft flush chain inet mitm_appliance prerouting", "rules of the nftables table"},
		{"nft flush set inet mitm_appliance lan", "interfaces in the nftables table"},
		{"ip rule del pref 5180", "IPv4 rule"},
		{"ip -6 rule del pref 5180", "IPv6 rule"},
		{"ip route del default dev mitm0 table 5180", "IPv4 default route"},
		{"ip -6 route del unreachable default table 5180 metric 9999", "IPv6 default route"},
		{"echo 0 >/proc/sys/net/ipv4/ip_forward; echo 1 >/proc/sys/net/ipv4/ip_forward; echo 0 >/proc/sys/net/ipv4/ip_forward", "net/ipv4/conf/lan0/forwarding=1"},
		{"echo 1 >/proc/sys/net/ipv4/conf/mitm0/rp_filter", "rp_filter=2"},
		{"ip link set mitm0 down; ip link set mitm0 up", "default route"},
	} {
		b.run(c.command)
		if err := r.Verify(); !errors.Is(err, ErrChanged) || !strings.Contains(err.Error(), c.missing) {
			t.Errorf("after %q: got %v, want ErrChanged naming %q", c.command, err, c.missing)
		}
		if err := r.Apply(); err != nil {
			t.Fatalf("repair after %q: %v", c.command, err)
		}
		if err := r.Verify(); err != nil {
			t.Errorf("repaired after %q: %v", c.command, err)
		}
	}
	b.want("tun", netnstest.Server4)
}

func TestTwoAppliancesInOneNamespace(t *testing.T) {
	b := newBox(t)
	one := b.apply(nil)
	dir := one.cfg.StateDir

	same := b.steer(func(c *Config) { c.StateDir = dir })
	if err := same.Apply(); !errors.Is(err, ErrInUse) {
		t.Errorf("same name: got %v, want ErrInUse", err)
	}
	clash := b.steer(func(c *Config) { c.StateDir = dir; c.Name = "other" })
	if err := clash.Apply(); !errors.Is(err, ErrInUse) {
		t.Errorf("same route table: got %v, want ErrInUse", err)
	}
	if err := b.Gateway.Gateway.Do(func() error { return Clean(Config{StateDir: dir, TUN: testTUN}) }); !errors.Is(err, ErrInUse) {
		t.Errorf("Clean beside a living owner: got %v, want ErrInUse", err)
	}
	openTUN2(b)
	two := b.steer(func(c *Config) {
		c.StateDir, c.Name, c.TUN, c.Interfaces = dir, "other", "mitm1", []string{netnstest.LAN(1)}
		c.RouteTable, c.RulePriority = 5181, 5181
		c.Marks = Marks{Mask: 0x00300000, Capture: 0x00100000, Own: 0x00200000}
	})
	if err := two.Apply(); err != nil {
		t.Fatal(err)
	}
	b.want("tun", netnstest.Server4)
	if err := two.Undo(); err != nil {
		t.Fatal(err)
	}
	if err := one.Verify(); err != nil {
		t.Errorf("undoing the second damaged the first: %v", err)
	}
}

func openTUN2(b *box) {
	file := openTUN(b.t, b.Gateway.Gateway, "mitm1")
	b.Gateway.Gateway.Addr("mitm1", "198.18.1.1/30")
	b.readTUN(file)
}

func TestApplySaysWhatIsWrongWithItsInput(t *testing.T) {
	b := newBox(t)
	b.run("ip link add br0 type bridge; ip link add port0 type ifb; ip link set port0 master br0; ip link add bare0 type ifb; ip link set bare0 up; ip link add down0 type ifb")
	b.run("ip route add 192.0.2.0/24 via 203.0.113.10 table 77")
	before := b.dump()
	for _, c := range []struct {
		name   string
		change func(*Config)
		want   string
	}{
		{"interface unknown", func(c *Config) { c.Interfaces = []string{"eth9"} }, `"eth9"; this machine has: bare0, br0, down0`},
		{"interface is loopback", func(c *Config) { c.Interfaces = []string{"lo"} }, "use mode local"},
		{"interface is the TUN", func(c *Config) { c.Interfaces = []string{testTUN} }, "the TUN device itself"},
		{"interface is a bridge's port", func(c *Config) { c.Interfaces = []string{"port0"} }, "port of a bridge"},
		{"TUN unknown", func(c *Config) { c.TUN = "mitm9" }, "TUN device mitm9"},
		{"TUN without address", func(c *Config) { c.TUN = "bare0" }, "ip addr add"},
		{"TUN down", func(c *Config) { c.TUN = "down0" }, "ip link set down0 up"},
		{"route table of somebody else", func(c *Config) { c.RouteTable = 77 }, "choose another RouteTable"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if err := b.steer(c.change).Apply(); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want one about %q", err, c.want)
			}
		})
	}
	if d := diff(before, b.dump()); d != "" {
		t.Errorf("failed attempts left (+) or took (-):\n%s", d)
	}
}

func TestConfigIsChecked(t *testing.T) {
	for _, c := range []struct {
		name string
		cfg  Config
	}{
		{"no TUN", Config{}},
		{"name with a blank", Config{TUN: "t", Name: "a b"}},
		{"main route table", Config{TUN: "t", RouteTable: 254}},
		{"priority after main", Config{TUN: "t", RulePriority: 32766}},
		{"equal marks", Config{TUN: "t", Marks: Marks{Mask: 0xff, Capture: 1, Own: 1}}},
		{"mark outside of the mask", Config{TUN: "t", Marks: Marks{Mask: 0xf, Capture: 1, Own: 0x10}}},
		{"bypass of everything", Config{TUN: "t", Bypass: []Bypass{{Prefix: prefix("::/0")}}}},
		{"cgroup without id", Config{TUN: "t", Output: OutputRules{Cgroups: []Cgroup{{Level: 1}}}}},
		{"too many users", Config{TUN: "t", Output: OutputRules{UIDs: make([]uint32, maxOutputRules+1)}}},
	} {
		if _, err := New(c.cfg); err == nil {
			t.Errorf("%s: accepted", c.name)
		}
	}
	if _, err := New(Config{TUN: "t"}); err != nil {
		t.Errorf("only a TUN: %v", err)
	}
}

func TestDefaultInterfaces(t *testing.T) {
	b := newBox(t)
	var names []string
	find := func() (err error) {
		names, err = DefaultInterfaces(testTUN)
		return err
	}
	if err := b.Gateway.Gateway.Do(find); !errors.Is(err, ErrNoInterface) || !strings.Contains(err.Error(), "lan0, lan1, wan0") {
		t.Errorf("without forwarding: got %v, %v; want ErrNoInterface and the list of existing ones", names, err)
	}
	b.run("echo 1 >/proc/sys/net/ipv4/ip_forward; ip link add br0 type bridge; ip link set lan1 master br0; ip link set br0 up; ip link add down0 type ifb")
	if err := b.Gateway.Gateway.Do(find); err != nil || strings.Join(names, " ") != "br0 lan0" {
		t.Errorf("got %v, %v; want br0 and lan0", names, err)
	}
}
