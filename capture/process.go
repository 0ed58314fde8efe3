//go:build linux

package capture

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Process is a process of this host.
type Process struct {
	PID    int
	Name   string // the kernel's task name, or the program's file name where that is longer
	Exe    string // program file; "" when the process is gone or not ours to read
	UID    uint32 // real user id
	User   string // "" when the user has no name
	Cgroup string // path in the cgroup-v2 tree, "" when unknown
}

// Processes lists the running processes of this host except kernel threads
// (LOC-13). Processes that end meanwhile are left out.
func Processes() ([]Process, error) {
	users := &userNames{}
	var list []Process
	err := eachPID(func(pid int) {
		if p, ok := readProcess(pid, users); ok && p.Exe != "" {
			list = append(list, p)
		}
	})
	return list, err
}

func eachPID(f func(pid int)) error {
	dir, err := os.Open("/proc")
	if err != nil {
		return fmt.Errorf("capture: list processes: %w", err)
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	for _, name := range names {
		if pid, err := strconv.Atoi(name); err == nil {
			f(pid)
		}
	}
	if err != nil {
		return fmt.Errorf("capture: list processes: %w", err)
	}
	return nil
}

// readProcess reads what /proc says of a process; false when it is gone.
func readProcess(pid int, users *userNames) (Process, bool) {
	uid, comm, ok := readStatus(pid)
	if !ok {
		return Process{}, false
	}
	exe := readExe(pid)
	return Process{
		PID: pid, Name: fullName(comm, exe), Exe: exe,
		UID: uid, User: users.name(uid), Cgroup: readCgroup(pid),
	}, true
}

func procPath(pid int, name string) string {
	return "/proc/" + strconv.Itoa(pid) + "/" + name
}

func readStatus(pid int) (uid uint32, comm string, ok bool) {
	text, err := os.ReadFile(procPath(pid, "status"))
	if err != nil {
		return 0, "", false
	}
	comm, err = readComm(pid)
	if err != nil {
		return 0, "", false
	}
	for line := range bytes.Lines(text) {
		if rest, found := bytes.CutPrefix(line, []byte("Uid:")); found {
			fields := bytes.Fields(rest)
			if len(fields) == 0 {
				return 0, "", false
			}
			n, err := strconv.ParseUint(string(fields[0]), 10, 32)
			return uint32(n), comm, err == nil
		}
	}
	return 0, "", false
}

func readComm(pid int) (string, error) {
	text, err := os.ReadFile(procPath(pid, "comm"))
	return strings.TrimSuffix(string(text), "\n"), err
}

// readExe is the program file of a process, also when it was replaced since.
func readExe(pid int) string {
	exe, err := os.Readlink(procPath(pid, "exe"))
	if err != nil {
		return ""
	}
	return strings.TrimSuffix(exe, " (deleted)")
}

func readCgroup(pid int) string {
	text, err := os.ReadFile(procPath(pid, "cgroup"))
	if err != nil {
		return ""
	}
	for line := range bytes.Lines(text) {
		if path, found := bytes.CutPrefix(line, []byte("0::")); found {
			return strings.TrimSuffix(string(path), "\n")
		}
	}
	return ""
}

// fullName undoes the kernel's cut of a task name where the program's file
// name begins with it.
func fullName(comm, exe string) string {
	if base := filepath.Base(exe); len(comm) == commLen && strings.HasPrefix(base, comm) {
		return base
	}
	return comm
}

// programs maps program files to the processes that run them.
func programs() (map[string][]uint32, error) {
	exes := map[string][]uint32{}
	err := eachPID(func(pid int) {
		if exe := readExe(pid); exe != "" {
			exes[exe] = append(exes[exe], uint32(pid))
		}
	})
	return exes, err
}

// fileID is a file as the kernel numbers it inside: its device numbers are
// packed differently from those of stat(2).
func fileID(path string) (dev, inode uint64, err error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, 0, fmt.Errorf("stat %s: %w", path, err)
	}
	return uint64(unix.Major(st.Dev))<<20 | uint64(unix.Minor(st.Dev)), st.Ino, nil
}

// sockets calls f for each open socket of a process, with the descriptor's
// number in that process and the socket's inode.
func sockets(pid int, f func(fd int, inode uint32)) {
	dir, err := os.Open(procPath(pid, "fd"))
	if err != nil {
		return
	}
	defer dir.Close()
	for {
		names, err := dir.Readdirnames(256)
		for _, name := range names {
			link, err := os.Readlink(filepath.Join(dir.Name(), name))
			if err != nil {
				continue
			}
			digits, ok := strings.CutPrefix(link, "socket:[")
			if !ok {
				continue
			}
			inode, err1 := strconv.ParseUint(strings.TrimSuffix(digits, "]"), 10, 32)
			fd, err2 := strconv.Atoi(name)
			if err1 == nil && err2 == nil {
				f(fd, uint32(inode))
			}
		}
		if err != nil || err == io.EOF {
			return
		}
	}
}
