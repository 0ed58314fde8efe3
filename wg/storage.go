package wg

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// FileError is a configuration file that cannot be used, and why.
type FileError struct {
	Path string
	Err  error
}

func (e *FileError) Error() string {
	return fmt.Sprintf("invalid configuration file %s: %v", e.Path, e.Err)
}

// Unwrap returns the cause.
func (e *FileError) Unwrap() error { return e.Err }

// ErrReadable is the cause of a FileError for a file others may read.
var ErrReadable = errors.New("it holds private keys, but other users may read it")

const (
	fileMode   = 0o600
	othersMode = 0o077
)

// Load reads a configuration file. A file that its group or others may access is
// refused with the command that cures it. The exception is a file that mitmproxy
// wrote, which never sets a mode: Load takes these rights away and goes on.
// A missing file is reported as fs.ErrNotExist.
func Load(path string) (*File, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open WireGuard configuration: %w", err)
	}
	defer file.Close()
	return read(path, file)
}

func read(path string, file *os.File) (*File, error) {
	info, err := file.Stat()
	if err != nil {
		return nil, &FileError{path, err}
	}
	if !info.Mode().IsRegular() {
		return nil, &FileError{path, errors.New("it is not a regular file")}
	}
	data, err := io.ReadAll(io.LimitReader(file, maxFileSize+1))
	if err != nil {
		return nil, &FileError{path, err}
	}
	f, err := ParseFile(data)
	if err != nil {
		return nil, &FileError{path, err}
	}
	if info.Mode().Perm()&othersMode != 0 {
		if !isMitmproxys(f) || file.Chmod(fileMode) != nil {
			return nil, &FileError{path, fmt.Errorf("%w: chmod 600 %s", ErrReadable, path)}
		}
	}
	return f, nil
}

// isMitmproxys reports whether f says nothing beyond what mitmproxy writes.
func isMitmproxys(f *File) bool {
	return len(f.Peers) == 1 && f.isMitmproxyPeer(f.Peers[0]) &&
		f.ListenPort == 0 && f.Endpoint == ""
}

// isMitmproxyPeer reports whether p is the peer derived from client_key.
func (f *File) isMitmproxyPeer(p PeerConfig) bool {
	return !f.ClientKey.IsZero() && p.PublicKey == f.ClientKey.Public() &&
		len(p.Addresses) == 1 && p.Addresses[0] == mitmproxyAddress
}

// LoadOrCreate is Load, but a missing file is created with fresh keys and one
// peer. created says which it was.
func LoadOrCreate(path string) (f *File, created bool, err error) {
	f, err = Load(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return f, false, err
	}
	if f, err = NewFile(); err != nil {
		return nil, false, err
	}
	return f, true, f.Save(path)
}

// Save writes the file with mode 0600 so that a reader, or a crash at any
// moment, sees either the old content or the new. An existing file keeps its
// owner; a symbolic link keeps pointing where it points.
func (f *File) Save(path string) error {
	data, err := f.Marshal()
	if err != nil {
		return &FileError{path, err}
	}
	if target, err := filepath.EvalSymlinks(path); err == nil {
		path = target
	}
	if err := replace(path, data); err != nil {
		return fmt.Errorf("save WireGuard configuration %s: %w", path, err)
	}
	return nil
}

func replace(path string, data []byte) error {
	dir := filepath.Dir(path)
	temp, err := os.CreateTemp(dir, "."+filepath.Base(path)+".*") // mode 0600
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(temp.Name()) }() // fails after the rename, as it should
	defer temp.Close()
	if err := keepOwner(path, temp); err != nil {
		return err
	}
	if _, err := temp.Write(data); err != nil {
		return err
	}
	if err := temp.Sync(); err != nil {
		return err
	}
	if err := os.Rename(temp.Name(), path); err != nil {
		return err
	}
	return syncDir(dir)
}

// keepOwner gives temp the owner of path: root may edit the file of a service
// that runs as another user.
func keepOwner(path string, temp *os.File) error {
	info, err := os.Stat(path)
	if err != nil || os.Geteuid() != 0 {
		return nil //nolint:nilerr // no file, or not the right to give it away
	}
	if owner, ok := info.Sys().(*syscall.Stat_t); ok {
		return temp.Chown(int(owner.Uid), int(owner.Gid))
	}
	return nil
}

// syncDir makes a rename within dir durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// Update loads the file (creating it when missing), lets change edit it and
// saves it. Concurrent updates, of other processes too, run one after the other.
// When change fails, nothing is written.
func Update(path string, change func(*File) error) error {
	if _, _, err := LoadOrCreate(path); err != nil {
		return err
	}
	file, err := openLocked(path)
	if err != nil {
		return fmt.Errorf("lock WireGuard configuration: %w", err)
	}
	defer file.Close() // and unlocks
	f, err := read(path, file)
	if err != nil {
		return err
	}
	if err := change(f); err != nil {
		return err
	}
	return f.Save(path)
}

// openLocked opens path under an exclusive lock. Whoever held the lock before
// may have replaced the file, so a lock counts only on the file at path.
func openLocked(path string) (*os.File, error) {
	for {
		file, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		if err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX); err != nil {
			file.Close()
			return nil, err
		}
		locked, err1 := file.Stat()
		current, err2 := os.Stat(path)
		if err := errors.Join(err1, err2); err != nil {
			file.Close()
			return nil, err
		}
		if os.SameFile(locked, current) {
			return file, nil
		}
		file.Close()
	}
}
