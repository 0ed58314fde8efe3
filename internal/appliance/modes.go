package appliance

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"mitm-appliance/capture"
	"mitm-appliance/flow"
	"mitm-appliance/netstack"
	"mitm-appliance/proxycore"
	"mitm-appliance/proxycore/mode"
	"mitm-appliance/redirect"
	"mitm-appliance/tun"
	"mitm-appliance/wg"
)

// startMode is the mode.Starter: the table of what can run.
func (a *Appliance) startMode(ctx context.Context, s mode.Spec) (mode.Instance, error) {
	switch s.Name {
	case mode.Regular:
		return a.startRegular(ctx, s)
	case mode.TUN:
		return a.startTUN(s)
	case mode.WireGuard:
		return a.startWireGuard(s)
	case mode.Transparent:
		return a.startTransparent(s)
	case mode.Local:
		return a.startLocal(s)
	}
	return nil, fmt.Errorf("%s mode is not part of this version; there are regular, transparent, local, tun and wireguard", s.Name)
}

// running is a mode made of parts that are closed in the opposite order of their making.
type running struct {
	state   mode.State
	quiesce func() // stops a listener; nil for feeds
	closers []func()
}

var _ mode.Instance = (*running)(nil)

// State implements mode.Instance.
func (r *running) State() mode.State { return r.state }

// Stop implements mode.Instance.
func (r *running) Stop() {
	r.Quiesce()
	for _, f := range slices.Backward(r.closers) {
		f()
	}
	r.closers = nil
}

// Quiesce implements mode.Quiescer.
func (r *running) Quiesce() {
	if r.quiesce != nil {
		r.quiesce()
		r.quiesce = nil
	}
}

func (r *running) onStop(f func()) { r.closers = append(r.closers, f) }

// abandon undoes what was made before err and returns err.
func (r *running) abandon(err error) (mode.Instance, error) {
	r.Stop()
	return nil, err
}

func (a *Appliance) startRegular(ctx context.Context, s mode.Spec) (mode.Instance, error) {
	l, err := mode.Listen(ctx, s, mode.ListenConfig{Core: a.core, Log: a.log, First: a.parts.explicit()})
	if err != nil {
		return nil, err
	}
	r := &running{state: l.State(), quiesce: l.Stop}
	r.onStop(a.own.add("tcp", r.state.Listen...))
	return r, nil
}

// newFeed returns the adapter of a mode; it ends with r.
func (a *Appliance) newFeed(r *running, s mode.Spec, name string) *feed {
	ctx, cancel := context.WithCancelCause(context.Background())
	r.onStop(func() { cancel(errModeStopped) })
	return &feed{ctx: ctx, core: a.core, mode: s.Full, name: name}
}

var errModeStopped = errors.New("the mode was stopped")

// The TUN devices of the modes lie side by side in 198.18.0.0/15 (RFC 2544), which no network uses:
// the first host is the device, the second is served by us.
func tunAddresses(n int) []netip.Prefix {
	return []netip.Prefix{
		netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 18, byte(n), 1}), 30),
		netip.MustParsePrefix(fmt.Sprintf("fd6d:6974:6d00:%x::1/64", n)),
	}
}

const (
	transparentNet = 1
	localNet       = 2
	firstTUNNet    = 16
)

// openTUN makes a device with a stack behind it.
func (a *Appliance) openTUN(r *running, f *feed, cfg tun.Config) (*tun.Device, error) {
	cfg.Logger, cfg.MTU = a.log, a.options.tunMTU.Get()
	device, err := tun.Open(cfg)
	if err != nil {
		return nil, err
	}
	r.state.Interface = device.Name()
	r.onStop(func() { a.closed("TUN device", device.Close()) })
	limits := netstack.Config{Logger: a.log}
	if f.name == "local" { // all its clients share one address
		limits.MaxHalfOpenPerClient, limits.MaxUDPPerClient = 4096, 16384
	}
	stack, err := netstack.New(limits, device.Endpoint(), f)
	if err != nil {
		return nil, err
	}
	r.onStop(func() { a.closed("network stack", stack.Close()) })
	a.parts.addStack(r, f.mode, stack)
	return device, nil
}

// closed reports an end that was not clean.
func (a *Appliance) closed(what string, err error) {
	if err != nil {
		a.log.Error("closing failed", "what", what, "err", err)
	}
}

