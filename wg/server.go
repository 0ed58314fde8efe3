// Package wg is a WireGuard server in user space, with many peers.
//
// In goes a File: keys, address pools and peers. Out come the peers' decrypted
// packets on a gVisor link endpoint, over which a stack talks to them; no network
// interface of the operating system is involved. A packet's inner source address
// says which peer sent it, because WireGuard drops packets with any other one.
//
// The package does not know what the stack does with the packets, nor anything of
// proxies. It also reads and writes configuration files, hands out addresses and
// prints configurations for clients.
package wg

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// Config says how to run a server.
type Config struct {
	// File holds keys and peers; it is required. The server copies what it
	// needs.
	File *File
	// WatchPath, when set, is the configuration file to follow: a change takes
	// effect while the server runs, a bad file is logged and ignored.
	WatchPath string
	// WatchInterval is how often WatchPath is looked at; zero means 1 s.
	WatchInterval time.Duration
	// ListenPort overrides the file's UDP port; zero does not.
	ListenPort uint16
	// ListenHost, when valid, is the only local address to listen on, at the
	// price of throughput: wireguard-go's fast sockets listen on all.
	ListenHost netip.Addr
	// FirewallMark is set on the server's own sockets, so that steering rules
	// leave them alone; zero sets none. It needs CAP_NET_ADMIN.
	FirewallMark uint32
	// MTU of inner packets; zero means 1420.
	MTU int
	// QueueBytes bounds the stack's packets that wait to be encrypted. While
	// it is reached the stack is slowed down, at the most by 100 ms per packet,
	// which is then dropped. Zero means 1 MiB.
	QueueBytes int64
	// Bind sends and receives the outer packets; nil means UDP sockets.
	Bind conn.Bind
	// Logger takes the server's messages; nil discards them.
	Logger *slog.Logger
	// Verbose adds wireguard-go's own debug messages at debug level.
	Verbose bool
}

