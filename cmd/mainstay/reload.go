package main

import (
	"fmt"

	"github.com/spf13/cobra"
)

func (c *cli) reload() *cobra.Command {
	return &cobra.Command{
		Use:   "reload",
		Short: "Make the running Mainstay read its file again",
		Long: `All of the file is applied, or none of it: a mistake is reported and nothing
changes. Settings that cannot change while running are named.`,
		Example: "  mainstay reload\n  kill -HUP $(pidof mainstay)",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := c.client()
			if err != nil {
				return err
			}
			if err := client.Reload(cmd.Context()); err != nil {
				return err
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), "reloaded")
			return err
		},
	}
}

func (c *cli) dashboard() *cobra.Command {
	return &cobra.Command{
		Use:     "dashboard",
		Short:   "Print a one-time link to the dashboard",
		Long:    "The link lets one browser in, once, within a minute. Open it on this machine, or\nthrough ssh -L.",
		Example: "  mainstay dashboard\n  xdg-open \"$(mainstay dashboard)\"",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := c.client()
			if err != nil {
				return err
			}
			link, err := client.DashboardLink(cmd.Context())
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), link)
			return err
		},
	}
}
