// Package mode turns mode specs such as "reverse:https://example.com@8080" into running servers.
//
// In: the list of specs of the mode option, and one Starter that knows how to start each kind. Out:
// parsed specs, the listeners of the explicit modes, and a Manager that keeps exactly the wanted
// ones running (MODE-01..20). It knows no packets: the feeds of tun, wireguard, transparent and local
// are started by whoever has them.
package mode

import (
	"fmt"
	"net"
	"strconv"
	"strings"

	"mitm-appliance/flow"
)

// The names of modes (MODE-03).
const (
	Regular     = "regular"
	Upstream    = "upstream"
	Transparent = "transparent"
	Reverse     = "reverse"
	SOCKS5      = "socks5"
	DNS         = "dns"
	WireGuard   = "wireguard"
	Local       = "local"
	TUN         = "tun"
)

// kind is what is fixed for each mode (MODE-04..08).
type kind struct {
	data        dataRule
	port        int    // default; -1: does not listen
	transports  string // "tcp", "udp" or "tcp udp"
	description string
}

type dataRule uint8

const (
	noData dataRule = iota
	mayData
	mustData
)

func kinds() map[string]kind {
	return map[string]kind{
		Regular:     {noData, 8080, "tcp", "HTTP(S) proxy"},
		Upstream:    {mustData, 8080, "tcp", "HTTP(S) proxy (upstream mode)"},
		Transparent: {mayData, -1, "", "transparent proxy"},
		Reverse:     {mustData, 8080, "tcp", "reverse proxy"},
		SOCKS5:      {noData, 1080, "tcp", "SOCKS v5 proxy"},
		DNS:         {noData, 53, "tcp udp", "DNS server"},
		WireGuard:   {mayData, 51820, "udp", "WireGuard server"},
		Local:       {mayData, -1, "", "local redirector"},
		TUN:         {mayData, -1, "", "TUN interface"},
	}
}

// Spec is a parsed mode spec: name[:data][@[host:]port].
type Spec struct {
	Full string // as written
	Name string // one of the names above
	Data string // interfaces of transparent, file of wireguard, target of reverse, ...; "" for none
	Host string // where it listens; "" takes the listen_host option
	Port int    // -1: take the listen_port option, else the mode's default

	Scheme string       // of the target of reverse and upstream
	Target flow.Address // of reverse and upstream
}

// Parse reads one spec (MODE-01..04, MODE-09..12). The error says what is wrong and what is expected.
func Parse(text string) (Spec, error) {
	s, err := parse(text)
	if err != nil {
		return Spec{}, fmt.Errorf("invalid proxy mode specification %q: %w", text, err)
	}
	return s, nil
}

func parse(text string) (Spec, error) {
	s := Spec{Full: text, Port: -1}
	head := text
	if at := strings.LastIndexByte(text, '@'); at > 0 {
		if err := s.parseListen(text[at+1:]); err != nil {
			return s, err
		}
		head = text[:at]
	}
	name, data, hasData := strings.Cut(head, ":")
	s.Name, s.Data = strings.ToLower(name), data
	if s.Name == "osproxy" {
		return s, fmt.Errorf("osproxy mode has been renamed to local")
	}
	k, known := kinds()[s.Name]
	switch {
	case !known:
		return s, fmt.Errorf("unknown mode; expected regular, transparent, local, tun, wireguard, reverse:, upstream:, socks5 or dns")
	case k.data == noData && hasData:
		return s, fmt.Errorf("mode takes no arguments")
	case k.data == mustData && data == "":
		return s, fmt.Errorf("mode needs a target, as in %s:https://example.com", s.Name)
	case k.port < 0 && s.Port >= 0:
		return s, fmt.Errorf("mode does not listen, so it takes no @port")
	}
	if s.Name == Reverse || s.Name == Upstream {
		return s, s.parseTarget()
	}
	return s, nil
}

func (s *Spec) parseListen(listen string) error {
	port := listen
	if colon := strings.LastIndexByte(listen, ':'); colon >= 0 {
		s.Host, port = strings.Trim(listen[:colon], "[]"), listen[colon+1:]
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return fmt.Errorf("invalid port: %s (expected 0 to 65535)", port)
	}
	s.Port = int(n)
	return nil
}

// parseTarget reads [scheme://]host[:port][/] (MODE-09).
func (s *Spec) parseTarget() error {
	scheme, rest, found := strings.Cut(s.Data, "://")
	if !found {
		rest = s.Data
		scheme = map[string]string{Reverse: "https", Upstream: "http"}[s.Name]
	}
	s.Scheme = strings.ToLower(scheme)
	switch s.Scheme {
	case "http", "https":
	case "http3", "tls", "dtls", "tcp", "udp", "dns", "quic":
		if s.Name == Upstream {
			return fmt.Errorf("invalid upstream proxy scheme %s (expected http or https)", s.Scheme)
		}
	default:
		return fmt.Errorf("invalid scheme %q (expected http, https, http3, tls, dtls, tcp, udp, dns or quic)", scheme)
	}
	rest = strings.TrimSuffix(rest, "/")
	host, port := flow.SplitHostPort(rest)
	if port == 0 {
		if _, given, _ := strings.Cut(strings.TrimPrefix(rest, "["+host+"]"), ":"); given != "" {
			return fmt.Errorf("invalid port in %q", rest)
		}
		port = flow.DefaultPort(s.Scheme)
	}
	if port == 0 {
		return fmt.Errorf("port specification missing: write %s://%s:PORT", s.Scheme, host)
	}
	if !validHost(host) {
		return fmt.Errorf("invalid host %q", host)
	}
	s.Target = flow.Address{Host: host, Port: port}
	return nil
}

// validHost is MODE-10: an IP literal, or labels of letters, digits, hyphen and underscore.
func validHost(host string) bool {
	if net.ParseIP(host) != nil {
		return true
	}
	host = strings.TrimSuffix(host, ".")
	if host == "" || len(host) > 255 {
		return false
	}
	for label := range strings.SplitSeq(host, ".") {
		if label == "" || len(label) > 63 || strings.ContainsFunc(label, notInLabel) {
			return false
		}
	}
	return true
}

func notInLabel(r rune) bool {
	switch {
	case r == '-', r == '_', '0' <= r && r <= '9', 'a' <= r && r <= 'z', 'A' <= r && r <= 'Z':
		return false
	}
	return true
}

// Listens reports whether the mode has a listening address at all.
func (s Spec) Listens() bool { return kinds()[s.Name].port >= 0 }

// Address is where the mode listens, given the options listen_host and listen_port (MODE-05, MODE-06).
// port is -1 when that option is not set.
func (s Spec) Address(host string, port int) (string, int) {
	if s.Host != "" {
		host = s.Host
	}
	if s.Port >= 0 {
		return host, s.Port
	}
	if port >= 0 {
		return host, port
	}
	if s.Name == Reverse && s.Scheme == "dns" {
		return host, 53
	}
	return host, kinds()[s.Name].port
}

// Description is the mode in words (MODE-08).
func (s Spec) Description() string {
	if s.Name == Reverse {
		return "reverse proxy to " + s.Data
	}
	return kinds()[s.Name].description
}

func (s Spec) transports() []string {
	if s.Name == Reverse {
		switch s.Scheme {
		case "http3", "dtls", "udp", "quic":
			return []string{"udp"}
		case "dns", "https":
			return []string{"tcp", "udp"}
		}
	}
	return strings.Fields(kinds()[s.Name].transports)
}
