//go:build linux

package redirect

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrInUse is returned when a running appliance owns the table name, the
// route table or the rule priority.
var ErrInUse = errors.New("redirect: in use by a running appliance")

const maxStateSize = 1 << 20

// record is what must be known to undo the steering after a crash.
type record struct {
	PID          int
	Name         string
	TUN          string
	RouteTable   int
	RulePriority int
	Marks        Marks
	Settings     []setting
}

func (r record) policy() policy {
	return policy{marks: r.Marks, table: r.RouteTable, priority: r.RulePriority, tun: r.TUN}
}

// state is the record's file. It is locked for as long as its owner lives; the
// kernel drops the lock of a process that dies, however it dies.
type state struct {
	file  *os.File
	path  string
	stale *record // what an owner that died without undoing left, or nil
}

// openState takes ownership, or returns ErrInUse.
func openState(dir, name, namespaceID string) (*state, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("redirect: state directory: %w (cure: create it for this user, or set StateDir)", err)
	}
	name = filepath.Join(dir, fmt.Sprintf("redirect-%s-%s.json", name, namespaceID))
	for {
		file, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
		if err != nil {
			return nil, fmt.Errorf("redirect: state file: %w", err)
		}
		if err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			owner := readRecord(file)
			_ = file.Close()
			return nil, fmt.Errorf("%w: process %d holds %s (cure: stop it, or use another name)", ErrInUse, owner.PID, name)
		}
		now, err := os.Stat(name)
		if mine, err2 := file.Stat(); err == nil && err2 == nil && os.SameFile(mine, now) {
			s := &state{file: file, path: name}
			if old := readRecord(file); old.Name != "" {
				s.stale = &old
			}
			return s, nil
		}
		_ = file.Close() // its last owner removed it in between: try the new one
	}
}

// readRecord returns the zero record for an empty or damaged file: what the
// fixed names tell is undone all the same.
func readRecord(file *os.File) record {
	if _, err := file.Seek(0, io.SeekStart); err != nil {
		return record{}
	}
	return parseRecord(file)
}

// parseRecord refuses what would make undoing touch what is not ours.
func parseRecord(in io.Reader) record {
	var r record
	if err := json.NewDecoder(io.LimitReader(in, maxStateSize)).Decode(&r); err != nil {
		return record{}
	}
	cfg := Config{Name: r.Name, TUN: r.TUN, RouteTable: r.RouteTable, RulePriority: r.RulePriority, Marks: r.Marks}
	if _, err := cfg.withDefaults(); err != nil || r.RouteTable == 0 || r.RulePriority == 0 || r.Name == "" {
		return record{}
	}
	r.Settings = slices.DeleteFunc(r.Settings, func(s setting) bool {
		return path.Clean(s.Key) != s.Key || !strings.HasPrefix(s.Key, "net/ipv4/conf/") && !strings.HasPrefix(s.Key, "net/ipv6/conf/")
	})
	return r
}

// write replaces the record through the open file, which works after the
// process has given up the right to create files.
func (s *state) write(r record) error {
	data, err := json.Marshal(r)
	if err == nil {
		_, err = s.file.WriteAt(append(data, '\n'), 0)
	}
	if err == nil {
		err = s.file.Truncate(int64(len(data) + 1))
	}
	if err != nil {
		return fmt.Errorf("redirect: write the state file: %w", err)
	}
	return nil
}

// finish gives up ownership after everything is undone. Without the right to
// remove the file it is left empty.
func (s *state) finish() {
	_ = s.file.Truncate(0)
	_ = os.Remove(s.path)
	_ = s.file.Close()
}

// abandon gives up ownership and keeps the record for the next owner.
func (s *state) abandon() { _ = s.file.Close() }

// conflict looks for another running appliance, of another name but in the
// same network namespace, that uses the same routing.
func (s *state) conflict(mine record, namespaceID string) error {
	files, err := filepath.Glob(filepath.Join(filepath.Dir(s.path), "redirect-*-"+namespaceID+".json"))
	if err != nil {
		return fmt.Errorf("redirect: state directory: %w", err)
	}
	for _, name := range files {
		other, live := liveRecord(name)
		if name == s.path || !live || other.Name == "" {
			continue
		}
		if other.RouteTable == mine.RouteTable || other.RulePriority == mine.RulePriority || other.TUN == mine.TUN {
			return fmt.Errorf("%w: %q (process %d) uses device %s, route table %d, rule priority %d; all three must differ",
				ErrInUse, other.Name, other.PID, other.TUN, other.RouteTable, other.RulePriority)
		}
	}
	return nil
}

func liveRecord(name string) (record, bool) {
	file, err := os.Open(name)
	if err != nil {
		return record{}, false
	}
	defer file.Close()
	if unix.Flock(int(file.Fd()), unix.LOCK_SH|unix.LOCK_NB) == nil {
		return record{}, false // nobody holds it; the lock ends with the file
	}
	return readRecord(file), true
}
