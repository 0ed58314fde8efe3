package wg

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"unicode"
)

// Limits of a configuration file.
const (
	maxFileSize  = 32 << 20
	maxPeers     = 1 << 16 // wireguard-go's limit
	maxAddresses = 64      // per peer
	maxNameLen   = 64      // bytes
	maxEndpoint  = 260     // bytes: a DNS name, a colon and a port
	maxKeepalive = 65535   // seconds
)

const (
	// DefaultListenPort is WireGuard's usual UDP port (and mitmproxy's).
	DefaultListenPort = 51820
	// DefaultKeepalive, in seconds, keeps NAT mappings open (WG-03).
	DefaultKeepalive = 25

	firstPeerName = "client"
)

// File is a server's configuration: its key, where it listens, the addresses it
// gives out and its peers. Its JSON form is a superset of mitmproxy's
// wireguard.conf (WG-02): a file with only server_key and client_key is read as
// a server with the one peer that mitmproxy derives from client_key, and a file
// that keeps client_key still works in mitmproxy.
//
// A File is plain data; it is not safe for concurrent change.
type File struct {
	// ServerKey is the server's private key.
	ServerKey SecretKey `json:"server_key"`
	// ClientKey is the private key of mitmproxy's one client. It stands here
	// for mitmproxy only; the peer itself is in Peers.
	ClientKey SecretKey `json:"client_key,omitzero"`
	// ListenPort is the UDP port; 0 means DefaultListenPort.
	ListenPort uint16 `json:"listen_port,omitempty"`
	// Endpoint is the HOST or HOST:PORT under which clients reach the server;
	// empty means a guess of this machine's address.
	Endpoint string `json:"endpoint,omitempty"`
	// Pools are the networks peers get their addresses from, at most one of
	// each IP version; empty means DefaultPools.
	Pools []netip.Prefix `json:"pools,omitempty"`
	// Peers are the clients.
	Peers []PeerConfig `json:"peers,omitempty"`
}

// PeerConfig is one peer as the file describes it.
type PeerConfig struct {
	// Name is unique within a file: 1 to 64 printable bytes.
	Name string `json:"name"`
	// PublicKey identifies the peer.
	PublicKey PublicKey `json:"public_key"`
	// PrivateKey is the client's private key. It is there only when it was
	// generated here, so that the client configuration can be shown again; a
	// peer added by its public key keeps its private key to itself.
	PrivateKey SecretKey `json:"private_key,omitzero"`
	// PresharedKey is optional.
	PresharedKey SecretKey `json:"preshared_key,omitzero"`
	// Addresses are the inner source addresses the peer may use. No two peers
	// overlap, which makes them the peer's identity.
	Addresses []netip.Prefix `json:"addresses"`
	// Keepalive is the interval in seconds at which the server keeps the way
	// to the peer open; 0 is off.
	Keepalive int `json:"keepalive,omitempty"`
}

// NewFile returns a configuration with fresh keys, the default pools and one
// peer named "client", which is mitmproxy's one client as well.
func NewFile() (*File, error) {
	key, err := GeneratePrivateKey()
	if err != nil {
		return nil, err
	}
	f := &File{ServerKey: key, Pools: DefaultPools()}
	if _, err := f.AddPeer(PeerConfig{Name: firstPeerName, Keepalive: DefaultKeepalive}); err != nil {
		return nil, err
	}
	return f, nil
}

