package proxycore_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"mitm-appliance/flow"
	"mitm-appliance/proxycore"
)

// journal notes the hooks that fire, with the number of messages there were.
type journal struct {
	lines []string
	stop  context.CancelFunc // called at the first message when set
}

func (j *journal) note(name string, l *proxycore.LiveFlow) error {
	switch {
	case l.Stream != nil:
		name += fmt.Sprint(" ", len(l.Stream.Messages))
	case l.HTTP != nil && l.HTTP.WebSocket != nil && strings.HasPrefix(name, "websocket"):
		name += fmt.Sprint(" ", len(l.HTTP.WebSocket.Messages))
	}
	j.lines = append(j.lines, name)
	l.Intercept()
	return nil
}

func (j *journal) RequestHeaders(_ context.Context, l *proxycore.LiveFlow) error {
	return j.note("requestheaders", l)
}

func (j *journal) Request(_ context.Context, l *proxycore.LiveFlow) error {
	return j.note("request", l)
}

func (j *journal) ResponseHeaders(_ context.Context, l *proxycore.LiveFlow) error {
	return j.note("responseheaders", l)
}

func (j *journal) Response(_ context.Context, l *proxycore.LiveFlow) error {
	return j.note("response", l)
}

func (j *journal) Error(_ context.Context, l *proxycore.LiveFlow) error { return j.note("error", l) }

func (j *journal) WebSocketStart(_ context.Context, l *proxycore.LiveFlow) error {
	return j.note("websocket_start", l)
}

func (j *journal) WebSocketMessage(_ context.Context, l *proxycore.LiveFlow) error {
	return j.note("websocket_message", l)
}

func (j *journal) WebSocketEnd(_ context.Context, l *proxycore.LiveFlow) error {
	return j.note("websocket_end", l)
}

func (j *journal) DNSRequest(_ context.Context, l *proxycore.LiveFlow) error {
	return j.note("dns_request", l)
}

func (j *journal) DNSResponse(_ context.Context, l *proxycore.LiveFlow) error {
	return j.note("dns_response", l)
}

func (j *journal) DNSError(_ context.Context, l *proxycore.LiveFlow) error {
	return j.note("dns_error", l)
}

func (j *journal) TCPStart(_ context.Context, l *proxycore.LiveFlow) error {
	return j.note("tcp_start", l)
}

func (j *journal) TCPMessage(_ context.Context, l *proxycore.LiveFlow) error {
	if j.stop != nil {
		j.stop()
	}
	return j.note("tcp_message", l)
}

func (j *journal) TCPEnd(_ context.Context, l *proxycore.LiveFlow) error { return j.note("tcp_end", l) }

func (j *journal) TCPError(_ context.Context, l *proxycore.LiveFlow) error {
	return j.note("tcp_error", l)
}

func (j *journal) UDPStart(_ context.Context, l *proxycore.LiveFlow) error {
	return j.note("udp_start", l)
}

func (j *journal) UDPMessage(_ context.Context, l *proxycore.LiveFlow) error {
	return j.note("udp_message", l)
}

func (j *journal) UDPEnd(_ context.Context, l *proxycore.LiveFlow) error { return j.note("udp_end", l) }

// kept is a recorder that remembers the last flow.
type kept struct{ last *flow.Flow }

func (k *kept) Record(f *flow.Flow, _ *proxycore.LiveFlow) { k.last = f }

func TestRecordedFlowsGoThroughTheHooksOfTheirKind(t *testing.T) {
	failed := &flow.Error{Message: "broken", Time: time.Now()}
	two := func() *flow.Stream { return &flow.Stream{Messages: make([]flow.StreamMessage, 2)} }
	for name, c := range map[string]struct {
		flow *flow.Flow
		want string
	}{
		"http":       {&flow.Flow{Kind: flow.KindHTTP, HTTP: &flow.HTTP{Response: &flow.Response{}}}, "requestheaders, request, responseheaders, response"},
		"http error": {&flow.Flow{Kind: flow.KindHTTP, Error: failed, HTTP: &flow.HTTP{}}, "requestheaders, request, error"},
		"websocket": {
			&flow.Flow{Kind: flow.KindHTTP, HTTP: &flow.HTTP{Response: &flow.Response{}, WebSocket: &flow.WebSocket{Messages: make([]flow.WebSocketMessage, 2)}}},
			"requestheaders, request, responseheaders, response, websocket_start 0, websocket_message 1, websocket_message 2, websocket_end 2",
		},
		"dns":       {&flow.Flow{Kind: flow.KindDNS, DNS: &flow.DNS{Response: &flow.DNSMessage{}}}, "dns_request, dns_response"},
		"dns error": {&flow.Flow{Kind: flow.KindDNS, Error: failed, DNS: &flow.DNS{}}, "dns_request, dns_error"},
		"tcp":       {&flow.Flow{Kind: flow.KindTCP, Stream: two()}, "tcp_start 0, tcp_message 1, tcp_message 2, tcp_end 2"},
		"tcp error": {&flow.Flow{Kind: flow.KindTCP, Error: failed, Stream: &flow.Stream{}}, "tcp_start 0, tcp_error 0"},
		"udp":       {&flow.Flow{Kind: flow.KindUDP, Stream: two()}, "udp_start 0, udp_message 1, udp_message 2, udp_end 2"},
	} {
		t.Run(name, func(t *testing.T) {
			var j journal
			var k kept
			core := proxycore.New(proxycore.Config{Logger: slog.New(slog.DiscardHandler), Recorder: &k})
			core.SetAddons(&j)
			if err := core.Replay(t.Context(), c.flow); err != nil {
				t.Fatal(err)
			}
			if got := strings.Join(j.lines, ", "); got != c.want {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
			if k.last == nil || k.last.Live || k.last.Intercepted {
				t.Errorf("the recorder got %+v", k.last)
			}
		})
	}
}

func TestReplayStopsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	j := journal{stop: cancel}
	core := proxycore.New(proxycore.Config{})
	core.SetAddons(&j)
	err := core.Replay(ctx, &flow.Flow{Kind: flow.KindTCP, Stream: &flow.Stream{Messages: make([]flow.StreamMessage, 1000)}})
	if !errors.Is(err, context.Canceled) || len(j.lines) != 2 {
		t.Errorf("got %v after %d hooks, want 2", err, len(j.lines))
	}
}
