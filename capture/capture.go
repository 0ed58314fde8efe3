//go:build linux

package capture

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"mitm-appliance/redirect"
)

const (
	defaultMaxSockets = 65536
	defaultRefresh    = time.Second
)

// Config says how to capture. The zero value captures nothing, with the
// defaults named below.
type Config struct {
	Logger *slog.Logger   // nil: slog.DiscardHandler
	Spec   Spec           // whom to capture; change it later with Set
	Marks  redirect.Marks // zero: redirect's defaults

	// Mechanism to use. Zero: Auto.
	Mechanism Mechanism
	// Cgroup is the cgroup-v2 directory whose processes can be captured, as an
	// absolute path. "": the root of the cgroup2 mount, so all processes.
	Cgroup string
	// Exclude are cgroups, as in Cgroup items, whose processes are never captured
	// whatever Spec says: give the appliance's own, if it has one to itself, so that
	// the programs it starts are left alone. This process itself never is captured.
	Exclude []string
	// Output puts rules into redirect's nftables output chain; it is what NFT
	// needs. nil: NFT is not available.
	Output func(redirect.OutputRules) error
	// DNS is where queries go that captured processes send to a DNS stub on
	// 127.0.0.0/8 port 53 (systemd-resolved): an IPv4 address that the TUN device
	// leads to. Invalid (zero): stubs are left alone.
	DNS netip.AddrPort
	// MaxSockets is how many sockets' owners are remembered; the least recently
	// used are forgotten. Zero: 65536 (about 15 MB of kernel memory).
	MaxSockets uint32
	// Refresh is how often programs and cgroups named by Spec are looked for
	// again. Zero: 1 s. A process that starts is matched at once by its program
	// file; the search is for replaced files, containers and new cgroups.
	Refresh time.Duration
}

// Mechanism is a way to capture.
type Mechanism uint8

// Auto takes EBPF where the kernel has it and NFT elsewhere. NFT knows users and
// cgroups only, rewrites no DNS stub, and judges packets instead of sockets: it
// also takes established connections, which therefore break, and the answers
// of services that a captured user or cgroup offers to other hosts.
const (
	Auto Mechanism = iota
	EBPF
	NFT
)

func (m Mechanism) String() string {
	return [...]string{"auto", "ebpf", "nft"}[min(m, NFT)]
}

// Status says which mechanism runs and why.
type Status struct {
	Mechanism Mechanism // EBPF or NFT
	Reason    string    // why not a better one; "" when there is none
	// ThreadNames says that Name items are compared with names of threads, because
	// this kernel does not let eBPF programs read its structures.
	ThreadNames bool
}

// Capture steers local traffic. Its methods may be called from any goroutine.
type Capture struct {
	cfg    Config
	log    *slog.Logger
	mount  string // of cgroup2; "" when there is none
	status Status
	users  userNames
	diag   *diag
	kernel *kernelSteer // nil when NFT

	mu     sync.Mutex // held while what is captured changes
	spec   Spec
	rules  *rules
	output redirect.OutputRules // in force, when NFT

	life   sync.RWMutex // held by readers while maps and sockets must stay open
	closed bool

	stop context.CancelFunc
	done chan struct{} // closed when refresh has ended
}

// New begins to capture in the network namespace of the calling thread, at
// once. The policy route that leads marked packets into the TUN device is
// redirect's; make it first. The caller closes.
func New(cfg Config) (*Capture, error) {
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	c := &Capture{cfg: cfg, log: cfg.Logger, done: make(chan struct{})}
	c.mount, _ = cgroupMount()
	var err error
	if c.diag, err = openDiag(); err != nil {
		return nil, err
	}
	if err := c.begin(); err != nil {
		_ = c.diag.close()
		return nil, err
	}
	ctx, stop := context.WithCancel(context.Background())
	c.stop = stop
	go c.refresh(ctx)
	c.log.Info("local capture runs", "mechanism", c.status.Mechanism.String(), "reason", c.status.Reason, "spec", cfg.Spec.Describe())
	return c, nil
}

func (cfg *Config) complete() error {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Marks == (redirect.Marks{}) {
		cfg.Marks = redirect.Marks{Mask: redirect.DefaultMask, Capture: redirect.DefaultCaptureMark, Own: redirect.DefaultOwnMark}
	}
	if cfg.MaxSockets == 0 {
		cfg.MaxSockets = defaultMaxSockets
	}
	if cfg.Refresh <= 0 {
		cfg.Refresh = defaultRefresh
	}
	if cfg.DNS.IsValid() {
		cfg.DNS = netip.AddrPortFrom(cfg.DNS.Addr().Unmap(), cfg.DNS.Port())
		if !cfg.DNS.Addr().Is4() || cfg.DNS.Port() == 0 {
			return fmt.Errorf("capture: DNS server %s: must be an IPv4 address with a port, as stubs listen on 127.0.0.0/8", cfg.DNS)
		}
	}
	return nil
}

// never is what no Spec can capture.
func (c *Capture) never() []Item {
	items := []Item{{Negated: true, Kind: PID, Number: uint32(os.Getpid())}}
	for _, path := range c.cfg.Exclude {
		items = append(items, Item{Negated: true, Kind: Cgroup, Text: path})
	}
	return items
}

func (c *Capture) system() system {
	return system{
		user: userID, file: fileID, exes: programs,
		cgroup: func(path string) (uint64, error) { return cgroupID(filepath.Join(c.mount, path)) },
	}
}

// Status says which mechanism runs and why.
func (c *Capture) Status() Status { return c.status }

// Spec is what is captured now.
func (c *Capture) Spec() Spec {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.spec
}

// ErrClosed is returned by methods of a closed Capture.
var ErrClosed = errors.New("capture: closed")

// Set changes what is captured, at one instant for all processes. Connections
// that exist go on as they are; see Kick. On error the old Spec stays in force.
func (c *Capture) Set(spec Spec) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.life.RLock()
	defer c.life.RUnlock()
	if c.closed {
		return ErrClosed
	}
	if c.kernel == nil {
		if err := c.setOutput(spec); err != nil {
			return err
		}
		c.spec = spec
		return nil
	}
	rules, err := compileRules(spec, c.never(), c.system())
	if err != nil {
		return err
	}
	entries, err := rules.entries(c.system())
	if err != nil {
		return err
	}
	if err := c.kernel.swap(entries); err != nil {
		return err
	}
	c.spec, c.rules = spec, rules
	return nil
}

// refresh keeps the entries of programs and cgroups true until Close.
func (c *Capture) refresh(ctx context.Context) {
	defer close(c.done)
	ticker := time.NewTicker(c.cfg.Refresh)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		if err := c.refreshOnce(); err != nil {
			c.log.Warn("cannot bring local capture up to date", "err", err)
		}
	}
}

func (c *Capture) refreshOnce() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.rules.changing() {
		return nil
	}
	if c.kernel == nil {
		return c.refreshOutput()
	}
	entries, err := c.rules.entries(c.system())
	if err != nil {
		return err
	}
	return c.kernel.amend(entries)
}

// Close stops capturing at once; connections that are marked already keep
// their mark. Closing twice is harmless.
func (c *Capture) Close() error {
	c.stop()
	<-c.done
	c.life.Lock()
	defer c.life.Unlock()
	if c.closed {
		return nil
	}
	c.closed = true
	errs := []error{c.diag.close()}
	if c.kernel != nil {
		errs = append(errs, c.kernel.close())
	}
	if c.kernel == nil {
		errs = append(errs, c.cfg.Output(redirect.OutputRules{}))
	}
	return errors.Join(errs...)
}
