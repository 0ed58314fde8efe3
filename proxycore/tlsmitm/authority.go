package tlsmitm

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync/atomic"

	"mitm-appliance/option"
	"mitm-appliance/proxycore/certs"
)

// AuthorityConfig says where the certificates come from.
type AuthorityConfig struct {
	Registry *option.Registry // told about changes; required
	Options  *Options         // required
	ConfDir  option.String    // the option that names the directory of the CA
	Logger   *slog.Logger     // nil discards
}

// Authority is the CA with its certificate store as the options certs, cert_passphrase, key_size and
// confdir describe them. When one of these changes both are made anew, and generated certificates
// are dropped (CERT-08). It is safe for concurrent use.
type Authority struct {
	cfg     AuthorityConfig
	current atomic.Pointer[loaded]
}

type loaded struct {
	ca    *certs.CA
	store *certs.Store
}

// OpenAuthority loads the CA, or creates it. From then on a change of an option that cannot be
// carried out is rejected.
func OpenAuthority(cfg AuthorityConfig) (*Authority, error) {
	if cfg.Registry == nil || cfg.Options == nil {
		return nil, errors.New("tlsmitm: Registry and Options are required")
	}
	a := &Authority{cfg: cfg}
	if err := a.load(); err != nil {
		return nil, err
	}
	names := []string{"certs", "cert_passphrase", "key_size", "confdir"}
	cfg.Registry.Subscribe(func(changed []string) error {
		if !slices.ContainsFunc(changed, func(name string) bool { return slices.Contains(names, name) }) {
			return nil
		}
		return a.load()
	})
	return a, nil
}

// CA returns the current certificate authority.
func (a *Authority) CA() *certs.CA { return a.current.Load().ca }

// Store returns the current source of leaf certificates; it fits Config.Store.
func (a *Authority) Store() *certs.Store { return a.current.Load().store }

func (a *Authority) load() error {
	o := a.cfg.Options
	passphrase := o.CertPassphrase.Text()
	ca, err := certs.LoadOrCreate(certs.Config{
		Dir: expand(a.cfg.ConfDir.Get()), KeyBits: o.KeySize.Get(), Passphrase: passphrase, Logger: a.cfg.Logger,
	})
	if err != nil {
		return err
	}
	store, err := certs.NewStore(certs.StoreConfig{CA: ca, Logger: a.cfg.Logger})
	if err != nil {
		return err
	}
	for _, spec := range o.Certs.Get() {
		if err := store.AddCustom(spec, passphrase); err != nil {
			return fmt.Errorf("option certs: %w", err)
		}
	}
	a.current.Store(&loaded{ca, store})
	return nil
}
