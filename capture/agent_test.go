//go:build linux

package capture

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// agentState is what an agent keeps between commands.
type agentState struct {
	conn   net.Conn       // of "keep" and "open-connected"
	packet net.PacketConn // of "open"
	box    *appliance
}

// runAgent reads commands from standard input and answers each with one line.
func runAgent() {
	signal.Ignore(syscall.SIGPIPE)
	a := &agentState{}
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		words := append(strings.Split(lines.Text(), " "), "", "", "")
		answer, err := a.do(words[0], words[1], words[2], words[3])
		if err != nil {
			answer = "error: " + err.Error()
		}
		fmt.Println(strings.TrimSpace(strings.ReplaceAll(answer, "\n", " ")))
	}
}

const agentTimeout = 4 * time.Second

func (a *agentState) do(verb, arg, arg2, arg3 string) (answer string, err error) {
	switch verb {
	case "tcp":
		return a.tcp(arg, nil)
	case "tcp-thread": // from a thread with a name of its own
		return offMainThread(func() (string, error) {
			name, err := unix.BytePtrFromString(arg2)
			if err == nil {
				err = unix.Prctl(unix.PR_SET_NAME, uintptr(unsafe.Pointer(name)), 0, 0, 0)
			}
			if err != nil {
				return "", err
			}
			return a.tcp(arg, nil)
		})
	case "tcp-mark": // with a mark the application chose
		mark, err := strconv.ParseUint(arg2, 0, 32)
		if err != nil {
			return "", err
		}
		return a.tcp(arg, func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, int(mark)) })
	case "udp", "open", "open-at":
		return a.unconnected(verb, arg, arg2)
	case "send": // with the socket of "open"
		return ask(a.packet, arg)
	case "udp-connected", "open-connected", "keep":
		return a.connected(verb, arg)
	case "again": // with the connection of "keep" or "open-connected"
		return exchange(a.conn)
	case "answer": // as a server, with the socket of "open-at"
		return a.answer()
	case "setuid":
		uid, err := strconv.Atoi(arg)
		if err != nil {
			return "", err
		}
		return "ok", syscall.Setuid(uid)
	case "appliance":
		a.box, err = newAppliance(arg, arg2, arg3)
		return "ok", err
	case "flows":
		return a.box.newFlows(), nil
	case "curl-many":
		return curlMany(arg, arg2)
	case "fire": // and forget
		conn, err := net.Dial("udp", arg)
		if err == nil {
			_, err = conn.Write([]byte("!"))
		}
		return "ok", err
	case "curl":
		out, err := exec.Command("curl", "-s", "-m", "4", "--http0.9", "http://"+arg).CombinedOutput()
		return firstWord(string(out)), err
	case "python":
		out, err := exec.Command("python3", "-c", "import socket,sys;print(socket.create_connection((sys.argv[1],int(sys.argv[2])),4).recv(999).decode())", arg, arg2).CombinedOutput()
		return string(out), err
	}
	return "", fmt.Errorf("no verb %q", verb)
}

// offMainThread runs f on any thread but the process's first.
func offMainThread(f func() (string, error)) (answer string, err error) {
	runtime.LockOSThread()
	if unix.Gettid() != os.Getpid() {
		return f()
	}
	done := make(chan struct{})
	go func() {
		runtime.LockOSThread()
		answer, err = f()
		close(done)
	}()
	<-done
	return answer, err
}

func firstWord(text string) string { return strings.SplitN(text, "\n", 2)[0] }

// tcp connects and returns the greeting, the socket's mark and what it believes its peer is.
func (a *agentState) tcp(address string, prepare func(fd int) error) (string, error) {
	d := net.Dialer{Timeout: agentTimeout}
	if prepare != nil {
		d.Control = func(_, _ string, raw syscall.RawConn) (err error) {
			ctlErr := raw.Control(func(fd uintptr) { err = prepare(int(fd)) })
			if ctlErr != nil {
				return ctlErr
			}
			return err
		}
	}
	conn, err := d.Dial("tcp", address)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(agentTimeout))
	line, err := bufio.NewReader(conn).ReadString('\n')
	return fmt.Sprintf("%s mark=%#x peer=%s", strings.TrimSpace(line), markOf(conn.(*net.TCPConn)), conn.RemoteAddr()), err
}

