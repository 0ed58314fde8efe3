package netstack

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net/netip"
	"runtime"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/link/channel"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// wire is a Stack whose link is the test itself: packets made by hand.
type wire struct {
	t     testing.TB
	stack *Stack
	link  *channel.Endpoint
}

func newWire(t testing.TB, cfg Config, h Handler) *wire {
	t.Helper()
	link := channel.New(4096, 1500, "")
	s, err := New(cfg, link, h)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return &wire{t: t, stack: s, link: link}
}

func (w *wire) send(packet []byte) {
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(packet)})
	defer pkt.DecRef()
	protocol := header.IPv4ProtocolNumber
	if header.IPVersion(packet) == header.IPv6Version {
		protocol = header.IPv6ProtocolNumber
	}
	w.link.InjectInbound(protocol, pkt)
}

// receive returns the next packet that the stack sends.
func (w *wire) receive() []byte {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	pkt := w.link.ReadContext(ctx)
	if pkt == nil {
		w.t.Fatal("no packet")
	}
	defer pkt.DecRef()
	return pkt.ToView().AsSlice()
}

// segment makes an IPv4 TCP packet.
func segment(from, to netip.AddrPort, flags header.TCPFlags, seq, ack uint32) []byte {
	b := make([]byte, header.IPv4MinimumSize+header.TCPMinimumSize)
	source, target := tcpip.AddrFrom4(from.Addr().As4()), tcpip.AddrFrom4(to.Addr().As4())
	ip := header.IPv4(b)
	ip.Encode(&header.IPv4Fields{
		TotalLength: uint16(len(b)), TTL: 64, Protocol: uint8(header.TCPProtocolNumber), SrcAddr: source, DstAddr: target,
	})
	ip.SetChecksum(^ip.CalculateChecksum())
	tcp := header.TCP(b[header.IPv4MinimumSize:])
	tcp.Encode(&header.TCPFields{
		SrcPort: from.Port(), DstPort: to.Port(), SeqNum: seq, AckNum: ack,
		DataOffset: header.TCPMinimumSize, Flags: flags, WindowSize: 65535,
	})
	sum := header.PseudoHeaderChecksum(header.TCPProtocolNumber, source, target, uint16(len(tcp)))
	tcp.SetChecksum(^checksum.Checksum(tcp, sum))
	return b
}

// client returns the n-th client address.
func client(n int) netip.AddrPort {
	var a [4]byte
	binary.BigEndian.PutUint32(a[:], 10<<24|uint32(n/50000+1))
	return netip.AddrPortFrom(netip.AddrFrom4(a), uint16(1024+n%50000))
}

// A client that resets a connection which is not decided yet ends the handler's
// work; a reset with a wrong number does not.
func TestClientGivesUpBeforeDecision(t *testing.T) {
	requests := make(chan *TCPRequest, 1)
	w := newWire(t, Config{}, handlerFuncs{tcp: func(r *TCPRequest) { requests <- r }})
	w.send(segment(client(0), server4, header.TCPFlagSyn, 1000, 0))
	r := <-requests
	w.send(segment(client(0), server4, header.TCPFlagRst, 5000, 0))
	if err := r.Context().Err(); err != nil {
		t.Fatalf("a reset with a wrong number ended the request: %v", err)
	}
	w.send(segment(client(0), server4, header.TCPFlagRst, 1001, 0))
	<-r.Context().Done()
	if err := context.Cause(r.Context()); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("cause %v", err)
	}
	if _, err := r.Accept(); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("accept: %v", err)
	}
	if st := w.stack.Stats().TCP; st.GivenUp != 1 || st.HalfOpen != 0 {
		t.Errorf("counted %+v", st)
	}
}

// A client that sends a SYN and never its ACK.
func TestHandshakeTimeout(t *testing.T) {
	result := make(chan error, 1)
	w := newWire(t, Config{HandshakeTimeout: 50 * time.Millisecond}, handlerFuncs{tcp: func(r *TCPRequest) {
		_, err := r.Accept()
		result <- err
	}})
	w.send(segment(client(0), server4, header.TCPFlagSyn, 1000, 0))
	if err := <-result; err == nil {
		t.Error("accepted without the client")
	}
	if st := w.stack.Stats().TCP; st.HandshakeFailed != 1 || st.HalfOpen != 0 || st.Live != 0 {
		t.Errorf("counted %+v", st)
	}
}

