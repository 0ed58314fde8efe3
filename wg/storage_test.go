package wg

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

func write(t *testing.T, text string, mode fs.FileMode) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "wireguard.conf")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
	return path
}

func mode(t *testing.T, path string) fs.FileMode {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Mode().Perm()
}

func TestMissingFileIsCreatedOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "wireguard.conf")
	first, created, err := LoadOrCreate(path)
	if err != nil || !created {
		t.Fatalf("created %v, error %v", created, err)
	}
	if got := mode(t, path); got != 0o600 {
		t.Errorf("mode is %o, want 600", got)
	}
	second, created, err := LoadOrCreate(path)
	if err != nil || created || second.ServerKey != first.ServerKey {
		t.Errorf("second time: created %v, error %v", created, err)
	}
}

func TestFileThatOthersReadIsRefused(t *testing.T) {
	path := write(t, `{"server_key":"`+serverKey+`"}`, 0o640)
	_, err := Load(path)
	if !errors.Is(err, ErrReadable) || !strings.Contains(err.Error(), "chmod 600 "+path) {
		t.Errorf("error is %v, want the chmod that cures it", err)
	}
}

func TestMitmproxysFileIsMadePrivate(t *testing.T) {
	path := write(t, mitmproxys, 0o644)
	if _, err := Load(path); err != nil {
		t.Fatal(err)
	}
	if got := mode(t, path); got != 0o600 {
		t.Errorf("mode is %o, want 600", got)
	}
	if data, _ := os.ReadFile(path); string(data) != mitmproxys {
		t.Errorf("its text changed to %s", data)
	}
}

func TestBadFileNamesItself(t *testing.T) {
	path := write(t, `{"server_key":`, 0o600)
	_, err := Load(path)
	var bad *FileError
	if !errors.As(err, &bad) || bad.Path != path {
		t.Fatalf("error is %v, want a FileError", err)
	}
	if want := "invalid configuration file " + path + ": "; !strings.HasPrefix(err.Error(), want) {
		t.Errorf("error is %q, want it to start with %q", err, want)
	}
	if _, err := Load(t.TempDir()); !errors.As(err, &bad) {
		t.Errorf("a directory gives %v", err)
	}
	if _, err := Load(path + "x"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a missing file gives %v", err)
	}
}

func TestSaveFollowsALink(t *testing.T) {
	path := write(t, mitmproxys, 0o600)
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(path, link); err != nil {
		t.Fatal(err)
	}
	if err := Update(link, func(f *File) error { _, err := f.AddPeer(PeerConfig{Name: "phone"}); return err }); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Lstat(link); err != nil || info.Mode()&fs.ModeSymlink == 0 {
		t.Errorf("the link was replaced: %v, %v", info.Mode(), err)
	}
	if f, err := Load(path); err != nil || len(f.Peers) != 2 {
		t.Errorf("the target has %v, error %v", f, err)
	}
}

func TestFailedUpdateWritesNothing(t *testing.T) {
	path := write(t, mitmproxys, 0o600)
	boom := errors.New("boom")
	err := Update(path, func(f *File) error { f.Peers = nil; return boom })
	if data, _ := os.ReadFile(path); !errors.Is(err, boom) || string(data) != mitmproxys {
		t.Errorf("error %v, text %s", err, data)
	}
	err = Update(path, func(f *File) error { f.Peers[0].Addresses = nil; return nil })
	if data, _ := os.ReadFile(path); err == nil || string(data) != mitmproxys {
		t.Errorf("error %v, text %s", err, data)
	}
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(entries) != 1 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
}

func TestConcurrentUpdatesLoseNothing(t *testing.T) {
	path := write(t, mitmproxys, 0o600)
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			err := Update(path, func(f *File) error {
				_, err := f.AddPeer(PeerConfig{Name: fmt.Sprintf("peer %d", i)})
				return err
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	f, err := Load(path)
	if err != nil || len(f.Peers) != 21 {
		t.Fatalf("%d peers, want 21; error %v", len(f.Peers), err)
	}
}
