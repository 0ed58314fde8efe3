//go:build linux

package lab

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"mitm-appliance/internal/netnstest"
)

// enter gives a command the name servers of its host: files that only it and its children see.
const enter = `mount --bind "$0/resolv.conf" /etc/resolv.conf &&
mount --bind "$0/nsswitch.conf" /etc/nsswitch.conf && exec "$@"`

// Command returns a command that runs in a host and asks the host's name servers. Its pid is that of
// the command itself. It is killed when ctx ends and when the world closes.
func (w *World) Command(ctx context.Context, h *netnstest.Host, name string, args ...string) *exec.Cmd {
	return h.Command(ctx, "unshare", append([]string{"--mount", "--", "sh", "-c", enter, w.etc(h), name}, args...)...)
}

// SetResolver sets the name servers of a host, for commands that start from now on.
func (w *World) SetResolver(h *netnstest.Host, servers ...string) error {
	text := "options timeout:5 attempts:2\n"
	for _, s := range servers {
		text += fmt.Sprintf("nameserver %s\n", s)
	}
	if err := os.MkdirAll(w.etc(h), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(w.etc(h), "nsswitch.conf"), []byte("hosts: dns\npasswd: files\n"), 0o644); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(w.etc(h), "resolv.conf"), []byte(text), 0o644)
}

func (w *World) etc(h *netnstest.Host) string { return filepath.Join(w.Dir, "etc-"+h.Name()) }
