package main

import (
	"errors"
	"os"

	"github.com/mattn/go-isatty"
	"github.com/spf13/cobra"

	"mitm-appliance/internal/doctor"
)

// newDoctor says what this machine lacks for which mode.
func newDoctor() *cobra.Command {
	var modes []string
	cmd := &cobra.Command{
		Use: "doctor", Short: "Say what this machine lacks for which mode, and the cure", Args: cobra.NoArgs,
		Example: `  mitm-appliance doctor
  mitm-appliance doctor --mode transparent:lan0 --mode wireguard`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			findings := doctor.Run(cmd.Context(), modes)
			colour := os.Getenv("NO_COLOR") == "" && isatty.IsTerminal(os.Stdout.Fd())
			if err := doctor.Print(cmd.OutOrStdout(), findings, colour); err != nil {
				return err
			}
			if doctor.Worst(findings) == doctor.Fail {
				return errors.New("something is missing: see the lines that say FAIL")
			}
			return nil
		},
	}
	cmd.Flags().StringArrayVarP(&modes, "mode", "m", nil, "mode that shall run, as `SPEC`; may be repeated (default every kind)")
	_ = cmd.RegisterFlagCompletionFunc("mode", completeMode) // fails only for a flag that does not exist
	return cmd
}
