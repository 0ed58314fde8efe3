// Package option holds the appliance's settings as typed options.
//
// In: declarations by whoever reads a setting, and changes from the command line, the configuration
// file and the API. Out: the current value, cheap enough to read per packet, and one call per atomic
// change to whoever subscribed. It knows no option by name and imports the standard library only.
//
// A package declares its options once, on the Registry that its constructor is given, and keeps the
// returned handles. Types and rules are mitmproxy's (OPT-types, OPT-update); choices are enforced.
package option

import (
	"fmt"
	"slices"
	"sort"
	"sync"
	"sync/atomic"
)

// Type is one of mitmproxy's six option types (OPT-types).
type Type string

// The option types with the Go type of their values.
const (
	TypeBool    Type = "bool"            // bool
	TypeStr     Type = "str"             // string
	TypeOptStr  Type = "optional str"    // *string
	TypeInt     Type = "int"             // int
	TypeOptInt  Type = "optional int"    // *int
	TypeStrings Type = "sequence of str" // []string, never written in place
)

// Spec declares one option.
type Spec struct {
	Name     string
	Type     Type
	Default  any
	Help     string
	Choices  []string              // allowed values of a string option; nil allows all
	Restart  bool                  // a change needs a restart of the program
	Validate func(value any) error // nil accepts every value of the type; the error says what is expected
}

// Registry is a set of declared options and their values. Safe for concurrent use; reads are one
// atomic load. The zero Registry is not usable, see New.
type Registry struct {
	changing sync.Mutex // declarations and changes, one at a time; held while subscribers are called
	mu       sync.Mutex // guards the fields below, never while anybody else's code runs
	specs    []Spec
	index    map[string]int
	deferred map[string][]string // text for options that nobody has declared yet (OPT-deferred)
	subs     []func(changed []string) error
	values   atomic.Pointer[[]any]
}

// New returns an empty registry.
func New() *Registry {
	r := &Registry{index: map[string]int{}, deferred: map[string][]string{}}
	r.values.Store(&[]any{})
	return r
}

// Declare adds an option and returns its position. Declaring a name twice, or a default that breaks
// the declaration's own rules, is a programming error and panics.
func (r *Registry) declare(s Spec) int {
	r.changing.Lock()
	defer r.changing.Unlock()
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, dup := r.index[s.Name]; dup {
		panic("option: " + s.Name + " is declared twice")
	}
	if err := s.check(s.Default); err != nil {
		panic("option: default of " + err.Error())
	}
	value := s.Default
	if texts, ok := r.deferred[s.Name]; ok {
		if v, err := s.parse(texts); err == nil && s.check(v) == nil {
			value = v
			delete(r.deferred, s.Name) // else Deferred goes on naming it
		}
	}
	r.index[s.Name] = len(r.specs)
	r.specs = append(r.specs, s)
	next := append(slices.Clone(*r.values.Load()), value)
	r.values.Store(&next)
	return len(r.specs) - 1
}

// Subscribe registers f to be called after every change with the sorted names of what changed. An
// error from f rolls the whole change back (OPT-update). f runs on the goroutine that made the
// change; it may read options and must not change, declare or subscribe.
func (r *Registry) Subscribe(f func(changed []string) error) {
	r.changing.Lock()
	defer r.changing.Unlock()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.subs = append(r.subs, f)
}

// Set changes several options at once, or none: values must have the Go type of the option.
func (r *Registry) Set(values map[string]any) error {
	r.changing.Lock()
	defer r.changing.Unlock()
	old := *r.values.Load()
	next, changed, err := r.changed(old, values)
	if err != nil || len(changed) == 0 {
		return err
	}
	r.values.Store(&next)
	r.mu.Lock()
	subs := slices.Clone(r.subs)
	r.mu.Unlock()
	for n, sub := range subs {
		err := sub(changed)
		if err == nil {
			continue
		}
		r.values.Store(&old)
		for _, told := range subs[:n+1] {
			_ = told(changed) // the old values were accepted before
		}
		return err
	}
	return nil
}

// changed checks values and returns what the registry holds with them, and the sorted names of those
// that differ.
func (r *Registry) changed(old []any, values map[string]any) (next []any, names []string, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	next = slices.Clone(old)
	for name, v := range values {
		i, ok := r.index[name]
		if !ok {
			return nil, nil, &UnknownError{Name: name}
		}
		if err := r.specs[i].check(v); err != nil {
			return nil, nil, err
		}
		if !equal(old[i], v) {
			names = append(names, name)
		}
		next[i] = v
	}
	sort.Strings(names)
	return next, names, nil
}

// Value returns an option's current value.
func (r *Registry) Value(name string) (any, bool) {
	r.mu.Lock()
	i, ok := r.index[name]
	r.mu.Unlock()
	if !ok {
		return nil, false
	}
	return (*r.values.Load())[i], true
}

// Specs returns all declarations, sorted by name.
func (r *Registry) Specs() []Spec {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := slices.Clone(r.specs)
	sort.Slice(out, func(i, j int) bool { return out[i].Name < out[j].Name })
	return out
}

// Lookup returns one declaration.
func (r *Registry) Lookup(name string) (Spec, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	i, ok := r.index[name]
	if !ok {
		return Spec{}, false
	}
	return r.specs[i], true
}

// UnknownError says that no option of this name is declared.
type UnknownError struct{ Name string }

func (e *UnknownError) Error() string {
	return fmt.Sprintf("unknown option %q (--options lists all)", e.Name)
}

// check reports whether v may be the option's value.
func (s *Spec) check(v any) error {
	ok := false
	text := ""
	switch s.Type {
	case TypeBool:
		_, ok = v.(bool)
	case TypeStr:
		text, ok = v.(string)
	case TypeOptStr:
		var p *string
		if p, ok = v.(*string); p != nil {
			text = *p
		}
	case TypeInt:
		_, ok = v.(int)
	case TypeOptInt:
		_, ok = v.(*int)
	case TypeStrings:
		_, ok = v.([]string)
	}
	if !ok {
		return fmt.Errorf("option %s is of type %s, not %T", s.Name, s.Type, v)
	}
	if len(s.Choices) > 0 && !slices.Contains(s.Choices, text) {
		return fmt.Errorf("option %s must be one of %v, not %q", s.Name, s.Choices, text)
	}
	if s.Validate != nil {
		if err := s.Validate(v); err != nil {
			return fmt.Errorf("option %s: %w", s.Name, err)
		}
	}
	return nil
}

func equal(a, b any) bool {
	switch x := a.(type) {
	case []string:
		y, ok := b.([]string)
		return ok && slices.Equal(x, y)
	case *string:
		y, ok := b.(*string)
		return ok && (x == nil) == (y == nil) && (x == nil || *x == *y)
	case *int:
		y, ok := b.(*int)
		return ok && (x == nil) == (y == nil) && (x == nil || *x == *y)
	}
	return a == b
}