// Ten times more SYNs than the budget, from a few attackers and from very many:
// a client that is connected is served on, and another one gets in.
func TestSYNFlood(t *testing.T) {
	const budget, perClient = 200, 50
	release := make(chan struct{})
	var asked atomic.Int64
	w := newWorld(t, Config{MaxHalfOpen: budget, MaxHalfOpenPerClient: perClient}, handlerFuncs{tcp: func(r *TCPRequest) {
		if r.Source().Addr() != client4 {
			asked.Add(1)
			<-release
			r.Drop()
			return
		}
		if c, err := r.Accept(); err == nil {
			_, _ = io.Copy(c, c)
			c.Close()
		}
	}})
	live := w.dial(server4)
	settled := func() { // our side may see the end of the handshake later than the client
		eventually(t, "the handshake to end", func() bool { return w.stack.Stats().TCP.HalfOpen == 0 })
	}
	settled()
	inject := func(from netip.AddrPort) { w.inject(segment(from, server4, header.TCPFlagSyn, 1, 0)) }
	for n := range 10 * perClient {
		inject(client(n))
	}
	if st := w.stack.Stats().TCP; st.HalfOpen != perClient || st.OverPerClient != 9*perClient {
		t.Errorf("one attacker: %+v", st)
	}
	w.dial(server4)
	for n := range 10 * budget {
		inject(client(n * 50000))
	}
	if st := w.stack.Stats().TCP; st.HalfOpen != budget || st.OverHalfOpen == 0 {
		t.Errorf("many attackers: %+v", st)
	}
	for range 10 {
		_, _ = live.Write([]byte("x"))
		if _, err := io.ReadFull(live, make([]byte, 1)); err != nil {
			t.Fatalf("the live connection: %v", err)
		}
	}
	close(release)
	w.dial(server4) // its SYN, or its retransmission, is let in
	eventually(t, "nothing half-open", func() bool { return w.stack.Stats().TCP.HalfOpen == 0 })
	if asked.Load() > budget+perClient {
		t.Errorf("the handler was asked %d times", asked.Load())
	}
}

// inject sends a packet that the client's stack knows nothing of.
func (w *world) inject(packet []byte) {
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(packet)})
	defer pkt.DecRef()
	pkt.NetworkProtocolNumber = header.IPv4ProtocolNumber
	var list stack.PacketBufferList
	list.PushBack(pkt)
	_, _ = w.link.WritePackets(list)
}

func TestLiveConnectionsAreBounded(t *testing.T) {
	w := newWorld(t, Config{MaxTCP: 3}, accepted(t, func(c *TCPConn) { _, _ = io.Copy(io.Discard, c) }))
	first := w.dial(server4)
	for range 2 {
		w.dial(server4)
	}
	if _, err := w.tryDial(server4, 200*time.Millisecond); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the fourth: %v, want silence", err)
	}
	first.Close()
	w.dial(server4)
	if st := w.stack.Stats().TCP; st.OverLive == 0 || st.Live > 3 {
		t.Errorf("counted %+v", st)
	}
}

func TestEcho(t *testing.T) {
	w := newWire(t, Config{}, handlerFuncs{})
	for _, size := range []int{0, 56, 1400} {
		request := make([]byte, header.IPv4MinimumSize+header.ICMPv4MinimumSize+size)
		ip := header.IPv4(request)
		ip.Encode(&header.IPv4Fields{
			TotalLength: uint16(len(request)), TTL: 64, Protocol: uint8(header.ICMPv4ProtocolNumber),
			SrcAddr: tcpip.AddrFrom4(client4.As4()), DstAddr: tcpip.AddrFrom4(server4.Addr().As4()),
		})
		ip.SetChecksum(^ip.CalculateChecksum())
		echo := header.ICMPv4(request[header.IPv4MinimumSize:])
		copy(echo[header.ICMPv4MinimumSize:], randomBytes(size))
		echo.SetType(header.ICMPv4Echo)
		echo.SetIdent(7)
		echo.SetSequence(9)
		echo.SetChecksum(^checksum.Checksum(echo, 0))
		w.send(request)
		ip = header.IPv4(w.receive())
		got := header.ICMPv4(ip.Payload())
		if ip.SourceAddress().String() != server4.Addr().String() || got.Type() != header.ICMPv4EchoReply ||
			got.Ident() != 7 || got.Sequence() != 9 || checksum.Checksum(got, 0) != 0xffff ||
			string(got[header.ICMPv4MinimumSize:]) != string(echo[header.ICMPv4MinimumSize:]) {
			t.Errorf("%d bytes: got % x", size, got[:8])
		}
	}
}

