//go:build linux

package capture

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
)

// A Spec becomes entries of one hash map. Applying items in order means that
// the last matching item decides, so each key (a pid, a name, ...) holds the
// place and the verdict of the last item that names it, and the program takes
// the highest of the values it finds: five look-ups at most, however many
// items there are. Key kindMeta holds the start value and which kinds occur.

// Kinds of keys: those of items, and two that only exist here.
const (
	kindMeta   = 0
	kindExePID = uint32(Exe) + 1 // a pid that was found to run the program of an Exe item
)

// ruleKey is what the programs look up: the kind as a native 64-bit word, then 16 bytes.
type ruleKey [24]byte

func numberKey(kind uint32, n ...uint64) (k ruleKey) {
	binary.NativeEndian.PutUint64(k[:], uint64(kind))
	for i, v := range n {
		binary.NativeEndian.PutUint64(k[8+8*i:], v)
	}
	return k
}

func nameKey(name string) ruleKey {
	k := numberKey(uint32(Name))
	copy(k[8:], cut(name, commLen))
	return k
}

// system answers what patterns stand for on this machine right now.
type system struct {
	user   func(name string) (uint32, error)
	cgroup func(path string) (id uint64, err error)
	file   func(path string) (dev, inode uint64, err error) // device as the kernel numbers it
	exes   func() (map[string][]uint32, error)              // program file -> pids
}

// rules is a compiled Spec.
type rules struct {
	items []Item // with user names resolved
	start bool
}

// compileRules resolves user names and appends what is never captured: an
// unknown user is an error, a missing program or cgroup is not, as both may
// appear later.
func compileRules(spec Spec, never []Item, sys system) (*rules, error) {
	r := &rules{start: spec.start()}
	for _, item := range append(spec.Items[:len(spec.Items):len(spec.Items)], never...) {
		if item.Kind == UID && item.Text != "" {
			uid, err := sys.user(item.Text)
			if err != nil {
				return nil, fmt.Errorf("capture: item %q: %w: name an existing user or its number", item, err)
			}
			item.Number, item.Text = uid, ""
		}
		r.items = append(r.items, item)
	}
	return r, nil
}

// changing reports whether entries may be different another time.
func (r *rules) changing() bool {
	for _, item := range r.items {
		if item.Kind == Exe || item.Kind == Cgroup {
			return true
		}
	}
	return false
}

// entries is what the map has to hold now.
func (r *rules) entries(sys system) (map[ruleKey]uint64, error) {
	entries := make(map[ruleKey]uint64, len(r.items)+1)
	var exes map[string][]uint32
	meta := bit(r.start)
	for i, item := range r.items {
		value := uint64(i+1)<<1 | bit(!item.Negated)
		meta |= 1 << (8 + item.Kind)
		var keys []ruleKey
		var err error
		if item.Kind == Exe && exes == nil {
			if exes, err = sys.exes(); err != nil {
				return nil, err
			}
		}
		keys, err = itemKeys(item, sys, exes)
		if err != nil {
			return nil, fmt.Errorf("capture: item %q: %w", item, err)
		}
		for _, key := range keys {
			entries[key] = value // later items are higher
		}
	}
	entries[numberKey(kindMeta)] = meta
	return entries, nil
}

func itemKeys(item Item, sys system, exes map[string][]uint32) (keys []ruleKey, err error) {
	switch item.Kind {
	case Name:
		return []ruleKey{nameKey(item.Text)}, nil
	case Cgroup:
		id, err := sys.cgroup(item.Text)
		if err == nil {
			keys = append(keys, numberKey(uint32(Cgroup), id))
		}
		return keys, unlessMissing(err)
	case Exe:
		dev, inode, err := sys.file(item.Text)
		if err == nil {
			keys = append(keys, numberKey(uint32(Exe), dev, inode))
		}
		for _, pid := range exes[item.Text] {
			keys = append(keys, numberKey(kindExePID, uint64(pid)))
		}
		return keys, unlessMissing(err)
	default:
		return []ruleKey{numberKey(uint32(item.Kind), uint64(item.Number))}, nil
	}
}

func unlessMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func bit(b bool) uint64 {
	if b {
		return 1
	}
	return 0
}
