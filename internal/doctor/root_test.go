//go:build linux

package doctor

import (
	"bytes"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"mitm-appliance/internal/netnstest"
)

// childEnv makes a test print what Run finds for these modes, as the process that it was started as.
const childEnv = "DOCTOR_TEST_MODES"

// unitCapabilities are those of deploy/systemd/mitm-appliance.service.
const unitCapabilities = "+net_admin,+net_raw,+bpf,+perfmon,+net_bind_service"

// examine runs the doctor in a host's network and returns what it prints.
func examine(t *testing.T, h *netnstest.Host, modes ...string) string {
	t.Helper()
	var out bytes.Buffer
	err := h.Do(func() error { return Print(&out, Run(t.Context(), modes), false) })
	if err != nil {
		t.Fatal(err)
	}
	return out.String()
}

func complaints(report string) string {
	var out strings.Builder
	for line := range strings.Lines(report) {
		if strings.HasPrefix(line, "FAIL") {
			out.WriteString(line)
		}
	}
	return out.String()
}

func sh(t *testing.T, h *netnstest.Host, script string) string {
	t.Helper()
	out, err := h.Command(t.Context(), "sh", "-ec", script).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", script, err, out)
	}
	return string(out)
}

func TestFreshGatewayIsHealthyAndStaysAsItWas(t *testing.T) {
	gateway := netnstest.New(t).Gateway(1).Gateway
	state := func() string {
		return sh(t, gateway, "ip link; ip rule; ip route show table all; nft list ruleset; cat /proc/sys/net/ipv4/conf/*/forwarding")
	}
	before := state()
	report := examine(t, gateway, "transparent:"+netnstest.LAN(0), "local", "tun", "wireguard", "regular")
	if c := complaints(report); c != "" {
		t.Errorf("complaints about a healthy machine:\n%s", c)
	}
	for _, want := range []string{"ok    tun device (transparent:lan0, local, tun)", "ok    interface lan0 (transparent:lan0)", "ok    port 8080/tcp (regular)", "ok    port 51820/udp (wireguard)", "cgroup2", "BTF", "forwarding", "rp-filter", "open files"} {
		if !strings.Contains(report, want) {
			t.Errorf("missing %q in:\n%s", want, report)
		}
	}
	if after := state(); after != before {
		t.Errorf("looking changed the machine:\n%s\nwas:\n%s", after, before)
	}
}

func TestPortInUse(t *testing.T) {
	gateway := netnstest.New(t).Gateway(1).Gateway
	l, err := gateway.Listen("tcp", ":8080")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := gateway.ListenPacket("udp", ":51820")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	got := complaints(examine(t, gateway, "regular", "regular@8081", "wireguard"))
	for _, want := range []string{"port 8080/tcp (regular)", "ss -lnpt 'sport = :8080'", "--mode regular@8081", "port 51820/udp (wireguard)"} {
		if !strings.Contains(got, want) {
			t.Errorf("missing %q in:\n%s", want, got)
		}
	}
	if strings.Count(got, "\n") != 2 {
		t.Errorf("got more than two complaints:\n%s", got)
	}
}

// TestCureOfAFirewall has docker's rules drop what is forwarded, and does what the doctor says.
func TestCureOfAFirewall(t *testing.T) {
	gateway := netnstest.New(t).Gateway(1).Gateway
	sh(t, gateway, `iptables-nft -P FORWARD DROP; iptables-nft -N DOCKER-USER; iptables-nft -A DOCKER-USER -j RETURN; iptables-nft -A FORWARD -j DOCKER-USER`)
	mode := "transparent:" + netnstest.LAN(0)
	got := complaints(examine(t, gateway, mode))
	_, cure, ok := strings.Cut(got, " — cure: ")
	if !ok || !strings.Contains(got, "forward-chain ("+mode+")") {
		t.Fatalf("got %q, want a complaint about forward-chain with a cure", got)
	}
	sh(t, gateway, strings.ReplaceAll(cure, "iptables ", "iptables-nft "))
	if c := complaints(examine(t, gateway, mode)); c != "" {
		t.Errorf("after the cure:\n%s", c)
	}
}

// TestWithoutRights runs the doctor as a user who has none, and as the service's unit has them.
func TestWithoutRights(t *testing.T) {
	if modes := os.Getenv(childEnv); modes != "" {
		if err := Print(os.Stdout, Run(t.Context(), strings.Fields(modes)), false); err != nil {
			t.Fatal(err)
		}
		return
	}
	gateway := netnstest.New(t).Gateway(1).Gateway
	const modes = "transparent:lan0 local:curl tun wireguard regular@80"

	nobody := asUser(t, gateway, "-all", modes)
	for _, want := range []string{
		"CAP_NET_ADMIN (transparent:lan0, local:curl, tun)", "run as root", "tun device (transparent:lan0, local:curl, tun)",
		"operation not permitted", "CAP_BPF (local:curl)", "port 80/tcp (regular@80)", "ip_unprivileged_port_start=80",
	} {
		if !strings.Contains(complaints(nobody), want) {
			t.Errorf("without capabilities %q is missing in:\n%s", want, nobody)
		}
	}
	if c := complaints(asUser(t, gateway, "-all,"+unitCapabilities, modes)); c != "" {
		t.Errorf("the capabilities of the unit are not enough:\n%s", c)
	}
}

// asUser runs this test as an ordinary user with these capabilities.
func asUser(t *testing.T, h *netnstest.Host, capabilities, modes string) string {
	t.Helper()
	self, err := os.Open(os.Args[0]) // the user cannot enter its directory
	if err != nil {
		t.Fatal(err)
	}
	defer self.Close()
	cmd := exec.Command("nsenter", "--net="+h.Path(), "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--no-new-privs",
		"--inh-caps="+capabilities, "--ambient-caps="+capabilities, "--bounding-set="+capabilities,
		"/proc/self/fd/3", "-test.run=^TestWithoutRights$")
	cmd.ExtraFiles = []*os.File{self}
	cmd.Env = append(os.Environ(), childEnv+"="+modes)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return string(out)
}
