package certs

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
)

// KeyLogPath returns where TLS secrets shall be logged: the value of
// MITMPROXY_SSLKEYLOGFILE, else of SSLKEYLOGFILE, else "" for nowhere (TLS-39).
func KeyLogPath(getenv func(string) string) string {
	if path := getenv("MITMPROXY_SSLKEYLOGFILE"); path != "" {
		return path
	}
	return getenv("SSLKEYLOGFILE")
}

// KeyLog is a tls.Config.KeyLogWriter that appends to a file in NSS format. Each
// Write goes to the file as whole lines in one system call, so connections and even other
// processes may share it. It is safe for concurrent use.
type KeyLog struct {
	logger *slog.Logger

	mu     sync.Mutex
	file   *os.File
	failed bool // the last write did not succeed
}

// OpenKeyLog opens or creates (mode 0600) the file, and its directory (mode 0700) if
// missing. A nil logger discards.
func OpenKeyLog(path string, logger *slog.Logger) (*KeyLog, error) {
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("create directory for the tls key log: %w", err)
	}
	file, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open tls key log: %w", err)
	}
	return &KeyLog{logger: logger, file: file}, nil
}

// Write appends lines. It never fails, because crypto/tls would then fail the handshake:
// a full disk costs secrets, not connections. The first of a series of failures
// is logged.
func (k *KeyLog) Write(lines []byte) (int, error) {
	if len(lines) == 0 {
		return 0, nil
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	out := make([]byte, 0, len(lines)+2)
	if k.failed {
		out = append(out, '\n') // ends a line that was cut off
	}
	out = append(out, lines...)
	if out[len(out)-1] != '\n' {
		out = append(out, '\n')
	}
	_, err := k.file.Write(out)
	if err != nil && !k.failed {
		k.logger.Warn("tls secrets cannot be logged", "err", err)
	}
	k.failed = err != nil
	return len(lines), nil
}

// Close closes the file. Later writes are dropped.
func (k *KeyLog) Close() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.file.Close()
}