func markOf(conn syscall.Conn) (mark int) {
	raw, err := conn.SyscallConn()
	if err == nil {
		_ = raw.Control(func(fd uintptr) { mark, _ = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK) })
	}
	return mark
}

func (a *agentState) unconnected(verb, address, network string) (string, error) {
	if network == "" {
		network = "udp4"
		if strings.HasPrefix(address, "[") {
			network = "udp6"
		}
	}
	bind := ":0"
	if verb == "open-at" {
		bind = address
	}
	packet, err := net.ListenPacket(network, bind)
	if err != nil {
		return "", err
	}
	if verb != "udp" {
		a.packet = packet
		return "ok", nil
	}
	defer packet.Close()
	return ask(packet, address)
}

// ask sends a datagram and returns the answer and who it seems to be from.
func ask(packet net.PacketConn, address string) (string, error) {
	to, err := net.ResolveUDPAddr("udp", address)
	if err != nil {
		return "", err
	}
	_ = packet.SetDeadline(time.Now().Add(agentTimeout))
	if _, err := packet.WriteTo([]byte("?"), to); err != nil {
		return "", err
	}
	buf := make([]byte, 2048)
	n, from, err := packet.ReadFrom(buf)
	return fmt.Sprintf("%s from=%v", strings.TrimSpace(string(buf[:n])), from), err
}

func (a *agentState) connected(verb, address string) (string, error) {
	network := "udp"
	if verb == "keep" {
		network = "tcp"
	}
	conn, err := net.DialTimeout(network, address, agentTimeout)
	if err != nil {
		return "", err
	}
	if verb == "udp-connected" {
		defer conn.Close()
		return exchange(conn)
	}
	a.conn = conn
	if verb == "keep" {
		_ = conn.SetDeadline(time.Now().Add(agentTimeout))
		return firstLineOf(conn)
	}
	return "ok", nil
}

func exchange(conn net.Conn) (string, error) {
	_ = conn.SetDeadline(time.Now().Add(agentTimeout))
	if _, err := conn.Write([]byte("?\n")); err != nil {
		return "", err
	}
	return firstLineOf(conn)
}

func firstLineOf(conn net.Conn) (string, error) {
	buf := make([]byte, 2048)
	n, err := conn.Read(buf)
	return fmt.Sprintf("%s peer=%s", strings.TrimSpace(string(buf[:n])), conn.RemoteAddr()), err
}

// answer waits for a datagram and sends it back.
func (a *agentState) answer() (string, error) {
	_ = a.packet.SetDeadline(time.Now().Add(patience))
	buf := make([]byte, 2048)
	n, from, err := a.packet.ReadFrom(buf)
	if err == nil {
		_, err = a.packet.WriteTo(buf[:n], from)
	}
	return fmt.Sprint("answered ", from), err
}

// curlMany runs curl many times at once and counts those that were told their
// own pid.
func curlMany(address, many string) (string, error) {
	n, err := strconv.Atoi(many)
	if err != nil {
		return "", err
	}
	answers := make(chan error)
	for range n {
		go func() {
			cmd := exec.Command("curl", "-s", "-m", "15", "--http0.9", "http://"+address)
			out, err := cmd.CombinedOutput()
			if own := fmt.Sprintf("pid=%d name=curl ", cmd.ProcessState.Pid()); err == nil && !strings.Contains(string(out), own) {
				err = fmt.Errorf("got %q, want %q", out, own)
			}
			answers <- err
		}()
	}
	right := 0
	for range n {
		if e := <-answers; e != nil {
			err = e
		} else {
			right++
		}
	}
	return fmt.Sprint(right, " right"), err
}
