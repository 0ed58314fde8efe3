package netstack

import (
	"sync/atomic"

	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// Stats is a snapshot of a Stack's counters. Those without "live" in their
// comment only grow.
type Stats struct {
	PacketsIn, BytesIn   uint64 // IP packets received from the link; a super-packet counts as one
	PacketsOut, BytesOut uint64 // IP packets sent to the link
	InvalidPackets       uint64 // malformed or with a bad checksum
	InvalidAddresses     uint64 // from or to an address that no conversation can have

	TCP TCPStats
	UDP UDPStats

	EchoReplies  uint64 // ICMP echo requests answered, IPv4
	Unreachables uint64 // ICMP errors sent by Reject and Unreachable
}

// TCPStats counts connections.
type TCPStats struct {
	Live     int64 // live: established, or closed with data still under way
	HalfOpen int64 // live: undecided, or in the handshake

	Requests uint64 // connections offered to the handler
	Accepted uint64 // handshake completed

	// Requests that did not become connections, by reason.
	Rejected        uint64 // by the handler
	Dropped         uint64 // by the handler
	Expired         uint64 // undecided for Config.AcceptTimeout
	GivenUp         uint64 // reset by the client before a decision
	HandshakeFailed uint64 // accepted, but the client never completed, or reset

	// SYNs ignored without asking the handler, by bound.
	OverHalfOpen  uint64
	OverPerClient uint64
	OverLive      uint64

	Retransmits    uint64 // segments sent again
	ChecksumErrors uint64
}

// UDPStats counts sessions and datagrams.
type UDPStats struct {
	Live         int64  // live sessions
	Queued       int64  // live: memory of unread datagrams, bytes
	Sessions     uint64 // offered to the handler
	Rejected     uint64 // answered by the handler with port unreachable
	IdleTimeouts uint64

	DatagramsIn, DatagramsOut uint64

	// Datagrams dropped, by reason.
	OverLive      uint64 // would have opened one session too many
	OverPerClient uint64
	OverBuffer    uint64 // the session's reader is too slow, or all of them are
	SendErrors    uint64 // the link did not take it
}

type counters struct {
	tcpLive                                                    atomic.Int64
	tcpRequests, tcpAccepted                                   atomic.Uint64
	tcpRejected, tcpDropped, tcpExpired, tcpGivenUp, tcpFailed atomic.Uint64
	synOverHalfOpen, synOverPerClient, synOverLive             atomic.Uint64

	udpQueued                                             atomic.Int64
	udpSessions, udpRejected, udpIdle                     atomic.Uint64
	udpIn, udpOut                                         atomic.Uint64
	udpOverLive, udpOverPerClient, udpOverBuffer, udpSend atomic.Uint64

	echo, unreachable, badAddress atomic.Uint64
}

// Stats returns the current counters. The fields are read one after the other,
// so that sums over them may be off by what happened meanwhile.
func (s *Stack) Stats() Stats {
	c := &s.count
	s.mu.Lock()
	halfOpen, sessions := int64(s.halfOpen.total), int64(s.udp.total)
	s.mu.Unlock()
	st := Stats{
		InvalidAddresses: c.badAddress.Load(),
		EchoReplies:      c.echo.Load(),
		Unreachables:     c.unreachable.Load(),
		TCP: TCPStats{
			Live:            c.tcpLive.Load(),
			HalfOpen:        halfOpen,
			Requests:        c.tcpRequests.Load(),
			Accepted:        c.tcpAccepted.Load(),
			Rejected:        c.tcpRejected.Load(),
			Dropped:         c.tcpDropped.Load(),
			Expired:         c.tcpExpired.Load(),
			GivenUp:         c.tcpGivenUp.Load(),
			HandshakeFailed: c.tcpFailed.Load(),
			OverHalfOpen:    c.synOverHalfOpen.Load(),
			OverPerClient:   c.synOverPerClient.Load(),
			OverLive:        c.synOverLive.Load(),
		},
		UDP: UDPStats{
			Live:          sessions,
			Queued:        c.udpQueued.Load(),
			Sessions:      c.udpSessions.Load(),
			Rejected:      c.udpRejected.Load(),
			IdleTimeouts:  c.udpIdle.Load(),
			DatagramsIn:   c.udpIn.Load(),
			DatagramsOut:  c.udpOut.Load(),
			OverLive:      c.udpOverLive.Load(),
			OverPerClient: c.udpOverPerClient.Load(),
			OverBuffer:    c.udpOverBuffer.Load(),
			SendErrors:    c.udpSend.Load(),
		},
	}
	addStackStats(&st, s.ip)
	return st
}

func addStackStats(st *Stats, ip *stack.Stack) {
	if info, ok := ip.NICInfo()[nicID]; ok {
		st.PacketsIn = info.Stats.Rx.Packets.Value()
		st.BytesIn = info.Stats.Rx.Bytes.Value()
		st.PacketsOut = info.Stats.Tx.Packets.Value()
		st.BytesOut = info.Stats.Tx.Bytes.Value()
		st.InvalidPackets = info.Stats.MalformedL4RcvdPackets.Value()
	}
	g := ip.Stats()
	st.InvalidPackets += g.IP.MalformedPacketsReceived.Value() + g.TCP.InvalidSegmentsReceived.Value() +
		g.TCP.ChecksumErrors.Value() + g.UDP.ChecksumErrors.Value()
	st.InvalidAddresses += g.IP.InvalidDestinationAddressesReceived.Value() + g.IP.InvalidSourceAddressesReceived.Value()
	st.TCP.Retransmits = g.TCP.Retransmits.Value()
	st.TCP.ChecksumErrors = g.TCP.ChecksumErrors.Value()
}
