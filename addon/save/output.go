package save

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strings"

	"mitm-appliance/flow/flowfile"
)

// output is a file that only ever grows by whole flows.
type output struct {
	path string
	file *os.File
	end  int64 // size in whole flows; -1 for pipes and devices
}

// open opens path for writing flows, and makes its directory. Flows are secrets: others may not read
// new files. A file that is to be appended to must hold flows; the beginning of one that an earlier
// run could not finish is cut off, as flows behind it would be lost. cut is its length.
func open(path string, add bool) (out *output, cut int64, err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, 0, err
	}
	flags := os.O_RDWR | os.O_CREATE | os.O_APPEND
	if info, err := os.Stat(path); err == nil && !info.Mode().IsRegular() {
		flags = os.O_WRONLY // a pipe or device
	}
	if !add {
		flags |= os.O_TRUNC
	}
	file, err := os.OpenFile(path, flags, 0o600)
	if err != nil {
		return nil, 0, err
	}
	out = &output{path: path, file: file, end: -1}
	info, err := file.Stat()
	if err == nil && info.Mode().IsRegular() {
		cut, err = out.trim(info.Size())
	}
	if err != nil {
		return nil, 0, errors.Join(err, file.Close())
	}
	return out, cut, nil
}

// trim cuts what follows the last whole flow off.
func (o *output) trim(size int64) (cut int64, err error) {
	end, _, err := flowfile.Whole(o.file, size)
	if errors.Is(err, flowfile.ErrDamaged) {
		return 0, fmt.Errorf("%s holds something else than flows, so nothing is appended to it: choose another name: %w", o.path, err)
	}
	if err != nil {
		return 0, err
	}
	o.end = end
	if end == size {
		return 0, nil
	}
	return size - end, o.file.Truncate(end)
}

// write appends one flow with a single system call. After a failure the file ends with the flow
// before.
func (o *output) write(b []byte) error {
	n, err := o.file.Write(b)
	if err == nil {
		if o.end >= 0 {
			o.end += int64(n)
		}
		return nil
	}
	if o.end >= 0 && n > 0 {
		err = errors.Join(err, o.file.Truncate(o.end))
	}
	return err
}

// close makes sure that the flows are on the disk.
func (o *output) close() error {
	var err error
	if o.end >= 0 {
		err = o.file.Sync()
	}
	return errors.Join(err, o.file.Close())
}

// expandHome replaces a leading ~ or ~name by the home directory.
func expandHome(path string) (string, error) {
	if !strings.HasPrefix(path, "~") {
		return path, nil
	}
	name, rest, _ := strings.Cut(path[1:], "/")
	if name == "" {
		home, err := os.UserHomeDir()
		return filepath.Join(home, rest), err
	}
	u, err := user.Lookup(name)
	if err != nil {
		if _, statErr := os.Lstat(path); errors.Is(statErr, fs.ErrNotExist) {
			return "", err
		}
		return path, nil // a file that is called so
	}
	return filepath.Join(u.HomeDir, rest), nil
}
