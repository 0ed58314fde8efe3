package tlsmitm_test

import (
	"crypto/tls"
	"io"
	"slices"
	"testing"

	"mitm-appliance/proxycore/tlsmitm"
)

func TestMatrix(t *testing.T) {
	versions := []uint16{tls.VersionTLS10, tls.VersionTLS11, tls.VersionTLS12, tls.VersionTLS13}
	l := newLab(t, labConfig{options: []string{"tls_version_client_min=TLS1", "tls_version_server_min=TLS1"}})
	i := 0
	for _, client := range versions {
		for _, server := range versions {
			for _, strategy := range []string{"eager", "lazy"} {
				name := tlsmitm.VersionName(client) + "-" + tlsmitm.VersionName(server) + "-" + strategy
				t.Run(name, func(t *testing.T) {
					check(t, l.reg.SetText("connection_strategy="+strategy))
					cfg := l.serverConfig("example.test", "*.wild.test", "127.0.0.1")
					cfg.MinVersion, cfg.MaxVersion = server, server
					target := l.echo(cfg)
					mine := l.clientConfig("example.test")
					mine.MinVersion, mine.MaxVersion = client, client
					c, err := l.connect(target, mine)
					check(t, err)
					_, err = io.WriteString(c, "GET / HTTP/1.1\r\n\r\n")
					check(t, err)
					if got := line(t, c); got != "hello example.test " {
						t.Errorf("server said %q", got)
					}
					check(t, c.CloseWrite())
					rest, err := io.ReadAll(c)
					if err != nil || string(rest) != "GET / HTTP/1.1\r\n\r\n" {
						t.Errorf("echo %q, %v", rest, err)
					}
					s := l.session(i)
					i++
					if !s.secure || s.sni != "example.test" || s.alpn != "" {
						t.Errorf("session %+v", s)
					}
					ct, st := s.client.TLS, s.server.TLS
					if ct.Version != tlsmitm.VersionName(client) || st.Version != tlsmitm.VersionName(server) {
						t.Errorf("versions %s, %s", ct.Version, st.Version)
					}
					if ct.Cipher == "" || st.Cipher == "" || ct.Established.IsZero() || st.Established.IsZero() ||
						ct.JA3 == "" || ct.JA4 == "" || len(ct.Ciphers) == 0 || len(st.Certificates) != 1 || len(s.client.Leaf) == 0 {
						t.Errorf("facts: client %+v, server %+v", ct, st)
					}
					names := c.ConnectionState().PeerCertificates[0].DNSNames
					if want := strategy == "eager"; slices.Contains(names, "*.wild.test") != want {
						t.Errorf("leaf is for %v; copied from the server should be %v", names, want)
					}
				})
			}
		}
	}
}

func TestHookOrder(t *testing.T) {
	// In modes that know the destination, server_connect comes before the client is accepted (HOOK-15).
	for strategy, want := range map[string]string{
		"eager": "server_connect server_connected next_layer tls_clienthello tls_start_server tls_established_server " +
			"tls_start_client tls_established_client next_layer",
		"lazy": "next_layer tls_clienthello tls_start_client tls_established_client next_layer " +
			"server_connect server_connected tls_start_server tls_established_server",
	} {
		t.Run(strategy, func(t *testing.T) {
			l := newLab(t, labConfig{options: []string{"connection_strategy=" + strategy}})
			c, err := l.connect(l.echo(l.serverConfig("example.test")), l.clientConfig("example.test"))
			check(t, err)
			_, err = io.WriteString(c, "GET / HTTP/1.1\r\n\r\n")
			check(t, err)
			line(t, c)
			c.Close()
			l.settle()
			if got := l.hooks.String(); got != want {
				t.Errorf("hooks:\n got %s\nwant %s", got, want)
			}
		})
	}
}
