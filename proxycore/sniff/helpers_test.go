package sniff

import (
	"bytes"
	"context"
	"crypto/tls"
	"net"
	"os/exec"
	"testing"
	"time"

	"golang.org/x/crypto/cryptobyte"
)

// clientStream returns the first bytes that a crypto/tls client writes.
func clientStream(t testing.TB, config *tls.Config) []byte {
	t.Helper()
	client, server := net.Pipe()
	defer server.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = tls.Client(client, config).Handshake() // ends when the pipe is closed
		client.Close()
	}()
	b := make([]byte, MaxClientHello)
	n, err := server.Read(b)
	if err != nil {
		t.Fatalf("read the client's first bytes: %v", err)
	}
	server.Close()
	<-done
	return b[:n]
}

// startOpenSSL runs openssl and kills it when the test ends.
func startOpenSSL(t testing.TB, args ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	cmd := exec.CommandContext(ctx, "openssl", args...)
	cmd.Stdin = &bytes.Buffer{}
	if err := cmd.Start(); err != nil {
		cancel()
		t.Fatalf("start openssl (install the package openssl): %v", err)
	}
	t.Cleanup(func() {
		cancel()
		_ = cmd.Wait() // killed on purpose
	})
}

// testHello describes a hello to be built by hand.
type testHello struct {
	version    uint16
	dtls       bool
	cookie     string
	ciphers    []uint16
	extensions []Extension
}

// message returns the handshake message with its 4-byte header.
func (h testHello) message() []byte {
	var b cryptobyte.Builder
	b.AddUint8(typeClientHello)
	b.AddUint24LengthPrefixed(func(b *cryptobyte.Builder) {
		b.AddUint16(h.version)
		b.AddBytes(bytes.Repeat([]byte{7}, 32))
		b.AddUint8LengthPrefixed(func(b *cryptobyte.Builder) {})
		if h.dtls {
			b.AddUint8LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes([]byte(h.cookie)) })
		}
		b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) { addNumbers(b, h.ciphers) })
		b.AddUint8LengthPrefixed(func(b *cryptobyte.Builder) { b.AddUint8(0) })
		if len(h.extensions) == 0 {
			return
		}
		b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) {
			for _, e := range h.extensions {
				b.AddUint16(e.Type)
				b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(e.Data) })
			}
		})
	})
	return b.BytesOrPanic()
}

func addNumbers(b *cryptobyte.Builder, list []uint16) {
	for _, v := range list {
		b.AddUint16(v)
	}
}

// listExtension builds an extension that is a list of numbers.
func listExtension(kind uint16, list ...uint16) Extension {
	var b cryptobyte.Builder
	fill := func(b *cryptobyte.Builder) { addNumbers(b, list) }
	if kind == extSupportedVersions {
		b.AddUint8LengthPrefixed(fill)
	} else {
		b.AddUint16LengthPrefixed(fill)
	}
	return Extension{Type: kind, Data: b.BytesOrPanic()}
}

func alpnExtension(names ...string) Extension {
	var b cryptobyte.Builder
	b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) {
		for _, n := range names {
			b.AddUint8LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes([]byte(n)) })
		}
	})
	return Extension{Type: extALPN, Data: b.BytesOrPanic()}
}

func sniExtension(names ...string) Extension {
	var b cryptobyte.Builder
	b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) {
		for _, n := range names {
			b.AddUint8(0)
			b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes([]byte(n)) })
		}
	})
	return Extension{Type: extServerName, Data: b.BytesOrPanic()}
}

// records cuts a handshake message into TLS records of at most size bytes.
func records(message []byte, size int) []byte {
	var out []byte
	for len(message) > 0 {
		n := min(size, len(message))
		out = append(out, recordHandshake, 3, 1, byte(n>>8), byte(n))
		out = append(out, message[:n]...)
		message = message[n:]
	}
	return out
}
