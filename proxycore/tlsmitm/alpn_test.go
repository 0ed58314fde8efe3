package tlsmitm_test

import (
	"io"
	"strings"
	"testing"

	"mitm-appliance/proxycore/tlsmitm"
)

func TestALPN(t *testing.T) {
	for _, tt := range []struct {
		name           string
		offers, server []string
		http2          bool // somebody here speaks it
		options        string
		want           string // agreed with the client
		wantServer     string // agreed with the server
	}{
		{name: "nothing offered", server: []string{"h2", "http/1.1"}},
		{name: "browser, HTTP/2 spoken", offers: []string{"h2", "http/1.1"}, server: []string{"h2", "http/1.1"}, http2: true, want: "h2", wantServer: "h2"},
		{name: "browser, HTTP/2 not spoken", offers: []string{"h2", "http/1.1"}, server: []string{"h2", "http/1.1"}, want: "http/1.1", wantServer: "http/1.1"},
		{name: "browser, http2 off", offers: []string{"h2", "http/1.1"}, server: []string{"h2", "http/1.1"}, http2: true, options: "http2=false", want: "http/1.1", wantServer: "http/1.1"},
		{name: "server speaks HTTP/1.1 only", offers: []string{"h2", "http/1.1"}, server: []string{"http/1.1"}, http2: true, want: "http/1.1", wantServer: "http/1.1"},
		{name: "server without ALPN", offers: []string{"h2", "http/1.1"}, http2: true},
		{name: "server chooses something else", offers: []string{"http/1.1", "custom"}, server: []string{"custom"}, want: "custom", wantServer: "custom"},
		{name: "gRPC, HTTP/2 not spoken", offers: []string{"h2"}, server: []string{"h2", "http/1.1"}, want: "h2", wantServer: "h2"},
		{name: "custom only", offers: []string{"custom", "other"}, server: []string{"other"}, want: "other", wantServer: "other"},
		{name: "lazy browser", offers: []string{"h2", "http/1.1"}, server: []string{"http/1.1"}, options: "connection_strategy=lazy", want: "http/1.1", wantServer: "http/1.1"},
		{name: "lazy browser, HTTP/2 spoken", offers: []string{"h2", "http/1.1"}, server: []string{"h2"}, http2: true, options: "connection_strategy=lazy", want: "h2", wantServer: "h2"},
		{name: "lazy, custom only: the server is asked first", offers: []string{"imap"}, server: []string{"imap"}, options: "connection_strategy=lazy", want: "imap", wantServer: "imap"},
		{name: "lazy, h2 only, not spoken", offers: []string{"h2"}, server: []string{"h2"}, options: "connection_strategy=lazy", want: "h2", wantServer: "h2"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var options []string
			if tt.options != "" {
				options = []string{tt.options}
			}
			l := newLab(t, labConfig{options: options, tls: tlsmitm.Config{HTTP2: tt.http2}})
			cfg := l.serverConfig("example.test")
			cfg.NextProtos = tt.server
			mine := l.clientConfig("example.test")
			mine.NextProtos = tt.offers
			c, err := l.connect(l.echo(cfg), mine)
			check(t, err)
			if got := c.ConnectionState().NegotiatedProtocol; got != tt.want {
				t.Errorf("client got %q, want %q", got, tt.want)
			}
			_, err = io.WriteString(c, "GET / HTTP/1.1\r\n\r\n")
			check(t, err)
			if got := line(t, c); got != "hello example.test "+tt.wantServer {
				t.Errorf("server said %q, want %q", got, tt.wantServer)
			}
			s := l.session(0)
			if s.alpn != tt.want || s.client.TLS.ALPN != tt.want || s.server.TLS.ALPN != tt.wantServer ||
				strings.Join(s.client.TLS.ALPNOffers, ",") != strings.Join(tt.offers, ",") {
				t.Errorf("session %q, client %+v, server %+v", s.alpn, s.client.TLS, s.server.TLS)
			}
		})
	}
}

func TestALPNWithoutServer(t *testing.T) {
	// The client must be able to read the 502, so it gets a protocol that is spoken here.
	l := newLab(t, labConfig{tls: tlsmitm.Config{HTTP2: true}})
	mine := l.clientConfig("example.test")
	mine.NextProtos = []string{"custom", "http/1.1", "h2"}
	c, err := l.connect(l.server(refuse(40)), mine)
	check(t, err)
	if got := c.ConnectionState().NegotiatedProtocol; got != "http/1.1" {
		t.Errorf("client got %q", got)
	}
}
