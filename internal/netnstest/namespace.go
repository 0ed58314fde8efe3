//go:build linux

package netnstest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	runDir = "/run/netns" // where ip(8) and nsenter users look for names
	prefix = "mitmlab-"   // then pid, lab id and host name: mitmlab-4711-a1b2c3-client
)

// prepareRunDir makes runDir a shared mount of its own, as "ip netns add" does:
// otherwise a later "ip netns add" would mount it over itself and bury
// the names that already are there.
func prepareRunDir() error {
	if err := os.MkdirAll(runDir, 0o755); err != nil {
		return fmt.Errorf("netnstest: %w", err)
	}
	unlock, err := lockRunDir()
	if err != nil {
		return err
	}
	defer unlock()
	err = unix.Mount("", runDir, "none", unix.MS_SHARED|unix.MS_REC, "")
	if errors.Is(err, unix.EINVAL) { // not a mount point yet
		if err = unix.Mount(runDir, runDir, "none", unix.MS_BIND|unix.MS_REC, ""); err == nil {
			err = unix.Mount("", runDir, "none", unix.MS_SHARED|unix.MS_REC, "")
		}
	}
	if err != nil {
		return fmt.Errorf("netnstest: make %s a shared mount (needs CAP_SYS_ADMIN): %w", runDir, err)
	}
	return nil
}

func lockRunDir() (unlock func(), err error) {
	dir, err := os.Open(runDir)
	if err != nil {
		return nil, fmt.Errorf("netnstest: %w", err)
	}
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX); err != nil {
		_ = dir.Close()
		return nil, fmt.Errorf("netnstest: lock %s: %w", runDir, err)
	}
	return func() { _ = dir.Close() }, nil
}

// sweep removes the namespaces of labs whose process is dead. Names without
// our prefix are never touched.
func sweep() error {
	entries, err := os.ReadDir(runDir)
	if err != nil {
		return fmt.Errorf("netnstest: %w", err)
	}
	var errs []error
	for _, e := range entries {
		if pid, ours := ownerOf(e.Name()); ours && !alive(pid) {
			errs = append(errs, removeNamespace(filepath.Join(runDir, e.Name())))
		}
	}
	return errors.Join(errs...)
}

// ownerOf returns the pid in a namespace's name.
func ownerOf(name string) (pid int, ours bool) {
	rest, ok := strings.CutPrefix(name, prefix)
	if !ok {
		return 0, false
	}
	digits, _, ok := strings.Cut(rest, "-")
	if !ok {
		return 0, false
	}
	pid, err := strconv.Atoi(digits)
	return pid, err == nil && pid > 0
}

func alive(pid int) bool { return !errors.Is(unix.Kill(pid, 0), unix.ESRCH) }

// createNamespace makes an empty network namespace and gives it a name.
func createNamespace(path string) error {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL, 0o444)
	if err != nil {
		return fmt.Errorf("netnstest: %w", err)
	}
	_ = file.Close()
	err = onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("netnstest: unshare the network (needs CAP_SYS_ADMIN): %w", err)
		}
		if err := unix.Mount("/proc/thread-self/ns/net", path, "none", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("netnstest: bind the namespace to %s: %w", path, err)
		}
		return nil
	})
	if err != nil {
		_ = os.Remove(path)
	}
	return err
}

// removeNamespace kills the processes that are left in a lab's namespace and
// removes its name. A name that is already gone is no error.
func removeNamespace(path string) error {
	killResidents(path)
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("netnstest: unmount %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("netnstest: %w", err)
	}
	return nil
}

// killResidents kills the processes whose network is the lab's namespace. They
// can only have been started by the lab.
func killResidents(path string) {
	ns, err := os.Stat(path)
	if err != nil {
		return
	}
	if host, err := os.Stat("/proc/self/ns/net"); err != nil || os.SameFile(ns, host) {
		return
	}
	procs, err := os.ReadDir("/proc")
	if err != nil {
		return
	}
	for _, p := range procs {
		pid, err := strconv.Atoi(p.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		if its, err := os.Stat(filepath.Join("/proc", p.Name(), "ns/net")); err == nil && os.SameFile(its, ns) {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
	}
}

// onThread runs f on a goroutine with a thread of its own and then puts the
// thread back into the network namespace it had. A thread that cannot be put
// back is discarded. A panic or Goexit (t.FailNow) of f goes on in the caller.
func onThread(f func() error) error {
	var (
		err      error
		panicked any
		returned bool
		done     = make(chan struct{})
	)
	go func() {
		defer close(done)
		defer func() { panicked = recover() }()
		runtime.LockOSThread()
		home, openErr := os.Open("/proc/thread-self/ns/net")
		if openErr != nil {
			runtime.UnlockOSThread()
			err, returned = fmt.Errorf("netnstest: %w", openErr), true
			return
		}
		defer func() {
			defer home.Close()
			if unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) == nil {
				runtime.UnlockOSThread()
			} // else: the runtime ends the locked thread together with this goroutine
		}()
		err = f()
		returned = true
	}()
	<-done
	switch {
	case panicked != nil:
		panic(panicked)
	case !returned:
		runtime.Goexit()
	}
	return err
}
