package dump

import (
	"log/slog"
	"strings"

	"mitm-appliance/api"
)

// logLine prints a record as "[15:04:05.000][client] message: error key=value" (CLI-log). The mode is
// left out where the client says who is meant.
func (p *page) logLine(r *api.LogRecord) {
	p.own(cyan.with(dim), "["+r.Time.Format("15:04:05.000")+"]")
	if r.Client != "" {
		p.seen(yellow.with(dim), "["+r.Client+"]")
	}
	p.own(plain, " ")
	var text strings.Builder
	text.WriteString(r.Message)
	for _, f := range r.Attrs {
		switch {
		case f.Key == "err":
			text.WriteString(": " + f.Value)
		case f.Key != "mode" || r.Client == "":
			text.WriteString(" " + f.Key + "=" + quoted(f.Value))
		}
	}
	i := levelInk(r.Level)
	for n, line := range strings.Split(strings.TrimRight(text.String(), "\n"), "\n") {
		if n > 0 { // so that no message can pass for another record
			p.own(plain, "\n"+indent)
		}
		p.seen(i, strings.ReplaceAll(line, "\t", "  "))
	}
	p.newline()
}

// quoted puts values that are no single word into quotation marks.
func quoted(s string) string {
	if s == "" || strings.ContainsAny(s, " \t\n\"=") {
		return `"` + strings.ReplaceAll(s, `"`, `\"`) + `"`
	}
	return s
}

func levelInk(l slog.Level) ink {
	switch {
	case l >= slog.LevelError:
		return red
	case l >= slog.LevelWarn:
		return yellow
	case l == levelAlert:
		return magenta
	}
	return plain
}
