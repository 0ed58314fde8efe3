package exchange

import (
	"errors"
	"net/http"
	"strconv"
	"strings"

	"mitm-appliance/flow"
	"mitm-appliance/proxycore"
)

// errNoDestination is mitmproxy's text (HTTP-07).
var errNoDestination error = &Failure{
	http.StatusBadRequest,
	errors.New("HTTP request has no host header, destination unknown."),
}

// address decides where a request goes (HTTP-05, REG-03): to the conversation's target, or for an
// explicit proxy to what the request says.
func (c *Conversation) address(r *flow.Request) error {
	if r.Method == http.MethodConnect {
		return Invalid("CONNECT is for explicit proxies, and this connection was not made to one: " +
			"use the mode regular for clients that are configured to use a proxy")
	}
	switch r.Scheme {
	case "", "http", "https":
	default:
		return Invalid("unknown scheme %q in the request: only http and https can be forwarded", r.Scheme)
	}
	if !c.s.Target.IsZero() {
		r.Host, r.Port, r.Scheme = c.s.Target.Host, c.s.Target.Port, scheme(c.s.Secure)
		return nil
	}
	if r.Authority == "" {
		return c.addressByHost(r)
	}
	host, port, err := ParseAuthority(r.Authority)
	if err != nil {
		return err
	}
	if port == 0 {
		port = flow.DefaultPort(r.Scheme)
	}
	r.Host, r.Port = host, port
	c.replaceHost(r)
	if strings.HasPrefix(r.Version, "HTTP/1") {
		r.Authority = "" // servers get the origin form (HTTP-04)
	}
	return nil
}

func scheme(secure bool) string {
	if secure {
		return "https"
	}
	return "http"
}

func (c *Conversation) addressByHost(r *flow.Request) error {
	named := r.Header.Get("host")
	if named == "" {
		return errNoDestination
	}
	host, port, err := ParseAuthority(named)
	if err != nil {
		return err
	}
	r.Scheme = scheme(c.s.Secure)
	if port == 0 {
		port = flow.DefaultPort(r.Scheme)
	}
	r.Host, r.Port = host, port
	return nil
}

// replaceHost lets the request target win over a Host field that says something else: a proxy must
// do so (RFC 9112, section 3.2.2), or two servers could see two different requests.
func (c *Conversation) replaceHost(r *flow.Request) {
	named, has := r.Header.Lookup("host")
	switch {
	case !has:
		r.Header.Insert(0, "Host", r.Authority)
	case !flow.EqualFold(named, r.Authority):
		if h, p, err := ParseAuthority(named); err == nil && flow.EqualFold(h, r.Host) && (p == r.Port || p == 0 && r.Port == flow.DefaultPort(r.Scheme)) {
			return // the same place in other words
		}
		c.s.Logger().Info("host field replaced by the request target", "host", named, "target", r.Authority)
		r.Header.Set("Host", r.Authority)
	}
}

// ParseAuthority reads "host", "host:port" and bracketed IPv6 literals, without user information
// (RFC 9110, section 4.2.4). A missing port is 0.
func ParseAuthority(text string) (host string, port uint16, err error) {
	bad := func() (string, uint16, error) { return "", 0, Invalid("%q is not a host with an optional port", text) }
	host, rest := text, ""
	if strings.HasPrefix(text, "[") {
		end := strings.IndexByte(text, ']')
		if end < 0 {
			return bad()
		}
		host, rest = text[1:end], text[end+1:]
		if !strings.Contains(host, ":") {
			return bad()
		}
	} else if colon := strings.IndexByte(text, ':'); colon >= 0 {
		host, rest = text[:colon], text[colon:]
	}
	if host == "" || strings.ContainsAny(host, " \t/\\?#@<>\"[]") {
		return bad()
	}
	if rest == "" || rest == ":" {
		return host, 0, nil
	}
	n, perr := strconv.ParseUint(rest[1:], 10, 16)
	if rest[0] != ':' || perr != nil || n == 0 {
		return bad()
	}
	return host, uint16(n), nil
}

// route is the way to where the request goes now, after hooks had their say (HTTP-08).
func (x *exchange) route() proxycore.Route {
	r := &x.http.Request
	route := proxycore.Route{Network: "tcp", Address: flow.Address{Host: r.Host, Port: r.Port}}
	if r.Scheme == "https" {
		route.TLS, route.ALPN = true, x.svc.cfg.ALPN
	}
	return route
}
