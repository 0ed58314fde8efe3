//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"mitm-appliance/wg"
)

// subject is one way to do the work of a case.
type subject struct {
	name    string
	start   func(ctx context.Context, b *bench) (*running, error)
	product bool // it runs bench.product
}

// running is a started subject.
type running struct {
	*process          // the one whose CPU time and memory count
	http     []string // arguments of the HTTP generator that lead to it
	beside   []func() // ends what it needs beside itself
}

func (r *running) end() {
	r.stop()
	for _, f := range r.beside {
		f()
	}
}

// product is the real binary as a service, with its defaults but for args.
func product(name, mode string, args ...string) subject {
	return subject{name: name, product: true, start: func(ctx context.Context, b *bench) (*running, error) {
		dir, err := os.MkdirTemp(b.dir, "confdir-*")
		if err != nil {
			return nil, err
		}
		p, err := b.startProduct(ctx, dir, mode, args...)
		if err != nil {
			return nil, err
		}
		r := &running{process: p, http: []string{"-proxy", gatewayLAN + ":8080"}}
		if device, ok := strings.CutPrefix(mode, "tun:"); ok {
			if err := b.routeInto(ctx, device); err != nil {
				r.end()
				return nil, err
			}
		}
		return r, nil
	}}
}

func (b *bench) startProduct(ctx context.Context, confdir, mode string, args ...string) (*process, error) {
	all := append([]string{"run", "--confdir", confdir, "-m", mode, "--set", "ssl_verify_upstream_trusted_ca=" + b.pki.caCert}, args...)
	cmd := b.gateway.Command(context.WithoutCancel(ctx), b.product, all...)
	ready, err := b.notified(cmd)
	if err != nil {
		return nil, err
	}
	return b.launch(ctx, cmd, ready)
}

// routeInto is the user's own policy route: what comes from the LAN goes into a device.
func (b *bench) routeInto(ctx context.Context, device string) error {
	return b.exec(ctx, b.gateway, "ip route replace default dev "+device+" table "+userTable)
}

func tunMode() subject        { return product("tun", "tun:bench0") }
func transparentLAN() subject { return product("transparent", "transparent:lan0") }

func tproxy() subject {
	return subject{name: "tproxy", start: func(ctx context.Context, b *bench) (*running, error) {
		p, err := b.worker(ctx, b.gateway, "tproxy")
		if err != nil {
			return nil, err
		}
		r := &running{process: p}
		if err := b.execInput(ctx, b.gateway, "nft -f -", tproxyRules); err != nil {
			r.end()
			return nil, err
		}
		r.beside = append(r.beside, func() { _ = b.exec(context.WithoutCancel(ctx), b.gateway, "nft delete table ip bench_tproxy") })
		return r, nil
	}}
}

func naive() subject {
	return subject{name: "naive", start: func(ctx context.Context, b *bench) (*running, error) {
		p, err := b.worker(ctx, b.gateway, "naive")
		if err != nil {
			return nil, err
		}
		r := &running{process: p}
		err = errors.Join(
			b.exec(ctx, b.gateway, "ip addr add 198.18.200.1/30 dev "+naiveDevice),
			b.exec(ctx, b.gateway, "ip link set "+naiveDevice+" up"),
			b.routeInto(ctx, naiveDevice))
		if err != nil {
			r.end()
			return nil, err
		}
		return r, nil
	}}
}

// wgFile makes the keys of a WireGuard server with one peer.
func wgFile(path string) (wg.PeerConfig, error) {
	var p wg.PeerConfig
	f, err := wg.NewFile()
	if err != nil {
		return p, err
	}
	if p, err = f.AddPeer(wg.PeerConfig{Name: wgPeer}); err != nil {
		return p, err
	}
	data, err := f.Marshal()
	if err != nil {
		return p, err
	}
	return p, os.WriteFile(path, data, 0o600)
}

