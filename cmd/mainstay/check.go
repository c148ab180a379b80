package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"mainstay.dev/mainstay/internal/app"
)

func (c *cli) check() *cobra.Command {
	return &cobra.Command{
		Use:   "check",
		Short: "Validate the configuration",
		Long: `Reads the file and everything it refers to, and reports every mistake at once,
each as file:line path: what is wrong; the mend. Nothing is started. The exit code
is 2 if there is a mistake.`,
		Example: "  mainstay check\n  mainstay check -c staging.yaml",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			res, err := c.resolve(nil)
			if err != nil {
				return err
			}
			if err := app.Check(res); err != nil {
				return err
			}
			what := res.Source
			if what == "" {
				what = "no file; the defaults and the environment"
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s: good\n", what)
			return err
		},
	}
}

func (c *cli) config() *cobra.Command {
	return &cobra.Command{
		Use:     "config",
		Short:   "Print the configuration that is in force, secrets masked",
		Example: "  mainstay config\n  mainstay config -c staging.yaml",
		Args:    noArgs,
		RunE: func(*cobra.Command, []string) error {
			res, err := c.resolve(nil)
			if err != nil {
				return err
			}
			b, err := res.YAML()
			if err != nil {
				return fmt.Errorf("render the configuration: %w", err)
			}
			_, err = os.Stdout.Write(b)
			return err
		},
	}
}
