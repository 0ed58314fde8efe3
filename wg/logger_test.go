package wg

import (
	"log/slog"
	"strings"
	"testing"
)

func TestDeviceLogger(t *testing.T) {
	var out strings.Builder
	log := slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelDebug}))
	quiet := deviceLogger(log, false)
	quiet.Verbosef("chatter %d", 1)
	for i := range 3 * logBurst {
		quiet.Errorf("broken %d", i)
	}
	if strings.Contains(out.String(), "chatter") {
		t.Error("debug messages appear unasked")
	}
	if n := strings.Count(out.String(), "broken"); n < logBurst || n > 2*logBurst {
		t.Errorf("%d of %d equal errors were logged, want about %d", n, 3*logBurst, logBurst)
	}
	deviceLogger(log, true).Verbosef("chatter %d", 2)
	if !strings.Contains(out.String(), `level=DEBUG msg="wireguard device" text="chatter 2"`) {
		t.Errorf("verbose messages do not appear in:\n%s", out.String())
	}
}
