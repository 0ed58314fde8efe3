//go:build linux

package lab

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"time"

	"mitm-appliance/internal/netnstest"
)

// agentEnv makes a program that calls Agent a client; its value says what the program is to do.
const agentEnv = "MITM_LAB_AGENT"

const agentTimeout = 15 * time.Second

// Agent must be the first call of a program that uses Talker. Where the program was started again as a
// client, it is one and ends here.
func Agent() {
	if os.Getenv(agentEnv) == "" {
		return
	}
	if err := converse(os.Args[1], os.Args[2], os.Args[3]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// converse sends text and prints as many bytes as come back.
func converse(network, address, text string) error {
	c, err := net.DialTimeout(network, address, agentTimeout)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(agentTimeout)); err != nil {
		return err
	}
	if _, err := io.WriteString(c, text); err != nil {
		return err
	}
	got := make([]byte, len(text))
	n, err := io.ReadFull(c, got)
	fmt.Print(string(got[:n]))
	return err
}

// Talker returns a command that sends text over network ("tcp" or "udp") from a process of its own,
// named as this program, and prints what an echo server answers.
func (w *World) Talker(ctx context.Context, h *netnstest.Host, network, address, text string) (*exec.Cmd, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := w.Command(ctx, h, self, network, address, text)
	cmd.Env = append(os.Environ(), agentEnv+"=1")
	return cmd, nil
}
