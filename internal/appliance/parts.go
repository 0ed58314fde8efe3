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
	"mitm-appliance/proxycore/dnsmitm"
	"mitm-appliance/proxycore/mode"
	"mitm-appliance/proxycore/relay"
)

// parts are the protocols and what they share.
type parts struct {
	a          *Appliance
	core       *proxycore.Options
	relay      *relay.Options
	dns        *dnsmitm.Options
	background sync.WaitGroup

	tuns   atomic.Int32
	mu     sync.Mutex
	stacks map[*netstack.Stack]string // by mode
}

func (a *Appliance) newParts() *parts {
	return &parts{
		a:      a,
		core:   proxycore.DeclareOptions(a.registry),
		relay:  relay.DeclareOptions(a.registry),
		dns:    dnsmitm.DeclareOptions(a.registry),
		stacks: map[*netstack.Stack]string{},
	}
}

// coreConfig is the table of protocols.
func (p *parts) coreConfig(a *Appliance) proxycore.Config {
	return proxycore.Config{
		Logger:   a.log,
		Options:  p.core,
		Recorder: a.store,
		Control:  a.own.Control,
		Protocols: proxycore.Protocols{
			DNS:  dnsmitm.Handler{},
			TCP:  relay.TCP{Options: p.relay},
			UDP:  relay.UDP{Options: p.relay},
			Pass: relay.Pass{},
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
func (p *parts) explicit() proxycore.Handler { return mode.Explicit{} }

func (p *parts) open(*Appliance) error { return nil }

func (p *parts) close() { p.background.Wait() }

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

func (p *parts) inConfdir(name string) string {
	return filepath.Join(expand(p.a.options.confdir.Get()), name)
}

// expand replaces a leading ~ by the home directory.
func expand(path string) string {
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
