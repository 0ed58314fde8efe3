package wg

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
	"golang.zx2c4.com/wireguard/device"
)

// wireguard-go reports one error per batch while the network is down; more than
// this many lines would tell nothing new.
const (
	logEvery = time.Second
	logBurst = 20
)

// awaited ends what wireguard-go reports every few seconds for each peer that
// has a keepalive and has not called yet: the normal state of a phone that is
// off. It is no problem.
const awaited = "no known endpoint for peer"

// deviceLogger passes wireguard-go's messages on: errors as warnings (none of
// them stops the server), the rest at debug level, where verbose asks for it.
func deviceLogger(log *slog.Logger, verbose bool) *device.Logger {
	limit := rate.NewLimiter(rate.Every(logEvery), logBurst)
	var suppressed atomic.Uint64
	l := &device.Logger{
		Verbosef: device.DiscardLogf,
		Errorf: func(format string, args ...any) {
			text := fmt.Sprintf(format, args...)
			if strings.HasSuffix(text, awaited) {
				return
			}
			if !limit.Allow() {
				suppressed.Add(1)
				return
			}
			log.Warn("wireguard device reports a problem",
				"text", text, "suppressed", suppressed.Swap(0))
		},
	}
	if verbose && log.Enabled(context.Background(), slog.LevelDebug) {
		l.Verbosef = func(format string, args ...any) {
			log.Debug("wireguard device", "text", fmt.Sprintf(format, args...))
		}
	}
	return l
}
