//go:build linux

package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"time"

	"mitm-appliance/internal/netnstest"
)

// Sizes of the bodies that the origin serves, each under its number as path.
const (
	smallBody = 1 << 10
	largeBody = 100 << 10
)

// pki are the files of a certificate authority and of one server certificate, ECDSA P-256. The
// subjects that mint use the same authority where they let us choose.
type pki struct{ caCert, caKey, cert, key string }

func (p *pki) create(dir string) error {
	*p = pki{dir + "/ca.pem", dir + "/ca-key.pem", dir + "/server.pem", dir + "/server-key.pem"}
	now := time.Now()
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Bench CA"}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	caKey, err := writeSigned(ca, ca, nil, p.caCert, p.caKey)
	if err != nil {
		return err
	}
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: server(0)}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(24 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		IPAddresses: []net.IP{net.ParseIP(server(0))},
	}
	_, err = writeSigned(leaf, ca, caKey, p.cert, p.key)
	return err
}

// writeSigned signs by itself what has no signer.
func writeSigned(template, parent *x509.Certificate, signer *ecdsa.PrivateKey, certFile, keyFile string) (*ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	if signer == nil {
		signer = key
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		return nil, err
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return key, errors.Join(
		os.WriteFile(certFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert}), 0o600),
		os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}), 0o600))
}

// nginxConf is a whole configuration around one server block. Nothing is written per request. Session
// tickets are on, as by default, for those that want to resume.
const nginxConf = `daemon off; user root; worker_processes 2; pid %[1]s/%[2]s.pid; error_log stderr crit;
worker_rlimit_nofile 20000;
events { worker_connections 8192; }
http {
	access_log off; keepalive_requests 1000000000; keepalive_timeout 600s; tcp_nodelay on;
	open_file_cache max=100 inactive=600s; open_file_cache_valid 600s;
	client_body_temp_path %[1]s/%[2]s-body; proxy_temp_path %[1]s/%[2]s-proxy; fastcgi_temp_path %[1]s/%[2]s-fcgi;
	uwsgi_temp_path %[1]s/%[2]s-uwsgi; scgi_temp_path %[1]s/%[2]s-scgi;
	ssl_protocols TLSv1.3; ssl_conf_command Ciphersuites TLS_AES_128_GCM_SHA256; ssl_ecdh_curve X25519;
	ssl_certificate %[3]s; ssl_certificate_key %[4]s;
	%[5]s
}
`

func (b *bench) nginx(ctx context.Context, h *netnstest.Host, name, servers, ready string) (*process, error) {
	conf := b.path(name + ".conf")
	text := fmt.Sprintf(nginxConf, b.dir, name, b.pki.cert, b.pki.key, servers)
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		return nil, err
	}
	cmd := h.Command(context.WithoutCancel(ctx), "nginx", "-c", conf)
	return b.launch(ctx, cmd, answering(h, ready))
}

// startOrigin starts the web server in the internet, HTTPS and HTTP.
func (b *bench) startOrigin(ctx context.Context) error {
	root := b.path("www")
	if err := os.Mkdir(root, 0o755); err != nil {
		return err
	}
	for _, size := range []int{smallBody, largeBody} {
		body := bytes.Repeat([]byte("0123456789abcdef"), size/16)
		if err := os.WriteFile(fmt.Sprintf("%s/%d", root, size), body, 0o600); err != nil {
			return err
		}
	}
	_, err := b.nginx(ctx, b.internet, "origin", fmt.Sprintf("server { listen 443 ssl; listen 80; root %s; }", root), server(0)+":443")
	return err
}
