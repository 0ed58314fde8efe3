// Package appliance builds everything from options and runs it: the composition root, and the only
// package that imports (nearly) all others.
//
// In: an option registry that the command line has filled. Out: running modes, an api.API for the
// faces, and a clean end. It contains no protocol and no policy of its own.
package appliance

import (
	"context"
	"log/slog"
	"slices"
	"sync"

	"mitm-appliance/api"
	"mitm-appliance/flow"
	"mitm-appliance/option"
	"mitm-appliance/proxycore"
	"mitm-appliance/proxycore/mode"
	"mitm-appliance/store"
)

// Config of an Appliance.
type Config struct {
	Version  string
	LogLevel slog.Leveler // nil means info
	// Fatal is called when the appliance must not go on, because flows that are to be saved cannot be:
	// the program then ends with status 1. nil ignores it.
	Fatal func(error)
}

// Appliance is everything, built but not running: New, fill Options, Start, Stop.
type Appliance struct {
	cfg      Config
	registry *option.Registry
	options  *options
	logs     *api.LogHub
	log      *slog.Logger
	store    *store.Store
	core     *proxycore.Core
	api      *api.Service
	modes    *mode.Manager
	own      *ownAddresses
	parts    *parts
	addons   []any

	changing sync.Mutex // one change of modes at a time
	running  bool
	idle     chan struct{}
}

// New declares all options and builds everything around them. Nothing runs yet.
// The error says which part of the environment is wrong.
func New(cfg Config) (*Appliance, error) {
	if cfg.LogLevel == nil {
		cfg.LogLevel = slog.LevelInfo
	}
	if cfg.Fatal == nil {
		cfg.Fatal = func(error) {}
	}
	a := &Appliance{cfg: cfg, registry: option.New(), own: newOwnAddresses(), idle: make(chan struct{})}
	a.logs = api.NewLogHub(cfg.LogLevel, a.teeLog)
	a.log = slog.New(a.logs)
	a.options = declareOptions(a.registry)
	a.store = store.New(store.Config{})
	var err error
	if a.parts, err = a.newParts(); err != nil {
		return nil, err
	}
	a.core = proxycore.New(a.parts.coreConfig(a))
	a.addons = a.newAddons()
	a.core.SetAddons(a.addons...)
	a.modes = mode.NewManager(a.startMode, a.log, func() { a.api.ModesChanged() })
	a.api = api.New(api.Config{
		Version: cfg.Version, Store: a.store, Options: a.registry, Logs: a.logs,
		Modes: a.modeStates, Changed: a.flowsChanged,
	})
	a.registry.Subscribe(a.optionsChanged)
	return a, nil
}

// API is what faces talk to.
func (a *Appliance) API() api.API { return a.api }

// Options is the registry to fill before Start; later changes take effect at once.
func (a *Appliance) Options() *option.Registry { return a.registry }

// Log is the appliance's logger.
func (a *Appliance) Log() *slog.Logger { return a.log }

// teeLog gives log records to the addons that listen to them.
func (a *Appliance) teeLog(ctx context.Context, r slog.Record) {
	if a.core != nil {
		a.core.Hooks().AddLog(ctx, r)
	}
}

// Start opens what the options name and starts the modes. It returns why the appliance or one of its
// modes could not start; modes that could, run, and Stop is due in any case.
func (a *Appliance) Start(ctx context.Context) []error {
	if err := a.core.Hooks().Load(&proxycore.Loader{Options: a.registry}); err != nil {
		return []error{err}
	}
	if err := a.parts.open(); err != nil {
		return []error{err}
	}
	if err := a.core.Hooks().Configure(a.allOptions()); err != nil {
		return []error{err}
	}
	a.changing.Lock()
	a.running = true
	a.changing.Unlock()
	failed := a.applyModes(ctx)
	a.core.Hooks().Running(ctx)
	return failed
}

// Stop ends everything in order: listeners, conversations, feeds and their rules, files, watchers.
// ctx bounds the patience with running conversations.
func (a *Appliance) Stop(ctx context.Context) {
	a.changing.Lock()
	a.running = false
	a.changing.Unlock()
	a.modes.Quiesce()
	a.core.Shutdown(ctx)
	a.modes.Stop()
	a.core.Hooks().Done(ctx)
	a.parts.close()
	a.store.Close()
}

func (a *Appliance) allOptions() []string {
	var names []string
	for _, s := range a.registry.Specs() {
		names = append(names, s.Name)
	}
	return names
}

// applyModes makes the wanted modes the running ones.
func (a *Appliance) applyModes(ctx context.Context) []error {
	a.changing.Lock()
	defer a.changing.Unlock()
	if !a.running {
		return nil
	}
	host, port := a.options.listen()
	var specs []mode.Spec
	if a.options.server.Get() {
		var err error
		if specs, err = mode.ParseAll(a.options.mode.Get(), host, port); err != nil {
			return []error{err}
		}
	}
	return a.modes.Apply(ctx, specs, host, port)
}

// optionsChanged reacts to changed options: modes that are no modes reject the change, good ones are
// applied in the background (MODE-15).
func (a *Appliance) optionsChanged(changed []string) error {
	if slices.Contains(changed, "store_limit") {
		a.store.SetLimit(int64(a.options.storeLimit.Get()) << 20)
	}
	touches := func(name string) bool { return slices.Contains(changed, name) }
	if touches("mode") || touches("server") || touches("listen_host") || touches("listen_port") {
		host, port := a.options.listen()
		if _, err := mode.ParseAll(a.options.mode.Get(), host, port); err != nil {
			return err
		}
		a.parts.background.Go(func() {
			for _, err := range a.applyModes(context.Background()) {
				a.log.Error("mode failed to start", "err", err)
			}
		})
	}
	a.changing.Lock()
	running := a.running
	a.changing.Unlock()
	if !running {
		return nil
	}
	return a.core.Hooks().Configure(changed)
}

func (a *Appliance) modeStates() []api.Mode {
	var out []api.Mode
	for _, st := range a.modes.Status() {
		m := api.Mode{
			Spec: st.Spec.Full, Type: st.Spec.Name, Description: st.Spec.Description(), Running: st.Running,
			Listen: st.State.Listen, Interface: st.State.Interface, ClientConf: st.State.ClientConf,
		}
		if st.Err != nil {
			m.Error = st.Err.Error()
		}
		out = append(out, m)
	}
	return out
}

func (a *Appliance) flowsChanged(flows []*flow.Flow) {
	a.core.Hooks().Update(context.Background(), flows)
}

// Serves reports whether Start came as far as the modes and at least one of them runs, or none was
// asked for.
func (a *Appliance) Serves() bool {
	a.changing.Lock()
	running := a.running
	a.changing.Unlock()
	states := a.modes.Status()
	return running && (len(states) == 0 || slices.ContainsFunc(states, func(s mode.Status) bool { return s.Running }))
}

// Idle is closed when nothing is left to do: everything that was to be read has been, and no mode was
// asked for. It stays open while the appliance serves.
func (a *Appliance) Idle() <-chan struct{} { return a.idle }
