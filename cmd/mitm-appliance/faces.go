package main

import (
	"context"
	"io"
	"log/slog"
	"os"

	"github.com/spf13/cobra"

	"mitm-appliance/api"
	"mitm-appliance/internal/appliance"
)

// faceCommand is a command that runs the appliance and shows it with a face. begin declares the
// face's options and returns how to make it once they have values.
func faceCommand(cmd *cobra.Command, begin func(*appliance.Appliance) func() face) *cobra.Command {
	fatal := make(chan error, 1)
	a, err := appliance.New(appliance.Config{Version: version, Fatal: func(err error) {
		select {
		case fatal <- err:
		default: // one reason is enough
		}
	}})
	if err != nil {
		cmd.RunE = func(*cobra.Command, []string) error { return err }
		return cmd
	}
	make := begin(a)
	s := addSettings(cmd, a.Options())
	cmd.Args = cobra.NoArgs
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := s.apply(); err != nil {
			return badUsage(cmd, err)
		}
		if s.list {
			return printOptions(cmd, a.Options())
		}
		return serve(cmd, a, fatal, make())
	}
	return cmd
}

func newRun() *cobra.Command {
	return faceCommand(&cobra.Command{
		Use:     "run [flags]",
		Short:   "Run as a service without a face of its own",
		Example: `  mitm-appliance run -m transparent:lan0 -w /var/lib/mitm-appliance/flows.mitm`,
	}, func(*appliance.Appliance) func() face {
		return func() face { return logTo(os.Stderr) }
	})
}

// logTo writes log records as slog's text, which the journal keeps as it is.
func logTo(w io.Writer) face {
	h := slog.NewTextHandler(w, nil)
	return func(ctx context.Context, a api.API) error {
		return a.Watch(ctx, func(e api.Event) error {
			if e.Kind != api.EventLog {
				return nil
			}
			r := slog.NewRecord(e.Log.Time, e.Log.Level, e.Log.Message, 0)
			if e.Log.Client != "" {
				r.AddAttrs(slog.String("client", e.Log.Client))
			}
			for _, f := range e.Log.Attrs {
				r.AddAttrs(slog.String(f.Key, f.Value))
			}
			return h.Handle(ctx, r)
		})
	}
}
