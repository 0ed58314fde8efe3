package option

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// SetText applies command line texts "name=value" or "name" (OPT-setspec), all or none. Texts of one
// name are collected: a list takes them all, every other type takes one. Unknown names are kept for
// options that are declared later (OPT-deferred); Deferred lists them.
func (r *Registry) SetText(texts ...string) error {
	byName := map[string][]string{}
	for _, t := range texts {
		name, value, has := strings.Cut(t, "=")
		if !has {
			byName[name] = append(byName[name], bare)
			continue
		}
		byName[name] = append(byName[name], value)
	}
	values := map[string]any{}
	for name, vs := range byName {
		s, ok := r.Lookup(name)
		if !ok {
			r.mu.Lock()
			r.deferred[name] = vs
			r.mu.Unlock()
			continue
		}
		if vs[0] == "toggle" && s.Type == TypeBool {
			v, _ := r.Value(name)
			values[name] = !v.(bool)
			continue
		}
		v, err := s.parse(vs)
		if err != nil {
			return err
		}
		values[name] = v
	}
	return r.Set(values)
}

// bare stands for a name without "=": it cannot be typed, as a NUL ends an argument.
const bare = "\x00"

// Deferred returns the names that were set but that nobody has declared, sorted.
func (r *Registry) Deferred() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Sorted(maps.Keys(r.deferred))
}

// Text writes a value as SetText reads it; lists are joined by newlines, "not set" is "".
func Text(v any) string {
	switch x := v.(type) {
	case bool:
		return strconv.FormatBool(x)
	case string:
		return x
	case *string:
		if x != nil {
			return *x
		}
	case int:
		return strconv.Itoa(x)
	case *int:
		if x != nil {
			return strconv.Itoa(*x)
		}
	case []string:
		return strings.Join(x, "\n")
	}
	return ""
}

var errRequired = errors.New("a value is required (name=value)")

func (s *Spec) parse(texts []string) (any, error) {
	if s.Type == TypeStrings {
		if len(texts) == 1 && texts[0] == bare {
			return []string{}, nil
		}
		return slices.DeleteFunc(slices.Clone(texts), func(t string) bool { return t == bare }), nil
	}
	if len(texts) > 1 {
		return nil, fmt.Errorf("option %s takes one value, got %d", s.Name, len(texts))
	}
	v, err := s.parseOne(texts[0])
	if err != nil {
		return nil, fmt.Errorf("option %s: %w", s.Name, err)
	}
	return v, nil
}

func (s *Spec) parseOne(t string) (any, error) {
	isBare := t == bare
	if isBare {
		t = ""
	}
	switch s.Type {
	case TypeBool:
		switch t {
		case "", "true":
			return true, nil
		case "false":
			return false, nil
		}
		return nil, fmt.Errorf("expected true, false or toggle, not %q", t)
	case TypeStr:
		if isBare {
			return nil, errRequired
		}
		return t, nil
	case TypeOptStr:
		if isBare {
			return (*string)(nil), nil
		}
		return &t, nil
	case TypeOptInt:
		if t == "" {
			return (*int)(nil), nil
		}
	}
	if t == "" {
		return nil, errRequired
	}
	n, err := strconv.Atoi(t)
	if err != nil {
		return nil, fmt.Errorf("expected a whole number, not %q", t)
	}
	if s.Type == TypeOptInt {
		return &n, nil
	}
	return n, nil
}
