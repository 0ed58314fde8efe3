package proxycore

import (
	"context"
	"crypto/tls"
	"log/slog"

	"mitm-appliance/flow"
	"mitm-appliance/option"
	"mitm-appliance/proxycore/sniff"
)

// An addon is any value that implements some of the hook interfaces below: 46 of one method each,
// with mitmproxy's names (HOOK-01..10) in Go spelling.
//
// Hooks run synchronously on the goroutine that serves the conversation, in the order of the addon
// list; hooks of one flow never overlap, hooks of different flows do. An error is logged and the
// next addon still runs, ErrHalt ends the chain for this event; a panic is an error. ctx ends with
// the conversation.

// LoadHook runs once when the addon is added, before options are applied (load).
type LoadHook interface{ Load(*Loader) error }

// Loader is what an addon may use while it loads.
type Loader struct{ Options *option.Registry }

// ConfigureHook runs after options changed, with their names, and once at start with all names
// (configure). An error rejects the change.
type ConfigureHook interface{ Configure(changed []string) error }

// RunningHook runs when the appliance is fully up (running).
type RunningHook interface{ Running(context.Context) error }

// DoneHook is the last one that an addon sees (done).
type DoneHook interface{ Done(context.Context) error }

// UpdateHook runs after every flow hook with that flow, and whenever flows were changed from
// outside (update). The flows are snapshots.
type UpdateHook interface {
	Update(context.Context, []*flow.Flow) error
}

// AddLogHook sees every log record (add_log).
type AddLogHook interface {
	AddLog(context.Context, slog.Record) error
}

// Connection hooks.
type (
	// ClientConnectedHook runs when a conversation begins; it may refuse it (client_connected).
	ClientConnectedHook interface {
		ClientConnected(context.Context, *ClientData) error
	}
	// ClientDisconnectedHook runs when the client's side has ended (client_disconnected).
	ClientDisconnectedHook interface {
		ClientDisconnected(context.Context, *ClientData) error
	}
	// ServerConnectHook runs before a connection to a server is opened; it may change
	// Server.Address and Server.Via, or refuse (server_connect).
	ServerConnectHook interface {
		ServerConnect(context.Context, *ServerData) error
	}
	// ServerConnectedHook runs when the transport is up (server_connected).
	ServerConnectedHook interface {
		ServerConnected(context.Context, *ServerData) error
	}
	// ServerDisconnectedHook runs when it ended (server_disconnected).
	ServerDisconnectedHook interface {
		ServerDisconnected(context.Context, *ServerData) error
	}
	// ServerConnectErrorHook runs when it could not be opened; exclusive with ServerConnected
	// (server_connect_error).
	ServerConnectErrorHook interface {
		ServerConnectError(context.Context, *ServerData) error
	}
)

// ClientData is the argument of the client hooks. Setting Refuse in ClientConnected ends the
// conversation (CONN-12).
type ClientData struct {
	Client *flow.Client
	Refuse error
}

// ServerData is the argument of the server hooks. In ServerConnect, Server may be edited and Refuse
// set; later Server is a snapshot.
type ServerData struct {
	Client *flow.Client
	Server *flow.Server
	Refuse error
}

// HTTP hooks.
type (
	// RequestHeadersHook runs when the request head was read; the last moment to StreamBody it
	// (requestheaders).
	RequestHeadersHook interface {
		RequestHeaders(context.Context, *LiveFlow) error
	}
	// RequestHook runs when the whole request was read, or after it was streamed (request). Setting
	// HTTP.Response answers without a server.
	RequestHook interface {
		Request(context.Context, *LiveFlow) error
	}
	// ResponseHeadersHook runs when the response head was read; the last moment to StreamBody it
	// (responseheaders).
	ResponseHeadersHook interface {
		ResponseHeaders(context.Context, *LiveFlow) error
	}
	// ResponseHook runs when the whole response was read or set (response).
	ResponseHook interface {
		Response(context.Context, *LiveFlow) error
	}
	// ErrorHook runs when an exchange failed; exclusive with Response (error).
	ErrorHook interface {
		Error(context.Context, *LiveFlow) error
	}
	// HTTPConnectHook runs on CONNECT; a response other than 2xx refuses it (http_connect).
	HTTPConnectHook interface {
		HTTPConnect(context.Context, *LiveFlow) error
	}
	// HTTPConnectUpstreamHook runs before CONNECT goes to an upstream proxy (http_connect_upstream).
	HTTPConnectUpstreamHook interface {
		HTTPConnectUpstream(context.Context, *LiveFlow) error
	}
	// HTTPConnectedHook runs when CONNECT succeeded (http_connected).
	HTTPConnectedHook interface {
		HTTPConnected(context.Context, *LiveFlow) error
	}
	// HTTPConnectErrorHook runs when CONNECT failed (http_connect_error).
	HTTPConnectErrorHook interface {
		HTTPConnectError(context.Context, *LiveFlow) error
	}
)

