package proxycore

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"

	"mitm-appliance/flow"
)

// ErrHalt, returned by a hook, keeps later addons from seeing this event (mitmproxy's AddonHalt).
var ErrHalt = errors.New("proxycore: stop handling this event")

// FlowHook names one of the hooks whose argument is a flow.
type FlowHook uint8

// The flow hooks, in the order of mitmproxy's event sequence (HOOK-05..08).
const (
	OnRequestHeaders FlowHook = iota
	OnRequest
	OnResponseHeaders
	OnResponse
	OnError
	OnHTTPConnect
	OnHTTPConnectUpstream
	OnHTTPConnected
	OnHTTPConnectError
	OnWebSocketStart
	OnWebSocketMessage
	OnWebSocketEnd
	OnDNSRequest
	OnDNSResponse
	OnDNSError
	OnTCPStart
	OnTCPMessage
	OnTCPEnd
	OnTCPError
	OnUDPStart
	OnUDPMessage
	OnUDPEnd
	OnUDPError
	flowHooks
)

var flowHookNames = [flowHooks]string{
	"requestheaders", "request", "responseheaders", "response", "error",
	"http_connect", "http_connect_upstream", "http_connected", "http_connect_error",
	"websocket_start", "websocket_message", "websocket_end",
	"dns_request", "dns_response", "dns_error",
	"tcp_start", "tcp_message", "tcp_end", "tcp_error",
	"udp_start", "udp_message", "udp_end", "udp_error",
}

// String returns mitmproxy's name of the hook.
func (h FlowHook) String() string { return flowHookNames[h] }

type flowFunc = func(context.Context, *LiveFlow) error

// Hooks is a list of addons sorted by what they listen to. It is immutable; Core.SetAddons replaces it.
type Hooks struct {
	addons []any
	log    *slog.Logger
	flow   [flowHooks][]flowFunc

	load         []LoadHook
	configure    []ConfigureHook
	running      []RunningHook
	done         []DoneHook
	update       []UpdateHook
	addLog       []AddLogHook
	clientConn   []ClientConnectedHook
	clientDisc   []ClientDisconnectedHook
	serverDial   []ServerConnectHook
	serverConn   []ServerConnectedHook
	serverDisc   []ServerDisconnectedHook
	serverErr    []ServerConnectErrorHook
	hello        []TLSClientHelloHook
	startClient  []TLSStartClientHook
	startServer  []TLSStartServerHook
	estClient    []TLSEstablishedClientHook
	estServer    []TLSEstablishedServerHook
	failedClient []TLSFailedClientHook
	failedServer []TLSFailedServerHook
	quicClient   []QUICStartClientHook
	quicServer   []QUICStartServerHook
	socksAuth    []SOCKS5AuthHook
	nextLayer    []NextLayerHook
}

// NewHooks sorts addons, in their order, by the hooks that they implement.
func NewHooks(log *slog.Logger, addons ...any) *Hooks {
	return &Hooks{
		addons: addons, log: log, flow: flowTable(addons),
		load: pick[LoadHook](addons), configure: pick[ConfigureHook](addons),
		running: pick[RunningHook](addons), done: pick[DoneHook](addons),
		update: pick[UpdateHook](addons), addLog: pick[AddLogHook](addons),
		clientConn: pick[ClientConnectedHook](addons), clientDisc: pick[ClientDisconnectedHook](addons),
		serverDial: pick[ServerConnectHook](addons), serverConn: pick[ServerConnectedHook](addons),
		serverDisc: pick[ServerDisconnectedHook](addons), serverErr: pick[ServerConnectErrorHook](addons),
		hello: pick[TLSClientHelloHook](addons), startClient: pick[TLSStartClientHook](addons),
		startServer: pick[TLSStartServerHook](addons), estClient: pick[TLSEstablishedClientHook](addons),
		estServer: pick[TLSEstablishedServerHook](addons), failedClient: pick[TLSFailedClientHook](addons),
		failedServer: pick[TLSFailedServerHook](addons), quicClient: pick[QUICStartClientHook](addons),
		quicServer: pick[QUICStartServerHook](addons), socksAuth: pick[SOCKS5AuthHook](addons),
		nextLayer: pick[NextLayerHook](addons),
	}
}

