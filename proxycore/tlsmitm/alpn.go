package tlsmitm

import (
	"slices"
	"strings"

	"mitm-appliance/proxycore"
)

// speaks reports whether somebody here reads a protocol of ALPN (RFC 7301).
func (h *Handler) speaks(s *proxycore.Session, proto string) bool {
	switch proto {
	case "h2":
		return h.cfg.HTTP2 && s.Options().HTTP2.Get()
	case "http/1.1", "http/1.0", "http/0.9":
		return true
	}
	return false
}

func (h *Handler) speakable(s *proxycore.Session, offers []string) bool {
	return slices.ContainsFunc(offers, func(p string) bool { return h.speaks(s, p) })
}

// offers lists what a server is offered (TLS-29): what the client offered, without HTTP/2 when nobody
// here speaks it. If nothing else is left, the client gets its wish and the bytes are relayed.
func (h *Handler) offers(s *proxycore.Session, r proxycore.Route) []string {
	if r.ALPN != "" {
		return strings.Split(r.ALPN, ",")
	}
	if s.ALPN != "" && !h.speaks(s, s.ALPN) {
		return []string{s.ALPN} // agreed with the client already, and nobody here can translate
	}
	facts := s.Client().TLS
	if facts == nil {
		return nil
	}
	kept := slices.Clone(facts.ALPNOffers)
	kept = slices.DeleteFunc(kept, func(p string) bool { return p == "h2" && !h.speaks(s, p) })
	if len(kept) == 0 {
		return facts.ALPNOffers
	}
	return kept
}

// clientALPN chooses the protocol to agree on with the client (TLS-30, TLS-31); "" is none.
func (h *Handler) clientALPN(s *proxycore.Session, offers []string) string {
	switch {
	case s.Target.IsZero():
		if slices.Contains(offers, "http/1.1") {
			return "http/1.1"
		}
		return ""
	case s.Server != nil && s.Server.Route.TLS:
		facts := s.Server.Info().TLS
		if facts != nil && slices.Contains(offers, facts.ALPN) {
			return facts.ALPN
		}
		return ""
	}
	for _, p := range offers {
		if h.speaks(s, p) {
			return p
		}
	}
	return ""
}
