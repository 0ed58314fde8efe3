//go:build linux

package main

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"strconv"
	"sync/atomic"
	"time"
)

// httpLoad is what the HTTP generator does. It is the same for every subject: HTTP/1.1 as bytes over
// crypto/tls, which costs less than any HTTP client.
type httpLoad struct {
	proxy    string // HOST:PORT of an explicit proxy
	direct   string // HOST:PORT of a server that is spoken to without CONNECT
	plain    bool   // http:// through the proxy, without CONNECT and TLS
	fresh    bool   // a new connection for each request
	conns    int
	size     int // of the body
	requests int64
	length   time.Duration
	request  []byte
	tls      *tls.Config
	tally    tally
	left     atomic.Int64
}

func httpWorker(args []string) error {
	l := &httpLoad{}
	fs := flag.NewFlagSet("http", flag.ExitOnError)
	fs.StringVar(&l.proxy, "proxy", "", "")
	fs.StringVar(&l.direct, "direct", "", "")
	fs.BoolVar(&l.plain, "plain", false, "")
	fs.BoolVar(&l.fresh, "fresh", false, "")
	fs.IntVar(&l.conns, "conns", 20, "")
	fs.IntVar(&l.size, "size", 1024, "")
	fs.Int64Var(&l.requests, "requests", 0, "")
	fs.DurationVar(&l.length, "duration", time.Second, "")
	_ = fs.Parse(args) // exits
	target := fmt.Sprintf("/%d", l.size)
	if l.plain {
		target = "http://" + server(0) + target
	}
	l.request = fmt.Appendf(nil, "GET %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: bench\r\nAccept: */*\r\n\r\n", target, server(0))
	l.left.Store(l.requests)
	// The certificates are minted by the subjects: verifying them would only cost the generator time.
	l.tls = &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13, //nolint:gosec // see above
		CurvePreferences: []tls.CurveID{tls.X25519}, NextProtos: []string{"http/1.1"}}
	return l.run().print()
}

func (l *httpLoad) run() counted {
	start, end := time.Now(), time.Now().Add(l.length)
	more := func() bool {
		if l.requests > 0 && l.left.Add(-1) < 0 {
			return false
		}
		return time.Now().Before(end)
	}
	c := l.tally.run(l.conns, func(int) error {
		if l.fresh {
			return l.each(more)
		}
		return l.keep(more)
	})
	c.Seconds = time.Since(start).Seconds()
	return c
}

// keep sends request after request over one connection.
func (l *httpLoad) keep(more func() bool) error {
	c, err := l.connect()
	if err != nil {
		return err
	}
	defer c.Close()
	r := bufio.NewReaderSize(c, 64<<10)
	for more() {
		if err := l.talk(c, r); err != nil {
			return err
		}
		l.tally.ops.Add(1)
	}
	return nil
}

// each opens a connection for every request. One that fails is counted and not the end.
func (l *httpLoad) each(more func() bool) error {
	for more() {
		if err := l.one(); err != nil {
			l.tally.fail(err)
			continue
		}
		l.tally.ops.Add(1)
	}
	return nil
}

func (l *httpLoad) one() error {
	c, err := l.connect()
	if err != nil {
		return err
	}
	defer c.Close()
	return l.talk(c, bufio.NewReader(c))
}

func (l *httpLoad) connect() (net.Conn, error) {
	address := l.proxy
	if l.direct != "" {
		address = l.direct
	}
	c, err := net.DialTimeout("tcp4", address, dialTimeout)
	if err != nil || l.plain {
		return c, err
	}
	if l.direct == "" {
		if err := openTunnel(c); err != nil {
			return nil, errors.Join(err, c.Close())
		}
	}
	t := tls.Client(c, l.tls)
	_ = t.SetDeadline(time.Now().Add(dialTimeout)) // a closed one fails below
	if err := t.Handshake(); err != nil {
		return nil, errors.Join(fmt.Errorf("TLS handshake: %w", err), c.Close())
	}
	return t, nil
}

func openTunnel(c net.Conn) error {
	_ = c.SetDeadline(time.Now().Add(dialTimeout)) // a closed one fails below
	target := server(0) + ":443"
	if _, err := fmt.Fprintf(c, "CONNECT %s HTTP/1.1\r\nHost: %s\r\n\r\n", target, target); err != nil {
		return err
	}
	var answer []byte
	one := make([]byte, 512)
	for !bytes.HasSuffix(answer, []byte("\r\n\r\n")) { // the server does not speak before our ClientHello
		n, err := c.Read(one)
		if err != nil {
			return fmt.Errorf("CONNECT: %w", err)
		}
		answer = append(answer, one[:n]...)
	}
	if !bytes.HasPrefix(answer, []byte("HTTP/1.1 200")) && !bytes.HasPrefix(answer, []byte("HTTP/1.0 200")) {
		return fmt.Errorf("CONNECT: %.60q", answer)
	}
	return nil
}

// talk sends a request and reads its response, which must be complete and as long as expected.
func (l *httpLoad) talk(c net.Conn, r *bufio.Reader) error {
	_ = c.SetDeadline(time.Now().Add(dialTimeout)) // a closed one fails below
	if _, err := c.Write(l.request); err != nil {
		return err
	}
	status, err := r.ReadSlice('\n')
	if err != nil {
		return fmt.Errorf("status line: %w", err)
	}
	if !bytes.HasPrefix(status, []byte("HTTP/1.1 200")) {
		return fmt.Errorf("response %.60q", status)
	}
	size, chunked := -1, false
	for {
		line, err := r.ReadSlice('\n')
		if err != nil {
			return fmt.Errorf("header: %w", err)
		}
		line = bytes.TrimRight(line, "\r\n")
		if len(line) == 0 {
			break
		}
		name, value, _ := bytes.Cut(line, []byte(":"))
		switch {
		case bytes.EqualFold(name, []byte("Content-Length")):
			if size, err = strconv.Atoi(string(bytes.TrimSpace(value))); err != nil {
				return err
			}
		case bytes.EqualFold(name, []byte("Transfer-Encoding")):
			chunked = true
		}
	}
	if chunked {
		if size, err = readChunks(r); err != nil {
			return err
		}
	} else if _, err := r.Discard(max(size, 0)); err != nil {
		return fmt.Errorf("body: %w", err)
	}
	if size != l.size {
		return fmt.Errorf("a body of %d bytes instead of %d", size, l.size)
	}
	return nil
}

func readChunks(r *bufio.Reader) (int, error) {
	for total := 0; ; {
		line, err := r.ReadSlice('\n')
		if err != nil {
			return total, fmt.Errorf("chunk: %w", err)
		}
		n, err := strconv.ParseUint(string(bytes.TrimSpace(line)), 16, 31)
		if err != nil {
			return total, err
		}
		if _, err := r.Discard(int(n) + 2); err != nil { //nolint:gosec // 31 bits
			return total, fmt.Errorf("chunk: %w", io.ErrUnexpectedEOF)
		}
		if n == 0 {
			return total, nil
		}
		total += int(n) //nolint:gosec // 31 bits
	}
}
