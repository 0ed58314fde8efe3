package main

import (
	"errors"

	"github.com/spf13/cobra"

	"mitm-appliance/internal/appliance"
	"mitm-appliance/redirect"
)

// newClean removes what a killed appliance left: rules, routes, kernel settings.
func newClean() *cobra.Command {
	return &cobra.Command{
		Use: "clean", Short: "Remove rules and routes that a killed appliance has left", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			err := appliance.Clean()
			if errors.Is(err, redirect.ErrInUse) {
				return errors.New("an appliance is running and owns the rules: stop it instead")
			}
			return err
		},
	}
}
