package dump

import (
	"fmt"
	"strconv"
	"strings"

	"mitm-appliance/flow"
)

func arrow(fromClient bool) string {
	if fromClient {
		return " -> "
	}
	return " <- "
}

// messages prints the TCP or UDP messages from number from on.
func (p *printer) messages(f *flow.Flow, from int) {
	for i := from; i < len(f.Stream.Messages); i++ {
		m := &f.Stream.Messages[i]
		p.client(f)
		p.own(plain, arrow(m.FromClient))
		p.seen(plain, streamName(f, m.FromClient))
		p.own(plain, arrow(m.FromClient))
		p.seen(plain, serverName(f.Server))
		p.own(dim, " "+size(m.Size)+marks(m.Injected, m.Dropped))
		p.newline()
		if p.detail >= 3 {
			p.content(m.Data)
			if len(m.Data) == 0 && m.Size > 0 {
				p.own(dim, indent+"(content missing)")
				p.newline()
			}
		}
	}
}

func marks(injected, dropped bool) string {
	var b strings.Builder
	if injected {
		b.WriteString(" (injected)")
	}
	if dropped {
		b.WriteString(" (dropped)")
	}
	return b.String()
}

// streamName is the protocol; for what came in QUIC with the numbers of the streams.
func streamName(f *flow.Flow, fromClient bool) string {
	if f.Client == nil || f.Client.TLS == nil || f.Client.TLS.Version != "QUICv1" {
		return f.Kind.String()
	}
	what := "stream"
	if f.Kind == flow.KindUDP {
		what = "dgrams"
	}
	id := func(side string) string {
		v, ok := f.Metadata["quic_stream_id_"+side]
		if !ok {
			return ""
		}
		return fmt.Sprint(" ", v)
	}
	hop := arrow(fromClient)
	return "quic " + what + id("client") + hop + "mitmproxy" + hop + "quic " + what + id("server")
}

// streamEnd prints why a raw flow failed.
func (p *printer) streamEnd(f *flow.Flow) {
	if f.Error == nil {
		return
	}
	p.own(red, "Error in "+strings.ToUpper(f.Kind.String())+" connection to ")
	p.seen(red, serverName(f.Server))
	p.own(red, ": ")
	p.seen(red, f.Error.Message)
	p.newline()
}

// webSocketMessages prints the messages from number from on.
func (p *printer) webSocketMessages(f *flow.Flow, from int) {
	for i := from; i < len(f.HTTP.WebSocket.Messages); i++ {
		m := &f.HTTP.WebSocket.Messages[i]
		p.client(f)
		p.own(plain, arrow(m.FromClient)+"WebSocket "+opcodeName(m.Opcode)+" message"+arrow(m.FromClient))
		p.seen(plain, serverName(f.Server)+f.HTTP.Request.Path)
		p.own(dim, " "+size(int64(len(m.Data)))+marks(m.Injected, m.Dropped))
		p.newline()
		if p.detail >= 3 {
			p.content(m.Data)
		}
	}
}

func opcodeName(op flow.Opcode) string {
	switch op {
	case flow.OpText:
		return "text"
	case flow.OpBinary:
		return "binary"
	case flow.OpPing:
		return "ping"
	case flow.OpPong:
		return "pong"
	}
	return strconv.Itoa(int(op))
}

// closeNames are the registered close codes that mean a failure (RFC 6455, section 7.4.1).
var closeNames = map[int]string{
	1002: "PROTOCOL_ERROR", 1003: "UNSUPPORTED_DATA", 1006: "ABNORMAL_CLOSURE", 1007: "INVALID_FRAME_PAYLOAD_DATA",
	1008: "POLICY_VIOLATION", 1009: "MESSAGE_TOO_BIG", 1010: "MANDATORY_EXT", 1011: "INTERNAL_ERROR",
	1012: "SERVICE_RESTART", 1013: "TRY_AGAIN_LATER", 1015: "TLS_HANDSHAKE_FAILED",
}

// webSocketEnd prints how a WebSocket closed; nothing when nobody closed it.
func (p *printer) webSocketEnd(f *flow.Flow) {
	ws := f.HTTP.WebSocket
	switch ws.CloseCode {
	case 0:
		p.failure(f)
		return
	case 1000, 1001, 1005:
		by := "server"
		if ws.ClosedByClient != nil && *ws.ClosedByClient {
			by = "client"
		}
		p.own(plain, "WebSocket connection closed by "+by+": "+strconv.Itoa(ws.CloseCode)+" ")
		p.seen(plain, ws.CloseReason)
		p.newline()
		return
	}
	name, ok := closeNames[ws.CloseCode]
	if !ok {
		name = "UNKNOWN_ERROR=" + strconv.Itoa(ws.CloseCode)
	}
	p.own(red, "Error in WebSocket connection to ")
	p.seen(red, serverName(f.Server))
	p.own(red, ": WebSocket Error: "+name)
	if ws.CloseReason != "" {
		p.seen(red, " (reason: "+ws.CloseReason+")")
	}
	p.newline()
}
