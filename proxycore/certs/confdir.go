package certs

import (
	"bytes"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// The files of the configuration directory (CERT-04).
const (
	FileCA      = "mitmproxy-ca.pem"      // private key, then certificate; mode 0600
	FileCAP12   = "mitmproxy-ca.p12"      // both, no password; mode 0600; written at creation only
	FileCertPEM = "mitmproxy-ca-cert.pem" // certificate
	FileCertCER = "mitmproxy-ca-cert.cer" // the same PEM text, for Android
	FileCertP12 = "mitmproxy-ca-cert.p12" // certificate, no password, for Windows
)

// Config says where the CA lives and what a new one looks like.
type Config struct {
	Dir        string           // configuration directory, created with mode 0700 if missing; required
	Name       string           // CN and O of a new CA; "" is DefaultName
	KeyType    KeyType          // of a new CA; the zero value is RSA
	KeyBits    int              // RSA key size of a new CA: 2048 to 8192; 0 is 2048
	Passphrase string           // of an encrypted key in FileCA; "" is none
	Logger     *slog.Logger     // nil discards
	Now        func() time.Time // nil is time.Now
}

func (cfg Config) withDefaults() (Config, error) {
	if cfg.Dir == "" {
		return cfg, errors.New("no configuration directory for the ca given: set confdir")
	}
	if cfg.Name == "" {
		cfg.Name = DefaultName
	}
	if cfg.KeyBits == 0 {
		cfg.KeyBits = 2048
	}
	if cfg.KeyBits < 2048 || cfg.KeyBits > 8192 {
		return cfg, fmt.Errorf("key_size %d is not supported: clients accept 2048 to 8192", cfg.KeyBits)
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return cfg, nil
}

func (cfg Config) path(name string) string { return filepath.Join(cfg.Dir, name) }

// LoadOrCreate loads the CA from cfg.Dir, or creates it with all its files if FileCA is
// missing. Several processes may do so at once: one creates, the others load. Missing
// public files are written. Problems that leave the CA usable (expired, stale public
// files, a key that others may read and whose mode cannot be changed) are logged.
func LoadOrCreate(cfg Config) (*CA, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("create configuration directory: %w", err)
	}
	ca, err := load(cfg)
	if errors.Is(err, fs.ErrNotExist) {
		ca, err = createLocked(cfg)
	}
	if err != nil {
		return nil, err
	}
	if err := ca.Check(cfg.Now()); err != nil {
		cfg.Logger.Warn("ca certificate has a problem", "path", cfg.path(FileCA), "err", err)
	}
	writePublicFiles(cfg, ca)
	return ca, nil
}

// load reads FileCA. The error wraps fs.ErrNotExist if it is missing.
func load(cfg Config) (*CA, error) {
	b, err := loadBundle(cfg)
	if err != nil {
		return nil, err
	}
	return &CA{Certificate: b.certs[0], Chain: b.certs[1:], key: b.key}, nil
}

// loadBundle reads FileCA and checks that it holds a key with its certificate.
func loadBundle(cfg Config) (*bundle, error) {
	path := cfg.path(FileCA)
	if err := protect(cfg, path); err != nil {
		return nil, err
	}
	data, err := readLimited(path)
	if err != nil {
		return nil, fmt.Errorf("read ca: %w", err)
	}
	b, err := parseBundle(data, cfg.Passphrase)
	switch {
	case err != nil:
		return nil, fmt.Errorf("read ca from %s: %w", path, err)
	case len(b.certs) == 0 || b.key == nil:
		return nil, fmt.Errorf("read ca from %s: the file must hold a private key and its certificate", path)
	case !publicKeysEqual(b.key.Public(), b.certs[0].PublicKey):
		return nil, fmt.Errorf("read ca from %s: private key and first certificate do not match", path)
	}
	if b.chainErr != nil {
		cfg.Logger.Warn("rest of the ca chain is left out", "path", path, "err", b.chainErr)
	}
	return b, nil
}

// createLocked creates the CA unless another process was faster.
func createLocked(cfg Config) (*CA, error) {
	unlock, err := lockDir(cfg)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if ca, err := load(cfg); !errors.Is(err, fs.ErrNotExist) {
		return ca, err
	}
	ca, err := newCA(cfg, nil, cfg.Now())
	if err != nil {
		return nil, err
	}
	if err := writePrivateFiles(cfg, ca, nil); err != nil {
		return nil, err
	}
	return ca, nil
}

// writePrivateFiles writes FileCA, and FileCAP12 unless the key shall stay in
// keyPEM's form (nil is PKCS#1 or PKCS#8, unencrypted).
func writePrivateFiles(cfg Config, ca *CA, keyPEM *pem.Block) error {
	if keyPEM == nil {
		p12, err := ca.PrivateP12("")
		if err != nil {
			return err
		}
		if err := writeFile(cfg, FileCAP12, p12, 0o600); err != nil {
			return err
		}
		if keyPEM, err = keyBlock(ca.key); err != nil {
			return err
		}
	}
	return writeFile(cfg, FileCA, append(pem.EncodeToMemory(keyPEM), ca.PEM()...), 0o600)
}

// writePublicFiles writes those public files that are missing and says which
// ones belong to another CA. A directory that cannot be written is no obstacle.
func writePublicFiles(cfg Config, ca *CA) {
	for _, name := range []string{FileCertPEM, FileCertCER} {
		present, err := readLimited(cfg.path(name))
		if err == nil && !samePEM(present, ca.Certificate.Raw) {
			cfg.Logger.Warn("public file belongs to another ca, delete it to have it written anew", "path", cfg.path(name))
		}
		if errors.Is(err, fs.ErrNotExist) {
			logWrite(cfg, name, ca.PEM())
		}
	}
	if _, err := os.Stat(cfg.path(FileCertP12)); errors.Is(err, fs.ErrNotExist) {
		p12, err := ca.P12()
		if err != nil {
			cfg.Logger.Warn("pkcs#12 file cannot be made", "err", err)
			return
		}
		logWrite(cfg, FileCertP12, p12)
	}
}

func samePEM(text, der []byte) bool {
	block, _ := pem.Decode(text)
	return block != nil && bytes.Equal(block.Bytes, der)
}

func logWrite(cfg Config, name string, data []byte) {
	if err := writeFile(cfg, name, data, 0o644); err != nil {
		cfg.Logger.Warn("public ca file cannot be written", "err", err)
	}
}

// writeFile puts a whole file in place at once, so that nobody sees half of it.
func writeFile(cfg Config, name string, data []byte, mode fs.FileMode) error {
	f, err := os.CreateTemp(cfg.Dir, "."+name+"-*.tmp") // mode 0600
	if err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), cfg.path(name))
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", name, errors.Join(err, os.Remove(f.Name())))
	}
	return nil
}

