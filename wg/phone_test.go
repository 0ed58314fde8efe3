package wg

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"
	wgnet "golang.zx2c4.com/wireguard/tun/netstack"

	"mitm-appliance/netstack"
)

const patience = 20 * time.Second // for what takes milliseconds on a quiet machine

// hub is a network of WireGuard sockets, told apart by port.
type hub struct {
	mu    sync.Mutex
	ports map[uint16]*socket
}

func newHub() *hub { return &hub{ports: make(map[uint16]*socket)} }

// bind returns an unopened socket on the hub.
func (h *hub) bind() conn.Bind { return &socket{hub: h} }

type socket struct {
	hub    *hub
	port   uint16
	in     chan datagram
	closed chan struct{}
}

type datagram struct {
	from hubAddr
	data []byte
}

func (s *socket) Open(port uint16) ([]conn.ReceiveFunc, uint16, error) {
	s.hub.mu.Lock()
	defer s.hub.mu.Unlock()
	if port == 0 {
		for port = 1; s.hub.ports[port] != nil; port++ {
		}
	}
	if s.hub.ports[port] != nil {
		return nil, 0, errors.New("address already in use")
	}
	s.port, s.in, s.closed = port, make(chan datagram, 4096), make(chan struct{})
	s.hub.ports[port] = s
	in, closed := s.in, s.closed
	return []conn.ReceiveFunc{func(bufs [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
		select {
		case d := <-in:
			sizes[0], eps[0] = copy(bufs[0], d.data), d.from
			return 1, nil
		case <-closed:
			return 0, net.ErrClosed
		}
	}}, port, nil
}

func (s *socket) Close() error {
	s.hub.mu.Lock()
	defer s.hub.mu.Unlock()
	if s.hub.ports[s.port] == s {
		delete(s.hub.ports, s.port)
		close(s.closed)
	}
	return nil
}

func (s *socket) Send(bufs [][]byte, ep conn.Endpoint) error {
	s.hub.mu.Lock()
	to := s.hub.ports[ep.(hubAddr).port]
	s.hub.mu.Unlock()
	for _, b := range bufs {
		if to == nil {
			continue
		}
		select {
		case to.in <- datagram{hubAddr{s.port}, append([]byte(nil), b...)}:
		default: // full: lost, as on a real network
		}
	}
	return nil
}

func (s *socket) ParseEndpoint(text string) (conn.Endpoint, error) {
	addr, err := netip.ParseAddrPort(text)
	return hubAddr{addr.Port()}, err
}

func (s *socket) SetMark(uint32) error { return nil }
func (s *socket) BatchSize() int       { return 1 }

type hubAddr struct{ port uint16 }

func (hubAddr) ClearSrc()             {}
func (hubAddr) SrcToString() string   { return "" }
func (a hubAddr) DstToString() string { return fmt.Sprintf("127.0.0.1:%d", a.port) }
func (a hubAddr) DstToBytes() []byte  { return []byte{byte(a.port >> 8), byte(a.port)} }
func (hubAddr) DstIP() netip.Addr     { return netip.AddrFrom4([4]byte{127, 0, 0, 1}) }
func (hubAddr) SrcIP() netip.Addr     { return netip.Addr{} }

// logs sends a server's messages to the test's log.
func logs(t testing.TB) *slog.Logger {
	return slog.New(slog.NewTextHandler(writer{t}, &slog.HandlerOptions{Level: slog.LevelWarn}))
}

type writer struct{ t testing.TB }

func (w writer) Write(b []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(b)))
	return len(b), nil
}

// appliance is a server whose stack greets every connection and datagram with
// the name of the peer it came from, and then echoes.
type appliance struct {
	*Server
	stack *netstack.Stack
	tasks sync.WaitGroup
}

func serve(t testing.TB, cfg Config) *appliance {
	t.Helper()
	a, err := tryServe(cfg, t)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.close)
	return a
}

func tryServe(cfg Config, t testing.TB) (*appliance, error) {
	cfg.Logger = logs(t)
	server, err := New(cfg)
	if err != nil {
		return nil, err
	}
	a := &appliance{Server: server}
	a.stack, err = netstack.New(netstack.Config{Logger: cfg.Logger}, server.Endpoint(), a)
	if err != nil {
		return nil, errors.Join(err, server.Close())
	}
	return a, nil
}

func (a *appliance) close() {
	a.stack.Close()
	a.Server.Close()
	a.tasks.Wait()
}

func (a *appliance) greet(c net.Conn, source, destination netip.AddrPort) {
	defer c.Close()
	name := "a stranger"
	if p, ok := a.Peer(source.Addr()); ok {
		name = p.Name
	}
	first := make([]byte, 64<<10)
	n, err := c.Read(first)
	if err != nil {
		return
	}
	if _, err := fmt.Fprintf(c, "%s>%s:%s", name, destination, first[:n]); err == nil {
		_, _ = io.Copy(c, struct{ io.Reader }{c})
	}
}

