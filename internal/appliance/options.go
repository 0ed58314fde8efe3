package appliance

import (
	"fmt"

	"mitm-appliance/option"
)

// options are the settings of the composition itself.
type options struct {
	mode       option.Strings
	server     option.Bool
	listenHost option.String
	listenPort option.OptInt
	confdir    option.String
	storeLimit option.Int
	failOpen   option.Bool
	tunMTU     option.Int
	routes     option.Strings
	showhost   option.Bool
}

// DefaultConfdir is where the CA and the configuration live.
const DefaultConfdir = "~/.mitm-appliance"

func declareOptions(r *option.Registry) *options {
	return &options{
		mode: r.Strings("mode", []string{"regular"},
			"What to run, each as name[:data][@[host:]port]: regular, transparent[:IFACE,...], local[:pid|name|!...], tun[:NAME], wireguard[:FILE]."),
		server:     r.Bool("server", true, "Run the modes. Off: only what needs no traffic, such as reading a file."),
		listenHost: r.String("listen_host", "", "Address that modes listen on; empty means all."),
		listenPort: r.OptInt("listen_port", "Port that modes listen on; each has a default.", option.Check(isPort)),
		confdir:    r.String("confdir", DefaultConfdir, "Directory of the configuration and of the certificate authority.", option.NeedsRestart()),
		storeLimit: r.Int("store_limit", 256, "MiB of flows that are kept in memory; the oldest finished ones go first.",
			option.Check(func(n int) error {
				if n < 1 {
					return fmt.Errorf("expected at least 1 MiB, not %d", n)
				}
				return nil
			})),
		failOpen: r.Bool("fail_open", false,
			"Let captured traffic pass unseen when the appliance dies, instead of stopping it."),
		tunMTU: r.Int("tun_mtu", 1500, "MTU of TUN devices.", option.Check(func(n int) error {
			if n < 1280 || n > 65535 {
				return fmt.Errorf("expected 1280 to 65535, not %d", n)
			}
			return nil
		})),
		routes:   r.Strings("tun_routes", nil, "Prefixes that tun mode routes into its device."),
		showhost: r.Bool("showhost", false, "In URLs show the name in the Host header instead of the address."),
	}
}

func isPort(p *int) error {
	if p != nil && (*p < 0 || *p > 65535) {
		return fmt.Errorf("expected a port from 0 to 65535, not %d", *p)
	}
	return nil
}

// listen returns listen_host and listen_port, -1 when not set.
func (o *options) listen() (host string, port int) {
	if p := o.listenPort.Get(); p != nil {
		return o.listenHost.Get(), *p
	}
	return o.listenHost.Get(), -1
}
