package wg

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"testing"
)

// Keys made with the wg tool.
const (
	serverKey    = "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk="
	serverPublic = "HIgo9xNzJMWLKASShiTqIybxZ0U3wGLiUeJ1PKf8ykw="
	clientKey    = "qGZi1Xy4QdwGDeCAHYL8kVuZjO+jL1dDXRbtjoBnjHQ="
)

// mitmproxys is a file as mitmproxy writes it (WG-02).
const mitmproxys = `{
    "server_key": "` + serverKey + `",
    "client_key": "` + clientKey + `"
}`

func parse(t *testing.T, text string) *File {
	t.Helper()
	f, err := ParseFile([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func add(t *testing.T, f *File, p PeerConfig) PeerConfig {
	t.Helper()
	added, err := f.AddPeer(p)
	if err != nil {
		t.Fatal(err)
	}
	return added
}

func newFile(t *testing.T) *File {
	t.Helper()
	f, err := NewFile()
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestMitmproxysFileIsAServerWithOnePeer(t *testing.T) {
	f := parse(t, mitmproxys)
	if len(f.Peers) != 1 {
		t.Fatalf("got %d peers, want 1", len(f.Peers))
	}
	p := f.Peers[0]
	if got, want := fmt.Sprint(p.Name, p.Addresses, p.Keepalive), "client[10.0.0.1/32] 25"; got != want {
		t.Errorf("peer is %s, want %s", got, want)
	}
	if p.PrivateKey.Base64() != clientKey || p.PublicKey != p.PrivateKey.Public() {
		t.Errorf("the peer has another key than client_key")
	}
	if got, want := fmt.Sprint(f.DNS(), f.Port()), "[10.0.0.53] 51820"; got != want {
		t.Errorf("DNS and port are %s, want %s", got, want)
	}
}

func TestMitmproxysFileGrowsPeersAndStillWorksInMitmproxy(t *testing.T) {
	f := parse(t, mitmproxys)
	phone := add(t, f, PeerConfig{Name: "phone"})
	if got, want := fmt.Sprint(phone.Addresses), "[10.0.0.2/32]"; got != want {
		t.Errorf("the new peer got %s, want %s", got, want)
	}
	data, err := f.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	var keys struct{ Server, Client string }
	if err := json.Unmarshal([]byte(strings.NewReplacer("server_key", "server", "client_key", "client").Replace(string(data))), &keys); err != nil {
		t.Fatal(err)
	}
	if keys.Server != serverKey || keys.Client != clientKey {
		t.Errorf("mitmproxy's keys are gone from:\n%s", data)
	}
	again := parse(t, string(data))
	if len(again.Peers) != 2 || again.Peers[0].PrivateKey.Base64() != clientKey {
		t.Errorf("read again: %+v", again.Peers)
	}
}

func TestRemovedClientDoesNotComeBack(t *testing.T) {
	f := newFile(t)
	if _, err := f.RemovePeer("client"); err != nil {
		t.Fatal(err)
	}
	data, err := f.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	if again := parse(t, string(data)); len(again.Peers) != 0 {
		t.Errorf("peers after removal and reading again: %+v", again.Peers)
	}
}

func TestNewFileGivesAddressesFromBothPools(t *testing.T) {
	f := newFile(t)
	phone := add(t, f, PeerConfig{Name: "phone"})
	if got, want := fmt.Sprint(f.Peers[0].Addresses, phone.Addresses),
		"[10.66.0.2/32 fd66:6d69:746d::2/128] [10.66.0.3/32 fd66:6d69:746d::3/128]"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if phone.PrivateKey.IsZero() || phone.PublicKey != phone.PrivateKey.Public() {
		t.Error("no key pair was generated")
	}
	if got, want := fmt.Sprint(f.DNS()), "[10.66.0.53 fd66:6d69:746d::53]"; got != want {
		t.Errorf("DNS is %s, want %s", got, want)
	}
}

func TestAddPeerByPublicKeyKeepsNoPrivateKey(t *testing.T) {
	f := newFile(t)
	key, err := GeneratePrivateKey()
	if err != nil {
		t.Fatal(err)
	}
	add(t, f, PeerConfig{Name: "laptop", PublicKey: key.Public()})
	p, err := f.Peer(key.Public().String())
	if err != nil || p.Name != "laptop" || !p.PrivateKey.IsZero() {
		t.Errorf("got %+v, %v", p, err)
	}
}

func TestAddPeerRefuses(t *testing.T) {
	f := newFile(t)
	first := f.Peers[0]
	prefixes := func(s string) []netip.Prefix { return []netip.Prefix{netip.MustParsePrefix(s)} }
	for want, p := range map[string]PeerConfig{
		"two peers are named":    {Name: "client"},
		"has the same key as":    {Name: "a", PublicKey: first.PublicKey},
		"the server itself":      {Name: "a", PublicKey: f.ServerKey.Public()},
		"overlap":                {Name: "a", Addresses: prefixes("10.66.0.0/24")},
		"a name is":              {Name: "a\nb"},
		"a name is 1":            {Name: ""},
		"keepalive":              {Name: "a", Keepalive: 65536},
		"does not belong to":     {Name: "a", PublicKey: first.PublicKey, PrivateKey: f.ServerKey},
		"is not usable":          {Name: "a", Addresses: []netip.Prefix{{}}},
		"more than 64 addresses": {Name: "a", Addresses: make([]netip.Prefix, 65)},
	} {
		if _, err := f.AddPeer(p); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error is %v, want one with %q", err, want)
		}
	}
	if len(f.Peers) != 1 {
		t.Errorf("a refused peer was added: %+v", f.Peers)
	}
}

func TestParseFileRefuses(t *testing.T) {
	peer := func(rest string) string {
		return `{"server_key":"` + serverKey + `","peers":[{` + rest + `}]}`
	}
	for _, c := range []struct{ text, want string }{
		{``, "ends too early"},
		{`{"server_key":`, "ends too early"},
		{"{\n\"server_key\" 1}", "not valid JSON at line 2"},
		{`[]`, "cannot unmarshal array"},
		{`{}`, "server_key is missing"},
		{`{"client_key":"` + clientKey + `"}`, "server_key is missing"},
		{`{"server_key":"short"}`, "44 characters"},
		{mitmproxys + "x", "after the closing brace"},
		{mitmproxys + mitmproxys, "after the closing brace"},
		{`{"server_key":"` + serverKey + `","serverkey":1}`, "unknown field"},
		{`{"server_key":"` + serverKey + `","listen_port":70000}`, "listen_port"},
		{`{"server_key":"` + serverKey + `","endpoint":"a b"}`, "is not HOST"},
		{`{"server_key":"` + serverKey + `","pools":["10.0.0.1/24"]}`, "is not a network"},
		{`{"server_key":"` + serverKey + `","pools":["10.0.0.0/30"]}`, "too small"},
		{`{"server_key":"` + serverKey + `","pools":["10.0.0.0/24","10.1.0.0/24"]}`, "more than one pool"},
		{peer(`"name":"a","addresses":["10.66.0.2/32"]`), "public_key is missing"},
		{peer(`"name":"a","public_key":"` + serverPublic + `","addresses":["10.66.0.2/32"]`), "the server itself"},
		{peer(`"name":"a","private_key":"` + clientKey + `","addresses":[]`), "addresses is empty"},
		{peer(`"name":"a","private_key":"` + clientKey + `","addresses":["10.66.0.2"]`), "/"},
		{peer(`"name":"","private_key":"` + clientKey + `","addresses":["10.66.0.2/32"]`), "a name is"},
	} {
		if _, err := ParseFile([]byte(c.text)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s\nerror is %v, want one with %q", c.text, err, c.want)
		}
	}
}

func FuzzParseFile(f *testing.F) {
	f.Add([]byte(mitmproxys))
	f.Add([]byte(`{"server_key":"` + serverKey + `","listen_port":1,"endpoint":"[::1]:2","pools":["10.0.0.0/24","fd00::/64"],` +
		`"peers":[{"name":"a","private_key":"` + clientKey + `","addresses":["10.0.0.9/32"],"keepalive":3}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		file, err := ParseFile(data)
		if err != nil {
			return
		}
		out, err := file.Marshal()
		if err != nil {
			t.Fatalf("a file that was read cannot be written: %v", err)
		}
		again, err := ParseFile(out)
		if err != nil {
			t.Fatalf("what was written cannot be read: %v\n%s", err, out)
		}
		second, err := again.Marshal()
		if err != nil || string(second) != string(out) {
			t.Fatalf("written twice, the text differs:\n%s\n%s", out, second)
		}
		for _, p := range file.Peers {
			if config, err := file.ClientConfig(p.Name, "192.0.2.1"); err == nil && strings.Count(config, "\n[Peer]\n") != 1 {
				t.Fatalf("broken client configuration:\n%s", config)
			}
		}
	})
}
