//go:build linux

package e2e

import (
	"fmt"
	"net/netip"
	"os"
	"testing"

	"mitm-appliance/flow"
	"mitm-appliance/internal/lab"
)

// TestEveryWayIn runs all five modes at once and lets a real client do everything through each, over
// IPv4 and IPv6; then each exchange must have been recorded in the clear, with who it was.
func TestEveryWayIn(t *testing.T) {
	w := open(t)
	program := built.path(t)
	dir, err := w.Prepare(w.ctx, program)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Forward(); err != nil {
		t.Fatal(err)
	}
	w.launch(lab.Program{Dir: dir, Args: lab.Modes("e2e.test")})
	if err := w.RouteBoard(lab.TourTUN); err != nil {
		t.Fatal(err)
	}
	if err := w.JoinPhone(w.ctx, program, dir); err != nil {
		t.Fatal(err)
	}
	var visits []lab.Visit
	for _, way := range w.Ways() {
		for _, v := range w.Visits(way, w.app.CA()) {
			visits = append(visits, v)
			if command, output, err := v.Run(w.ctx); err != nil {
				t.Errorf("%s: %s: %v\n%s", v, command, err, output)
			}
		}
	}
	flows := w.stop()
	for _, v := range visits {
		f := v.Seen(flows)
		if f == nil {
			t.Errorf("%s: no flow shows it", v)
			continue
		}
		if got, want := identity(f), expected(v); got != want {
			t.Errorf("%s: the client is %s, want %s", v, got, want)
		}
	}
	if t.Failed() {
		t.Logf("the flows:\n%s", list(flows))
	}
}

// identity is who a flow's client is, beyond its port.
func identity(f *flow.Flow) string {
	c := f.Client
	text := fmt.Sprintf("%v mode=%s", c.Peer.Addr(), c.Mode)
	if c.Device != "" {
		text += " device"
	}
	if c.Tunnel != "" {
		text += " tunnel=" + c.Tunnel
	}
	if p := c.Process; p != nil {
		text += fmt.Sprintf(" process=%s uid=%d", p.Name, p.UID)
		if p.PID == 0 {
			text += " without pid"
		}
	}
	return text
}

func expected(v lab.Visit) string {
	from := func(v4, v6 string) netip.Addr {
		if v.IPv6 {
			return netip.MustParseAddr(v6)
		}
		return netip.MustParseAddr(v4)
	}
	switch v.Way.Name {
	case "transparent":
		return fmt.Sprintf("%v mode=transparent:lan0 device", from("192.168.50.2", "2001:db8:50::2"))
	case "tun":
		return fmt.Sprintf("%v mode=tun:mitm0", from("192.168.51.2", "2001:db8:51::2"))
	case "wireguard":
		return fmt.Sprintf("%v mode=wireguard tunnel=%s", from("10.66.0.3", "fd66:6d69:746d::3"), lab.PhoneName)
	case "local":
		name := map[string]string{"HTTP": "curl", "HTTPS": "curl", "DNS/udp": "dig", "DNS/tcp": "dig", "UDP echo": "e2e.test"}[v.What]
		return fmt.Sprintf("%v mode=local:curl,dig,e2e.test process=%s uid=%d", from("198.18.2.1", "fd6d:6974:6d00:2::1"), name, os.Getuid())
	default:
		return "192.168.50.2 mode=regular@8080"
	}
}
