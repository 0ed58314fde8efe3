package wg

import (
	"bytes"
	"errors"
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

func TestPeersThatHaveNotCalledAreNoProblem(t *testing.T) {
	var out bytes.Buffer
	l := deviceLogger(slog.New(slog.NewTextHandler(&out, nil)), false)
	l.Errorf("%v - Failed to send handshake initiation: %v", "peer(x)", errors.New("no known endpoint for peer"))
	if out.Len() > 0 {
		t.Errorf("logged %q, want nothing", &out)
	}
	l.Errorf("%v - Failed to send handshake initiation: %v", "peer(x)", errors.New("network is unreachable"))
	if !strings.Contains(out.String(), "network is unreachable") {
		t.Errorf("logged %q, want the problem", &out)
	}
}