// ParseFile reads the JSON form and checks everything in it.
func ParseFile(data []byte) (*File, error) {
	if len(data) > maxFileSize {
		return nil, fmt.Errorf("the file is larger than %d MiB", maxFileSize>>20)
	}
	f := new(File)
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(f); err != nil {
		return nil, explainJSON(data, err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("text after the closing brace: remove it")
	}
	f.complete()
	return f, f.check()
}

// explainJSON says where the text stops being JSON.
func explainJSON(data []byte, err error) error {
	var syntax *json.SyntaxError
	switch {
	case errors.As(err, &syntax):
		line := 1 + bytes.Count(data[:min(int(syntax.Offset), len(data))], []byte("\n"))
		return fmt.Errorf("not valid JSON at line %d: %w", line, err)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return errors.New("not valid JSON: the text ends too early; remove the file to get a fresh one")
	}
	return err
}

// complete fills in what follows from the rest: mitmproxy's one peer, public
// keys of private ones, pools.
func (f *File) complete() {
	for i := range f.Peers {
		p := &f.Peers[i]
		if p.PublicKey.IsZero() && !p.PrivateKey.IsZero() {
			p.PublicKey = p.PrivateKey.Public()
		}
		for j, a := range p.Addresses {
			p.Addresses[j] = a.Masked()
		}
	}
	if !f.ClientKey.IsZero() && !f.hasKey(f.ClientKey.Public()) {
		f.Peers = slices.Insert(f.Peers, 0, mitmproxyPeer(f.ClientKey))
		if len(f.Pools) == 0 {
			f.Pools = []netip.Prefix{mitmproxyPool}
		}
	}
	if len(f.Pools) == 0 {
		f.Pools = DefaultPools()
	}
}

// mitmproxyPeer is the one client of a mitmproxy server (WG-03, WG-04).
func mitmproxyPeer(key SecretKey) PeerConfig {
	return PeerConfig{
		Name: firstPeerName, PublicKey: key.Public(), PrivateKey: key,
		Addresses: []netip.Prefix{mitmproxyAddress}, Keepalive: DefaultKeepalive,
	}
}

func (f *File) hasKey(key PublicKey) bool {
	return slices.ContainsFunc(f.Peers, func(p PeerConfig) bool { return p.PublicKey == key })
}

// Marshal returns the JSON form.
func (f *File) Marshal() ([]byte, error) {
	if err := f.check(); err != nil {
		return nil, err
	}
	data, err := json.MarshalIndent(f, "", "    ")
	if err != nil {
		return nil, fmt.Errorf("encode configuration: %w", err)
	}
	return append(data, '\n'), nil
}

// check refuses what a server could not run with.
func (f *File) check() error {
	if f.ServerKey.IsZero() {
		return errors.New("server_key is missing: set it to the output of \"wg genkey\", or remove the file to get a fresh one")
	}
	if len(f.Peers) > maxPeers {
		return fmt.Errorf("more than %d peers", maxPeers)
	}
	if err := checkPools(f.Pools); err != nil {
		return err
	}
	if _, _, err := splitEndpoint(f.Endpoint); err != nil {
		return err
	}
	names := make(map[string]bool, len(f.Peers))
	keys := map[PublicKey]string{f.ServerKey.Public(): "the server itself"}
	for i := range f.Peers {
		p := &f.Peers[i]
		if err := p.check(); err != nil {
			return fmt.Errorf("peer %q: %w", p.Name, err)
		}
		if names[p.Name] {
			return fmt.Errorf("two peers are named %q: rename one", p.Name)
		}
		names[p.Name] = true
		if other, used := keys[p.PublicKey]; used {
			return fmt.Errorf("peer %q has the same key as %s: every device needs its own", p.Name, other)
		}
		keys[p.PublicKey] = fmt.Sprintf("peer %q", p.Name)
	}
	return checkOverlap(f.Peers)
}

func (p *PeerConfig) check() error {
	switch {
	case p.PublicKey.IsZero():
		return errors.New("public_key is missing")
	case !p.PrivateKey.IsZero() && p.PrivateKey.Public() != p.PublicKey:
		return errors.New("public_key does not belong to private_key: remove one of them")
	case len(p.Addresses) == 0:
		return errors.New("addresses is empty: the peer could not send anything")
	case len(p.Addresses) > maxAddresses:
		return fmt.Errorf("more than %d addresses", maxAddresses)
	case p.Keepalive < 0 || p.Keepalive > maxKeepalive:
		return fmt.Errorf("keepalive is %d: use 0 (off) to %d seconds", p.Keepalive, maxKeepalive)
	}
	for _, a := range p.Addresses {
		if !a.IsValid() || a.Addr().Is4In6() {
			return fmt.Errorf("address %s is not usable: write it like 10.66.0.2/32 or fd66::2/128", a)
		}
	}
	return checkName(p.Name)
}

func checkName(name string) error {
	unprintable := func(r rune) bool { return !unicode.IsPrint(r) }
	if name == "" || len(name) > maxNameLen || strings.ContainsFunc(name, unprintable) || strings.TrimSpace(name) != name {
		return fmt.Errorf("a name is 1 to %d printable bytes without spaces around it", maxNameLen)
	}
	return nil
}

// Peer returns the peer with this name, or with this public key in base64.
func (f *File) Peer(nameOrKey string) (PeerConfig, error) {
	i := f.index(nameOrKey)
	if i < 0 {
		return PeerConfig{}, fmt.Errorf("no peer named %q: %w", nameOrKey, ErrNoPeer)
	}
	return f.Peers[i], nil
}

// ErrNoPeer is returned for a name or key that no peer has.
var ErrNoPeer = errors.New("no such peer; list the peers to see their names")

func (f *File) index(nameOrKey string) int {
	return slices.IndexFunc(f.Peers, func(p PeerConfig) bool {
		return p.Name == nameOrKey || p.PublicKey.String() == nameOrKey
	})
}

// AddPeer adds a peer and returns it completed: a missing PublicKey means that
// a key pair is generated and its private half kept, missing Addresses mean the
// lowest free one of each pool.
func (f *File) AddPeer(p PeerConfig) (PeerConfig, error) {
	generated := p.PublicKey.IsZero() && p.PrivateKey.IsZero()
	if generated {
		key, err := GeneratePrivateKey()
		if err != nil {
			return PeerConfig{}, err
		}
		p.PrivateKey = key
	}
	if p.PublicKey.IsZero() {
		p.PublicKey = p.PrivateKey.Public()
	}
	if len(p.Addresses) == 0 {
		addresses, err := f.allocate()
		if err != nil {
			return PeerConfig{}, fmt.Errorf("add peer %q: %w", p.Name, err)
		}
		p.Addresses = addresses
	} else {
		p.Addresses = slices.Clone(p.Addresses)
	}
	changed := *f
	changed.Peers = append(slices.Clone(f.Peers), p)
	if generated && len(f.Peers) == 0 {
		changed.ClientKey = p.PrivateKey
	}
	if err := changed.check(); err != nil {
		return PeerConfig{}, fmt.Errorf("add peer: %w", err)
	}
	*f = changed
	return p, nil
}

// RemovePeer removes the peer with this name or public key and returns it.
func (f *File) RemovePeer(nameOrKey string) (PeerConfig, error) {
	p, err := f.Peer(nameOrKey)
	if err != nil {
		return PeerConfig{}, err
	}
	i := f.index(nameOrKey)
	f.Peers = slices.Delete(slices.Clone(f.Peers), i, i+1)
	if !f.ClientKey.IsZero() && f.ClientKey.Public() == p.PublicKey {
		f.ClientKey = SecretKey{}
	}
	return p, nil
}

// Port returns ListenPort or its default.
func (f *File) Port() uint16 {
	if f.ListenPort == 0 {
		return DefaultListenPort
	}
	return f.ListenPort
}
