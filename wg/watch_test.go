package wg

import (
	"bytes"
	"log/slog"
	"os"
	"strings"
	"sync"
	"testing"
	"time"
)

// lockedBuffer is a log that can be read while it is written.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !condition(); {
		if time.Now().After(deadline) {
			t.Fatalf("%s did not happen", what)
		}
		time.Sleep(time.Millisecond)
	}
}

func TestEditedFileTakesEffectLive(t *testing.T) {
	path := write(t, mitmproxys, 0o600)
	f, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	var log lockedBuffer
	s, err := New(Config{
		File: f, WatchPath: path, WatchInterval: time.Millisecond, Bind: newHub().bind(),
		Logger: slog.New(slog.NewTextHandler(&log, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	names := func() string {
		peers, err := s.Peers()
		if err != nil {
			t.Fatal(err)
		}
		var list []string
		for _, p := range peers {
			list = append(list, p.Name)
		}
		return strings.Join(list, " ")
	}
	var phone PeerConfig
	err = Update(path, func(f *File) (err error) { phone, err = f.AddPeer(PeerConfig{Name: "phone"}); return err })
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "adding the phone", func() bool { return names() == "client phone" })
	if p, ok := s.Peer(phone.Addresses[0].Addr()); !ok || p.Name != "phone" {
		t.Errorf("the phone's address belongs to %+v", p)
	}

	if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a warning about the bad file", func() bool {
		return strings.Contains(log.String(), "invalid configuration file "+path)
	})
	if got := names(); got != "client phone" {
		t.Errorf("after the bad file the peers are %q", got)
	}

	if err := f.Save(path); err != nil {
		t.Fatal(err)
	}
	eventually(t, "removing the phone", func() bool { return names() == "client" })
	if _, ok := s.Peer(phone.Addresses[0].Addr()); ok {
		t.Error("the removed phone's address has an owner")
	}
	if strings.Contains(log.String(), phone.PrivateKey.Base64()) {
		t.Error("a private key was logged")
	}
}
