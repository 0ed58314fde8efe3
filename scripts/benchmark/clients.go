//go:build linux

package main

import (
	"encoding/binary"
	"errors"
	"flag"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

const dialTimeout = 10 * time.Second

// tally counts what the goroutines of a generator do.
type tally struct {
	ops    atomic.Int64
	mu     sync.Mutex
	errors int
	last   string
}

func (t *tally) fail(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.errors++
	t.last = err.Error()
}

// run lets n goroutines work and reports what they counted and how long it took.
func (t *tally) run(n int, work func(i int) error) counted {
	start := time.Now()
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			if err := work(i); err != nil {
				t.fail(err)
			}
		})
	}
	wg.Wait()
	return counted{Ops: float64(t.ops.Load()), Seconds: time.Since(start).Seconds(), Errors: t.errors, Error: t.last}
}

// bulkWorker moves bytes in one direction over some streams. Ops are bytes that arrived.
func bulkWorker(args []string) error {
	fs := flag.NewFlagSet("bulk", flag.ExitOnError)
	streams := fs.Int("streams", 1, "")
	down := fs.Bool("down", false, "")
	length := fs.Duration("duration", time.Second, "")
	_ = fs.Parse(args) // exits
	t := &tally{}
	move, port := upload, sinkPort
	if *down {
		move, port = download, sourcePort
	}
	c := t.run(*streams, func(i int) error {
		c, err := net.DialTimeout("tcp4", endpoint(i, port), dialTimeout)
		if err != nil {
			return err
		}
		defer c.Close()
		n, err := move(c.(*net.TCPConn), time.Now().Add(*length))
		t.ops.Add(n)
		return err
	})
	return c.print()
}

// upload returns how much of what it sent until the deadline the server says has arrived.
func upload(c *net.TCPConn, end time.Time) (int64, error) {
	buf := payload(bulkBuffer)
	for time.Now().Before(end) {
		if err := c.SetWriteDeadline(end.Add(dialTimeout)); err != nil {
			return 0, err
		}
		if _, err := c.Write(buf); err != nil {
			return 0, err
		}
	}
	if err := c.CloseWrite(); err != nil {
		return 0, err
	}
	total := make([]byte, 8)
	_ = c.SetReadDeadline(end.Add(dialTimeout)) // a broken connection fails below
	_, err := io.ReadFull(c, total)
	return int64(binary.BigEndian.Uint64(total)), err //nolint:gosec // fits
}

func download(c *net.TCPConn, end time.Time) (int64, error) {
	if _, err := c.Write(greeting()); err != nil {
		return 0, err
	}
	_ = c.SetLinger(0) // the server goes on sending: a reset ends it
	var total int64
	buf := make([]byte, bulkBuffer)
	for time.Now().Before(end) {
		_ = c.SetReadDeadline(end.Add(time.Second)) // a broken connection fails below
		n, err := c.Read(buf)
		total += int64(n)
		if err != nil {
			return total, err
		}
	}
	return total, nil
}

// connectWorker opens connections, exchanges 64 bytes on each and resets it. Ops are connections.
func connectWorker(args []string) error {
	fs := flag.NewFlagSet("connect", flag.ExitOnError)
	length := fs.Duration("duration", time.Second, "")
	clients := fs.Int("clients", 64, "")
	_ = fs.Parse(args) // exits
	t := &tally{}
	end := time.Now().Add(*length)
	var next atomic.Int64
	c := t.run(*clients, func(int) error {
		message := payload(64)
		for time.Now().Before(end) {
			address := endpoint(int(next.Add(1)), echoPort)
			if err := exchange(address, message); err != nil {
				t.fail(err)
				continue
			}
			t.ops.Add(1)
		}
		return nil
	})
	return c.print()
}

func exchange(address string, message []byte) error {
	c, err := net.DialTimeout("tcp4", address, dialTimeout)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := errors.Join(c.(*net.TCPConn).SetLinger(0), c.SetDeadline(time.Now().Add(dialTimeout))); err != nil {
		return err
	}
	if _, err := c.Write(message); err != nil {
		return err
	}
	_, err = io.ReadFull(c, make([]byte, len(message)))
	return err
}

// udpWorker keeps a window of datagrams of 200 bytes on their way on each flow. Ops are datagrams
// that came back.
func udpWorker(args []string) error {
	fs := flag.NewFlagSet("udp", flag.ExitOnError)
	length := fs.Duration("duration", time.Second, "")
	window := fs.Int("window", 64, "")
	_ = fs.Parse(args) // exits
	t := &tally{}
	end := time.Now().Add(*length)
	c := t.run(udpFlows, func(i int) error {
		c, err := net.Dial("udp4", endpoint(i, udpEchoPort+i))
		if err != nil {
			return err
		}
		defer c.Close()
		return pingpong(c, *window, end, t)
	})
	return c.print()
}

func pingpong(c net.Conn, window int, end time.Time, t *tally) error {
	const patience = 100 * time.Millisecond // then what is on its way counts as lost
	out, in := payload(200), make([]byte, 2048)
	missing := window
	var deadline time.Time
	for n := 0; ; n++ {
		for ; missing > 0; missing-- {
			if _, err := c.Write(out); err != nil {
				return err
			}
		}
		if n%64 == 0 {
			now := time.Now()
			if now.After(end) {
				return nil
			}
			deadline = now.Add(patience)
			_ = c.SetReadDeadline(deadline) // a closed socket fails below
		}
		_, err := c.Read(in)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			if !time.Now().Before(end) {
				return nil
			}
			missing, n = window, -1
		case err != nil:
			return err
		default:
			t.ops.Add(1)
			missing = 1
		}
	}
}

// idleWorker opens connections, says so, and holds them until its input ends. Ops are connections.
func idleWorker(args []string) error {
	fs := flag.NewFlagSet("idle", flag.ExitOnError)
	conns := fs.Int("conns", 1000, "")
	_ = fs.Parse(args) // exits
	t := &tally{}
	var next atomic.Int64
	var mu sync.Mutex
	var open []net.Conn
	c := t.run(64, func(int) error {
		for {
			i := int(next.Add(1))
			if i > *conns {
				return nil
			}
			c, err := net.DialTimeout("tcp4", endpoint(i, echoPort), dialTimeout)
			if err != nil {
				return err
			}
			t.ops.Add(1)
			mu.Lock()
			open = append(open, c)
			mu.Unlock()
		}
	})
	if err := c.print(); err != nil {
		return err
	}
	_, err := io.Copy(io.Discard, os.Stdin)
	for _, c := range open {
		_ = c.(*net.TCPConn).SetLinger(0) // quick end
		_ = c.Close()
	}
	return err
}
