package tlsmitm

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// settings are the options in the form that handshakes use. They are immutable: a change of an option
// makes new ones, so that their address tells whether anything changed.
type settings struct {
	client, server leg
	insecure       bool
	upstreamCA     bool
	requestCert    bool
	roots          *x509.CertPool   // nil trusts the platform's store only
	clientCert     *tls.Certificate // for all servers; nil is none
	clientCertDir  string           // "" is none
}

// leg is what may be negotiated with one side.
type leg struct {
	min, max uint16 // max 0 is the highest there is
	ciphers  []uint16
	curves   []tls.CurveID // nil is Go's choice
}

func (l leg) config() *tls.Config {
	return &tls.Config{
		MinVersion: l.min, MaxVersion: l.max, CipherSuites: l.ciphers, CurvePreferences: l.curves,
		DynamicRecordSizingDisabled: true, // small records for a slow start cost more than they save on a LAN
	}
}

// settings returns what is in force.
func (o *Options) settings() (*settings, error) {
	if s := o.compiled.Load(); s != nil {
		return s, nil
	}
	if err := o.compile(); err != nil {
		return nil, err
	}
	return o.compiled.Load(), nil
}

// compile reads all options and the files they name.
func (o *Options) compile() error {
	s := &settings{
		insecure: o.Insecure.Get(), upstreamCA: o.UpstreamCA.Get(), requestCert: o.RequestCert.Get(),
	}
	if s.upstreamCA && !o.UpstreamCert.Get() {
		return errors.New("option add_upstream_certs_to_client_chain needs upstream_cert to be on")
	}
	var err error
	if s.client, err = compileLeg("client", o.clientMin.Get(), o.clientMax.Get(), o.ciphersClient.Text(), o.curveClient.Text()); err != nil {
		return err
	}
	if s.server, err = compileLeg("server", o.serverMin.Get(), o.serverMax.Get(), o.ciphersServer.Text(), o.curveServer.Text()); err != nil {
		return err
	}
	if s.roots, err = loadRoots(expand(o.trustedCA.Text()), expand(o.trustedDir.Text())); err != nil {
		return err
	}
	if err := s.loadClientCerts(expand(o.clientCerts.Text())); err != nil {
		return fmt.Errorf("option client_certs: %w", err)
	}
	o.compiled.Store(s)
	return nil
}

func compileLeg(side, least, most, ciphers, curve string) (leg, error) {
	l := leg{min: max(versionBound(least), tls.VersionTLS10), max: versionBound(most), ciphers: defaultCiphers()}
	if l.max != 0 && l.max < l.min {
		return l, fmt.Errorf("option tls_version_%[1]s_max (%[2]s) is below tls_version_%[1]s_min (%[3]s)", side, most, least)
	}
	var err error
	if ciphers != "" {
		if l.ciphers, err = parseCiphers(ciphers); err != nil {
			return l, fmt.Errorf("option ciphers_%s: %w", side, err)
		}
	}
	if curve != "" {
		id, err := parseCurve(curve)
		if err != nil {
			return l, fmt.Errorf("option tls_ecdh_curve_%s: %w", side, err)
		}
		l.curves = []tls.CurveID{id}
	}
	return l, nil
}

// loadRoots adds the certificates of a file and of a directory to the platform's store. mitmproxy
// replaces its store by them (TLS-23), which cuts off the rest of the Internet for who only wants to
// add a company's CA.
func loadRoots(file, dir string) (*x509.CertPool, error) {
	if file == "" && dir == "" {
		return nil, nil
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool() // a machine without a store: what was added is all there is
	}
	if file != "" {
		if err := addRoots(pool, file); err != nil {
			return nil, fmt.Errorf("option ssl_verify_upstream_trusted_ca: %w", err)
		}
	}
	if dir == "" {
		return pool, nil
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("option ssl_verify_upstream_trusted_confdir: %w", err)
	}
	found := false
	for _, e := range entries {
		if !e.IsDir() && addRoots(pool, filepath.Join(dir, e.Name())) == nil {
			found = true
		}
	}
	if !found {
		return nil, fmt.Errorf("option ssl_verify_upstream_trusted_confdir: no file in %s holds a PEM certificate", dir)
	}
	return pool, nil
}

func addRoots(pool *x509.CertPool, file string) error {
	data, err := readFile(file)
	if err != nil {
		return err
	}
	if !pool.AppendCertsFromPEM(data) {
		return fmt.Errorf("%s holds no PEM certificate", file)
	}
	return nil
}

// maxPEM is above the largest bundle of public CAs.
const maxPEM = 4 << 20

func readFile(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxPEM+1))
	if err == nil && len(data) > maxPEM {
		err = fmt.Errorf("%s is larger than %d bytes", name, maxPEM)
	}
	return data, err
}

func (s *settings) loadClientCerts(path string) error {
	if path == "" {
		return nil
	}
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if info.IsDir() {
		s.clientCertDir = path
		return nil
	}
	s.clientCert, err = loadKeyPair(path)
	return err
}

// clientCertFor returns what to show to a server that is called by one of names; nil is nothing
// (TLS-25).
func (s *settings) clientCertFor(names ...string) (*tls.Certificate, error) {
	if s.clientCertDir == "" {
		return s.clientCert, nil
	}
	for _, name := range names {
		if name == "" || !filepath.IsLocal(name) || strings.ContainsAny(name, `/\`) {
			continue // names come from the network
		}
		cert, err := loadKeyPair(filepath.Join(s.clientCertDir, name+".pem"))
		if err == nil || !errors.Is(err, os.ErrNotExist) {
			return cert, err
		}
	}
	return nil, nil
}

// loadKeyPair reads certificate, chain and key from one file.
func loadKeyPair(path string) (*tls.Certificate, error) {
	data, err := readFile(path)
	if err != nil {
		return nil, err
	}
	cert, err := tls.X509KeyPair(data, data)
	if err != nil {
		if block, _ := pem.Decode(data); block == nil {
			return nil, fmt.Errorf("%s is not in PEM format", path)
		}
		return nil, fmt.Errorf("%s needs a certificate and its unencrypted key: %w", path, err)
	}
	return &cert, nil
}

// expand replaces a leading ~ by the home directory, as mitmproxy's path options do.
func expand(path string) string {
	if path != "~" && !strings.HasPrefix(path, "~/") {
		return path
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return path
	}
	return home + path[1:]
}
