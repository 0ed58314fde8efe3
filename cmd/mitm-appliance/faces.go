package main

import (
	"context"
	"io"
	"log/slog"
	"os"

	"github.com/spf13/cobra"

	"mitm-appliance/api"
	"mitm-appliance/internal/appliance"
	"mitm-appliance/option"
	"mitm-appliance/proxycore/mode"
	"mitm-appliance/ui/dump"
)

// faceCommand is a command that runs the appliance and shows it with a face. begin declares the
// face's options and returns how to make it once they have values.
func faceCommand(cmd *cobra.Command, begin func(*option.Registry) func() face) *cobra.Command {
	fatal := make(chan error, 1)
	level := &slog.LevelVar{}
	a, err := appliance.New(appliance.Config{Version: version, LogLevel: level, Fatal: func(err error) {
		select {
		case fatal <- err:
		default: // one reason is enough
		}
	}})
	cmd.Args = cobra.NoArgs
	if err != nil {
		cmd.RunE = func(*cobra.Command, []string) error { return err }
		return cmd
	}
	show := begin(a.Options())
	s := addSettings(cmd, a.Options())
	a.Options().Subscribe(func([]string) error {
		level.Set(verbosity(a.Options()))
		return nil
	})
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := s.apply(); err != nil {
			return badUsage(cmd, err)
		}
		if s.list {
			return printOptions(cmd, a.Options())
		}
		return serve(cmd, a, fatal, show())
	}
	return cmd
}

// verbosity is the level from which log records are kept, by the option termlog_verbosity.
func verbosity(r *option.Registry) slog.Level {
	v, _ := r.Value("termlog_verbosity")
	switch v {
	case "error":
		return slog.LevelError
	case "warn":
		return slog.LevelWarn
	case "alert":
		return mode.LevelAlert
	case "debug":
		return slog.LevelDebug
	}
	return slog.LevelInfo
}

func newDump() *cobra.Command {
	return faceCommand(&cobra.Command{
		Use:   "dump [flags]",
		Short: "Print flows as they happen",
		Example: `  mitm-appliance dump                                    proxy on port 8080, one line per flow
  mitm-appliance dump -m transparent:lan0 -m wireguard   two feeds at once
  mitm-appliance dump -w flows.mitm --flow-detail 0      record, print nothing
  mitm-appliance dump -n -r flows.mitm --flow-detail 3   print a recording with its bodies`,
	}, func(r *option.Registry) func() face {
		o := dump.DeclareOptions(r)
		return func() face { return dump.New(o, os.Stdout, os.Stderr).Run }
	})
}

func newRun() *cobra.Command {
	return faceCommand(&cobra.Command{
		Use:     "run [flags]",
		Short:   "Run as a service without a face of its own",
		Example: `  mitm-appliance run -m transparent:lan0 -w /var/lib/mitm-appliance/flows.mitm`,
	}, func(r *option.Registry) func() face {
		r.String("termlog_verbosity", "alert", "The least important log records that are written; info adds a line per connection.",
			option.Choose("error", "warn", "info", "alert", "debug"))
		return func() face { return logTo(os.Stderr) }
	})
}

// logTo writes log records as slog's text, which the journal keeps as it is.
func logTo(w io.Writer) face {
	h := slog.NewTextHandler(w, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.LevelKey && a.Value.Any() == mode.LevelAlert {
			a.Value = slog.StringValue("NOTICE")
		}
		return a
	}})
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
