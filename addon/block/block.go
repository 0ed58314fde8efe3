// Package block refuses clients by where they come from: the options block_global and block_private
// (MODE-28).
//
// In: client_connected. Out: a refusal for clients with a public or a private address. It keeps an
// explicit proxy on a public address from becoming an open one; it is no firewall. Clients on loopback
// and captured local processes are never refused.
package block

import (
	"context"
	"errors"
	"net/netip"

	"mitm-appliance/flow"
	"mitm-appliance/option"
	"mitm-appliance/proxycore"
)

// Options are the settings of this addon.
type Options struct {
	Global  option.Bool // block_global
	Private option.Bool // block_private
}

// DeclareOptions declares them.
func DeclareOptions(r *option.Registry) *Options {
	return &Options{
		Global:  r.Bool("block_global", true, "Refuse clients with public IP addresses."),
		Private: r.Bool("block_private", false, "Refuse clients with private IP addresses."),
	}
}

// Addon refuses clients.
type Addon struct{ options *Options }

var _ proxycore.ClientConnectedHook = (*Addon)(nil)

// New returns the addon.
func New(o *Options) *Addon { return &Addon{o} }

// Why a client was refused.
var (
	ErrGlobal  = errors.New("connection killed by block_global; allow public clients with --set block_global=false")
	ErrPrivate = errors.New("connection killed by block_private; allow private clients with --set block_private=false")
)

// ClientConnected implements proxycore.ClientConnectedHook.
func (a *Addon) ClientConnected(_ context.Context, d *proxycore.ClientData) error {
	addr := d.Client.Peer.Addr().Unmap().WithZone("")
	switch {
	case !addr.IsValid() || addr.IsLoopback() || ours(d.Client):
	case isPrivate(addr):
		if a.options.Private.Get() {
			d.Refuse = ErrPrivate
		}
	case a.options.Global.Get():
		d.Refuse = ErrGlobal
	}
	return nil
}

// ours is true for clients that were steered to us on purpose: local processes, our own tunnels and
// devices behind the interfaces that were named.
func ours(c *flow.Client) bool { return c.Feed != "" }

// isPrivate is true for addresses that do not appear on the public Internet (RFC 1918, RFC 4193, RFC
// 6598, RFC 3927, RFC 4291, and documentation and benchmarking networks).
func isPrivate(a netip.Addr) bool {
	if a.IsPrivate() || a.IsLinkLocalUnicast() {
		return true
	}
	for _, text := range []string{"100.64.0.0/10", "192.0.2.0/24", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "2001:db8::/32"} {
		if netip.MustParsePrefix(text).Contains(a) {
			return true
		}
	}
	return false
}
