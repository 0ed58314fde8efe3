package main

import (
	"errors"
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"mitm-appliance/internal/appliance"
	"mitm-appliance/wg"
)

// newWG edits the peers of the WireGuard server in its file; a running server follows the file.
func newWG() *cobra.Command {
	cmd := &cobra.Command{
		Use: "wg", Short: "Keys and peers of the WireGuard server", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	w := &wgFile{}
	flags := cmd.PersistentFlags()
	flags.StringVar(&w.path, "file", "", "configuration of the server `FILE` (default wireguard.conf in the confdir)")
	flags.StringVar(&w.confdir, "confdir", appliance.DefaultConfdir, "directory of the configuration `DIR`")
	peer := &cobra.Command{
		Use: "peer", Short: "Add, list, remove and show peers", Args: cobra.NoArgs,
		Example: `  mitm-appliance wg peer add phone        a new peer; its configuration and a QR code to scan
  mitm-appliance wg peer add laptop --public-key KEY
  mitm-appliance wg peer list
  mitm-appliance wg peer qr phone --endpoint 192.0.2.1`,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	peer.AddCommand(w.add(), w.list(), w.remove(), w.show(), w.qr())
	cmd.AddCommand(peer)
	return cmd
}

type wgFile struct {
	path, confdir string
}

func (w *wgFile) file() string {
	if w.path != "" {
		return appliance.Expand(w.path)
	}
	return appliance.WireGuardFile(w.confdir)
}

func (w *wgFile) add() *cobra.Command {
	var publicKey, endpoint string
	var psk bool
	cmd := &cobra.Command{
		Use: "add NAME", Short: "Add a peer; a running server takes it within a second", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			p := wg.PeerConfig{Name: args[0]}
			if publicKey != "" {
				key, err := wg.ParsePublicKey(publicKey)
				if err != nil {
					return badUsage(cmd, err)
				}
				p.PublicKey = key
			}
			if psk {
				key, err := wg.GeneratePresharedKey()
				if err != nil {
					return err
				}
				p.PresharedKey = key
			}
			err := wg.Update(w.file(), func(f *wg.File) error {
				var err error
				p, err = f.AddPeer(p)
				return err
			})
			if err != nil {
				return err
			}
			return w.print(cmd.OutOrStdout(), p.Name, endpoint, true)
		},
	}
	cmd.Flags().StringVar(&publicKey, "public-key", "", "the peer's own public `KEY`; without it a key pair is made here")
	cmd.Flags().BoolVar(&psk, "preshared-key", false, "make a preshared key, too")
	cmd.Flags().StringVar(&endpoint, "endpoint", "", "`HOST[:PORT]` under which the peer reaches this server (default a guess)")
	return cmd
}

// print shows a peer's configuration; with its QR code when both is set.
func (w *wgFile) print(out io.Writer, name, endpoint string, code bool) error {
	f, err := wg.Load(w.file())
	if err != nil {
		return err
	}
	conf, err := f.ClientConfig(name, endpoint)
	if errors.Is(err, wg.ErrNoPrivateKey) && code {
		p, err := f.Peer(name)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(out, "Added peer %s with %s.\nServer's public key: %s\n", p.Name, addresses(p), f.ServerKey.Public())
		return err
	}
	if err != nil {
		return err
	}
	if _, err := io.WriteString(out, conf); err != nil || !code {
		return err
	}
	fmt.Fprintln(out)
	return wg.WriteQR(out, conf)
}

func addresses(p wg.PeerConfig) string {
	text := ""
	for i, a := range p.Addresses {
		if i > 0 {
			text += ", "
		}
		text += a.String()
	}
	return text
}

func (w *wgFile) list() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the peers", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			f, err := wg.Load(w.file())
			if err != nil {
				return err
			}
			table := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 8, 2, ' ', 0)
			fmt.Fprintln(table, "NAME\tPUBLIC KEY\tADDRESSES")
			for _, p := range f.Peers {
				fmt.Fprintf(table, "%s\t%s\t%s\n", p.Name, p.PublicKey, addresses(p))
			}
			return table.Flush()
		},
	}
}

func (w *wgFile) remove() *cobra.Command {
	return &cobra.Command{
		Use: "remove NAME|KEY", Short: "Remove a peer; a running server cuts it within a second", Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			return wg.Update(w.file(), func(f *wg.File) error {
				_, err := f.RemovePeer(args[0])
				return err
			})
		},
	}
}

func (w *wgFile) show() *cobra.Command {
	var endpoint string
	cmd := &cobra.Command{
		Use: "show-config NAME|KEY", Short: "Print a peer's configuration for wg-quick and the apps", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return w.print(cmd.OutOrStdout(), args[0], endpoint, false)
		},
	}
	cmd.Flags().StringVar(&endpoint, "endpoint", "", "`HOST[:PORT]` under which the peer reaches this server (default a guess)")
	return cmd
}

func (w *wgFile) qr() *cobra.Command {
	var endpoint string
	cmd := &cobra.Command{
		Use: "qr NAME|KEY", Short: "Draw a peer's configuration as a QR code to scan", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			f, err := wg.Load(w.file())
			if err != nil {
				return err
			}
			conf, err := f.ClientConfig(args[0], endpoint)
			if err != nil {
				return err
			}
			return wg.WriteQR(cmd.OutOrStdout(), conf)
		},
	}
	cmd.Flags().StringVar(&endpoint, "endpoint", "", "`HOST[:PORT]` under which the peer reaches this server (default a guess)")
	return cmd
}
