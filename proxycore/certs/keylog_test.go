package certs

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

func TestKeyLogPath(t *testing.T) {
	tests := []struct {
		env  map[string]string
		want string
	}{
		{map[string]string{}, ""},
		{map[string]string{"SSLKEYLOGFILE": "a"}, "a"},
		{map[string]string{"MITMPROXY_SSLKEYLOGFILE": "b", "SSLKEYLOGFILE": "a"}, "b"},
	}
	for _, test := range tests {
		if got := KeyLogPath(func(name string) string { return test.env[name] }); got != test.want {
			t.Errorf("KeyLogPath(%v) = %q, want %q", test.env, got, test.want)
		}
	}
}

func TestKeyLogWritesWholeLines(t *testing.T) {
	path := filepath.Join(t.TempDir(), "new", "keys.log")
	logs := make([]*KeyLog, 2) // as two processes would have
	for i := range logs {
		var err error
		if logs[i], err = OpenKeyLog(path, nil); err != nil {
			t.Fatal(err)
		}
	}
	var group sync.WaitGroup
	for i := range 20 {
		group.Go(func() {
			for range 50 {
				line := fmt.Sprintf("CLIENT_RANDOM %s %s\n", strings.Repeat(fmt.Sprintf("%02x", i), 32), strings.Repeat("ab", 48))
				if n, err := logs[i%2].Write([]byte(line)); n != len(line) || err != nil {
					t.Errorf("Write = %d, %v", n, err)
				}
			}
		})
	}
	group.Wait()
	for _, k := range logs {
		if err := k.Close(); err != nil {
			t.Error(err)
		}
	}
	lines := strings.Split(strings.TrimSuffix(string(readFile(t, path)), "\n"), "\n")
	if len(lines) != 1000 {
		t.Errorf("%d lines, want 1000", len(lines))
	}
	for _, line := range lines {
		if len(line) != 14+64+1+96 {
			t.Fatalf("broken line %q", line)
		}
	}
	if info, _ := os.Stat(path); info.Mode().Perm() != 0o600 {
		t.Errorf("mode is %v", info.Mode())
	}
}

func TestKeyLogOfAHandshake(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keys.log")
	k, err := OpenKeyLog(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	cert := get(t, testStore(t, StoreConfig{}), Request{Names: []string{"a.example"}})
	if _, err := handshake(t, cert, &tls.Config{InsecureSkipVerify: true, KeyLogWriter: k}); err != nil {
		t.Fatal(err)
	}
	if text := string(readFile(t, path)); !strings.Contains(text, "CLIENT_TRAFFIC_SECRET_0 ") || !strings.HasSuffix(text, "\n") {
		t.Errorf("key log is %q", text)
	}
}

func TestFullDiskDoesNotFailHandshakes(t *testing.T) {
	var log bytes.Buffer
	k, err := OpenKeyLog("/dev/full", logTo(&log))
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	for range 3 {
		if n, err := k.Write([]byte("line\n")); n != 5 || err != nil {
			t.Errorf("Write = %d, %v", n, err)
		}
	}
	if got := strings.Count(log.String(), "tls secrets cannot be logged"); got != 1 {
		t.Errorf("%d warnings, want 1: %s", got, log.String())
	}
}
