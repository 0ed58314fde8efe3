package exchange

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"

	"mitm-appliance/option"
)

// Options are the settings of HTTP exchanges; names and defaults are mitmproxy's.
type Options struct {
	BodySizeLimit    option.OptString
	StreamLarge      option.OptString
	StoreStreamed    option.Bool
	ValidateInbound  option.Bool
	defaultStreaming int64
}

// streamFrom is the size from which bodies are streamed while stream_large_bodies is not set.
// mitmproxy would collect them whatever their size (HTTP-37); an appliance must not.
const streamFrom = 10 << 20

// DeclareOptions declares the options of HTTP exchanges.
func DeclareOptions(r *option.Registry) *Options {
	return &Options{
		BodySizeLimit: r.OptString("body_size_limit",
			"Refuse messages with a body above this size, such as 512k, 3m or 1g. Not set: no limit.",
			option.Check(isSize)),
		StreamLarge: r.OptString("stream_large_bodies",
			"Pass bodies above this size on as they arrive instead of collecting them, such as 512k or 3m; "+
				"addons then cannot change them. Not set: 10m, so that large bodies never fill the memory.",
			option.Check(isSize)),
		StoreStreamed: r.Bool("store_streamed_bodies", false,
			"Keep the bodies that were streamed too. Off, only their beginning is kept."),
		ValidateInbound: r.Bool("validate_inbound_headers", true,
			"Refuse messages that two servers could understand differently (request smuggling)."),
		defaultStreaming: streamFrom,
	}
}

// Strict reports whether ambiguous messages are refused (HTTP-24).
func (o *Options) Strict() bool { return o.ValidateInbound.Get() }

// maxBody is the largest body that passes.
func (o *Options) maxBody() int64 { return sizeOr(o.BodySizeLimit.Get(), math.MaxInt64) }

// maxCollected is the largest body that is not streamed.
func (o *Options) maxCollected() int64 { return sizeOr(o.StreamLarge.Get(), o.defaultStreaming) }

func sizeOr(text *string, or int64) int64 {
	if text == nil {
		return or
	}
	n, err := parseSize(*text)
	if err != nil {
		return or // cannot be: the option's rule parsed it
	}
	return n
}

func isSize(text *string) error {
	if text == nil {
		return nil
	}
	_, err := parseSize(*text)
	return err
}

var errSize = errors.New("expected a size such as 1000, 512k, 3m or 1g")

// parseSize reads a whole number with an optional suffix b, k, m, g or t, powers of 1024 (HTTP-28).
func parseSize(text string) (int64, error) {
	digits := strings.ToLower(text)
	shift := 0
	if n := len(digits); n > 0 {
		if i := strings.IndexByte("bkmgt", digits[n-1]); i >= 0 {
			digits, shift = digits[:n-1], 10*i
		}
	}
	n, err := strconv.ParseUint(digits, 10, 63)
	if err != nil || n > math.MaxInt64>>shift {
		return 0, fmt.Errorf("%w, not %q", errSize, text)
	}
	return int64(n) << shift, nil
}
