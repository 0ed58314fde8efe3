// Package api is the one door: everything that people see and do goes through API, whichever face
// they look at it with, in the same process or (with httpapi) over a socket.
//
// In: calls from faces. Out: flows, log records, options and modes as plain data, and their changes as
// one stream of events. It knows no terminal and no browser, and hands out no live object.
package api

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"mitm-appliance/flow"
	"mitm-appliance/option"
)

// API is what a face can do. Implementations are safe for concurrent use.
type API interface {
	// Version is the program's name and version.
	Version() string
	// Watch calls f with every event from now on, and with the log records that were kept from before,
	// until ctx ends, f fails, or the appliance has stopped and every event was delivered (then nil).
	// States of one flow that f was too slow for are merged; flows left out are counted in an
	// EventMissed.
	Watch(ctx context.Context, f func(Event) error) error
	// Flows returns the kept flows in order of arrival.
	Flows(ctx context.Context) ([]*flow.Flow, error)
	// Flow returns one; ErrUnknownFlow when it is not (or no longer) kept.
	Flow(ctx context.Context, id flow.ID) (*flow.Flow, error)
	// Do applies a verb to flows. It goes on after a failure and returns all of them joined.
	Do(ctx context.Context, v Verb, ids ...flow.ID) error
	// Edit changes one flow, on its owner's goroutine while it is live.
	Edit(ctx context.Context, id flow.ID, change func(*flow.Flow)) error
	// Inject adds a message to a live WebSocket, TCP or UDP flow.
	Inject(ctx context.Context, id flow.ID, toClient bool, data []byte, text bool) error
	// Options returns all options with their values.
	Options(ctx context.Context) ([]Option, error)
	// SetOptions applies "name=value" texts, all or none.
	SetOptions(ctx context.Context, texts ...string) error
	// Modes returns the state of every mode that is asked for.
	Modes(ctx context.Context) ([]Mode, error)
}

// ErrUnknownFlow says that no flow of this ID is kept.
var ErrUnknownFlow = errors.New("no flow with this ID is kept")

// Verb is something to do with flows.
type Verb string

// The verbs.
const (
	Resume Verb = "resume" // let an intercepted flow go on
	Kill   Verb = "kill"   // cut a live flow
	Remove Verb = "remove" // forget it; live ones are killed
	Revert Verb = "revert" // undo all edits
)

// EventKind says which field of an Event is set.
type EventKind uint8

// The kinds of events.
const (
	EventFlow   EventKind = iota + 1 // Flow is new or has changed
	EventLog                         // Log was written
	EventMissed                      // Missed flows were left out: the watcher was too slow
	EventModes                       // Modes changed their state: ask again
)

// Event is one thing that happened.
type Event struct {
	Kind   EventKind
	Flow   *flow.Flow // an immutable snapshot
	Log    *LogRecord
	Missed int
}

// LogRecord is one log line.
type LogRecord struct {
	Time    time.Time
	Level   slog.Level
	Message string
	Client  string     // address of the client it is about, "" for none
	Attrs   []LogField // the other attributes, in order
}

// LogField is one attribute of a log record as text.
type LogField struct{ Key, Value string }

// Option is one option with its value.
type Option struct {
	option.Spec
	Value any
}

// Mode is the state of one mode (MODE-18).
type Mode struct {
	Spec        string // as asked for
	Type        string // "regular", "wireguard", ...
	Description string
	Running     bool
	Error       string   // why it does not run; "" when it does
	Listen      []string // addresses that it listens on
	Interface   string   // the device it captures on, or created
	ClientConf  string   // WireGuard: configuration of the first peer; secret
}