func (cfg *Config) setDefaults() error {
	if cfg.File == nil {
		return errors.New("start WireGuard server: no configuration given")
	}
	if cfg.WatchInterval == 0 {
		cfg.WatchInterval = time.Second
	}
	if cfg.MTU == 0 {
		cfg.MTU = defaultMTU
	}
	if cfg.MTU < minMTU || cfg.MTU > maxMTU {
		return fmt.Errorf("start WireGuard server: MTU %d is not between %d and %d", cfg.MTU, minMTU, maxMTU)
	}
	if cfg.QueueBytes == 0 {
		cfg.QueueBytes = defaultQueueSize
	}
	if cfg.Bind == nil {
		cfg.Bind = conn.NewDefaultBind()
		if cfg.ListenHost.IsValid() {
			cfg.Bind = &hostBind{host: cfg.ListenHost}
		}
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return nil
}

const (
	minMTU = 1280 // IPv6 needs it (RFC 8200 section 5)
	maxMTU = 65535 - 80
)

// Peer is who sent a packet.
type Peer struct {
	Name      string
	PublicKey PublicKey
	Addresses []netip.Prefix // not to be changed
}

// Server is a running WireGuard server. All methods may be called concurrently.
type Server struct {
	log    *slog.Logger
	link   *link
	device *device.Device
	table  atomic.Pointer[peerTable]

	fixedPort uint16 // 0: the file's counts
	watch     context.CancelFunc
	watching  sync.WaitGroup

	mu      sync.Mutex // guards the rest and serializes changes of the device
	key     SecretKey
	port    uint16                   // 0 before the first Apply
	applied map[PublicKey]PeerConfig // without private keys
}

// New starts a server. Its packets come out of Endpoint; before a stack is
// attached there they are dropped.
func New(cfg Config) (*Server, error) {
	if err := cfg.setDefaults(); err != nil {
		return nil, err
	}
	s := &Server{
		log:       cfg.Logger,
		link:      newLink(cfg.MTU, cfg.QueueBytes),
		fixedPort: cfg.ListenPort,
		watch:     func() {},
		applied:   make(map[PublicKey]PeerConfig),
	}
	s.table.Store(newPeerTable(nil))
	s.device = device.NewDevice(tunDevice{s.link}, pacedBind{cfg.Bind, s.link}, deviceLogger(cfg.Logger, cfg.Verbose))
	if err := s.start(cfg); err != nil {
		s.device.Close()
		return nil, err
	}
	if cfg.WatchPath != "" {
		ctx, cancel := context.WithCancel(context.Background())
		s.watch = cancel
		s.watching.Go(func() { s.follow(ctx, cfg.WatchPath, cfg.WatchInterval) })
	}
	return s, nil
}

func (s *Server) start(cfg Config) error {
	if err := s.Apply(cfg.File); err != nil {
		return err
	}
	if cfg.FirewallMark != 0 {
		if err := s.device.IpcSet(fmt.Sprintf("fwmark=%d\n", cfg.FirewallMark)); err != nil {
			return fmt.Errorf("set firewall mark of WireGuard sockets: %w", err)
		}
	}
	if err := s.device.Up(); err != nil {
		return fmt.Errorf("listen for WireGuard on UDP port %d: %w; stop what uses the port or choose another, and set marks with CAP_NET_ADMIN only", s.port, err)
	}
	return nil
}

// Endpoint is where a gVisor stack sends and receives the peers' packets.
func (s *Server) Endpoint() stack.LinkEndpoint { return endpoint{s.link} }

// Peer returns the peer that an inner source address belongs to.
func (s *Server) Peer(addr netip.Addr) (Peer, bool) { return s.table.Load().lookup(addr) }

// Close stops the server, disconnects its peers and waits until all is done.
// Close the stack on Endpoint as well, before or after.
func (s *Server) Close() error {
	s.watch()
	s.watching.Wait()
	s.device.Close()
	return nil
}

// Apply makes the running server match the file: it adds, changes and removes
// what differs; sessions of unchanged peers go on. A changed server key makes
// all peers handshake anew. On an error some changes may have taken effect;
// applying a file again is safe.
func (s *Server) Apply(f *File) error {
	if err := f.check(); err != nil {
		return fmt.Errorf("apply WireGuard configuration: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.applyServer(f); err != nil {
		return err
	}
	wanted := make(map[PublicKey]PeerConfig, len(f.Peers))
	for _, p := range f.Peers {
		p.PrivateKey = SecretKey{}
		p.Addresses = slices.Clone(p.Addresses)
		wanted[p.PublicKey] = p
	}
	if err := s.removePeers(wanted); err != nil {
		return err
	}
	// Known before its first packet, a peer never shows up as a stranger.
	s.table.Store(newPeerTable(wanted))
	return s.setPeers(wanted)
}

// applyServer sets key and port.
func (s *Server) applyServer(f *File) error {
	if s.key != f.ServerKey {
		if err := s.set("server key", "private_key="+hexKey(f.ServerKey)+"\n"); err != nil {
			return err
		}
		s.key = f.ServerKey
	}
	port := f.Port()
	if s.fixedPort != 0 {
		port = s.fixedPort
	}
	if port == s.port {
		return nil
	}
	if err := s.setPort(port); err != nil {
		if s.port != 0 { // its socket is closed by now: take it back
			err = errors.Join(err, s.setPort(s.port))
		}
		return err
	}
	s.port = port
	return nil
}

func (s *Server) setPort(port uint16) error {
	return s.set("UDP port", fmt.Sprintf("listen_port=%d\n", port))
}

func (s *Server) removePeers(wanted map[PublicKey]PeerConfig) error {
	var text strings.Builder
	for key, p := range s.applied {
		if _, stays := wanted[key]; !stays {
			fmt.Fprintf(&text, "public_key=%s\nremove=true\n", hexKey(key))
			s.log.Info("wireguard peer removed", "peer", p.Name)
		}
	}
	if err := s.set("removal of peers", text.String()); err != nil {
		return err
	}
	for key := range s.applied {
		if _, stays := wanted[key]; !stays {
			delete(s.applied, key)
		}
	}
	return nil
}

func (s *Server) setPeers(wanted map[PublicKey]PeerConfig) error {
	var text strings.Builder
	for key, p := range wanted {
		old, known := s.applied[key]
		if known && old.PresharedKey == p.PresharedKey && old.Keepalive == p.Keepalive &&
			slices.Equal(old.Addresses, p.Addresses) {
			continue
		}
		fmt.Fprintf(&text, "public_key=%s\npreshared_key=%s\npersistent_keepalive_interval=%d\nreplace_allowed_ips=true\n",
			hexKey(key), hexKey(p.PresharedKey), p.Keepalive)
		for _, a := range p.Addresses {
			fmt.Fprintf(&text, "allowed_ip=%s\n", a)
		}
		s.log.Info("wireguard peer set", "peer", p.Name, "known", known)
	}
	if err := s.set("peers", text.String()); err != nil {
		return err
	}
	s.applied = wanted
	return nil
}

// set gives the device a piece of configuration.
func (s *Server) set(what, text string) error {
	if text == "" {
		return nil
	}
	if err := s.device.IpcSet(text); err != nil {
		return fmt.Errorf("apply WireGuard %s: %w", what, err)
	}
	return nil
}
