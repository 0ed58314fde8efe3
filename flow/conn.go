package flow

import (
	"net/netip"
	"time"
)

// Connection is what both ends of a conversation have in common (CONN-08).
type Connection struct {
	ID        ID
	Transport string         // "tcp" or "udp"
	Peer      netip.AddrPort // the far end
	Local     netip.AddrPort // our end; for captured clients the destination they meant (CONN-16)
	TLS       *TLS           // nil without TLS, DTLS or QUIC; immutable once set
	Error     string         // why the connection failed; "" when it did not
	Start     time.Time
	End       time.Time // zero while open
}

// TLS is what a handshake showed. In a Connection that was offered TLS but never finished the
// handshake, Established is zero and only what the ClientHello said is set.
type TLS struct {
	Version      string // TLSv1.2, TLSv1.3, DTLSv1.2, QUICv1, ... as mitmproxy writes them (FMT-conn)
	Cipher       string // negotiated suite; "" before
	Ciphers      []string
	SNI          string
	ALPN         string
	ALPNOffers   []string
	Certificates [][]byte  // DER, leaf first, as the peer sent them
	Established  time.Time // handshake done
	Resumed      bool
	JA3, JA4     string // fingerprints of the ClientHello of this leg
	ECH          bool   // the ClientHello carried an (outer) encrypted hello
}

// Client is the side that opened the conversation, and how it reached us.
type Client struct {
	Connection
	Mode    string   // full mode spec: "regular", "transparent:lan0@8080", ...
	Feed    string   // what brought the packets: "tun", "wireguard", "transparent", "local", or "" for listeners
	Device  string   // hardware address of the LAN device; "" when unknown
	Tunnel  string   // name of the WireGuard peer; "" outside WireGuard
	Process *Process // the local process; nil outside local capture
	Leaf    []byte   // DER of the certificate we showed; nil without interception
}

// Process is the local program behind a captured connection (LOC-10).
type Process struct {
	PID    int
	UID    int // -1 when unknown
	Name   string
	Exe    string // path of the executable; "" when unknown
	Cgroup string // path below the cgroup2 root; "" when unknown
}

// Server is the upstream side. Address is what we meant to reach, Peer the address that answered.
type Server struct {
	Connection
	Address  Address
	Via      string    // upstream proxy, "http://proxy:3128"; "" when direct
	TCPSetup time.Time // TCP handshake done; zero for UDP and before
}

// Address is a destination that may still be a name. The zero Address means "unknown".
type Address struct {
	Host string // name or IP literal without brackets
	Port uint16
}

// IsZero reports whether the address is unknown.
func (a Address) IsZero() bool { return a == Address{} }

// String joins host and port, with brackets around IPv6 literals; "" when unknown.
func (a Address) String() string {
	if a.IsZero() {
		return ""
	}
	return JoinHostPort(a.Host, a.Port)
}

// AddressOf is the Address of an IP endpoint; IPv4-mapped IPv6 becomes IPv4.
func AddressOf(ap netip.AddrPort) Address {
	if !ap.IsValid() {
		return Address{}
	}
	return Address{Host: ap.Addr().Unmap().String(), Port: ap.Port()}
}