// FuzzPackets sends arbitrary packets, after making their lengths and checksums
// right, so that they reach deep.
func FuzzPackets(f *testing.F) {
	f.Add(segment(client(0), server4, header.TCPFlagSyn, 1, 0))
	f.Add(segment(client(0), server4, header.TCPFlagSyn|header.TCPFlagAck, 1, 1))
	f.Add(segment(client(0), server4, header.TCPFlagRst, 1, 0))
	f.Add(append(segment(client(0), server4, header.TCPFlagAck|header.TCPFlagPsh, 1, 1), "data"...))
	f.Add([]byte{0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2, 1, 1, 0, 53, 0, 8, 0, 0})
	f.Add([]byte{0x45, 0, 0, 28, 0, 0, 0, 0, 64, 1, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2, 3, 4, 0, 0, 0, 0, 0, 1})
	f.Add(append([]byte{0x60, 0, 0, 0, 0, 8, 17, 64}, make([]byte, 40)...))
	f.Fuzz(func(t *testing.T, packet []byte) {
		if len(packet) > 2000 {
			return
		}
		w := newWire(t, Config{AcceptTimeout: time.Second, HandshakeTimeout: time.Millisecond}, handlerFuncs{
			tcp: func(r *TCPRequest) {
				if c, err := r.Accept(); err == nil {
					c.Abort()
				}
			},
			udp: func(c *UDPConn) {
				buf := make([]byte, 10)
				if _, err := c.Read(buf); err == nil {
					_, _ = c.Write(buf)
				}
				c.Reject()
			},
		})
		w.send(packet)
		repair(packet)
		w.send(packet)
		w.stack.Close()
		st := w.stack.Stats()
		if st.TCP.HalfOpen != 0 || st.TCP.Live != 0 || st.UDP.Queued != 0 {
			t.Errorf("left over: %+v", st)
		}
	})
}

func repair(packet []byte) {
	if len(packet) < header.IPv4MinimumSize || packet[0]>>4 != 4 {
		if len(packet) >= header.IPv6MinimumSize && packet[0]>>4 == 6 {
			header.IPv6(packet).SetPayloadLength(uint16(len(packet) - header.IPv6MinimumSize))
		}
		return
	}
	ip := header.IPv4(packet)
	ip.SetTotalLength(uint16(len(packet)))
	if int(ip.HeaderLength()) > len(packet) {
		return
	}
	ip.SetChecksum(0)
	ip.SetChecksum(^ip.CalculateChecksum())
	body := packet[ip.HeaderLength():]
	at := map[uint8]int{1: 2, 6: header.TCPChecksumOffset, 17: 6}[ip.Protocol()]
	if at == 0 || len(body) < at+2 {
		return
	}
	binary.BigEndian.PutUint16(body[at:], 0)
	var sum uint16
	if ip.Protocol() != 1 {
		sum = header.PseudoHeaderChecksum(ip.TransportProtocol(), ip.SourceAddress(), ip.DestinationAddress(), uint16(len(body)))
	}
	binary.BigEndian.PutUint16(body[at:], ^checksum.Checksum(body, sum))
}

// idleConnections is how many TestIdleConnections holds: few enough for a test
// that runs always. The bench measures 20,000.
const idleConnections = 4000

// An idle connection, with the goroutine that reads it, costs at most 16 KiB of
// memory and no CPU.
func TestIdleConnections(t *testing.T) {
	established := make(chan struct{}, idleConnections)
	w := newWire(t, Config{}, handlerFuncs{tcp: func(r *TCPRequest) {
		c, err := r.Accept()
		if err != nil {
			t.Errorf("accept: %v", err)
			return
		}
		defer c.Close()
		established <- struct{}{}
		_, _ = c.WriteTo(io.Discard)
	}})
	before := memory()
	for n := range idleConnections {
		from := client(n)
		w.send(segment(from, server4, header.TCPFlagSyn, 1, 0))
		answer := w.synAck(from)
		w.send(segment(from, server4, header.TCPFlagAck, 2, answer.SequenceNumber()+1))
		<-established
	}
	each := (memory() - before) / idleConnections
	t.Logf("%d connections, %d bytes each", idleConnections, each)
	if each > 16<<10 && !raceEnabled {
		t.Errorf("%d bytes each, want at most 16 KiB", each)
	}
	if live := w.stack.Stats().TCP.Live; live != idleConnections {
		t.Errorf("%d live", live)
	}
	start := cpuTime(t)
	time.Sleep(300 * time.Millisecond) // what is measured, not a wait for something
	if used := cpuTime(t) - start; used > 100*time.Millisecond {
		t.Errorf("used %v of CPU in 300 ms of silence", used)
	}
}

// synAck returns the stack's SYN-ACK to a client. A retransmission of another's
// may come before it.
func (w *wire) synAck(to netip.AddrPort) header.TCP {
	w.t.Helper()
	for {
		ip := header.IPv4(w.receive())
		tcp := header.TCP(ip.Payload())
		if ip.DestinationAddress() == tcpip.AddrFrom4(to.Addr().As4()) && tcp.DestinationPort() == to.Port() &&
			tcp.Flags().Contains(header.TCPFlagSyn) {
			return tcp
		}
	}
}

// memory returns what connections and their goroutines hold. Resident memory
// is this plus what the runtime has not yet given back from earlier tests.
func memory() int {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int(m.HeapInuse + m.StackInuse)
}

func cpuTime(t *testing.T) time.Duration {
	t.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
