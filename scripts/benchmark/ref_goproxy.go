//go:build linux

package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"flag"
	"io"
	"log"
	"net/http"
	"os"
	"sync"

	"github.com/elazarl/goproxy"
)

// goproxyWorker intercepts everything, as goproxy's manual recommends: with a cache of certificates.
// It keeps as many idle upstream connections as the generator has, where net/http's default is 2.
func goproxyWorker(args []string) error {
	fs := flag.NewFlagSet("goproxy", flag.ExitOnError)
	listen := fs.String("listen", "", "")
	caCert, caKey := fs.String("cert", "", ""), fs.String("key", "", "")
	roots := fs.String("roots", "", "")
	_ = fs.Parse(args) // exits
	ca, err := tls.LoadX509KeyPair(*caCert, *caKey)
	if err != nil {
		return err
	}
	trusted, err := os.ReadFile(*roots)
	if err != nil {
		return err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(trusted) {
		return errors.New("no certificate in --roots")
	}
	p := goproxy.NewProxyHttpServer()
	p.Logger = log.New(io.Discard, "", 0)
	p.CertStore = &certCache{certs: map[string]*tls.Certificate{}}
	p.Tr = &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, MaxIdleConnsPerHost: 100}
	action := &goproxy.ConnectAction{Action: goproxy.ConnectMitm, TLSConfig: goproxy.TLSConfigFromCA(&ca)}
	p.OnRequest().HandleConnectFunc(func(host string, _ *goproxy.ProxyCtx) (*goproxy.ConnectAction, string) {
		return action, host
	})
	server := &http.Server{Addr: *listen, Handler: p} //nolint:gosec // lives for seconds
	return server.ListenAndServe()
}

// certCache is a goproxy.CertStorage.
type certCache struct {
	mu    sync.RWMutex
	certs map[string]*tls.Certificate
}

func (c *certCache) Fetch(host string, mint func() (*tls.Certificate, error)) (*tls.Certificate, error) {
	c.mu.RLock()
	cert := c.certs[host]
	c.mu.RUnlock()
	if cert != nil {
		return cert, nil
	}
	cert, err := mint()
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.certs[host] = cert
	return cert, nil
}
