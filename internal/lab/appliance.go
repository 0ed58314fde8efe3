//go:build linux

package lab

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"

	"mitm-appliance/flow"
	"mitm-appliance/flow/flowfile"
	"mitm-appliance/internal/netnstest"
)

// Program says how to run an appliance.
type Program struct {
	Path   string          // of the mitm-appliance binary
	Face   string          // the subcommand; "" means run
	Host   *netnstest.Host // nil means the gateway
	Dir    string          // confdir; "" makes a new one
	Args   []string        // behind the face; the world's CA, the confdir and -w come by themselves
	NoSave bool            // without -w
	Output io.Writer       // a copy of stdout, the flows; nil for none
	Log    io.Writer       // a copy of stderr; nil for none
	// Within is a command in front of the appliance's, such as one that puts it into a cgroup.
	Within []string
	Env    []string // beside this process's own
}

// Appliance is a running process.
type Appliance struct {
	Dir string // confdir, with the CA that clients have to trust

	saved  string
	cmd    *exec.Cmd
	stdout record
	stderr record
	ended  chan struct{}
	alive  context.Context // ends with the process
}

// record keeps what a process writes.
type record struct {
	mu   sync.Mutex
	buf  bytes.Buffer
	also io.Writer
}

func (r *record) Write(b []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.also != nil {
		if _, err := r.also.Write(b); err != nil {
			return 0, err
		}
	}
	return r.buf.Write(b)
}

func (r *record) String() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.buf.String()
}

// Start runs an appliance and returns when it is ready, in systemd's sense: all modes that can run do.
// The error of one that ends instead is an *EndError.
func (w *World) Start(ctx context.Context, p Program) (*Appliance, error) {
	a, ready, err := w.launch(ctx, p)
	if err != nil {
		return nil, err
	}
	w.onClose(a.Kill)
	heard := make(chan error, 1)
	go listen(ready, heard)
	context.AfterFunc(a.alive, func() { _ = ready.Close() }) // ends listen
	select {
	case err = <-heard:
	case <-a.ended:
		err = &EndError{Status: a.cmd.ProcessState.ExitCode(), Stderr: a.Log()}
	case <-ctx.Done():
		err = fmt.Errorf("lab: the appliance does not get ready: %w\n%s", ctx.Err(), a.Log())
	}
	if err != nil {
		a.Kill()
		return nil, err
	}
	return a, nil
}

// listen reads what the process tells systemd, until the socket is closed (sd_notify(3)).
func listen(c *net.UnixConn, ready chan<- error) {
	buf := make([]byte, 4096)
	for {
		n, err := c.Read(buf)
		if err != nil {
			return
		}
		if bytes.Contains(buf[:n], []byte("READY=1")) {
			ready <- nil
		}
	}
}

// EndError is how a process ended that should have gone on.
type EndError struct {
	Status int
	Stderr string
}

func (e *EndError) Error() string {
	return fmt.Sprintf("lab: the appliance ended with status %d and said:\n%s", e.Status, e.Stderr)
}

func (w *World) launch(ctx context.Context, p Program) (*Appliance, *net.UnixConn, error) {
	if p.Host == nil {
		p.Host = w.Gateway
	}
	if p.Dir == "" {
		dir, err := os.MkdirTemp(w.Dir, "appliance-*")
		if err != nil {
			return nil, nil, err
		}
		p.Dir = dir
	}
	a := &Appliance{Dir: p.Dir, ended: make(chan struct{})}
	args := []string{p.Path, cmp.Or(p.Face, "run"), "--confdir", p.Dir, "--set", "ssl_verify_upstream_trusted_ca=" + w.CA}
	if !p.NoSave {
		a.saved = filepath.Join(p.Dir, fmt.Sprintf("flows-%d.mitm", time.Now().UnixNano()))
		args = append(args, "-w", a.saved)
	}
	args = append(append(p.Within, args...), p.Args...)
	a.cmd = w.Command(context.WithoutCancel(ctx), p.Host, args[0], args[1:]...)
	a.stdout.also, a.stderr.also = p.Output, p.Log
	a.cmd.Stdout, a.cmd.Stderr = &a.stdout, &a.stderr
	socket := filepath.Join(p.Dir, fmt.Sprintf("notify-%d", time.Now().UnixNano()))
	ready, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		return nil, nil, err
	}
	a.cmd.Env = append(append(os.Environ(), p.Env...), "NOTIFY_SOCKET="+socket)
	if err := a.cmd.Start(); err != nil {
		return nil, nil, errors.Join(err, ready.Close())
	}
	alive, end := context.WithCancel(context.Background())
	a.alive = alive
	go func() {
		_ = a.cmd.Wait() // its state tells
		close(a.ended)
		end()
	}()
	return a, ready, nil
}

// CA is the file of the certificate that clients of the appliance trust.
func (a *Appliance) CA() string { return filepath.Join(a.Dir, "mitmproxy-ca-cert.pem") }

// PID of the process.
func (a *Appliance) PID() int { return a.cmd.Process.Pid }

// Log is what the process has written to stderr, Output what it has written to stdout.
func (a *Appliance) Log() string { return a.stderr.String() }

// Output is what the process has written to stdout: its flows.
func (a *Appliance) Output() string { return a.stdout.String() }

// Ended is closed when the process has ended.
func (a *Appliance) Ended() <-chan struct{} { return a.ended }

// Signal sends a signal.
func (a *Appliance) Signal(s os.Signal) error { return a.cmd.Process.Signal(s) }

// Stop asks the process to end and returns its exit status.
func (a *Appliance) Stop(ctx context.Context) (status int, err error) {
	if err := a.Signal(os.Interrupt); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return -1, err
	}
	return a.Wait(ctx)
}

// Wait waits for the end and returns the exit status.
func (a *Appliance) Wait(ctx context.Context) (status int, err error) {
	select {
	case <-a.ended:
		return a.cmd.ProcessState.ExitCode(), nil
	case <-ctx.Done():
		return -1, fmt.Errorf("lab: the appliance does not end: %w\n%s", ctx.Err(), a.Log())
	}
}

// Kill ends the process the hard way, as a crash would.
func (a *Appliance) Kill() {
	_ = a.cmd.Process.Kill() // it may have ended
	<-a.ended
}

// Flows reads what the process has saved so far.
func (a *Appliance) Flows() ([]*flow.Flow, error) {
	file, err := os.Open(a.saved)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	var flows []*flow.Flow
	for r := flowfile.NewReader(file); ; {
		f, err := r.Next()
		if errors.Is(err, io.EOF) {
			return flows, nil
		}
		if err != nil {
			return flows, err
		}
		flows = append(flows, f)
	}
}
