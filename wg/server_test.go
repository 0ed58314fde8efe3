package wg

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"runtime"
	"strings"
	"testing"
	"time"
)

const (
	web4 = "198.51.100.7:80"
	web6 = "[2001:db8::7]:80"
)

// someFile is a configuration with the named peers.
func someFile(t testing.TB, names ...string) *File {
	t.Helper()
	f, err := NewFile()
	if err != nil {
		t.Fatal(err)
	}
	f.Peers, f.ClientKey, f.ListenPort = nil, SecretKey{}, 100
	for _, name := range names {
		if _, err := f.AddPeer(PeerConfig{Name: name}); err != nil {
			t.Fatal(err)
		}
	}
	return f
}

func peerOf(t testing.TB, f *File, name string) PeerConfig {
	t.Helper()
	p, err := f.Peer(name)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func phoneOf(t testing.TB, h *hub, f *File, name string) *phone {
	t.Helper()
	return connect(t, h.bind(), f.ServerKey.Public(), f.Port(), peerOf(t, f, name))
}

func TestPhoneReachesEverything(t *testing.T) {
	h, f := newHub(), someFile(t, "phone")
	a := serve(t, Config{File: f, Bind: h.bind()})
	p := phoneOf(t, h, f, "phone")
	for _, network := range []string{"tcp", "udp"} {
		p.mustAsk(network, web4, "phone")
		p.mustAsk(network, web6, "phone")
	}
	for _, address := range []string{"198.51.100.7", "2001:db8::7"} {
		if err := p.ping(address); err != nil {
			t.Errorf("ping %s: %v", address, err)
		}
	}
	// Larger than the MTU: fragments both ways.
	question := string(bytes.Repeat([]byte("0123456789"), 200))
	for _, address := range []string{web4, web6} {
		if got, err := p.ask("udp", address, question); err != nil || !strings.HasSuffix(got, question) {
			t.Errorf("2000 bytes by UDP to %s: %d came back, error %v", address, len(got), err)
		}
	}
	if s := a.Stats(); s.Malformed != 0 || s.Dropped != 0 || s.Received == 0 || s.Sent == 0 {
		t.Errorf("counters are %+v", s)
	}
}

func TestBulkTransferKeepsEveryByte(t *testing.T) {
	h, f := newHub(), someFile(t, "phone")
	serve(t, Config{File: f, Bind: h.bind()})
	c, err := phoneOf(t, h, f, "phone").Dial("tcp", web4)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(60 * time.Second)); err != nil {
		t.Fatal(err)
	}
	sent := pattern(4 << 20)
	go c.Write(sent) // what is missing shows below
	greeting := "phone>" + web4 + ":"
	got := make([]byte, len(greeting)+len(sent))
	if _, err := io.ReadFull(c, got); err != nil {
		t.Fatal(err)
	}
	if string(got[:len(greeting)]) != greeting || !bytes.Equal(got[len(greeting):], sent) {
		t.Error("the echo differs from what was sent")
	}
}

func TestTwoPeersAreToldApart(t *testing.T) {
	h, f := newHub(), someFile(t, "phone", "tablet")
	a := serve(t, Config{File: f, Bind: h.bind()})
	phone, tablet := phoneOf(t, h, f, "phone"), phoneOf(t, h, f, "tablet")
	for range 3 {
		phone.mustAsk("tcp", web4, "phone")
		tablet.mustAsk("udp", web4, "tablet")
		phone.mustAsk("udp", web6, "phone")
		tablet.mustAsk("tcp", web6, "tablet")
	}
	got, ok := a.Peer(phone.addrs[0])
	if !ok || got.Name != "phone" || got.PublicKey != peerOf(t, f, "phone").PublicKey {
		t.Errorf("%s belongs to %+v", phone.addrs[0], got)
	}
	if got, ok := a.Peer(netip.MustParseAddr("10.66.9.9")); ok {
		t.Errorf("an unused address belongs to %+v", got)
	}
	peers, err := a.Peers()
	if err != nil || len(peers) != 2 || peers[0].Name != "phone" || peers[1].Name != "tablet" {
		t.Fatalf("peers are %+v, error %v", peers, err)
	}
	for _, p := range peers {
		if p.Received == 0 || p.Sent == 0 || time.Since(p.LastHandshake) > time.Minute || !p.Endpoint.IsValid() {
			t.Errorf("statistics of %s: %+v", p.Name, p)
		}
	}
}

