// Package tlsmitm takes TLS off a conversation: it plays the server towards the client, with a
// certificate minted for the name that the client asked for, and the client towards the server.
//
// In: a Session whose next bytes are a ClientHello, and options. Out: the clear stream, handed to
// Session.Next, with what both handshakes showed noted on client and server. It knows nothing of
// what the clear stream speaks, and does not touch a connection that an addon wants to pass.
//
// The order is mitmproxy's (TLS-01..10): the ClientHello is parsed before anything is sent; unless the
// strategy is lazy, the server's handshake comes next, so that its names and its choice of protocol
// can be copied; then the client's. Where the server fails, the client's handshake goes on and the
// protocol inside tells the client (TLS-02).
//
// Deliberate differences from mitmproxy, most of them because crypto/tls speaks instead of OpenSSL:
//
//   - The certificate authorities of ssl_verify_upstream_trusted_ca and _confdir are trusted besides
//     the platform's, not instead of them (TLS-23).
//   - SSL 3.0, the DHE, CCM and PSK suites, and the choice of cipher order do not exist (TLS-16..21).
//   - A client certificate after the handshake of TLS 1.3 (TLS-14) is not supported; renegotiation is, once, for
//     servers that we have a certificate for, and freely with ssl_insecure.
//   - close_notify is sent at the end of a stream (TLS-13 does not): without it clients take a body
//     that ends with the connection for truncated.
//   - When a client offers only protocols that nobody here speaks, the server is asked first even
//     with the lazy strategy, and what both agree on is relayed as it is (TLS-30 would drop ALPN, which such
//     clients rarely survive).
//   - Sessions are resumed on both sides, each only for the same host (TLS-15).
package tlsmitm
