package tlsmitm

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"sync/atomic"

	"mitm-appliance/option"
)

// Options are the TLS settings; names, defaults and choices are mitmproxy's (TLS-16..28, CERT-18..22).
// A change takes effect for new connections. DeclareOptions makes them.
type Options struct {
	Certs          option.Strings   // certs: "[domain=]path" of certificates to show instead of generated ones
	CertPassphrase option.OptString // cert_passphrase
	KeySize        option.Int       // key_size of a CA that is created

	UpstreamCert option.Bool // upstream_cert
	UpstreamCA   option.Bool // add_upstream_certs_to_client_chain
	RequestCert  option.Bool // request_client_cert
	Insecure     option.Bool // ssl_insecure

	clientCerts                  option.OptString
	trustedCA, trustedDir        option.OptString
	clientMin, clientMax         option.String
	serverMin, serverMax         option.String
	ciphersClient, ciphersServer option.OptString
	curveClient, curveServer     option.OptString
	compiled                     atomic.Pointer[settings]
}

// DeclareOptions declares the TLS options. Values that contradict each other, and files that cannot be
// read, reject the change.
func DeclareOptions(r *option.Registry) *Options {
	o := &Options{
		Certs: r.Strings("certs", nil,
			"Certificates to show to clients, as [domain=]path of a PEM file with certificate, chain and key. The domain may begin with *. and defaults to *."),
		CertPassphrase: r.OptString("cert_passphrase",
			"Passphrase of the keys in the files of certs and of the CA. Prefer the configuration file: a command line is visible to all users."),
		KeySize:      r.Int("key_size", 2048, "Bits of the RSA key of a CA that is created.", option.Check(keySize)),
		UpstreamCert: r.Bool("upstream_cert", true, "Connect to the server first and copy the names of its certificate."),
		UpstreamCA: r.Bool("add_upstream_certs_to_client_chain", false,
			"Send the server's certificates to the client after the generated one. Needs upstream_cert."),
		RequestCert: r.Bool("request_client_cert", false, "Ask clients for a certificate; any is accepted, and none."),
		Insecure:    r.Bool("ssl_insecure", false, "Do not verify the certificates of servers."),
		clientCerts: r.OptString("client_certs",
			"Certificate for servers that ask for one: a PEM file for all servers, or a directory of NAME.pem files.", option.Check(exists)),
		trustedCA: r.OptString("ssl_verify_upstream_trusted_ca",
			"PEM file of certificate authorities to trust besides those of the system.", option.Check(exists)),
		trustedDir: r.OptString("ssl_verify_upstream_trusted_confdir",
			"Directory of PEM files of certificate authorities to trust besides those of the system.", option.Check(exists)),
		ciphersClient: r.OptString("ciphers_client", ciphersHelp("clients"), option.Check(cipherList)),
		ciphersServer: r.OptString("ciphers_server", ciphersHelp("servers"), option.Check(cipherList)),
		curveClient:   r.OptString("tls_ecdh_curve_client", "The only key exchange group for clients, by its OpenSSL name.", option.Check(curveName)),
		curveServer:   r.OptString("tls_ecdh_curve_server", "The only key exchange group for servers, by its OpenSSL name.", option.Check(curveName)),
	}
	o.clientMin, o.clientMax = declareVersions(r, "client")
	o.serverMin, o.serverMax = declareVersions(r, "server")
	r.Subscribe(func(changed []string) error {
		if !slices.ContainsFunc(changed, compiledOption) {
			return nil
		}
		return o.compile()
	})
	return o
}

func declareVersions(r *option.Registry, side string) (least, most option.String) {
	choices := option.Choose("UNBOUNDED", "SSL3", "TLS1", "TLS1_1", "TLS1_2", "TLS1_3")
	least = r.String("tls_version_"+side+"_min", "TLS1_2", "The lowest TLS version for "+side+"s; TLS 1.0 is the lowest there is.", choices)
	most = r.String("tls_version_"+side+"_max", "UNBOUNDED", "The highest TLS version for "+side+"s.", choices,
		option.Check(func(v string) error {
			if v == "SSL3" {
				return errors.New("expected TLS1 or later: SSL 3.0 is not spoken")
			}
			return nil
		}))
	return least, most
}

func ciphersHelp(side string) string {
	return "Cipher suites for " + side + " up to TLS 1.2, in OpenSSL's syntax. DHE suites are not available, and the order is fixed."
}

// compiledOption reports whether a change of the option makes new settings.
func compiledOption(name string) bool {
	switch name {
	case "client_certs", "ssl_insecure", "add_upstream_certs_to_client_chain", "upstream_cert", "request_client_cert",
		"ssl_verify_upstream_trusted_ca", "ssl_verify_upstream_trusted_confdir",
		"ciphers_client", "ciphers_server", "tls_ecdh_curve_client", "tls_ecdh_curve_server",
		"tls_version_client_min", "tls_version_client_max", "tls_version_server_min", "tls_version_server_max":
		return true
	}
	return false
}

func keySize(bits int) error {
	if bits < 2048 || bits > 8192 {
		return fmt.Errorf("expected 2048 to 8192 bits, not %d", bits)
	}
	return nil
}

func exists(path *string) error {
	if path == nil {
		return nil
	}
	_, err := os.Stat(expand(*path))
	return err
}

func cipherList(text *string) error {
	if text == nil {
		return nil
	}
	_, err := parseCiphers(*text)
	return err
}

func curveName(name *string) error {
	if name == nil {
		return nil
	}
	_, err := parseCurve(*name)
	return err
}