func pick[H any](addons []any) []H {
	var hs []H
	for _, a := range addons {
		if h, ok := a.(H); ok {
			hs = append(hs, h)
		}
	}
	return hs
}

func bind[H any](addons []any, method func(H) flowFunc) []flowFunc {
	var fs []flowFunc
	for _, h := range pick[H](addons) {
		fs = append(fs, method(h))
	}
	return fs
}

func flowTable(addons []any) [flowHooks][]flowFunc {
	return [flowHooks][]flowFunc{
		OnRequestHeaders:      bind(addons, func(h RequestHeadersHook) flowFunc { return h.RequestHeaders }),
		OnRequest:             bind(addons, func(h RequestHook) flowFunc { return h.Request }),
		OnResponseHeaders:     bind(addons, func(h ResponseHeadersHook) flowFunc { return h.ResponseHeaders }),
		OnResponse:            bind(addons, func(h ResponseHook) flowFunc { return h.Response }),
		OnError:               bind(addons, func(h ErrorHook) flowFunc { return h.Error }),
		OnHTTPConnect:         bind(addons, func(h HTTPConnectHook) flowFunc { return h.HTTPConnect }),
		OnHTTPConnectUpstream: bind(addons, func(h HTTPConnectUpstreamHook) flowFunc { return h.HTTPConnectUpstream }),
		OnHTTPConnected:       bind(addons, func(h HTTPConnectedHook) flowFunc { return h.HTTPConnected }),
		OnHTTPConnectError:    bind(addons, func(h HTTPConnectErrorHook) flowFunc { return h.HTTPConnectError }),
		OnWebSocketStart:      bind(addons, func(h WebSocketStartHook) flowFunc { return h.WebSocketStart }),
		OnWebSocketMessage:    bind(addons, func(h WebSocketMessageHook) flowFunc { return h.WebSocketMessage }),
		OnWebSocketEnd:        bind(addons, func(h WebSocketEndHook) flowFunc { return h.WebSocketEnd }),
		OnDNSRequest:          bind(addons, func(h DNSRequestHook) flowFunc { return h.DNSRequest }),
		OnDNSResponse:         bind(addons, func(h DNSResponseHook) flowFunc { return h.DNSResponse }),
		OnDNSError:            bind(addons, func(h DNSErrorHook) flowFunc { return h.DNSError }),
		OnTCPStart:            bind(addons, func(h TCPStartHook) flowFunc { return h.TCPStart }),
		OnTCPMessage:          bind(addons, func(h TCPMessageHook) flowFunc { return h.TCPMessage }),
		OnTCPEnd:              bind(addons, func(h TCPEndHook) flowFunc { return h.TCPEnd }),
		OnTCPError:            bind(addons, func(h TCPErrorHook) flowFunc { return h.TCPError }),
		OnUDPStart:            bind(addons, func(h UDPStartHook) flowFunc { return h.UDPStart }),
		OnUDPMessage:          bind(addons, func(h UDPMessageHook) flowFunc { return h.UDPMessage }),
		OnUDPEnd:              bind(addons, func(h UDPEndHook) flowFunc { return h.UDPEnd }),
		OnUDPError:            bind(addons, func(h UDPErrorHook) flowFunc { return h.UDPError }),
	}
}

// Listens reports whether any addon implements hook h. Protocols use it to keep bulk data off the
// slow path when nobody wants to see each message.
func (h *Hooks) Listens(hook FlowHook) bool { return len(h.flow[hook]) > 0 || len(h.update) > 0 }

// Load, Configure, Running, Done, Update and AddLog run the life cycle hooks (HOOK-01). Load and
// Configure stop at the first error, which the caller turns into a rejected change.

// Load runs every addon's load hook.
func (h *Hooks) Load(l *Loader) error {
	for _, a := range h.load {
		if err := a.Load(l); err != nil {
			return err
		}
	}
	return nil
}

// Configure runs every addon's configure hook.
func (h *Hooks) Configure(changed []string) error {
	for _, a := range h.configure {
		if err := a.Configure(changed); err != nil {
			return err
		}
	}
	return nil
}

// Running runs every addon's running hook.
func (h *Hooks) Running(ctx context.Context) {
	fire(h, "running", h.running, func(a RunningHook) error { return a.Running(ctx) })
}