func (a *appliance) HandleTCP(r *netstack.TCPRequest) {
	a.tasks.Go(func() {
		if c, err := r.Accept(); err == nil {
			a.greet(c, r.Source(), r.Destination())
		}
	})
}

func (a *appliance) HandleUDP(c *netstack.UDPConn) {
	a.tasks.Go(func() {
		if c.Destination().Port() == 443 {
			serveQUIC(c)
			return
		}
		a.greet(c, c.Source(), c.Destination())
	})
}

// phone is a client made of wireguard-go alone.
type phone struct {
	t      testing.TB
	device *device.Device
	*wgnet.Net
	addrs []netip.Addr
}

// connect starts a phone with the keys and addresses of a peer.
func connect(t testing.TB, bind conn.Bind, server PublicKey, port uint16, p PeerConfig) *phone {
	t.Helper()
	ph := &phone{t: t}
	for _, a := range p.Addresses {
		ph.addrs = append(ph.addrs, a.Addr())
	}
	dev, stack, err := wgnet.CreateNetTUN(ph.addrs, nil, defaultMTU)
	if err != nil {
		t.Fatal(err)
	}
	ph.Net = stack
	ph.device = device.NewDevice(draining{dev}, bind, device.NewLogger(device.LogLevelSilent, ""))
	t.Cleanup(ph.device.Close)
	config := fmt.Sprintf("private_key=%s\npublic_key=%s\npreshared_key=%s\nendpoint=127.0.0.1:%d\nallowed_ip=0.0.0.0/0\nallowed_ip=::/0\n",
		hexKey(p.PrivateKey), hexKey(server), hexKey(p.PresharedKey), port)
	if err := errors.Join(ph.device.IpcSet(config), ph.device.Up()); err != nil {
		t.Fatal(err)
	}
	return ph
}

// draining reads on while the device closes: wgnet's stack panics when its last
// packets meet a closed channel.
type draining struct{ tun.Device }

func (d draining) Close() error {
	go func() {
		buf := [][]byte{make([]byte, 65535)}
		for {
			if _, err := d.Read(buf, []int{0}, 0); err != nil {
				return
			}
		}
	}()
	return d.Device.Close()
}

// ask sends a question to address over one connection and returns the answer.
// UDP questions are repeated, as any client of UDP would.
func (p *phone) ask(network, address, question string) (string, error) {
	deadline := time.Now().Add(patience)
	for {
		answer, err := p.askOnce(network, address, question, deadline)
		if err == nil || time.Now().After(deadline) {
			return answer, err
		}
	}
}

func (p *phone) askOnce(network, address, question string, deadline time.Time) (string, error) {
	c, err := p.Dial(network, address)
	if err != nil {
		return "", err
	}
	defer c.Close()
	if network == "udp" && time.Until(deadline) > time.Second {
		deadline = time.Now().Add(time.Second)
	}
	if err := c.SetDeadline(deadline); err != nil {
		return "", err
	}
	if _, err := c.Write([]byte(question)); err != nil {
		return "", err
	}
	buf := make([]byte, 64<<10)
	got := 0
	for !strings.HasSuffix(string(buf[:got]), question) {
		n, err := c.Read(buf[got:])
		if err != nil {
			return string(buf[:got]), err
		}
		got += n
	}
	return string(buf[:got]), nil
}

// mustAsk fails the test unless the appliance takes the phone for peer.
func (p *phone) mustAsk(network, address, peer string) {
	p.t.Helper()
	want := fmt.Sprintf("%s>%s:hello", peer, address)
	if got, err := p.ask(network, address, "hello"); got != want || err != nil {
		p.t.Errorf("%s to %s answered %q (%v), want %q", network, address, got, err, want)
	}
}

// mustNotReach fails the test when a datagram is answered within the time that
// some handshakes take.
func (p *phone) mustNotReach(address string) {
	p.t.Helper()
	if got, err := p.askOnce("udp", address, "hello", time.Now().Add(time.Second)); err == nil {
		p.t.Errorf("udp to %s answered %q, want silence", address, got)
	}
}

// ping sends one echo request and waits for its answer.
func (p *phone) ping(address string) error {
	raddr := netip.MustParseAddr(address)
	laddr := p.addrs[0]
	for _, a := range p.addrs {
		if a.Is4() == raddr.Is4() {
			laddr = a
		}
	}
	c, err := p.DialPingAddr(laddr, raddr)
	if err != nil {
		return err
	}
	defer c.Close()
	kind := byte(8)
	if raddr.Is6() {
		kind = 128
	}
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	if _, err := c.Write([]byte{kind, 0, 0, 0, 0, 1, 0, 1, 'h', 'i'}); err != nil {
		return err
	}
	buf := make([]byte, 100)
	n, err := c.Read(buf)
	if err == nil && (n < 10 || string(buf[n-2:n]) != "hi") {
		return fmt.Errorf("echo answer is %q", buf[:n])
	}
	return err
}