func TestPeersComeAndGoWhileOthersStay(t *testing.T) {
	h, f := newHub(), someFile(t, "phone")
	a := serve(t, Config{File: f, Bind: h.bind()})
	phone := phoneOf(t, h, f, "phone")
	open, err := phone.Dial("tcp", web4)
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	greeted := false
	stillOpen := func(when string) {
		t.Helper()
		want := "x"
		if !greeted {
			want = "phone>" + web4 + ":x"
		}
		greeted = true
		_ = open.SetDeadline(time.Now().Add(patience))
		got := make([]byte, len(want))
		_, err := open.Write([]byte("x"))
		if _, rerr := io.ReadFull(open, got); err != nil || rerr != nil || string(got) != want {
			t.Fatalf("%s the phone's connection gives %q, %v, %v", when, got, err, rerr)
		}
	}
	stillOpen("at first")
	handshake := handshakeOf(t, a, "phone")

	add(t, f, PeerConfig{Name: "tablet"})
	if err := a.Apply(f); err != nil {
		t.Fatal(err)
	}
	tablet := phoneOf(t, h, f, "tablet")
	tablet.mustAsk("tcp", web4, "tablet")
	stillOpen("with a tablet added")

	if _, err := f.RemovePeer("tablet"); err != nil {
		t.Fatal(err)
	}
	if err := a.Apply(f); err != nil {
		t.Fatal(err)
	}
	tablet.mustNotReach(web4)
	if _, ok := a.Peer(tablet.addrs[0]); ok {
		t.Error("the removed peer's address still has an owner")
	}
	stillOpen("with the tablet removed")

	f.Peers[0].Name = "old phone"
	if err := a.Apply(f); err != nil {
		t.Fatal(err)
	}
	stillOpen("renamed")
	phone.mustAsk("udp", web4, "old phone")
	if again := handshakeOf(t, a, "old phone"); again != handshake {
		t.Errorf("the unchanged peer had to handshake again, at %v after %v", again, handshake)
	}
}

func handshakeOf(t *testing.T, a *appliance, name string) time.Time {
	t.Helper()
	peers, err := a.Peers()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range peers {
		if p.Name == name {
			return p.LastHandshake
		}
	}
	t.Fatalf("no peer %q", name)
	return time.Time{}
}

func TestSpoofedSourceIsDropped(t *testing.T) {
	h, f := newHub(), someFile(t, "phone", "tablet")
	serve(t, Config{File: f, Bind: h.bind()})
	// A phone that also uses the tablet's address, and one nobody has.
	config := peerOf(t, f, "phone")
	tablet := peerOf(t, f, "tablet").Addresses[0]
	stolen := config
	stolen.Addresses = []netip.Prefix{tablet}
	free := config
	free.Addresses = []netip.Prefix{netip.MustParsePrefix("10.66.77.77/32")}
	for _, c := range []PeerConfig{stolen, free} {
		connect(t, h.bind(), f.ServerKey.Public(), f.Port(), c).mustNotReach(web4)
	}
	connect(t, h.bind(), f.ServerKey.Public(), f.Port(), config).mustAsk("udp", web4, "phone")
}

func TestWrongKeysNeverConnect(t *testing.T) {
	h, f := newHub(), someFile(t)
	psk, err := GeneratePresharedKey()
	if err != nil {
		t.Fatal(err)
	}
	good := add(t, f, PeerConfig{Name: "phone", PresharedKey: psk})
	a := serve(t, Config{File: f, Bind: h.bind()})
	other, err := GeneratePrivateKey()
	if err != nil {
		t.Fatal(err)
	}
	wrongKey, wrongPSK, noPSK := good, good, good
	wrongKey.PrivateKey, wrongPSK.PresharedKey, noPSK.PresharedKey = other, other, SecretKey{}
	server := f.ServerKey.Public()
	for name, c := range map[string]PeerConfig{"private key": wrongKey, "preshared key": wrongPSK, "no preshared key": noPSK} {
		p := connect(t, h.bind(), server, f.Port(), c)
		if p.mustNotReach(web4); t.Failed() {
			t.Fatalf("with a wrong %s", name)
		}
	}
	connect(t, h.bind(), other.Public(), f.Port(), good).mustNotReach(web4)
	if s := a.Stats(); s.Received != 0 {
		t.Errorf("%d inner packets came in", s.Received)
	}
	connect(t, h.bind(), server, f.Port(), good).mustAsk("tcp", web4, "phone")
}

// A restarted server has lost its sessions; a phone notices after 15 s without
// an answer (KEEPALIVE_TIMEOUT and REKEY_TIMEOUT of the WireGuard paper).
func TestPhoneRecoversFromARestart(t *testing.T) {
	t.Parallel()
	h, f := newHub(), someFile(t, "phone")
	first, err := tryServe(Config{File: f, Bind: h.bind()}, t)
	if err != nil {
		t.Fatal(err)
	}
	p := phoneOf(t, h, f, "phone")
	p.mustAsk("udp", web4, "phone")
	first.close()
	serve(t, Config{File: f, Bind: h.bind()})
	for start := time.Now(); ; {
		if _, err := p.ask("udp", web4, "hello"); err == nil {
			break
		} else if time.Since(start) > time.Minute {
			t.Fatalf("the phone did not come back: %v", err)
		}
	}
}

