package main

import (
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"mitm-appliance/internal/appliance"
	"mitm-appliance/proxycore/certs"
)

// newCA looks after the certificate authority in the confdir.
func newCA() *cobra.Command {
	var confdir string
	cmd := &cobra.Command{
		Use: "ca", Short: "The certificate authority that clients have to trust", Args: cobra.NoArgs,
		Example: `  mitm-appliance ca show
  mitm-appliance ca export --format der > ca.cer
  mitm-appliance ca trust-check`,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.PersistentFlags().StringVar(&confdir, "confdir", appliance.DefaultConfdir, "directory of the CA `DIR`")
	load := func() (*certs.CA, error) { return certs.LoadOrCreate(certs.Config{Dir: appliance.Expand(confdir)}) }
	cmd.AddCommand(caShow(load), caExport(load), caRenew(&confdir), caTrustCheck(load))
	return cmd
}

func caShow(load func() (*certs.CA, error)) *cobra.Command {
	return &cobra.Command{
		Use: "show", Short: "Print subject, validity and fingerprint", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ca, err := load()
			if err != nil {
				return err
			}
			c := ca.Certificate
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "Subject:      %s\nValid:        %s to %s\nKey:          %s\nSHA-256:      %s\nAndroid name: %s.0\n",
				c.Subject, c.NotBefore.Format("2006-01-02"), c.NotAfter.Format("2006-01-02"), c.PublicKeyAlgorithm,
				ca.Fingerprint(), ca.SubjectHashOld())
			return err
		},
	}
}

func caExport(load func() (*certs.CA, error)) *cobra.Command {
	var format, out string
	cmd := &cobra.Command{
		Use: "export", Short: "Write the certificate (never the key) for installing on clients", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ca, err := load()
			if err != nil {
				return err
			}
			var data []byte
			switch format {
			case "pem":
				data = ca.PEM()
			case "der":
				data = ca.DER()
			case "p12":
				if data, err = ca.P12(); err != nil {
					return err
				}
			default:
				return badUsage(cmd, fmt.Errorf("unknown format %q; there are pem, der and p12", format))
			}
			if out != "" {
				return os.WriteFile(filepath.Clean(out), data, 0o644) //nolint:gosec // a certificate is public
			}
			_, err = cmd.OutOrStdout().Write(data)
			return err
		},
	}
	cmd.Flags().StringVar(&format, "format", "pem", "`pem`, der or p12")
	cmd.Flags().StringVarP(&out, "output", "o", "", "`FILE` to write (default standard output)")
	return cmd
}

func caRenew(confdir *string) *cobra.Command {
	var newKey bool
	cmd := &cobra.Command{
		Use: "renew", Short: "Make a new CA certificate, valid for ten more years", Args: cobra.NoArgs,
		Long: `Make a new CA certificate. With the same key, clients that trust the old certificate have to install the
new one only when the old one expires; with --new-key all have to at once. A running appliance takes it at
its next start.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ca, err := certs.Renew(certs.Config{Dir: appliance.Expand(*confdir)}, newKey)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "Renewed until %s, SHA-256 %s\n", ca.Certificate.NotAfter.Format("2006-01-02"), ca.Fingerprint())
			return err
		},
	}
	cmd.Flags().BoolVar(&newKey, "new-key", false, "replace the key, too")
	return cmd
}

func caTrustCheck(load func() (*certs.CA, error)) *cobra.Command {
	return &cobra.Command{
		Use: "trust-check", Short: "Say whether this host's store trusts the CA", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ca, err := load()
			if err != nil {
				return err
			}
			_, err = ca.Certificate.Verify(x509.VerifyOptions{KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
			var unknown x509.UnknownAuthorityError
			switch {
			case err == nil:
				_, err = fmt.Fprintln(cmd.OutOrStdout(), "This host trusts the CA.")
				return err
			case errors.As(err, &unknown):
				return errors.New("this host does not trust the CA; on Debian: mitm-appliance ca export -o /usr/local/share/ca-certificates/mitm-appliance.crt && update-ca-certificates")
			}
			return err
		},
	}
}