// lockDir takes an exclusive lock on the directory, waiting for it if need be, and
// removes the private keys that a crashed holder of the lock left behind.
func lockDir(cfg Config) (unlock func(), err error) {
	d, err := os.Open(cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("lock configuration directory: %w", err)
	}
	for {
		if err = syscall.Flock(int(d.Fd()), syscall.LOCK_EX); !errors.Is(err, syscall.EINTR) {
			break
		}
	}
	if err != nil {
		d.Close()
		return nil, fmt.Errorf("lock configuration directory %s: %w", cfg.Dir, err)
	}
	for _, name := range []string{FileCA, FileCAP12} {
		left, _ := filepath.Glob(cfg.path("." + name + "-*.tmp")) // the pattern is well-formed
		for _, path := range left {
			if err := os.Remove(path); err != nil {
				cfg.Logger.Warn("left-over private key cannot be removed", "path", path, "err", err)
			}
		}
	}
	return func() { d.Close() }, nil // closing releases the lock
}

// protect takes access to the CA file from other users. It fails if others could replace
// or change the key; a key that they can merely read and that
// is not ours to repair is logged. Reading by the group is accepted.
func protect(cfg Config, path string) error {
	const foreign, writable = 0o037, 0o022
	dir, err := os.Stat(cfg.Dir)
	if err != nil {
		return fmt.Errorf("check configuration directory: %w", err)
	}
	if m := dir.Mode(); m.Perm()&writable != 0 && m&fs.ModeSticky == 0 {
		if err := os.Chmod(cfg.Dir, m.Perm()&^writable); err != nil {
			return fmt.Errorf("other users could replace the ca in %s: run chmod go-w on it (%w)", cfg.Dir, err)
		}
		cfg.Logger.Warn("configuration directory was writable for others, corrected", "path", cfg.Dir)
	}
	file, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("read ca: %w", err)
	}
	perm := file.Mode().Perm()
	if perm&foreign == 0 {
		return nil
	}
	err = os.Chmod(path, perm&^foreign)
	switch {
	case err != nil && perm&writable != 0:
		return fmt.Errorf("other users can change the private key in %s: run chmod 600 on it (%w)", path, err)
	case err != nil:
		cfg.Logger.Warn("other users can read the private key of the ca: run chmod 600 on it", "path", path, "err", err)
	default:
		cfg.Logger.Warn("private key of the ca was open to other users, corrected", "path", path)
	}
	return nil
}
