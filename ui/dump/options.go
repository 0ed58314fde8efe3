package dump

import (
	"fmt"
	"log/slog"

	"mitm-appliance/option"
)

// Options are the settings of this face.
type Options struct {
	Detail    option.Int    // flow_detail
	Verbosity option.String // termlog_verbosity
	Lines     option.Int    // content_view_lines_cutoff

	registry *option.Registry // for showhost, which all faces share
}

// DeclareOptions declares them.
func DeclareOptions(r *option.Registry) *Options {
	return &Options{
		Detail: r.Int("flow_detail", 1,
			"How much of each flow is printed: 0 nothing, 1 a line each for request and response, 2 also headers, "+
				"3 also bodies and messages, cut at content_view_lines_cutoff, 4 everything.",
			option.Check(func(n int) error {
				if n < 0 || n > 4 {
					return fmt.Errorf("expected 0 to 4, not %d", n)
				}
				return nil
			})),
		Verbosity: r.String("termlog_verbosity", "info", "The least important log records that are printed.",
			option.Choose("error", "warn", "info", "alert", "debug")),
		Lines: r.Int("content_view_lines_cutoff", 512, "Lines after which bodies are cut, except at flow_detail 4.",
			option.Check(func(n int) error {
				if n < 0 || n > 1<<20 {
					return fmt.Errorf("expected 0 to %d lines, not %d", 1<<20, n)
				}
				return nil
			})),
		registry: r,
	}
}

func (o *Options) showHost() bool {
	v, _ := o.registry.Value("showhost")
	on, _ := v.(bool)
	return on
}

// levelAlert is mitmproxy's alert: as urgent as info, but to be noticed.
const levelAlert = slog.LevelInfo + 1

// level is the least level that is printed.
func (o *Options) level() slog.Level {
	switch o.Verbosity.Get() {
	case "error":
		return slog.LevelError
	case "warn":
		return slog.LevelWarn
	case "alert":
		return levelAlert
	case "debug":
		return slog.LevelDebug
	}
	return slog.LevelInfo
}
