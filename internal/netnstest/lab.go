//go:build linux

// Package netnstest builds small networks out of network namespaces: hosts,
// veth links, addresses and routes go in; processes, sockets and functions
// that run inside those hosts come out. Everything is made through netlink and
// removed again by Close, by the end of the test, or, when the process was
// killed, by the next lab that opens on the machine.
//
// It knows nothing of proxies. It needs root (CAP_SYS_ADMIN and
// CAP_NET_ADMIN). The tests, scripts/demo and the bench share it.
package netnstest

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"
)

// RequireEnv is the environment variable that turns the skip of root tests
// into a failure when its value is "require".
const RequireEnv = "MITM_ROOT_TESTS"

// closeTimeout bounds how long Close waits for the goroutines of Host.Go.
const closeTimeout = 15 * time.Second

// Lab is a set of hosts that live and die together.
//
// The set-up methods of Lab and Host (Host, Link, Addr, Up, Route, Sysctl,
// Gateway) return no error: the first failure ends the test of a lab made by
// New; in a lab made by Open it is kept for Err and later set-up calls do
// nothing. Set-up belongs to one goroutine; sockets, commands and Do may be
// used from any.
type Lab struct {
	t      testing.TB // nil when made by Open
	id     string
	ctx    context.Context
	cancel context.CancelFunc
	tasks  sync.WaitGroup

	mu    sync.Mutex
	hosts []*Host
	errs  []error // of set-up (at most one) and of the functions given to Go
	done  bool
}

// New returns a lab that is closed when the test ends. Without root the test
// is skipped, or fails when MITM_ROOT_TESTS=require.
func New(t testing.TB) *Lab {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv(RequireEnv) == "require" {
			t.Fatalf("network namespaces need root, and %s=require forbids to skip", RequireEnv)
		}
		t.Skipf("network namespaces need root; run as root, or set %s=require to make this a failure", RequireEnv)
	}
	lab, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	lab.t = t
	t.Cleanup(func() {
		if err := lab.Close(); err != nil {
			t.Error(err)
		}
	})
	return lab
}

// Open returns a lab for programs that are not tests; the caller closes it.
// Namespaces left behind by labs of dead processes are removed first.
func Open() (*Lab, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("netnstest: network namespaces need root: run as root")
	}
	if err := prepareRunDir(); err != nil {
		return nil, err
	}
	if err := sweep(); err != nil {
		return nil, err
	}
	var id [3]byte
	if _, err := rand.Read(id[:]); err != nil {
		return nil, fmt.Errorf("netnstest: choose an id: %w", err)
	}
	lab := &Lab{id: hex.EncodeToString(id[:])}
	lab.ctx, lab.cancel = context.WithCancel(context.Background())
	return lab, nil
}

// Err returns the first error of the set-up, nil when all went well.
func (l *Lab) Err() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.errs) == 0 {
		return nil
	}
	return l.errs[0]
}

// Close stops everything that runs in the lab (commands are killed, the
// contexts of Host.Go end) and removes its namespaces with all that is in
// them. It returns what went wrong in the functions given to Host.Go and in
// the removal. Closing twice is harmless.
func (l *Lab) Close() error {
	l.mu.Lock()
	if l.done {
		l.mu.Unlock()
		return nil
	}
	l.done = true
	hosts := l.hosts
	l.mu.Unlock()

	l.cancel()
	finished := make(chan struct{})
	go func() { l.tasks.Wait(); close(finished) }()
	var errs []error
	select {
	case <-finished:
	case <-time.After(closeTimeout):
		errs = append(errs, fmt.Errorf("netnstest: functions given to Host.Go still run %v after their context ended", closeTimeout))
	}
	for _, h := range hosts {
		h.nl.Close()
		errs = append(errs, removeNamespace(h.path))
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return errors.Join(append(errs, l.errs...)...)
}

// failed says whether the set-up is already broken, so that one cause does
// not produce a row of follow-up errors.
func (l *Lab) failed() bool { return l.Err() != nil }

// check ends the test, or keeps err for Err.
func (l *Lab) check(err error) {
	if err == nil {
		return
	}
	if l.t != nil {
		l.t.Helper()
		l.t.Fatal(err)
	}
	l.note(err)
}

func (l *Lab) note(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.errs = append(l.errs, err)
}
