package block

import (
	"errors"
	"net/netip"
	"testing"

	"mitm-appliance/flow"
	"mitm-appliance/option"
	"mitm-appliance/proxycore"
)

func TestWhoIsRefused(t *testing.T) {
	for _, c := range []struct {
		client, feed string
		private      bool
		want         error
	}{
		{"8.8.8.8", "", false, ErrGlobal},
		{"2a00::1", "", false, ErrGlobal},
		{"::ffff:8.8.8.8", "", false, ErrGlobal},
		{"8.8.8.8", "transparent", false, nil},
		{"8.8.8.8", "local", false, nil},
		{"127.0.0.1", "", true, nil},
		{"::1", "", true, nil},
		{"192.168.1.2", "", false, nil},
		{"192.168.1.2", "", true, ErrPrivate},
		{"fe80::1%eth0", "", true, ErrPrivate},
		{"fd00::1", "", true, ErrPrivate},
		{"100.64.0.1", "", false, nil},
	} {
		r := option.New()
		a := New(DeclareOptions(r))
		if c.private {
			if err := r.SetText("block_private"); err != nil {
				t.Fatal(err)
			}
		}
		d := &proxycore.ClientData{Client: &flow.Client{
			Connection: flow.Connection{Peer: netip.AddrPortFrom(netip.MustParseAddr(c.client), 1)}, Feed: c.feed,
		}}
		if err := a.ClientConnected(t.Context(), d); err != nil {
			t.Fatal(err)
		}
		if !errors.Is(d.Refuse, c.want) || (c.want == nil) != (d.Refuse == nil) {
			t.Errorf("%s over %q with block_private=%v: %v, want %v", c.client, c.feed, c.private, d.Refuse, c.want)
		}
	}
}