// Done runs every addon's done hook.
func (h *Hooks) Done(ctx context.Context) {
	fire(h, "done", h.done, func(a DoneHook) error { return a.Done(ctx) })
}

// Update tells every addon about flows that were changed.
func (h *Hooks) Update(ctx context.Context, flows []*flow.Flow) {
	fire(h, "update", h.update, func(a UpdateHook) error { return a.Update(ctx, flows) })
}

// AddLog hands a log record to the addons. Their errors are dropped: logging them would not end.
func (h *Hooks) AddLog(ctx context.Context, r slog.Record) {
	for _, a := range h.addLog {
		_ = a.AddLog(ctx, r) // see above
	}
}

// fire calls one hook of every listening addon, in order, and contains what they do wrong.
func fire[H any](h *Hooks, name string, addons []H, call func(H) error) {
	for _, a := range addons {
		err := guard(func() error { return call(a) })
		if errors.Is(err, ErrHalt) {
			return
		}
		if err != nil {
			h.log.Error("addon failed", "hook", name, "err", err)
		}
	}
}

// guard is the one place where a panic is turned into an error.
func guard(f func() error) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("panic: %v\n%s", r, debug.Stack())
		}
	}()
	return f()
}

// ClientHello runs tls_clienthello.
func (h *Hooks) ClientHello(ctx context.Context, d *ClientHelloData) {
	fire(h, "tls_clienthello", h.hello, func(a TLSClientHelloHook) error { return a.TLSClientHello(ctx, d) })
}

// TLSStartClient runs tls_start_client.
func (h *Hooks) TLSStartClient(ctx context.Context, d *TLSData) {
	fire(h, "tls_start_client", h.startClient, func(a TLSStartClientHook) error { return a.TLSStartClient(ctx, d) })
}

// TLSStartServer runs tls_start_server.
func (h *Hooks) TLSStartServer(ctx context.Context, d *TLSData) {
	fire(h, "tls_start_server", h.startServer, func(a TLSStartServerHook) error { return a.TLSStartServer(ctx, d) })
}

// TLSEndClient runs tls_established_client, or tls_failed_client when d.Err is set.
func (h *Hooks) TLSEndClient(ctx context.Context, d *TLSData) {
	if d.Err != nil {
		fire(h, "tls_failed_client", h.failedClient, func(a TLSFailedClientHook) error { return a.TLSFailedClient(ctx, d) })
		return
	}
	fire(h, "tls_established_client", h.estClient, func(a TLSEstablishedClientHook) error { return a.TLSEstablishedClient(ctx, d) })
}

// TLSEndServer runs tls_established_server, or tls_failed_server when d.Err is set.
func (h *Hooks) TLSEndServer(ctx context.Context, d *TLSData) {
	if d.Err != nil {
		fire(h, "tls_failed_server", h.failedServer, func(a TLSFailedServerHook) error { return a.TLSFailedServer(ctx, d) })
		return
	}
	fire(h, "tls_established_server", h.estServer, func(a TLSEstablishedServerHook) error { return a.TLSEstablishedServer(ctx, d) })
}

// QUICStartClient runs quic_start_client.
func (h *Hooks) QUICStartClient(ctx context.Context, d *TLSData) {
	fire(h, "quic_start_client", h.quicClient, func(a QUICStartClientHook) error { return a.QUICStartClient(ctx, d) })
}

// QUICStartServer runs quic_start_server.
func (h *Hooks) QUICStartServer(ctx context.Context, d *TLSData) {
	fire(h, "quic_start_server", h.quicServer, func(a QUICStartServerHook) error { return a.QUICStartServer(ctx, d) })
}

// SOCKS5Auth runs socks5_auth.
func (h *Hooks) SOCKS5Auth(ctx context.Context, d *SOCKS5AuthData) {
	fire(h, "socks5_auth", h.socksAuth, func(a SOCKS5AuthHook) error { return a.SOCKS5Auth(ctx, d) })
}

// NextLayer runs next_layer.
func (h *Hooks) NextLayer(ctx context.Context, d *NextLayerData) {
	fire(h, "next_layer", h.nextLayer, func(a NextLayerHook) error { return a.NextLayer(ctx, d) })
}
