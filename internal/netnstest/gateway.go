//go:build linux

package netnstest

import "fmt"

// Addresses of the topology made by Lab.Gateway. Documentation prefixes (RFC
// 5737, RFC 3849), so that nothing of it exists outside of the lab.
const (
	WAN = "wan0" // the gateway's interface towards the Internet

	Server4 = "203.0.113.10"   // the Internet's first address, in the gateway's WAN prefix
	Server6 = "2001:db8:1::10" // also .11 and .12 (::11, ::12)
	Far4    = "198.51.100.10"  // reached through the gateway's default route only
	Far6    = "2001:db8:2::10"
	None4   = "192.0.2.99"      // routed to the Internet, where nobody has it
	None6   = "2001:db8:99::99" // likewise
)

// Gateway is a home network in small: clients, each on a LAN interface of the
// gateway, and an Internet host behind its WAN interface, with IPv4 and IPv6
// everywhere and default routes in both directions. Forwarding is off, as on
// any freshly installed machine.
type Gateway struct {
	Gateway  *Host
	Internet *Host
	Clients  []*Host
}

// Client returns the first client.
func (g *Gateway) Client() *Host { return g.Clients[0] }

// Gateway builds the topology with n clients (1 to 100): client i has the
// interface eth0 with ClientAddrs(i), the gateway LAN(i) with LANAddrs(i).
func (l *Lab) Gateway(n int) *Gateway {
	g := &Gateway{Gateway: l.Host("gateway"), Internet: l.Host("internet")}
	l.Link(g.Gateway, WAN, g.Internet, "eth0")
	g.Gateway.Addr(WAN, "203.0.113.1/24", "2001:db8:1::1/64")
	g.Internet.Addr("eth0",
		Server4+"/24", "203.0.113.11/24", "203.0.113.12/24", Far4+"/32",
		Server6+"/64", "2001:db8:1::11/64", "2001:db8:1::12/64", Far6+"/128")
	g.Gateway.Route("default", Server4, WAN)
	g.Gateway.Route("default", Server6, WAN)
	g.Internet.Route("default", "203.0.113.1", "eth0")
	g.Internet.Route("default", "2001:db8:1::1", "eth0")
	for i := range n {
		client := l.Host(fmt.Sprintf("client%d", i))
		g.Clients = append(g.Clients, client)
		client4, client6 := ClientAddrs(i)
		lan4, lan6 := LANAddrs(i)
		l.Link(g.Gateway, LAN(i), client, "eth0")
		g.Gateway.Addr(LAN(i), lan4+"/24", lan6+"/64")
		client.Addr("eth0", client4+"/24", client6+"/64")
		client.Route("default", lan4, "eth0")
		client.Route("default", lan6, "eth0")
	}
	return g
}

// LAN returns the name of the gateway's interface towards client i.
func LAN(i int) string { return fmt.Sprintf("lan%d", i) }

// LANAddrs returns the gateway's addresses on LAN(i).
func LANAddrs(i int) (v4, v6 string) {
	return fmt.Sprintf("192.168.%d.1", 50+i), fmt.Sprintf("2001:db8:%d::1", 50+i)
}

// ClientAddrs returns the addresses of client i.
func ClientAddrs(i int) (v4, v6 string) {
	return fmt.Sprintf("192.168.%d.2", 50+i), fmt.Sprintf("2001:db8:%d::2", 50+i)
}
