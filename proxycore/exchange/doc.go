// Package exchange runs one HTTP exchange in any version of HTTP: hooks in mitmproxy's order
// (HTTP-01..03, HTTP-51), the way to the server, bodies that are collected or streamed, limits, and
// what a client is told when something fails.
//
// In: a request head with the Client that it came from, and a Server for each connection that it
// opens; both are framings' (http1, http2, http3). Out: flows, hooks, and an answer to every request.
// It knows no bytes on the wire: no header lines, no chunks, no frames.
package exchange
