//go:build linux

package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"mitm-appliance/internal/netnstest"
)

const (
	readyTimeout = 20 * time.Second
	stopTimeout  = 5 * time.Second
	ticks        = 100 // USER_HZ, the unit of /proc/PID/stat
)

// process is a child that serves until it is stopped.
type process struct {
	cmd   *exec.Cmd
	stdin io.Closer
	log   *os.File
	ended chan struct{}
}

func (p *process) pid() int { return p.cmd.Process.Pid }

// stop asks the process to end and waits; one that does not is killed.
func (p *process) stop() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
	select {
	case <-p.ended:
	case <-time.After(stopTimeout):
		_ = p.cmd.Process.Kill()
		<-p.ended
	}
	_ = p.log.Close()
}

// tail is the end of what the process wrote to stderr.
func (p *process) tail() string {
	data, err := os.ReadFile(p.log.Name())
	if err != nil {
		return err.Error()
	}
	return string(data[max(0, len(data)-2000):])
}

// launch starts cmd; ready waits until it serves.
func (b *bench) launch(ctx context.Context, cmd *exec.Cmd, ready func(context.Context) error) (*process, error) {
	log, err := os.CreateTemp(b.dir, "log-*")
	if err != nil {
		return nil, err
	}
	p := &process{cmd: cmd, log: log, ended: make(chan struct{})}
	cmd.Stderr = log
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	go func() { defer close(p.ended); _ = cmd.Wait() }() // ends with the process
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	go func() {
		select {
		case <-p.ended:
			cancel()
		case <-ctx.Done():
		}
	}()
	if err := ready(ctx); err != nil {
		p.stop()
		return nil, fmt.Errorf("%s does not get ready: %w: %s", filepath.Base(cmd.Args[len(cmd.Args)-1]), err, p.tail())
	}
	return p, nil
}

// worker starts this binary in another role, one that serves: it writes a line when it is ready.
func (b *bench) worker(ctx context.Context, h *netnstest.Host, args ...string) (*process, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := h.Command(context.WithoutCancel(ctx), self, args...)
	out, in, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer out.Close()
	cmd.Stdout = in
	p, err := b.launch(ctx, cmd, func(ctx context.Context) error {
		_ = in.Close()
		stop := context.AfterFunc(ctx, func() { _ = out.SetReadDeadline(time.Now()) })
		defer stop()
		_, err := bufio.NewReader(out).ReadString('\n')
		return err
	})
	return p, err
}

// answering waits until a TCP port is open.
func answering(h *netnstest.Host, address string) func(context.Context) error {
	return func(ctx context.Context) error {
		for {
			c, err := h.Dial(ctx, "tcp", address)
			if err == nil {
				return c.Close()
			}
			if stopped := sleep(ctx, 20*time.Millisecond); stopped != nil {
				return errors.Join(stopped, err)
			}
		}
	}
}

// listening waits until somebody listens on a TCP port, without calling.
func (b *bench) listening(h *netnstest.Host, port int) func(context.Context) error {
	return func(ctx context.Context) error {
		for {
			out, err := h.Command(ctx, "ss", "-Hltn", fmt.Sprintf("sport = :%d", port)).Output()
			if err != nil || len(out) > 0 {
				return err
			}
			if err := sleep(ctx, 10*time.Millisecond); err != nil {
				return err
			}
		}
	}
}

// notified gives cmd a systemd notification socket and waits for READY=1 on it.
func (b *bench) notified(cmd *exec.Cmd) (func(context.Context) error, error) {
	name := b.path(fmt.Sprintf("notify-%d", time.Now().UnixNano()))
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		return nil, err
	}
	cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+name)
	return func(ctx context.Context) error {
		defer c.Close()
		stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Now()) })
		defer stop()
		buf := make([]byte, 4096)
		for {
			n, err := c.Read(buf)
			if err != nil || bytes.Contains(buf[:n], []byte("READY=1")) {
				return err
			}
		}
	}, nil
}

// generate runs this binary as a load generator, one that ends by itself, and returns what it counted.
func (b *bench) generate(ctx context.Context, limit time.Duration, args ...string) (counted, error) {
	var c counted
	self, err := os.Executable()
	if err != nil {
		return c, err
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	cmd := b.client.Command(ctx, self, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return c, fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, stderr.String())
	}
	return c, json.Unmarshal(out, &c)
}

// counted is what a load generator prints.
type counted struct {
	Ops     float64 // requests, connections, datagrams or bytes
	Seconds float64
	Errors  int
	Error   string // one of them
}

func (c counted) rate() float64 { return c.Ops / c.Seconds }

func (c counted) print() error { return json.NewEncoder(os.Stdout).Encode(c) }

// cpu returns the seconds of CPU that a process and its children have used.
func cpu(pid int) float64 {
	total := 0.0
	for _, p := range family(pid) {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p))
		if err != nil {
			continue
		}
		fields := strings.Fields(string(data[bytes.LastIndexByte(data, ')')+1:]))
		for _, f := range fields[11:13] { // utime, stime: proc_pid_stat(5) 14 and 15
			n, _ := strconv.ParseFloat(f, 64) // the kernel writes numbers
			total += n / ticks
		}
	}
	return total
}

func family(pid int) []int {
	pids := []int{pid}
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid)) // the pattern is good
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			continue
		}
		for _, word := range strings.Fields(string(data)) {
			if child, err := strconv.Atoi(word); err == nil {
				pids = append(pids, family(child)...)
			}
		}
	}
	return pids
}

// memory returns a field of /proc/PID/status in bytes: VmRSS, VmHWM.
func memory(pid int, field string) (float64, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(data)) {
		if value, ok := strings.CutPrefix(line, field+":"); ok {
			kib, err := strconv.ParseFloat(strings.Fields(value)[0], 64)
			return kib * 1024, err
		}
	}
	return 0, fmt.Errorf("no %s for process %d", field, pid)
}
