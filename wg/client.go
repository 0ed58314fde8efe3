package wg

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"github.com/mdp/qrterminal/v3"
	"rsc.io/qr"
)

// ErrNoPrivateKey is returned where a client's configuration would need a
// private key that only the client has.
var ErrNoPrivateKey = errors.New("the peer was added by its public key, so its private key is not known here; put the server's public key and endpoint into its own configuration")

// ClientConfig returns the configuration of a peer in the form that wg-quick and
// the WireGuard apps import. endpoint, HOST or HOST:PORT, overrides the file's;
// when both are empty the address is guessed with GuessHost.
func (f *File) ClientConfig(nameOrKey, endpoint string) (string, error) {
	p, err := f.Peer(nameOrKey)
	if err != nil {
		return "", err
	}
	if p.PrivateKey.IsZero() {
		return "", fmt.Errorf("configuration of peer %q: %w", p.Name, ErrNoPrivateKey)
	}
	server, err := f.clientEndpoint(endpoint)
	if err != nil {
		return "", fmt.Errorf("configuration of peer %q: %w", p.Name, err)
	}
	var b strings.Builder
	f.writeInterface(&b, &p)
	fmt.Fprintf(&b, "\n[Peer]\nPublicKey = %s\n", f.ServerKey.Public())
	if !p.PresharedKey.IsZero() {
		fmt.Fprintf(&b, "PresharedKey = %s\n", p.PresharedKey.Base64())
	}
	if f.isMitmproxyPeer(p) { // exactly what mitmproxy prints (WG-04)
		fmt.Fprintf(&b, "AllowedIPs = 0.0.0.0/0\nEndpoint = %s\n", server)
		return b.String(), nil
	}
	// Without an IPv6 address of its own, a client that sends IPv6 into the
	// tunnel loses it, rather than leaking it past the tunnel.
	fmt.Fprintf(&b, "AllowedIPs = 0.0.0.0/0, ::/0\nEndpoint = %s\nPersistentKeepalive = %d\n", server, DefaultKeepalive)
	return b.String(), nil
}

func (f *File) writeInterface(b *strings.Builder, p *PeerConfig) {
	fmt.Fprintf(b, "[Interface]\nPrivateKey = %s\nAddress = %s\n", p.PrivateKey.Base64(), joined(p.Addresses))
	if dns := f.DNS(); len(dns) > 0 {
		fmt.Fprintf(b, "DNS = %s\n", joined(dns))
	}
	if !f.isMitmproxyPeer(*p) {
		fmt.Fprintf(b, "MTU = %d\n", defaultMTU)
	}
}

func joined[T fmt.Stringer](list []T) string {
	texts := make([]string, len(list))
	for i, v := range list {
		texts[i] = v.String()
	}
	return strings.Join(texts, ", ")
}

// clientEndpoint is HOST:PORT as clients reach the server.
func (f *File) clientEndpoint(override string) (string, error) {
	if override == "" {
		override = f.Endpoint
	}
	host, port, err := splitEndpoint(override)
	if err != nil {
		return "", err
	}
	if host == "" {
		addr, err := GuessHost()
		if err != nil {
			return "", err
		}
		host = addr.String()
	}
	if port == 0 {
		port = f.Port()
	}
	return net.JoinHostPort(host, strconv.Itoa(int(port))), nil
}

// splitEndpoint splits HOST, HOST:PORT, [IPV6]:PORT or a bare IPv6 address.
func splitEndpoint(endpoint string) (host string, port uint16, err error) {
	bad := fmt.Errorf("endpoint %q is not HOST or HOST:PORT", endpoint)
	if len(endpoint) > maxEndpoint || strings.ContainsFunc(endpoint, notInEndpoint) {
		return "", 0, bad
	}
	bare := strings.TrimSuffix(strings.TrimPrefix(endpoint, "["), "]")
	if _, err := netip.ParseAddr(bare); err == nil || !strings.Contains(endpoint, ":") {
		return bare, 0, nil
	}
	host, text, err := net.SplitHostPort(endpoint)
	if err != nil || host == "" {
		return "", 0, bad
	}
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil || n == 0 {
		return "", 0, bad
	}
	return host, uint16(n), nil
}

// notInEndpoint keeps line breaks and the like out of the configuration text.
func notInEndpoint(r rune) bool {
	letter := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9'
	return !letter && !strings.ContainsRune(".:-_[]%", r)
}

// GuessHost returns the address this machine would use towards the Internet,
// IPv4 first. It asks the routing table; no packet is sent.
func GuessHost() (netip.Addr, error) {
	for _, target := range []string{"8.8.8.8:53", "[2001:4860:4860::8888]:53"} {
		conn, err := net.Dial("udp", target)
		if err != nil {
			continue
		}
		local, ok := conn.LocalAddr().(*net.UDPAddr)
		conn.Close()
		if ok {
			return local.AddrPort().Addr().Unmap().WithZone(""), nil
		}
	}
	return netip.Addr{}, errors.New("this machine has no route to the Internet to guess its address from: set the endpoint")
}

// WriteQR draws a client configuration as a QR code, two modules per character
// cell, for a terminal with light text on a dark background.
func WriteQR(w io.Writer, config string) error {
	if _, err := qr.Encode(config, qr.L); err != nil {
		return fmt.Errorf("draw QR code of %d bytes: %w", len(config), err)
	}
	qrterminal.GenerateHalfBlock(config, qr.L, w)
	return nil
}
