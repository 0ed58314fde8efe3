//go:build linux

package capture

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// cgroupMount finds where the cgroup-v2 tree is mounted: /sys/fs/cgroup, or
// another place on hosts that keep version 1 beside it.
func cgroupMount() (string, error) {
	file, err := os.Open("/proc/self/mounts")
	if err != nil {
		return "", fmt.Errorf("capture: find the cgroup2 mount: %w", err)
	}
	defer file.Close()
	return findCgroupMount(file)
}

var errNoCgroup2 = errors.New("capture: no cgroup2 file system is mounted: mount -t cgroup2 none /sys/fs/cgroup/unified")

// findCgroupMount reads the text of /proc/self/mounts. The last mount wins, as it hides earlier ones.
func findCgroupMount(mounts io.Reader) (string, error) {
	found := ""
	scanner := bufio.NewScanner(mounts)
	for scanner.Scan() {
		fields := strings.Fields(scanner.Text())
		if len(fields) >= 3 && fields[2] == "cgroup2" {
			found = unescapeMount(fields[1])
		}
	}
	if err := scanner.Err(); err != nil {
		return "", fmt.Errorf("capture: find the cgroup2 mount: %w", err)
	}
	if found == "" {
		return "", errNoCgroup2
	}
	return found, nil
}

// unescapeMount undoes the \040 style of /proc/self/mounts.
func unescapeMount(text string) string {
	var out strings.Builder
	for i := 0; i < len(text); i++ {
		if text[i] == '\\' && i+3 < len(text) {
			if n, err := strconv.ParseUint(text[i+1:i+4], 8, 8); err == nil {
				out.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		out.WriteByte(text[i])
	}
	return out.String()
}

// cgroupID is the number of a cgroup: the inode of its directory.
func cgroupID(dir string) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return 0, fmt.Errorf("stat %s: %w", dir, err)
	}
	return st.Ino, nil
}

// kernfsHandle is the file handle type that holds a cgroup's id (FILEID_KERNFS).
const kernfsHandle = 0xfe

// cgroupPath is the path below mount of the cgroup with that id, "" when it is gone.
func cgroupPath(mount string, id uint64) string {
	dir, err := os.Open(mount)
	if err != nil {
		return ""
	}
	defer dir.Close()
	handle := unix.NewFileHandle(kernfsHandle, binary.NativeEndian.AppendUint64(nil, id))
	fd, err := unix.OpenByHandleAt(int(dir.Fd()), handle, unix.O_PATH|unix.O_CLOEXEC)
	if err != nil {
		return ""
	}
	defer unix.Close(fd)
	path, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
	if err != nil {
		return ""
	}
	rel, err := filepath.Rel(mount, path)
	if err != nil || strings.HasPrefix(rel, "..") {
		return ""
	}
	return filepath.Join("/", rel)
}
