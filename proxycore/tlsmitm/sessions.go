package tlsmitm

import (
	"crypto/tls"
	"slices"
)

// serverSessions resumes TLS sessions with servers. Go keys a cache by host name alone; the prefix adds
// what must be equal as well: address, port and our own client certificate. Whether the server's certificate
// is verified need not be in it: a session that was not verified is never resumed by a
// handshake that verifies, and the name and dates are checked on each resumption (crypto/tls).
type serverSessions struct {
	tls.ClientSessionCache
	prefix string
}

func (s serverSessions) Get(key string) (*tls.ClientSessionState, bool) {
	return s.ClientSessionCache.Get(s.prefix + key)
}

func (s serverSessions) Put(key string, state *tls.ClientSessionState) {
	s.ClientSessionCache.Put(s.prefix+key, state)
}

// maxServerSessions bounds the sessions that are kept for resumption with servers.
const maxServerSessions = 512

// tickets makes the session tickets for clients. All configs share its keys, which crypto/tls
// rotates daily; a ticket is good only for the host it was issued for (RFC 8446, section 4.6.1), so that one
// intercepted host's session never stands in for another's.
type tickets struct{ keys tls.Config }

const ticketTag = "tlsmitm:"

func (t *tickets) apply(cfg *tls.Config, host string) {
	tag := ticketTag + cfg.ClientAuth.String() + ":" + host // a client that was never asked for a certificate is to be asked
	cfg.WrapSession = func(cs tls.ConnectionState, ss *tls.SessionState) ([]byte, error) {
		if !hasTag(ss, tag) { // a resumed TLS 1.2 session brings it along
			ss.Extra = append(ss.Extra, []byte(tag))
		}
		return t.keys.EncryptTicket(cs, ss)
	}
	cfg.UnwrapSession = func(identity []byte, cs tls.ConnectionState) (*tls.SessionState, error) {
		ss, err := t.keys.DecryptTicket(identity, cs)
		if ss == nil || err != nil || !hasTag(ss, tag) {
			return nil, err
		}
		return ss, nil
	}
}

func hasTag(ss *tls.SessionState, tag string) bool {
	return slices.ContainsFunc(ss.Extra, func(extra []byte) bool { return string(extra) == tag })
}
