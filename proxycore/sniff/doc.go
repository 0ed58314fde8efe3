// Package sniff answers one question: what do these first bytes speak?
//
// In go the first bytes of a TCP conversation or the first datagrams of a UDP
// one, plus what the caller already knows ([Hints]). Out comes a [Protocol],
// and for TLS, DTLS and QUIC a parsed [ClientHello].
//
// Everything here is a pure function or a plain collector: no I/O, no
// goroutines, no clocks, and memory bounded by [MaxClientHello] whatever the
// peer sends. The package knows nothing of flows, sessions, options or
// certificates; waiting for more bytes, and for how long, is the caller's job.
//
// The decisions follow mitmproxy's next_layer (NL-05 to NL-11, NL-23) with
// these deliberate differences:
//
//   - A first segment that is too short to tell yields [NeedMore] instead of
//     raw TCP; [Hints.Final] says that the caller will not wait any longer.
//   - HTTP/1 needs a request line that ends in an HTTP version, so Redis or
//     memcached inline commands stay raw.
//   - DNS on port 53 or 5353 needs a plausible message, so tunnels stay raw.
//   - Protocols that end up as raw TCP are still named where their signature
//     leaves no doubt.
//   - A DTLS record may carry version 1.0 (0xFEFF), as most ClientHellos do.
package sniff
