package wg

import (
	"errors"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestMitmproxysClientConfigIsMitmproxys(t *testing.T) {
	got, err := parse(t, mitmproxys).ClientConfig("client", "192.0.2.1")
	if err != nil {
		t.Fatal(err)
	}
	want := `[Interface]
PrivateKey = ` + clientKey + `
Address = 10.0.0.1/32
DNS = 10.0.0.53

[Peer]
PublicKey = ` + serverPublic + `
AllowedIPs = 0.0.0.0/0
Endpoint = 192.0.2.1:51820
`
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestClientConfig(t *testing.T) {
	f := newFile(t)
	f.Endpoint = "vpn.example.org"
	psk, err := GeneratePresharedKey()
	if err != nil {
		t.Fatal(err)
	}
	p := add(t, f, PeerConfig{Name: "phone", PresharedKey: psk})
	got, err := f.ClientConfig("phone", "")
	if err != nil {
		t.Fatal(err)
	}
	want := `[Interface]
PrivateKey = ` + p.PrivateKey.Base64() + `
Address = 10.66.0.3/32, fd66:6d69:746d::3/128
DNS = 10.66.0.53, fd66:6d69:746d::53
MTU = 1420

[Peer]
PublicKey = ` + f.ServerKey.Public().String() + `
PresharedKey = ` + psk.Base64() + `
AllowedIPs = 0.0.0.0/0, ::/0
Endpoint = vpn.example.org:51820
PersistentKeepalive = 25
`
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestEndpointForms(t *testing.T) {
	f := newFile(t)
	f.ListenPort = 7
	for in, want := range map[string]string{
		"192.0.2.1":           "192.0.2.1:7",
		"192.0.2.1:9":         "192.0.2.1:9",
		"2001:db8::1":         "[2001:db8::1]:7",
		"[2001:db8::1]":       "[2001:db8::1]:7",
		"[2001:db8::1]:9":     "[2001:db8::1]:9",
		"vpn.example.org":     "vpn.example.org:7",
		"vpn.example.org:443": "vpn.example.org:443",
	} {
		if got, err := f.clientEndpoint(in); err != nil || got != want {
			t.Errorf("%s becomes %s (%v), want %s", in, got, err, want)
		}
	}
	for _, bad := range []string{"a b", "host:0", "host:70000", ":1", "host:", "a\nAllowedIPs = ::/0", "a:b:c", strings.Repeat("a", 300)} {
		if got, err := f.clientEndpoint(bad); err == nil {
			t.Errorf("%q becomes %s, want an error", bad, got)
		}
	}
}

func TestClientConfigNeedsThePrivateKey(t *testing.T) {
	f := newFile(t)
	key, err := GeneratePrivateKey()
	if err != nil {
		t.Fatal(err)
	}
	add(t, f, PeerConfig{Name: "laptop", PublicKey: key.Public()})
	if _, err := f.ClientConfig("laptop", "192.0.2.1"); !errors.Is(err, ErrNoPrivateKey) {
		t.Errorf("error is %v, want ErrNoPrivateKey", err)
	}
	if _, err := f.ClientConfig("nobody", "192.0.2.1"); !errors.Is(err, ErrNoPeer) {
		t.Errorf("error is %v, want ErrNoPeer", err)
	}
}

func TestQRCodeIsASquareOfHalfBlocks(t *testing.T) {
	f := newFile(t)
	config, err := f.ClientConfig("client", "192.0.2.1")
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	if err := WriteQR(&out, config); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
	width := utf8.RuneCountInString(lines[0])
	if diff := width - 2*len(lines); diff < -2 || diff > 2 || width < 40 {
		t.Errorf("the code is %d cells wide and %d lines high", width, len(lines))
	}
	if left := strings.Trim(out.String(), "█▀▄ \n"); left != "" {
		t.Errorf("it has other characters: %q", left)
	}
	if err := WriteQR(&out, strings.Repeat("x", 4000)); err == nil {
		t.Error("4000 bytes fitted into a QR code")
	}
}
