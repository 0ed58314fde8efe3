package appliance

import (
	"context"

	"mitm-appliance/addon/block"
	"mitm-appliance/addon/readfile"
	"mitm-appliance/addon/save"
	"mitm-appliance/flow"
	"mitm-appliance/option"
)

// addonOptions are the settings of the built-in addons.
type addonOptions struct {
	block       *block.Options
	save        *save.Options
	readfile    *readfile.Options
	keepserving option.Bool
}

func declareAddonOptions(r *option.Registry) *addonOptions {
	return &addonOptions{
		block:    block.DeclareOptions(r),
		save:     save.DeclareOptions(r),
		readfile: readfile.DeclareOptions(r),
		keepserving: r.Bool("keepserving", false,
			"Go on after the file of rfile has been read. Off, the program then ends when no client is connected."),
	}
}

// newAddons is the one list of built-in addons, in the order in which they see events (HOOK-24).
func (a *Appliance) newAddons() []any {
	o := declareAddonOptions(a.registry)
	file := readfile.New(readfile.Config{Options: o.readfile, Logger: a.log, Replay: a.replay})
	return []any{
		block.New(o.block),
		save.New(save.Config{Options: o.save, Logger: a.log, Fatal: a.cfg.Fatal}),
		file,
		&keepserving{on: o.keepserving, a: a, read: file.Finished()},
	}
}

// replay runs a recorded flow through the addons, no faster than the watchers can follow.
func (a *Appliance) replay(ctx context.Context, f *flow.Flow) error {
	a.store.Settle(ctx)
	return a.core.Replay(ctx, f)
}
