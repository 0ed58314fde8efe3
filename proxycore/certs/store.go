package certs

import (
	"container/list"
	"crypto"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"
)

const refreshAfter = 7 * day // a cached leaf is minted anew

// StoreConfig configures a Store.
type StoreConfig struct {
	CA         *CA              // required
	MaxEntries int              // minted leaves that are kept; 0 is 1000
	Logger     *slog.Logger     // for warnings about custom certificates; nil discards
	Now        func() time.Time // nil is time.Now
}

// Store finds or mints the certificate for a request. When the CA or an option it rests on
// changes, a new Store takes its place (CERT-08). It is safe for concurrent use.
type Store struct {
	cfg      StoreConfig
	ecdsaKey crypto.Signer
	rsaKey   func() (crypto.Signer, error)

	mu     sync.Mutex
	custom map[string]*tls.Certificate // by canonical name, wildcard, or "*"
	leaves map[cacheKey]*list.Element
	recent *list.List // of *leafEntry, most recently used first
}

type cacheKey [sha256.Size]byte

// leafEntry is one minted leaf, or one being minted: Once makes those who
// want the same one wait for the first.
type leafEntry struct {
	key   cacheKey
	stale time.Time
	once  sync.Once
	cert  *tls.Certificate
	err   error
}

// NewStore makes an empty store with a new ECDSA key for its leaves. The RSA
// key, which takes a moment, is made when the first client needs it.
func NewStore(cfg StoreConfig) (*Store, error) {
	if cfg.CA == nil {
		return nil, errors.New("certificate store needs a ca")
	}
	if cfg.MaxEntries <= 0 {
		cfg.MaxEntries = 1000
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	key, err := newKey(true, 0)
	if err != nil {
		return nil, err
	}
	return &Store{
		cfg:      cfg,
		ecdsaKey: key,
		rsaKey:   sync.OnceValues(func() (crypto.Signer, error) { return newKey(false, 2048) }),
		custom:   make(map[string]*tls.Certificate),
		leaves:   make(map[cacheKey]*list.Element),
		recent:   list.New(),
	}, nil
}

// Get returns the certificate for a request: a custom one for any of its names
// (CERT-16), else a minted one. The result is shared and must not be changed. The error wraps
// ErrNoNames if neither exists nor can exist.
func (s *Store) Get(r Request) (*tls.Certificate, error) {
	names := canonicalNames(r.Names, maxNames, maxNameBytes)
	if cert := s.findCustom(names); cert != nil {
		return cert, nil
	}
	if len(names) == 0 {
		return nil, fmt.Errorf("%w (%d given)", ErrNoNames, len(r.Names))
	}
	if r.KeyType != KeyRSA {
		r.KeyType = KeyECDSA
	}
	entry := s.entry(names, r)
	entry.once.Do(func() { s.fill(entry, names, r) })
	if entry.cert == nil && entry.err == nil {
		return nil, fmt.Errorf("certificate for %s could not be minted", names[0]) // a panic in fill
	}
	return entry.cert, entry.err
}

// Len returns how many minted leaves are kept.
func (s *Store) Len() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.recent.Len()
}

func (s *Store) findCustom(names []string) *tls.Certificate {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.custom) == 0 {
		return nil
	}
	for _, name := range names {
		for _, form := range lookupForms(name) {
			if cert := s.custom[form]; cert != nil {
				return cert
			}
		}
	}
	return s.custom["*"]
}

// entry finds the cached leaf or makes room for a new one.
func (s *Store) entry(names []string, r Request) *leafEntry {
	key := keyOf(names, r)
	now := s.cfg.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	if element := s.leaves[key]; element != nil {
		entry := element.Value.(*leafEntry)
		if now.Before(entry.stale) {
			s.recent.MoveToFront(element)
			return entry
		}
		s.remove(element)
	}
	for s.recent.Len() >= s.cfg.MaxEntries {
		s.remove(s.recent.Back())
	}
	_, end := s.cfg.CA.leafValidity(now)
	entry := &leafEntry{key: key, stale: now.Add(refreshAfter)}
	if end.Before(entry.stale) {
		entry.stale = end
	}
	s.leaves[key] = s.recent.PushFront(entry)
	return entry
}

// fill mints the leaf of an entry; a failed one is not kept.
func (s *Store) fill(entry *leafEntry, names []string, r Request) {
	defer func() {
		if entry.cert != nil {
			return
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		if element := s.leaves[entry.key]; element != nil && element.Value == entry {
			s.remove(element)
		}
	}()
	key, err := s.ecdsaKey, error(nil)
	if r.KeyType == KeyRSA {
		key, err = s.rsaKey()
	}
	if err != nil {
		entry.err = err
		return
	}
	entry.cert, entry.err = s.cfg.CA.mint(names, r, key, s.cfg.Now())
}

// remove forgets an element. The caller holds mu.
func (s *Store) remove(element *list.Element) {
	delete(s.leaves, element.Value.(*leafEntry).key)
	s.recent.Remove(element)
}

// keyOf identifies what makes leaves differ. Canonical names hold no line end.
func keyOf(names []string, r Request) cacheKey {
	h := sha256.New()
	for _, name := range names {
		fmt.Fprintln(h, name)
	}
	fmt.Fprintf(h, "%d %q %q", r.KeyType, r.Organization, r.CRL)
	return cacheKey(h.Sum(nil))
}
