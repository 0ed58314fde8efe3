//go:build linux

package redirect

import (
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// namespace is the network namespace a Redirect was made in. Its methods may
// later be called on any thread, and a kernel setting written in the wrong
// namespace would hit another machine's network, so to speak.
type namespace struct{ file *os.File }

func currentNamespace() (namespace, error) {
	file, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return namespace{}, fmt.Errorf("redirect: find the network namespace: %w", err)
	}
	return namespace{file}, nil
}

// id is a name for the namespace that is not used twice between two boots.
func (n namespace) id() (string, error) {
	var id string
	err := n.do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("redirect: open a socket: %w", err)
		}
		defer unix.Close(fd)
		if cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE); err == nil {
			id = fmt.Sprintf("%d", cookie)
			return nil
		}
		var stat unix.Stat_t // before Linux 5.14: the inode, which may be used again
		if err := unix.Fstat(int(n.file.Fd()), &stat); err != nil {
			return fmt.Errorf("redirect: identify the network namespace: %w", err)
		}
		id = fmt.Sprintf("i%d", stat.Ino)
		return nil
	})
	return id, err
}

// do runs f on a thread that is in the namespace. In the usual case, a process
// with one namespace, nothing is switched and no capability is needed.
func (n namespace) do(f func() error) error {
	runtime.LockOSThread()
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("redirect: find the network namespace: %w", err)
	}
	defer home.Close()
	if sameFile(home, n.file) {
		defer runtime.UnlockOSThread()
		return f()
	}
	if err := unix.Setns(int(n.file.Fd()), unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("redirect: enter the network namespace of New (needs CAP_SYS_ADMIN): %w", err)
	}
	defer func() {
		if unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) != nil {
			return // the goroutine keeps the thread, which dies with it
		}
		runtime.UnlockOSThread()
	}()
	return f()
}

func sameFile(a, b *os.File) bool {
	infoA, errA := a.Stat()
	infoB, errB := b.Stat()
	return errA == nil && errB == nil && os.SameFile(infoA, infoB)
}

func (n namespace) close() { _ = n.file.Close() }
