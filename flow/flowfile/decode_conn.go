package flowfile

import (
	"encoding/pem"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strconv"

	"mitm-appliance/flow"
)

// client reads FMT-client. Addresses that are no IP addresses go to extra, as metadata.
func client(el element, extra map[string]any) (*flow.Client, error) {
	in := newFields("client_conn", el)
	c := &flow.Client{}
	c.Peer = read(in, "peername", endpoint(prefix+"client_peername", extra))
	c.Local = read(in, "sockname", endpoint(prefix+"client_sockname", extra))
	connection(in, &c.Connection)
	c.Start = in.time("timestamp_start")
	connectionEnd(in, &c.Connection)
	c.Leaf = opt(in, "mitmcert", certificate)
	c.Mode = in.text("proxy_mode")
	return c, in.finish()
}

// server reads FMT-server; nil when the flow never had one.
func server(el element, extra map[string]any) (*flow.Server, error) {
	in := newFields("server_conn", el)
	s := &flow.Server{}
	s.Peer = opt(in, "peername", endpoint(prefix+"server_peername", extra))
	s.Local = opt(in, "sockname", endpoint(prefix+"server_sockname", extra))
	connection(in, &s.Connection)
	s.Start = in.optTime("timestamp_start")
	connectionEnd(in, &s.Connection)
	s.Address = opt(in, "address", address)
	s.TCPSetup = in.optTime("timestamp_tcp_setup")
	s.Via = opt(in, "via", via)
	unused := s.Address.IsZero() && s.Via == "" && !s.Peer.IsValid() && s.Start.IsZero() && s.TLS == nil && s.Error == ""
	if err := in.finish(); err != nil || unused {
		return nil, err
	}
	return s, nil
}

func connection(in *fields, c *flow.Connection) {
	t := &flow.TLS{}
	c.ID = read(in, "id", identity)
	c.Transport = read(in, "transport_protocol", oneOf("tcp", "udp"))
	c.Error = in.optText("error")
	wanted := in.bool("tls")
	t.Certificates = read(in, "certificate_list", list(certificate))
	t.ALPN = in.optBlob("alpn")
	t.ALPNOffers = read(in, "alpn_offers", list(blobText))
	t.Cipher = in.optText("cipher")
	t.Ciphers = read(in, "cipher_list", list(element.text))
	t.Version = opt(in, "tls_version", oneOf(tlsVersions...))
	t.SNI = in.optText("sni")
	said := len(t.Certificates) > 0 || t.ALPN != "" || len(t.ALPNOffers) > 0 || t.Cipher != "" || t.Version != "" || t.SNI != ""
	if wanted || said {
		c.TLS = t
	}
}

func connectionEnd(in *fields, c *flow.Connection) {
	c.End = in.optTime("timestamp_end")
	if established := in.optTime("timestamp_tls_setup"); !established.IsZero() {
		if c.TLS == nil {
			c.TLS = &flow.TLS{}
		}
		c.TLS.Established = established
	}
}

func oneOf(values ...string) func(element) (string, error) {
	return func(el element) (string, error) {
		s, err := el.text()
		if err != nil {
			return "", err
		}
		if i := slices.Index(values, s); i >= 0 {
			return values[i], nil
		}
		return "", fmt.Errorf("%.20q is none of %q", s, values)
	}
}

// hostPort reads [host, port], or Python's IPv6 form with flow information and scope.
func hostPort(el element) (host string, port uint16, scope int64, err error) {
	t, err := el.tuple(2, 4)
	if err != nil {
		return "", 0, 0, err
	}
	host, err = t[0].text()
	if err != nil {
		return "", 0, 0, err
	}
	n, err := ranged(t[1], math.MaxUint16)
	if err == nil && len(t) == 4 {
		scope, err = ranged(t[3], math.MaxUint32)
	}
	return host, uint16(n), scope, err
}

func endpoint(name string, extra map[string]any) func(element) (netip.AddrPort, error) {
	return func(el element) (netip.AddrPort, error) {
		host, port, scope, err := hostPort(el)
		if err != nil || host == "" {
			return netip.AddrPort{}, err
		}
		ip, err := netip.ParseAddr(host)
		if err != nil {
			extra[name] = flow.JoinHostPort(host, port)
			return netip.AddrPort{}, nil //nolint:nilerr // a host name here is odd but no damage, and kept in extra
		}
		if scope != 0 && ip.Is6() && ip.Zone() == "" {
			ip = ip.WithZone(strconv.FormatInt(scope, 10))
		}
		return netip.AddrPortFrom(ip, port), nil
	}
}

func address(el element) (flow.Address, error) {
	host, port, _, err := hostPort(el)
	return flow.Address{Host: host, Port: port}, err
}

func via(el element) (string, error) {
	t, err := el.tuple(2, 2)
	if err != nil {
		return "", err
	}
	scheme, err := oneOf(specSchemes...)(t[0])
	if err != nil {
		return "", err
	}
	a, err := address(t[1])
	return viaSpec{scheme, a}.String(), err
}

// certificate reads one PEM block as DER. What is inside is not looked at.
func certificate(el element) ([]byte, error) {
	b, err := el.blob()
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(b)
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, errors.New("no certificate in PEM form")
	}
	return block.Bytes, nil
}