func (a *Appliance) startTUN(s mode.Spec) (mode.Instance, error) {
	r := &running{}
	var routes []netip.Prefix
	for _, text := range a.options.routes.Get() {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, fmt.Errorf("option tun_routes: %q is no prefix such as 192.0.2.0/24", text)
		}
		routes = append(routes, p)
	}
	f := a.newFeed(r, s, "tun")
	n := a.parts.nextTUN()
	f.first = a.servesDNS(tunAddresses(n)[0].Addr().Next())
	cfg := tun.Config{Name: s.Data, Addresses: tunAddresses(n), Routes: routes}
	if len(routes) > 0 {
		cfg.OwnMark, cfg.OwnMask = a.steer(r), redirect.DefaultMask
	}
	if _, err := a.openTUN(r, f, cfg); err != nil {
		return r.abandon(err)
	}
	return r, nil
}

// servesDNS makes an address of ours a name server.
func (a *Appliance) servesDNS(addrs ...netip.Addr) func(netip.AddrPort) proxycore.Handler {
	return func(to netip.AddrPort) proxycore.Handler {
		if to.Port() == 53 && slices.Contains(addrs, to.Addr()) {
			return a.parts.resolver()
		}
		return nil
	}
}

func (a *Appliance) startWireGuard(s mode.Spec) (mode.Instance, error) {
	path := s.Data
	if path == "" {
		path = WireGuardFile(a.options.confdir.Get())
	}
	file, created, err := wg.LoadOrCreate(Expand(path))
	if err != nil {
		return nil, err
	}
	if created {
		a.log.Info("created a WireGuard configuration with one peer", "file", path)
	}
	r := &running{}
	server, err := wg.New(wg.Config{
		File: file, WatchPath: Expand(path), ListenPort: uint16(s.Port), // ParseAll checked it
		FirewallMark: a.steer(r), Logger: a.log,
	})
	if err != nil {
		return r.abandon(err)
	}
	r.onStop(func() { a.closed("WireGuard server", server.Close()) })
	f := a.newFeed(r, s, "wireguard")
	f.identify = func(c *flow.Client) {
		if p, ok := server.Peer(c.Peer.Addr()); ok {
			c.Tunnel = p.Name
		}
	}
	f.first = a.servesDNS(file.DNS()...)
	stack, err := netstack.New(netstack.Config{Logger: a.log}, server.Endpoint(), f)
	if err != nil {
		return r.abandon(err)
	}
	r.onStop(func() { a.closed("network stack", stack.Close()) })
	a.parts.addStack(r, s.Full, stack)
	listen := net.JoinHostPort(s.Host, strconv.Itoa(int(server.Port())))
	r.state.Listen = []string{listen}
	r.onStop(a.own.add("udp", net.JoinHostPort("0.0.0.0", strconv.Itoa(int(server.Port())))))
	r.state.ClientConf = clientConf(file, s.Host, server.Port())
	return r, nil
}

// clientConf is the configuration of the first peer whose private key we have.
func clientConf(file *wg.File, host string, port uint16) string {
	endpoint := host
	if endpoint == "" {
		guess, err := wg.GuessHost()
		if err != nil {
			return ""
		}
		endpoint = guess.String()
	}
	for _, p := range file.Peers {
		if conf, err := file.ClientConfig(p.Name, net.JoinHostPort(endpoint, strconv.Itoa(int(port)))); err == nil {
			return conf
		}
	}
	return ""
}

// steer notes that a mode steers packets by marks, so that our own sockets carry ours, and returns
// the mark.
func (a *Appliance) steer(r *running) uint32 {
	if !canMark() {
		return 0
	}
	a.own.marking.Add(1)
	r.onStop(func() { a.own.marking.Add(-1) })
	return redirect.DefaultOwnMark
}

func (a *Appliance) startTransparent(s mode.Spec) (mode.Instance, error) {
	neighbours, err := redirect.NewNeighbours()
	if err != nil {
		return nil, err
	}
	r := &running{}
	f := a.newFeed(r, s, "transparent")
	f.identify = func(c *flow.Client) {
		if mac, err := neighbours.Lookup(c.Peer.Addr()); err == nil {
			c.Device = mac.String()
		}
	}
	device, err := a.openTUN(r, f, tun.Config{Addresses: tunAddresses(transparentNet)})
	if err != nil {
		return r.abandon(err)
	}
	interfaces := strings.FieldsFunc(s.Data, func(c rune) bool { return c == ',' })
	if len(interfaces) == 0 {
		if interfaces, err = redirect.DefaultInterfaces(device.Name()); err != nil {
			return r.abandon(err)
		}
	}
	steering, err := redirect.New(redirect.Config{
		Logger: a.log, TUN: device.Name(), Interfaces: interfaces, FailOpen: a.options.failOpen.Get(),
	})
	if err != nil {
		return r.abandon(err)
	}
	a.steer(r)
	if err := steering.Apply(); err != nil {
		return r.abandon(err)
	}
	r.onStop(func() { a.closed("steering", steering.Undo()) })
	r.onStop(a.guard(steering))
	r.state.Interface = strings.Join(interfaces, ", ")
	return r, nil
}

