package wg

import (
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// PeerStats is a peer and its traffic since it was added to the running server.
type PeerStats struct {
	Peer
	// Endpoint is the outer address the peer last sent an authenticated
	// packet from; invalid before the first.
	Endpoint netip.AddrPort
	// LastHandshake is zero before the first one.
	LastHandshake time.Time
	// Received and Sent are bytes of encrypted packets.
	Received, Sent uint64
}

// Stats counts the packets between the peers and the stack.
type Stats struct {
	// Received and Sent are inner packets.
	Received, Sent uint64
	// Malformed packets from peers, also those with a wrong checksum or
	// received while no stack was attached; they were dropped.
	Malformed uint64
	// Dropped packets of the stack found the queue full.
	Dropped uint64
}

// Stats returns the counters.
func (s *Server) Stats() Stats {
	c := &s.link.counters
	return Stats{
		Received: c.received.Load(), Sent: c.sent.Load(),
		Malformed: c.receivedBad.Load(), Dropped: c.dropped.Load(),
	}
}

// Port returns the UDP port the server listens on, 0 when it does not.
func (s *Server) Port() uint16 {
	status, err := s.status()
	if err != nil {
		return 0
	}
	return status.port
}

// Peers returns all peers with their traffic, ordered by name.
func (s *Server) Peers() ([]PeerStats, error) {
	status, err := s.status()
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	list := status.peers[:0]
	for _, p := range status.peers {
		if c, ok := s.applied[p.PublicKey]; ok {
			p.Name, p.Addresses = c.Name, c.Addresses
			list = append(list, p)
		}
	}
	slices.SortFunc(list, func(a, b PeerStats) int { return strings.Compare(a.Name, b.Name) })
	return list, nil
}

type deviceStatus struct {
	port  uint16
	peers []PeerStats
}

func (s *Server) status() (deviceStatus, error) {
	text, err := s.device.IpcGet()
	if err != nil {
		return deviceStatus{}, fmt.Errorf("ask WireGuard device: %w", err)
	}
	return parseStatus(text), nil
}

// parseStatus reads wireguard-go's "get" answer: lines of key=value, those of a
// peer behind its public_key. Unknown keys are skipped.
func parseStatus(text string) deviceStatus {
	var status deviceStatus
	for line := range strings.Lines(text) {
		key, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
		if key == "listen_port" {
			port, _ := strconv.ParseUint(value, 10, 16)
			status.port = uint16(port)
		}
		if key == "public_key" {
			status.peers = append(status.peers, PeerStats{})
			p := &status.peers[len(status.peers)-1]
			if raw, err := hex.DecodeString(value); err == nil && len(raw) == keySize {
				p.PublicKey = PublicKey(raw)
			}
		}
		if len(status.peers) > 0 {
			status.peers[len(status.peers)-1].field(key, value)
		}
	}
	return status
}

func (p *PeerStats) field(key, value string) {
	switch key {
	case "endpoint":
		p.Endpoint, _ = netip.ParseAddrPort(value)
	case "rx_bytes":
		p.Received, _ = strconv.ParseUint(value, 10, 64)
	case "tx_bytes":
		p.Sent, _ = strconv.ParseUint(value, 10, 64)
	case "last_handshake_time_sec":
		if sec, _ := strconv.ParseInt(value, 10, 64); sec != 0 {
			p.LastHandshake = time.Unix(sec, 0)
		}
	case "last_handshake_time_nsec":
		if nsec, _ := strconv.ParseInt(value, 10, 64); !p.LastHandshake.IsZero() {
			p.LastHandshake = p.LastHandshake.Add(time.Duration(nsec))
		}
	}
}