// wireGuardServer is a subject with a phone: serve starts what the phone talks to.
func wireGuardServer(name string, serve func(ctx context.Context, b *bench, dir, file string, p wg.PeerConfig) (*process, error)) subject {
	return subject{name: name, start: func(ctx context.Context, b *bench) (*running, error) {
		dir, err := os.MkdirTemp(b.dir, "confdir-*")
		if err != nil {
			return nil, err
		}
		file := dir + "/wireguard.conf"
		peer, err := wgFile(file)
		if err != nil {
			return nil, err
		}
		p, err := serve(ctx, b, dir, file, peer)
		if err != nil {
			return nil, err
		}
		r := &running{process: p}
		phone, err := b.worker(ctx, b.client, "phone", "-file", file)
		if err != nil {
			r.end()
			return nil, err
		}
		r.beside = append(r.beside, phone.stop)
		err = errors.Join(
			b.exec(ctx, b.client, fmt.Sprintf("ip addr add %s dev %s", v4(peer), wgDevice)),
			b.exec(ctx, b.client, "ip link set "+wgDevice+" up"),
			b.exec(ctx, b.client, "ip route add "+serverNet+" dev "+wgDevice))
		if err != nil {
			r.end()
			return nil, err
		}
		return r, nil
	}}
}

func v4(p wg.PeerConfig) string {
	for _, a := range p.Addresses {
		if a.Addr().Is4() {
			return a.String()
		}
	}
	return ""
}

func wireGuardProduct() subject {
	s := wireGuardServer("wireguard", func(ctx context.Context, b *bench, dir, _ string, _ wg.PeerConfig) (*process, error) {
		return b.startProduct(ctx, dir, "wireguard")
	})
	s.product = true
	return s
}

func wireGuardForward() subject {
	return wireGuardServer("forward", func(ctx context.Context, b *bench, _, file string, peer wg.PeerConfig) (*process, error) {
		p, err := b.worker(ctx, b.gateway, "forward", "-file", file)
		if err != nil {
			return nil, err
		}
		err = errors.Join(
			b.exec(ctx, b.gateway, "ip link set "+wgForward+" up"),
			b.exec(ctx, b.gateway, fmt.Sprintf("ip route add %s dev %s", v4(peer), wgForward)))
		if err != nil {
			p.stop()
			return nil, err
		}
		return p, nil
	})
}

func goproxySubject() subject {
	return subject{name: "goproxy", start: func(ctx context.Context, b *bench) (*running, error) {
		self, err := os.Executable()
		if err != nil {
			return nil, err
		}
		address := gatewayLAN + ":8081"
		cmd := b.gateway.Command(context.WithoutCancel(ctx), self, "goproxy", "-listen", address,
			"-cert", b.pki.caCert, "-key", b.pki.caKey, "-roots", b.pki.caCert)
		p, err := b.launch(ctx, cmd, answering(b.client, address))
		if err != nil {
			return nil, err
		}
		return &running{process: p, http: []string{"-proxy", address}}, nil
	}}
}

func nginxSubject() subject {
	return subject{name: "nginx", start: func(ctx context.Context, b *bench) (*running, error) {
		address := gatewayLAN + ":8443"
		p, err := b.nginx(ctx, b.gateway, "reverse", fmt.Sprintf(`
	upstream origin { server %s:443; keepalive 100; keepalive_requests 1000000000; }
	server {
		listen %s ssl;
		location / {
			proxy_pass https://origin; proxy_http_version 1.1; proxy_set_header Connection "";
			proxy_ssl_protocols TLSv1.3; proxy_ssl_conf_command Ciphersuites TLS_AES_128_GCM_SHA256;
			proxy_ssl_verify on; proxy_ssl_trusted_certificate %s; proxy_ssl_name %s;
		}
	}`, server(0), address, b.pki.caCert, server(0)), address)
		if err != nil {
			return nil, err
		}
		return &running{process: p, http: []string{"-direct", address}}, nil
	}}
}

func mitmproxySubject() subject {
	return subject{name: "mitmproxy", start: func(ctx context.Context, b *bench) (*running, error) {
		dir, err := os.MkdirTemp(b.dir, "confdir-*")
		if err != nil {
			return nil, err
		}
		address := gatewayLAN + ":8082"
		cmd := b.gateway.Command(context.WithoutCancel(ctx), b.mitmproxy, "-q", "-p", "8082", "--set", "confdir="+dir,
			"--set", "ssl_verify_upstream_trusted_ca="+b.pki.caCert)
		p, err := b.launch(ctx, cmd, answering(b.client, address))
		if err != nil {
			return nil, err
		}
		return &running{process: p, http: []string{"-proxy", address}}, nil
	}}
}