func TestListenPortCanChangeAndConflict(t *testing.T) {
	h, f := newHub(), someFile(t, "phone", "tablet")
	a := serve(t, Config{File: f, Bind: h.bind()})
	_, err := New(Config{File: someFile(t), Bind: h.bind()})
	if err == nil || !strings.Contains(err.Error(), "UDP port 100") {
		t.Errorf("a second server on the port: error is %v", err)
	}
	f.ListenPort = 200
	if err := a.Apply(f); err != nil || a.Port() != 200 {
		t.Fatalf("port is %d, error %v", a.Port(), err)
	}
	phoneOf(t, h, f, "phone").mustAsk("udp", web4, "phone")
	// A port that is taken leaves the old one in use.
	serve(t, Config{File: someFile(t), Bind: h.bind()})
	f.ListenPort = 100
	if err := a.Apply(f); err == nil || a.Port() != 200 {
		t.Errorf("moving to a port in use: error %v, port %d", err, a.Port())
	}
	f.ListenPort = 200
	phoneOf(t, h, f, "tablet").mustAsk("udp", web4, "tablet")
}

func TestConfigPortOverridesTheFile(t *testing.T) {
	h, f := newHub(), someFile(t, "phone")
	a := serve(t, Config{File: f, Bind: h.bind(), ListenPort: 300})
	f.ListenPort = 400
	if err := a.Apply(f); err != nil || a.Port() != 300 {
		t.Errorf("port is %d, error %v, want 300", a.Port(), err)
	}
}

func TestNewRefuses(t *testing.T) {
	f := someFile(t)
	for want, cfg := range map[string]Config{
		"no configuration": {},
		"MTU":              {File: f, MTU: 500},
		"server_key":       {File: &File{}},
	} {
		cfg.Bind = newHub().bind()
		if s, err := New(cfg); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error is %v, want one with %q", err, want)
			_ = s.Close()
		}
	}
}

func TestCloseLeavesNothingBehind(t *testing.T) {
	before := runtime.NumGoroutine()
	for range 3 {
		h, f := newHub(), someFile(t, "phone")
		a, err := tryServe(Config{File: f, Bind: h.bind(), WatchPath: t.TempDir() + "/x", WatchInterval: time.Hour}, t)
		if err != nil {
			t.Fatal(err)
		}
		p := phoneOf(t, h, f, "phone")
		p.mustAsk("tcp", web4, "phone")
		p.device.Close()
		a.close()
		if err := a.Server.Close(); err != nil {
			t.Errorf("closing twice: %v", err)
		}
	}
	deadline := time.Now().Add(patience)
	for runtime.NumGoroutine() > before {
		if time.Now().After(deadline) {
			stacks := make([]byte, 1<<20)
			t.Fatalf("%d goroutines, %d before:\n%s", runtime.NumGoroutine(), before, stacks[:runtime.Stack(stacks, true)])
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// The order of closing is free.
func TestServerClosesBeforeItsStack(t *testing.T) {
	h, f := newHub(), someFile(t, "phone")
	a, err := tryServe(Config{File: f, Bind: h.bind()}, t)
	if err != nil {
		t.Fatal(err)
	}
	phoneOf(t, h, f, "phone").mustAsk("tcp", web4, "phone")
	err = errors.Join(a.Server.Close(), a.stack.Close())
	a.tasks.Wait()
	if err != nil {
		t.Error(err)
	}
}

func TestPeersStatusSkipsNoise(t *testing.T) {
	status := parseStatus(fmt.Sprintf("listen_port=77\nfwmark=1\npublic_key=%s\nendpoint=192.0.2.1:9\nrx_bytes=5\ntx_bytes=6\n"+
		"last_handshake_time_sec=10\nlast_handshake_time_nsec=7\nallowed_ip=::/0\nnew_key=1\n\x00", strings.Repeat("ab", 32)))
	if status.port != 77 || len(status.peers) != 1 {
		t.Fatalf("got %+v", status)
	}
	p := status.peers[0]
	if p.Endpoint.String() != "192.0.2.1:9" || p.Received != 5 || p.Sent != 6 || !p.LastHandshake.Equal(time.Unix(10, 7)) || p.PublicKey[0] != 0xab {
		t.Errorf("got %+v", p)
	}
}
