package mode

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
)

// LevelAlert is mitmproxy's level for what is as urgent as info, but to be noticed: modes that come and
// go. A service logs it, unlike each connection.
const LevelAlert = slog.LevelInfo + 1

// Instance is a running mode.
type Instance interface {
	// State says where it listens or captures.
	State() State
	// Stop ends it and waits. Conversations that listeners have accepted go on (MODE-17).
	Stop()
}

// State is what an Instance tells about itself.
type State struct {
	Listen     []string // addresses
	Interface  string   // device it captures on or created
	ClientConf string   // WireGuard: configuration of the first peer; secret
}

// Starter starts the mode of a spec.
type Starter func(ctx context.Context, s Spec) (Instance, error)

// Status is one wanted mode as it is now (MODE-18).
type Status struct {
	Spec    Spec
	Running bool
	Err     error // why it does not run
	State   State
}

// Manager keeps the wanted modes running. Methods are safe for concurrent use.
type Manager struct {
	start   Starter
	log     *slog.Logger
	changed func() // called after every change; may be nil

	apply sync.Mutex // one Apply at a time
	mu    sync.Mutex
	slots []*slot
}

type slot struct {
	spec     Spec
	host     string
	port     int
	instance Instance
	err      error
}

// NewManager returns a Manager without modes.
func NewManager(start Starter, log *slog.Logger, changed func()) *Manager {
	if changed == nil {
		changed = func() {}
	}
	return &Manager{start: start, log: log, changed: changed}
}

// ParseAll reads the mode option: it fails on the first bad spec, and on two modes that want the same
// address (MODE-13, MODE-14). host and port are the options listen_host and listen_port, -1 for none.
func ParseAll(texts []string, host string, port int) ([]Spec, error) {
	var specs []Spec
	taken := map[string]string{}
	for _, text := range texts {
		s, err := Parse(text)
		if err != nil {
			return nil, err
		}
		h, p := s.Address(host, port)
		for _, transport := range s.transports() {
			key := fmt.Sprintf("%s port %d/%s", h, p, transport)
			if other, dup := taken[key]; dup && p != 0 {
				return nil, fmt.Errorf("cannot spawn multiple servers on the same address: %s and %s both want %s; give one another @port",
					other, text, strings.TrimSpace(key))
			}
			taken[key] = text
		}
		if s.Name == Local && slices.ContainsFunc(specs, func(o Spec) bool { return o.Name == Local }) {
			return nil, fmt.Errorf("cannot spawn more than one local redirector; join their items with commas: local:ITEM,ITEM") // LOC-06
		}
		specs = append(specs, s)
	}
	return specs, nil
}

// Apply makes the running modes the wanted ones: what is unchanged keeps running, what is gone stops
// first, then the new ones start (MODE-15). It returns the errors of those that could not start,
// joined into one line each; the others run.
func (m *Manager) Apply(ctx context.Context, specs []Spec, host string, port int) []error {
	m.apply.Lock()
	defer m.apply.Unlock()
	next, gone := m.plan(specs, host, port)
	for _, s := range gone {
		s.instance.Stop()
		m.log.Log(context.Background(), LevelAlert, capital(s.spec.Description())+" stopped.", "spec", s.spec.Full)
	}
	m.mu.Lock()
	m.slots = next
	m.mu.Unlock()
	var failed []error
	for _, s := range next {
		if s.instance != nil {
			continue
		}
		instance, err := m.start(ctx, withAddress(s))
		m.mu.Lock()
		s.instance, s.err = instance, err
		m.mu.Unlock()
		if err != nil {
			failed = append(failed, fmt.Errorf("mode %s: %w", s.spec.Full, err))
			continue
		}
		m.log.Log(ctx, LevelAlert, announce(s.spec, instance.State()), "spec", s.spec.Full)
	}
	m.changed()
	return failed
}

// plan keeps the slots of modes that run already, makes new ones, and lists those that must stop.
func (m *Manager) plan(specs []Spec, host string, port int) (next, gone []*slot) {
	m.mu.Lock()
	defer m.mu.Unlock()
	old := slices.Clone(m.slots)
	for _, spec := range specs {
		h, p := spec.Address(host, port)
		i := slices.IndexFunc(old, func(s *slot) bool {
			return s.instance != nil && s.spec.Full == spec.Full && s.host == h && s.port == p
		})
		if i < 0 {
			next = append(next, &slot{spec: spec, host: h, port: p})
			continue
		}
		next = append(next, old[i])
		old = slices.Delete(old, i, i+1)
	}
	for _, s := range old {
		if s.instance != nil {
			gone = append(gone, s)
		}
	}
	return next, gone
}

func withAddress(s *slot) Spec {
	spec := s.spec
	spec.Host, spec.Port = s.host, s.port
	return spec
}

// announce is the line that says that a mode is up (MODE-19).
func announce(s Spec, st State) string {
	switch {
	case len(st.Listen) > 0:
		return capital(s.Description()) + " listening at " + strings.Join(st.Listen, " and ") + "."
	case st.Interface != "":
		return capital(s.Description()) + " capturing on " + st.Interface + "."
	}
	return capital(s.Description()) + " started."
}

func capital(s string) string { return strings.ToUpper(s[:1]) + s[1:] }

// Status lists the wanted modes.
func (m *Manager) Status() []Status {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []Status
	for _, s := range m.slots {
		st := Status{Spec: s.spec, Running: s.instance != nil, Err: s.err}
		if s.instance != nil {
			st.State = s.instance.State()
		}
		out = append(out, st)
	}
	return out
}

// Quiescer is an Instance that can stop taking new conversations before it ends those it carries:
// feeds carry the packets of theirs, listeners do not.
type Quiescer interface{ Quiesce() }

// Quiesce ends every mode that does not carry conversations, and lets the others take no new ones.
func (m *Manager) Quiesce() {
	m.apply.Lock()
	defer m.apply.Unlock()
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, s := range m.slots {
		if q, ok := s.instance.(Quiescer); ok {
			q.Quiesce()
		}
	}
}

// Stop ends all modes, the newest first.
func (m *Manager) Stop() {
	m.apply.Lock()
	defer m.apply.Unlock()
	m.mu.Lock()
	slots := m.slots
	m.slots = nil
	m.mu.Unlock()
	for _, s := range slices.Backward(slots) {
		if s.instance != nil {
			s.instance.Stop()
			m.log.Log(context.Background(), LevelAlert, capital(s.spec.Description())+" stopped.", "spec", s.spec.Full)
		}
	}
	m.changed()
}
