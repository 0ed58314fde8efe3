package main

import (
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"mitm-appliance/internal/appliance"
	"mitm-appliance/option"
)

// optionFlags are the options that have a flag of their own, with their short letters (CLI-…). The
// letter of a bool belongs to the value that is not the default. Options that this version does not
// have are left out.
func optionFlags() []struct{ name, letter string } {
	return []struct{ name, letter string }{
		{"mode", "m"},
		{"listen_host", ""},
		{"listen_port", "p"},
		{"server", "n"},
		{"rfile", "r"},
		{"save_stream_file", "w"},
		{"scripts", "s"},
		{"flow_detail", ""},
		{"showhost", ""},
		{"show_ignored_hosts", ""},
		{"ignore_hosts", ""},
		{"allow_hosts", ""},
		{"tcp_hosts", ""},
		{"udp_hosts", ""},
		{"rawtcp", ""},
		{"http2", ""},
		{"certs", ""},
		{"cert_passphrase", ""},
		{"ssl_insecure", "k"},
		{"store_streamed_bodies", ""},
		{"anticache", ""},
		{"anticomp", ""},
		{"stickycookie", ""},
		{"stickyauth", ""},
		{"upstream_auth", ""},
		{"proxyauth", ""},
		{"client_replay", "C"},
		{"server_replay", "S"},
		{"map_remote", "M"},
		{"map_local", ""},
		{"modify_body", "B"},
		{"modify_headers", "H"},
		{"fail_open", ""},
		{"tun_routes", ""},
	}
}

// settings is what a command line says about options.
type settings struct {
	registry *option.Registry
	set      []string
	flags    []*optionFlag
	confdir  string
	quiet    bool
	verbose  bool
	list     bool
}

// optionFlag is a flag that sets an option; it remembers its values until all flags are known.
type optionFlag struct {
	name   string
	isBool bool
	invert bool // --no-x
	values []string
}

var _ pflag.Value = (*optionFlag)(nil)

// String implements pflag.Value.
func (f *optionFlag) String() string { return strings.Join(f.values, ",") }

// Set implements pflag.Value.
func (f *optionFlag) Set(text string) error {
	if f.isBool && text != "true" && text != "false" {
		return fmt.Errorf("expected true or false")
	}
	if f.invert {
		text = map[string]string{"true": "false", "false": "true"}[text]
	}
	f.values = append(f.values, text)
	return nil
}

// Type implements pflag.Value.
func (f *optionFlag) Type() string {
	if f.isBool {
		return "bool"
	}
	return "value"
}

// addSettings gives cmd the flags that every face has.
func addSettings(cmd *cobra.Command, r *option.Registry) *settings {
	s := &settings{registry: r}
	fs := cmd.Flags()
	fs.SortFlags = false
	for _, def := range optionFlags() {
		if spec, ok := r.Lookup(def.name); ok {
			s.addFlag(fs, spec, def.letter)
		}
	}
	fs.StringArrayVar(&s.set, "set", nil, "set any option, as `name=value`; may be repeated")
	fs.StringVar(&s.confdir, "confdir", "", "directory of configuration and CA `DIR` (default "+appliance.DefaultConfdir+")")
	fs.BoolVar(&s.list, "options", false, "print all options with their values and exit")
	fs.BoolVarP(&s.quiet, "quiet", "q", false, "print errors only")
	fs.BoolVarP(&s.verbose, "verbose", "v", false, "print everything")
	_ = cmd.RegisterFlagCompletionFunc("set", s.completeSet) // fails only for a flag that does not exist
	_ = cmd.RegisterFlagCompletionFunc("mode", completeMode)
	return s
}

func (s *settings) addFlag(fs *pflag.FlagSet, spec option.Spec, letter string) {
	long := strings.ReplaceAll(spec.Name, "_", "-")
	if spec.Type != option.TypeBool {
		f := &optionFlag{name: spec.Name}
		s.flags = append(s.flags, f)
		fs.VarP(f, long, letter, spec.Help)
		return
	}
	off, onLetter, offLetter := "no-"+long, letter, ""
	if spec.Default.(bool) {
		onLetter, offLetter = "", letter
	}
	for _, def := range []struct {
		flag, letter string
		invert       bool
	}{{long, onLetter, false}, {off, offLetter, true}} {
		f := &optionFlag{name: spec.Name, isBool: true, invert: def.invert}
		s.flags = append(s.flags, f)
		help := spec.Help
		if def.invert {
			help = "turn off: " + help
		}
		added := fs.VarPF(f, def.flag, def.letter, help)
		added.NoOptDefVal = "true"
		added.Hidden = def.invert != spec.Default.(bool) // the flag for the default is there, but of no use
	}
}

// apply sets the options: the configuration file, then --set, then flags; later ones win (CLI-order,
// but --set beats the file).
func (s *settings) apply() error {
	if s.confdir != "" {
		if err := s.registry.SetText("confdir=" + s.confdir); err != nil {
			return err
		}
	}
	if err := appliance.LoadConfig(s.registry); err != nil {
		return err
	}
	if err := s.registry.SetText(s.set...); err != nil {
		return err
	}
	var texts []string
	for _, f := range s.flags {
		for _, v := range f.values {
			texts = append(texts, f.name+"="+v)
		}
	}
	texts = append(texts, s.verbosity()...)
	if err := s.registry.SetText(texts...); err != nil {
		return err
	}
	for _, name := range s.registry.Deferred() {
		fmt.Fprintf(os.Stderr, "mitm-appliance: warning: unknown option %s is ignored (--options lists all)\n", name)
	}
	return nil
}

// verbosity is what -q and -v stand for, as far as the options exist.
func (s *settings) verbosity() []string {
	var wanted []string
	switch {
	case s.quiet:
		wanted = []string{"termlog_verbosity=error", "flow_detail=0"}
	case s.verbose:
		wanted = []string{"termlog_verbosity=debug", "flow_detail=2"}
	}
	var known []string
	for _, w := range wanted {
		name, _, _ := strings.Cut(w, "=")
		if _, ok := s.registry.Lookup(name); ok {
			known = append(known, w)
		}
	}
	return known
}

func (s *settings) completeSet(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	var out []string
	for _, spec := range s.registry.Specs() {
		out = append(out, spec.Name+"=\t"+spec.Help)
	}
	return out, cobra.ShellCompDirectiveNoSpace | cobra.ShellCompDirectiveNoFileComp
}

func completeMode(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return []string{
		"regular\tHTTP(S) proxy on port 8080", "transparent:\tdevices behind a LAN interface", "wireguard\tWireGuard server",
		"local\tthis host's own processes", "local:\tsome of this host's processes", "tun\tTUN interface",
	}, cobra.ShellCompDirectiveNoSpace | cobra.ShellCompDirectiveNoFileComp
}

// printOptions writes all options as a configuration file would set them (OPT-dump).
func printOptions(cmd *cobra.Command, r *option.Registry) error {
	text, err := appliance.DumpConfig(r)
	if err != nil {
		return err
	}
	_, err = cmd.OutOrStdout().Write(text)
	return err
}
