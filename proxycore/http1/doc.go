// Package http1 speaks HTTP/1.0 and HTTP/1.1 (RFC 9112) with clients and with servers.
//
// In: byte streams. Out: request and response heads with every field as it was sent, bodies without
// their framing, and the same again in the other direction: order, case, duplicates, reason phrases,
// trailers, chunk borders and chunk extensions survive. Messages that two parsers could understand
// differently are recognised here (HTTP-24..27); what becomes of them is decided by exchange.
// It knows no hooks, no flows and no way to a server: see exchange.
package http1
