package proxycore

import (
	"fmt"
	"net/netip"
	"regexp"
	"sync/atomic"

	"mitm-appliance/option"
)

// Options are the settings that the core itself reads; names and defaults are mitmproxy's.
type Options struct {
	Strategy    option.String // connection_strategy
	TCPTimeout  option.Int    // tcp_timeout, seconds
	ConnectAddr option.OptString
	RawTCP      option.Bool
	HTTP2       option.Bool
	HTTP3       option.Bool
	ShowIgnored option.Bool

	ignore, allow, tcp, udp *patterns
}

// DeclareOptions declares the core's options.
func DeclareOptions(r *option.Registry) *Options {
	return &Options{
		Strategy: r.String("connection_strategy", "eager",
			"Connect to the server when the client connects (eager), or when its first request needs it (lazy).",
			option.Choose("eager", "lazy")),
		TCPTimeout: r.Int("tcp_timeout", 600, "Seconds without traffic after which a TCP connection is closed.",
			option.Check(atLeast(1))),
		ConnectAddr: r.OptString("connect_addr", "Local IP address for connections to servers.", option.Check(isIP)),
		RawTCP:      r.Bool("rawtcp", true, "Relay TCP connections that do not look like HTTP as raw TCP flows."),
		HTTP2:       r.Bool("http2", true, "Offer HTTP/2 to clients and servers."),
		HTTP3:       r.Bool("http3", true, "Intercept QUIC and HTTP/3. Off, QUIC is refused so that clients fall back to TCP."),
		ShowIgnored: r.Bool("show_ignored_hosts", false, "Record flows for connections that ignore_hosts or allow_hosts pass through undecrypted."),
		ignore: declarePatterns(r, "ignore_hosts",
			"Pass connections through undecrypted whose host:port matches one of these regular expressions."),
		allow: declarePatterns(r, "allow_hosts",
			"Decrypt only connections whose host:port matches one of these regular expressions, pass the others through."),
		tcp: declarePatterns(r, "tcp_hosts",
			"Relay connections to hosts that match one of these regular expressions as raw TCP flows."),
		udp: declarePatterns(r, "udp_hosts",
			"Relay datagrams to hosts that match one of these regular expressions as raw UDP flows."),
	}
}

// Eager reports whether servers are connected as soon as the destination is known (CONN-01).
func (o *Options) Eager() bool { return o.Strategy.Get() == "eager" }

func atLeast(least int) func(int) error {
	return func(n int) error {
		if n < least {
			return fmt.Errorf("expected at least %d, not %d", least, n)
		}
		return nil
	}
}

func isIP(p *string) error {
	if p == nil {
		return nil
	}
	if _, err := netip.ParseAddr(*p); err != nil {
		return fmt.Errorf("expected an IP address, not %q", *p)
	}
	return nil
}

// patterns is an option of regular expressions, compiled when it changes. A bad one is an option
// error (mitmproxy's QUIRK-16 is not copied).
type patterns struct {
	opt      option.Strings
	compiled atomic.Pointer[compiled]
}

type compiled struct {
	source []string
	exprs  []*regexp.Regexp
}

func declarePatterns(r *option.Registry, name, help string) *patterns {
	return &patterns{opt: r.Strings(name, nil, help, option.Check(func(list []string) error {
		_, err := compile(list)
		return err
	}))}
}

func compile(list []string) ([]*regexp.Regexp, error) {
	exprs := make([]*regexp.Regexp, 0, len(list))
	for _, text := range list {
		e, err := regexp.Compile("(?i)" + text)
		if err != nil {
			return nil, fmt.Errorf("%q is no regular expression: %w", text, err)
		}
		exprs = append(exprs, e)
	}
	return exprs, nil
}

// get returns the compiled list. The option's slice is never written in place, so its identity tells
// whether it changed.
func (p *patterns) get() []*regexp.Regexp {
	list := p.opt.Get()
	if len(list) == 0 {
		return nil
	}
	if c := p.compiled.Load(); c != nil && len(c.source) == len(list) && &c.source[0] == &list[0] {
		return c.exprs
	}
	exprs, err := compile(list)
	if err != nil {
		return nil // cannot be: the option's rule compiled it
	}
	p.compiled.Store(&compiled{list, exprs})
	return exprs
}

func anyMatch(exprs []*regexp.Regexp, candidates []string) bool {
	for _, e := range exprs {
		for _, c := range candidates {
			if e.MatchString(c) {
				return true
			}
		}
	}
	return false
}