// WebSocket, DNS, TCP and UDP hooks.
type (
	// WebSocketStartHook runs after the upgrade (websocket_start).
	WebSocketStartHook interface {
		WebSocketStart(context.Context, *LiveFlow) error
	}
	// WebSocketMessageHook runs per message, the last in HTTP.WebSocket.Messages, which may be edited
	// or dropped (websocket_message).
	WebSocketMessageHook interface {
		WebSocketMessage(context.Context, *LiveFlow) error
	}
	// WebSocketEndHook runs when it closed (websocket_end).
	WebSocketEndHook interface {
		WebSocketEnd(context.Context, *LiveFlow) error
	}
	// DNSRequestHook runs on a query; setting DNS.Response answers it (dns_request).
	DNSRequestHook interface {
		DNSRequest(context.Context, *LiveFlow) error
	}
	// DNSResponseHook runs on the answer (dns_response).
	DNSResponseHook interface {
		DNSResponse(context.Context, *LiveFlow) error
	}
	// DNSErrorHook runs when there is none (dns_error).
	DNSErrorHook interface {
		DNSError(context.Context, *LiveFlow) error
	}
	// TCPStartHook runs when a raw TCP flow begins (tcp_start).
	TCPStartHook interface {
		TCPStart(context.Context, *LiveFlow) error
	}
	// TCPMessageHook runs per message, the last in Stream.Messages, which may be edited or dropped
	// (tcp_message).
	TCPMessageHook interface {
		TCPMessage(context.Context, *LiveFlow) error
	}
	// TCPEndHook runs when both sides ended (tcp_end).
	TCPEndHook interface {
		TCPEnd(context.Context, *LiveFlow) error
	}
	// TCPErrorHook runs when the flow failed; exclusive with TCPEnd (tcp_error).
	TCPErrorHook interface {
		TCPError(context.Context, *LiveFlow) error
	}
	// UDPStartHook runs when a raw UDP flow begins (udp_start).
	UDPStartHook interface {
		UDPStart(context.Context, *LiveFlow) error
	}
	// UDPMessageHook runs per datagram, as TCPMessageHook (udp_message).
	UDPMessageHook interface {
		UDPMessage(context.Context, *LiveFlow) error
	}
	// UDPEndHook runs when the flow went silent (udp_end).
	UDPEndHook interface {
		UDPEnd(context.Context, *LiveFlow) error
	}
	// UDPErrorHook runs when it failed (udp_error).
	UDPErrorHook interface {
		UDPError(context.Context, *LiveFlow) error
	}
)

// TLS, QUIC and SOCKS hooks, and the choice of protocols.
type (
	// TLSClientHelloHook runs when a ClientHello was parsed (tls_clienthello).
	TLSClientHelloHook interface {
		TLSClientHello(context.Context, *ClientHelloData) error
	}
	// TLSStartClientHook runs before the handshake with the client; Config may be changed or
	// replaced (tls_start_client).
	TLSStartClientHook interface {
		TLSStartClient(context.Context, *TLSData) error
	}
	// TLSStartServerHook is the same towards the server (tls_start_server).
	TLSStartServerHook interface {
		TLSStartServer(context.Context, *TLSData) error
	}
	// TLSEstablishedClientHook runs after the client's handshake (tls_established_client).
	TLSEstablishedClientHook interface {
		TLSEstablishedClient(context.Context, *TLSData) error
	}
	// TLSEstablishedServerHook runs after the server's handshake (tls_established_server).
	TLSEstablishedServerHook interface {
		TLSEstablishedServer(context.Context, *TLSData) error
	}
	// TLSFailedClientHook runs when the client's handshake failed (tls_failed_client).
	TLSFailedClientHook interface {
		TLSFailedClient(context.Context, *TLSData) error
	}
	// TLSFailedServerHook runs when the server's handshake failed (tls_failed_server).
	TLSFailedServerHook interface {
		TLSFailedServer(context.Context, *TLSData) error
	}
	// QUICStartClientHook runs before the QUIC handshake with the client (quic_start_client).
	QUICStartClientHook interface {
		QUICStartClient(context.Context, *TLSData) error
	}
	// QUICStartServerHook is the same towards the server (quic_start_server).
	QUICStartServerHook interface {
		QUICStartServer(context.Context, *TLSData) error
	}
	// SOCKS5AuthHook decides about a user name and password (socks5_auth).
	SOCKS5AuthHook interface {
		SOCKS5Auth(context.Context, *SOCKS5AuthData) error
	}
	// NextLayerHook runs before a protocol is chosen for a stream; setting Handler overrides the
	// choice (next_layer).
	NextLayerHook interface {
		NextLayer(context.Context, *NextLayerData) error
	}
)

// ClientHelloData is the argument of TLSClientHelloHook (TLS-01).
type ClientHelloData struct {
	Session     *Session
	Hello       *sniff.ClientHello
	Ignore      bool // relay the connection without decryption and without a flow (TLS-03)
	ServerFirst bool // finish the server's handshake before the client's (TLS-02)
}

// TLSData is the argument of the TLS and QUIC handshake hooks. In the start hooks Config is what the
// handshake will use. In the established and failed hooks it is nil and Err says what failed.
type TLSData struct {
	Session  *Session
	Client   *flow.Client
	Server   *flow.Server // nil in client hooks while no server is involved
	Config   *tls.Config
	Datagram bool // DTLS or QUIC
	Err      error
}

// SOCKS5AuthData is the argument of SOCKS5AuthHook. Valid begins false.
type SOCKS5AuthData struct {
	Client             *flow.Client
	Username, Password string
	Valid              bool
}

// NextLayerData is the argument of NextLayerHook: the bytes seen so far, which may be none.
type NextLayerData struct {
	Session *Session
	Peeked  [][]byte
	Handler Handler // nil leaves the choice to the core
}
