// Package certs is the appliance's certificate authority: it loads or creates
// the CA, mints leaf certificates for the names that clients ask for, keeps
// them in a bounded cache, and serves the user's own certificates.
//
// In go a configuration directory and a [Request] (names, key type, facts of
// the upstream certificate); out comes a *tls.Certificate ready for crypto/tls.
// The package knows nothing of connections, flows or options, and fetches
// nothing from the network.
//
// The directory holds mitmproxy's file names (CERT-04), so that an existing
// mitmproxy CA, and the trust that devices have in it, carries over unchanged.
// Where mitmproxy's behaviour is a known weakness this package decides:
//
//   - Leaves have keys of their own, P-256 by default and RSA 2048 for clients
//     that cannot ECDSA, made once per process. Mitmproxy puts the CA's own key
//     pair into every leaf (QUIRK-12).
//   - Leaves carry SubjectKeyIdentifier and KeyUsage, are valid for 199 days in total
//     (QUIRK-15) and never outlive a CA that is still valid.
//   - A new CA is named "mitm-appliance": it is not mitmproxy's. RSA 2048 stays its
//     default key, since every old client can verify it.
//   - Only DNS names and IP addresses are copied from upstream certificates;
//     other SAN types (CERT-12) prove nothing to a TLS client. Names that are no
//     valid host or wildcard are dropped: peers choose them.
//   - The CA file is created under a lock and renamed into place, and an
//     accessible key is repaired or refused.
//   - mitmproxy-dhparam.pem is neither needed nor touched: crypto/tls has no DHE suites.
//   - QUIC clients get the same chain as TCP ones, without the root (CERT-21).
//   - The cache evicts the least recently used entry, not the oldest (CERT-17).
//   - The CRL is made anew each day with a growing number; mitmproxy's expires
//     after five days of running (CERT-14).
package certs
