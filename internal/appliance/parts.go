package appliance

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"kernel.org/pub/linux/libs/security/libcap/cap"

	"mitm-appliance/netstack"
	"mitm-appliance/proxycore"
	"mitm-appliance/proxycore/certs"
	"mitm-appliance/proxycore/dnsmitm"
	"mitm-appliance/proxycore/exchange"
	"mitm-appliance/proxycore/http1"
	"mitm-appliance/proxycore/mode"
	"mitm-appliance/proxycore/relay"
	"mitm-appliance/proxycore/tlsmitm"
)

// parts are the protocols and what they share.
type parts struct {
	a         *Appliance
	core      *proxycore.Options
	relay     *relay.Options
	dns       *dnsmitm.Options
	tlsOpts   *tlsmitm.Options
	http      *exchange.Options
	tls       *tlsmitm.Handler
	http1     proxycore.Handler
	authority atomic.Pointer[tlsmitm.Authority] // set by open
	keyLog    *certs.KeyLog                     // nil when not asked for

	background sync.WaitGroup
	tuns       atomic.Int32
	mu         sync.Mutex
	stacks     map[*netstack.Stack]string // by mode
}

func (a *Appliance) newParts() (*parts, error) {
	p := &parts{
		a:       a,
		core:    proxycore.DeclareOptions(a.registry),
		relay:   relay.DeclareOptions(a.registry),
		dns:     dnsmitm.DeclareOptions(a.registry),
		tlsOpts: tlsmitm.DeclareOptions(a.registry),
		http:    exchange.DeclareOptions(a.registry),
		stacks:  map[*netstack.Stack]string{},
	}
	cfg := tlsmitm.Config{Options: p.tlsOpts, Logger: a.log, Store: func() *certs.Store { return p.authority.Load().Store() }}
	if path := certs.KeyLogPath(os.Getenv); path != "" {
		log, err := certs.OpenKeyLog(path, a.log)
		if err != nil {
			return nil, err
		}
		p.keyLog, cfg.KeyLog = log, log
	}
	var err error
	if p.tls, err = tlsmitm.New(cfg); err != nil {
		return nil, err
	}
	framing := http1.New(http1.Config{})
	p.http1 = framing.Handler(exchange.New(exchange.Config{
		Options: p.http, NewServer: framing.NewServer(p.http), Raw: relay.TCP{Options: p.relay},
	}))
	return p, nil
}

// coreConfig is the table of protocols.
func (p *parts) coreConfig(a *Appliance) proxycore.Config {
	return proxycore.Config{
		Logger:   a.log,
		Options:  p.core,
		Recorder: a.store,
		Control:  a.own.Control,
		Secure:   p.tls.Secure,
		Protocols: proxycore.Protocols{
			TLS:   p.tls,
			HTTP1: p.http1,
			DNS:   dnsmitm.Handler{},
			TCP:   relay.TCP{Options: p.relay},
			UDP:   relay.UDP{Options: p.relay},
			Pass:  relay.Pass{},
		},
		LastActive: lastActive,
	}
}

func lastActive(c net.Conn) time.Time {
	if t, ok := c.(interface{ LastActive() time.Time }); ok {
		return t.LastActive()
	}
	return kernelActive(c)
}

// resolver serves clients that ask the appliance itself.
func (p *parts) resolver() proxycore.Handler {
	return dnsmitm.Handler{Resolver: &dnsmitm.Resolver{Options: p.dns}}
}

// explicit is the outermost protocol of explicit proxies.
func (p *parts) explicit() proxycore.Handler { return mode.Explicit{TLS: p.tls, HTTP1: p.http1} }

// open opens what options name: the certificate authority.
func (p *parts) open() error {
	authority, err := tlsmitm.OpenAuthority(tlsmitm.AuthorityConfig{
		Registry: p.a.registry, Options: p.tlsOpts, ConfDir: p.a.options.confdir, Logger: p.a.log,
	})
	if err != nil {
		return err
	}
	p.authority.Store(authority)
	return nil
}

func (p *parts) close() {
	p.background.Wait()
	if p.keyLog != nil {
		p.a.closed("TLS key log", p.keyLog.Close())
	}
}

// nextTUN numbers the devices of tun modes, for their addresses.
func (p *parts) nextTUN() int { return firstTUNNet + int(p.tuns.Add(1)-1)%200 }

func (p *parts) addStack(r *running, mode string, s *netstack.Stack) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stacks[s] = mode
	r.onStop(func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.stacks, s)
	})
}

// WireGuardFile is the configuration of the WireGuard server in a confdir.
func WireGuardFile(confdir string) string { return filepath.Join(Expand(confdir), "wireguard.conf") }

// Expand replaces a leading ~ by the home directory.
func Expand(path string) string {
	if path != "~" && !strings.HasPrefix(path, "~/") {
		return path
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return path
	}
	return filepath.Join(home, strings.TrimPrefix(path, "~"))
}

// canMark reports whether this process may set packet marks.
func canMark() bool {
	ok, err := cap.GetProc().GetFlag(cap.Effective, cap.NET_ADMIN)
	return err == nil && ok
}
