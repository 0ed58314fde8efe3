package certs

import (
	"crypto/x509"
	"net"
	"net/netip"
	"strings"
)

const (
	maxNames     = 500      // in one leaf
	maxNameBytes = 16 << 10 // of all names of a leaf together
)

// Request describes a leaf certificate.
type Request struct {
	// Names are host names, wildcards and IP addresses in order of importance; the first
	// valid one becomes the CN. Invalid ones are dropped, and so are those
	// beyond 500 names or 16 KiB. Host names are ASCII (IDNA A-labels).
	Names []string

	KeyType      KeyType // the zero value is ECDSA
	Organization string  // the upstream's O; "" is none
	CRL          string  // a CRL distribution point of the upstream certificate; "" is none
}

// RequestFor collects the names for a leaf (CERT-11): those of the upstream's
// certificate (nil if not known), then the client's SNI or, without one, the
// local address that the client connected to, then the host of the server's address.
func RequestFor(upstream *x509.Certificate, sni string, local netip.Addr, host string) Request {
	var r Request
	if sni == "" && local.IsValid() {
		sni = local.String()
	}
	asked := []string{sni, host}
	if upstream == nil {
		r.Names = asked
		return r
	}
	names := append([]string{upstream.Subject.CommonName}, upstream.DNSNames...)
	for _, ip := range upstream.IPAddresses {
		names = append(names, ip.String())
	}
	const spare = 2 * 256 // so that what the client asked for is never cut off
	r.Names = append(canonicalNames(names, maxNames-len(asked), maxNameBytes-spare), asked...)
	if len(upstream.Subject.Organization) > 0 {
		r.Organization = upstream.Subject.Organization[0]
	}
	if len(upstream.CRLDistributionPoints) > 0 {
		r.CRL = upstream.CRLDistributionPoints[0]
	}
	return r
}

// canonicalNames returns the valid names, each once, in their canonical form.
func canonicalNames(names []string, count, size int) []string {
	var list []string
	seen := make(map[string]bool)
	for _, name := range names {
		name, ok := canonicalName(name)
		if !ok || seen[name] {
			continue
		}
		if size -= len(name); size < 0 || len(list) == count {
			break
		}
		seen[name] = true
		list = append(list, name)
	}
	return list
}

// canonicalName returns an IP address in its usual text form, or a host name or
// left-most wildcard in lower case without trailing dot, and whether it is valid.
func canonicalName(name string) (string, bool) {
	literal := strings.TrimSuffix(strings.TrimPrefix(name, "["), "]")
	if ip, err := netip.ParseAddr(literal); err == nil {
		return ip.Unmap().WithZone("").String(), true
	}
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	if len(name) > 253 {
		return "", false
	}
	labels := strings.TrimPrefix(name, "*.")
	for label := range strings.SplitSeq(labels, ".") {
		if label == "" || len(label) > 63 || strings.ContainsFunc(label, notHostRune) {
			return "", false
		}
	}
	return name, true
}

func notHostRune(r rune) bool {
	return !(r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '-' || r == '_')
}

// splitNames separates canonical names into DNS names and addresses.
func splitNames(names []string) (dns []string, ips []net.IP) {
	for _, name := range names {
		if ip, err := netip.ParseAddr(name); err == nil {
			ips = append(ips, ip.AsSlice())
		} else {
			dns = append(dns, name)
		}
	}
	return dns, ips
}

// lookupForms returns a canonical name and its wildcard forms, nearest first:
// a.b.c, *.b.c, *.c (CERT-16).
func lookupForms(name string) []string {
	forms := []string{name}
	if _, err := netip.ParseAddr(name); err == nil {
		return forms
	}
	for {
		_, rest, ok := strings.Cut(name, ".")
		if !ok {
			return forms
		}
		forms = append(forms, "*."+rest)
		name = rest
	}
}
