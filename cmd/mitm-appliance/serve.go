package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"

	"mitm-appliance/api"
	"mitm-appliance/internal/appliance"
)

// face shows what the API tells until the appliance has stopped.
type face func(ctx context.Context, a api.API) error

// stopTimeout bounds a clean end: listeners, conversations, rules, files.
const stopTimeout = 10 * time.Second

// serve runs an appliance with a face until a signal, or until the face or a fatal error ends it.
func serve(cmd *cobra.Command, a *appliance.Appliance, fatal <-chan error, show face) error {
	appliance.TuneMemory()
	ctx, stop := signal.NotifyContext(cmd.Context(), stopSignals()...)
	defer stop()
	shown := make(chan error, 1)
	go func() { shown <- show(context.Background(), a.API()) }() // it ends when the appliance has stopped

	failed := a.Start(ctx)
	if len(failed) > 0 && !a.Serves() {
		stopBounded(a)
		return errors.Join(startError(failed), <-shown)
	}
	for _, err := range failed { // the others go on
		a.Log().Error("mode failed to start", "err", err)
	}
	if err := appliance.DropPrivileges(a.Needs()); err != nil {
		a.Log().Warn("cannot give up privileges that are no longer needed", "err", err)
	}
	notify(a.Log(), daemon.SdNotifyReady)
	go feedWatchdog(ctx, a.Log()) // ends with ctx
	go appliance.TrimMemory(ctx)  // likewise

	var err error
	select {
	case <-ctx.Done():
	case <-a.Idle(): // nothing left to do
	case err = <-fatal:
	case err = <-shown: // the face cannot go on: its output is gone
		shown <- nil
	}
	stop() // a second signal ends the program the hard way
	notify(a.Log(), daemon.SdNotifyStopping)
	stopBounded(a)
	return errors.Join(err, <-shown)
}

// stopSignals ask for a clean end. The end of a terminal is one of them, since a gateway whose rules
// stay without it is dead; unless nohup or its like said that it is not.
func stopSignals() []os.Signal {
	signals := []os.Signal{syscall.SIGINT, syscall.SIGTERM}
	if !signal.Ignored(syscall.SIGHUP) {
		signals = append(signals, syscall.SIGHUP)
	}
	return signals
}

// startError is the one line that says why nothing runs.
func startError(failed []error) error {
	if len(failed) == 1 {
		return failed[0]
	}
	texts := make([]string, len(failed))
	for i, err := range failed {
		texts[i] = err.Error()
	}
	return fmt.Errorf("nothing could start: %s", strings.Join(texts, "; "))
}

func stopBounded(a *appliance.Appliance) {
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	a.Stop(ctx)
}

// notify tells systemd, if it listens.
func notify(log *slog.Logger, state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		log.Warn("telling systemd failed", "state", state, "err", err)
	}
}

// feedWatchdog tells systemd twice per watchdog period that we live (sd_watchdog_enabled(3)).
func feedWatchdog(ctx context.Context, log *slog.Logger) {
	period, err := daemon.SdWatchdogEnabled(false)
	if err != nil || period == 0 {
		return // not asked for
	}
	tick := time.NewTicker(period / 2)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			notify(log, daemon.SdNotifyWatchdog)
		case <-ctx.Done():
			return
		}
	}
}