// guardEvery is how often somebody else's change of the rules is looked for.
const guardEvery = 5 * time.Second

// guard puts rules back that others remove, a firewall's reload above all, until the returned function
// is called.
func (a *Appliance) guard(steering *redirect.Redirect) (stop func()) {
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(guardEvery)
		defer tick.Stop()
		for {
			select {
			case <-quit:
				return
			case <-tick.C:
			}
			if err := steering.Verify(); err != nil {
				a.log.Warn("the steering of traffic was changed from outside and is put back", "err", err)
				if err := steering.Apply(); err != nil {
					a.log.Error("putting the steering back failed; captured traffic may pass unseen", "err", err)
				}
			}
		}
	}()
	return func() {
		close(quit)
		<-done
	}
}

// localMarks are the marks of local capture: another value than forwarded traffic's under the same
// mask, so that each goes to its own TUN.
func localMarks() redirect.Marks {
	return redirect.Marks{Mask: redirect.DefaultMask, Capture: redirect.DefaultMask, Own: redirect.DefaultOwnMark}
}

// localSteering is the part of the steering of local capture that a clean-up has to know. It always
// fails open: eBPF lets go when the process dies.
func localSteering() redirect.Config {
	return redirect.Config{
		FailOpen: true, Marks: localMarks(), Name: redirect.DefaultName + "_local",
		RouteTable: redirect.DefaultRouteTable + 1, RulePriority: redirect.DefaultRulePriority + 1,
	}
}

// Clean removes what a killed appliance has left in the calling thread's network namespace. It returns
// redirect.ErrInUse, and touches nothing, while one is alive.
func Clean() error {
	return errors.Join(redirect.Clean(redirect.Config{}), redirect.Clean(localSteering()), tun.Clean())
}

func (a *Appliance) startLocal(s mode.Spec) (mode.Instance, error) {
	spec, err := capture.ParseSpec(s.Data)
	if err != nil {
		return nil, err
	}
	r := &running{}
	f := a.newFeed(r, s, "local")
	addrs := tunAddresses(localNet)
	dns := addrs[0].Addr().Next()
	f.first = a.servesDNS(dns)
	var captured atomic.Pointer[capture.Capture] // set below, before any packet comes
	f.identify = func(c *flow.Client) { c.Process = process(captured.Load(), c) }
	device, err := a.openTUN(r, f, tun.Config{Addresses: addrs})
	if err != nil {
		return r.abandon(err)
	}
	cfg := localSteering()
	cfg.Logger, cfg.TUN = a.log, device.Name()
	steering, err := redirect.New(cfg)
	if err != nil {
		return r.abandon(err)
	}
	a.steer(r)
	if err := steering.Apply(); err != nil {
		return r.abandon(err)
	}
	r.onStop(func() { a.closed("steering", steering.Undo()) })
	r.onStop(a.guard(steering))
	c, err := capture.New(capture.Config{
		Logger: a.log, Spec: spec, Marks: localMarks(), Output: steering.SetOutput, DNS: netip.AddrPortFrom(dns, 53),
	})
	if err != nil {
		return r.abandon(err)
	}
	captured.Store(c)
	r.onStop(func() { a.closed("local capture", c.Close()) })
	st := c.Status()
	a.log.Info("capturing local processes", "what", spec.Describe(), "by", st.Mechanism, "because", st.Reason)
	return r, nil
}

func process(captured *capture.Capture, c *flow.Client) *flow.Process {
	if captured == nil {
		return nil
	}
	p, ok := captured.Process(c.Transport, c.Peer, c.Local)
	if !ok {
		return nil
	}
	return &flow.Process{PID: p.PID, UID: int(p.UID), Name: p.Name, Exe: p.Exe, Cgroup: p.Cgroup}
}
