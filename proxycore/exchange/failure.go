package exchange

import (
	"errors"
	"fmt"
	"html"
	"net/http"
	"strconv"
	"time"

	"mitm-appliance/flow"
)

// Failure is why an exchange went wrong, with the status that its client is told (HTTP-39).
type Failure struct {
	Status int // 400, 413, 502, ...
	Err    error
}

func (f *Failure) Error() string { return f.Err.Error() }

// Unwrap returns the cause.
func (f *Failure) Unwrap() error { return f.Err }

// Invalid is a request that the client should not have sent: 400.
func Invalid(format string, args ...any) error {
	return &Failure{http.StatusBadRequest, fmt.Errorf(format, args...)}
}

// badGateway is a server's fault, or the way to it: 502.
func badGateway(err error) error { return &Failure{http.StatusBadGateway, err} }

// ErrClientGone is why an exchange ends whose client left (HTTP-21); the text is mitmproxy's. Framings
// give it to Session.Cut.
var ErrClientGone = errors.New("Client disconnected.")

// Page is the response that tells a client why its request failed (HTTP-38). server names us; the
// connection is meant to be closed after it.
func Page(server string, status int, reason string, cause error) *flow.Response {
	title := strconv.Itoa(status) + " " + reason
	body := "<!doctype html>\n<html>\n<head>\n<meta charset=\"utf-8\">\n<title>" + title + "</title>\n</head>\n<body>\n<h1>" +
		title + "</h1>\n<p>" + html.EscapeString(cause.Error()) + "</p>\n</body>\n</html>\n"
	return answer(server, status, reason, "text/html; charset=utf-8", body, true)
}

// answer is a response that we make ourselves.
func answer(server string, status int, reason, contentType, body string, last bool) *flow.Response {
	now := time.Now()
	h := make(flow.Header, 0, 4)
	h = append(h, flow.Field{Name: "Server", Value: server})
	if last {
		h = append(h, flow.Field{Name: "Connection", Value: "close"})
	}
	h = append(h, flow.Field{Name: "Content-Type", Value: contentType},
		flow.Field{Name: "Content-Length", Value: strconv.Itoa(len(body))})
	return &flow.Response{
		Message: flow.Message{Version: "HTTP/1.1", Header: h, Body: flow.BodyOf([]byte(body)), Start: now, End: now},
		Status:  status, Reason: reason,
	}
}

// asFailure finds what to tell the client; anything else is the server's fault.
func asFailure(err error) *Failure {
	var f *Failure
	if errors.As(err, &f) {
		return f
	}
	return &Failure{http.StatusBadGateway, err}
}
