package exchange

import (
	"errors"
	"strings"
	"testing"
)

func TestPageEscapes(t *testing.T) {
	p := Page("me", 502, "Bad Gateway", errors.New(`<script>&"`))
	if body := string(p.Body.Data); strings.Contains(body, "<script>") || !strings.Contains(body, "&lt;script&gt;&amp;") ||
		!strings.Contains(body, "<title>502 Bad Gateway</title>") {
		t.Errorf("page %s", body)
	}
}

func TestFailuresStatus(t *testing.T) {
	inner := Invalid("bad chunk")
	if f := asFailure(inner); f.Status != 400 {
		t.Errorf("a client's fault is %d", f.Status)
	}
	if f := asFailure(badGateway(inner)); f.Status != 502 {
		t.Errorf("a server's fault is %d", f.Status)
	}
	if f := asFailure(errors.New("x")); f.Status != 502 {
		t.Errorf("an unknown fault is %d", f.Status)
	}
}
