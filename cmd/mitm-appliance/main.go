// Command mitm-appliance is an intercepting proxy as a network appliance: see README.md, and
// mitm-appliance --help.
//
// In: the command line. Out: a running appliance with a face, and an exit status: 0 done or stopped
// by a signal, 1 something failed, 2 a usage error. It only parses and connects; what runs is built by
// internal/appliance.
package main

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
)

// version is set by the linker: -X main.version=v1.2.3.
//
//nolint:gochecknoglobals // the linker cannot set anything else
var version = "development"

func main() {
	signal.Ignore(syscall.SIGPIPE) // a closed pipe is an error to handle, and rules to undo, not an end
	os.Exit(run(os.Args))
}

// run returns the exit status of a command line.
func run(args []string) int {
	root := newRoot()
	root.SetArgs(args[1:])
	if name := filepath.Base(args[0]); name == "mitmdump" { // as mitmproxy's users know it
		root.SetArgs(append([]string{"dump"}, args[1:]...))
	}
	err := root.Execute()
	var usage *usageError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &usage):
		fmt.Fprintf(os.Stderr, "mitm-appliance: %v\n%s", err, usage.hint)
		return 2
	default:
		fmt.Fprintf(os.Stderr, "mitm-appliance: %v\n", err)
		return 1
	}
}

// usageError is a command line that cannot be understood.
type usageError struct {
	err  error
	hint string
}

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

func badUsage(cmd *cobra.Command, err error) error {
	return &usageError{err, fmt.Sprintf("Try: %s --help\n", cmd.CommandPath())}
}

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "mitm-appliance",
		Short: "An intercepting proxy as a network appliance",
		Long: `mitm-appliance looks into the traffic of phones, lab networks and processes that you are allowed
to look at: over Wi-Fi and LAN (transparent), WireGuard, a TUN device, of this host's own processes
(local), or as an explicit proxy (regular).`,
		Example: `  mitm-appliance dump                              an HTTP(S) proxy on port 8080
  mitm-appliance dump -m transparent:lan0          everything that lan0's devices do
  mitm-appliance dump -m wireguard                 a WireGuard server for phones
  mitm-appliance dump -m local:curl                what curl does on this host
  mitm-appliance doctor --mode transparent:lan0    what is missing for that`,
		SilenceUsage: true, SilenceErrors: true,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetFlagErrorFunc(badUsage)
	root.AddCommand(newDump(), newRun(), newWG(), newCA(), newDoctor(), newClean(), newVersion())
	markUsage(root)
	return root
}

// markUsage turns complaints about arguments into usage errors.
func markUsage(cmd *cobra.Command) {
	if check := cmd.Args; check != nil {
		cmd.Args = func(c *cobra.Command, args []string) error {
			if err := check(c, args); err != nil {
				return badUsage(c, err)
			}
			return nil
		}
	}
	for _, sub := range cmd.Commands() {
		markUsage(sub)
	}
}

func newVersion() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprintln(cmd.OutOrStdout(), versionText())
			return err
		},
	}
}

func versionText() string {
	lines := []string{"mitm-appliance " + version, "Go: " + runtime.Version(), "Platform: " + runtime.GOOS + "/" + runtime.GOARCH}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, dep := range info.Deps {
			if dep.Path == "gvisor.dev/gvisor" {
				lines = append(lines, "gVisor: "+dep.Version)
			}
		}
	}
	return strings.Join(lines, "\n")
}
