package main

import (
	"context"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"mainstay.dev/mainstay/internal/demo"
)

func (c *cli) demo() *cobra.Command {
	var o demo.Options
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Show what Mainstay does, on a real app and a real PostgreSQL",
		Long: `Starts PostgreSQL in a temporary folder, a fake of the Claude API that fails now
and then, and the same app twice: bare, and behind Mainstay. Drives the same load
at both in turns, deploys in the middle of each turn, and prints what came of it.
Then it keeps serving, so that you can look at the dashboard.`,
		Example: "  mainstay demo\n  mainstay demo --once --json demo.json",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
			defer stop()
			context.AfterFunc(ctx, stop) // a second signal ends it at once
			o.Out = cmd.OutOrStdout()
			return demo.Run(ctx, o)
		},
	}
	f := cmd.Flags()
	f.BoolVar(&o.Once, "once", false, "end after the table")
	f.StringVar(&o.JSON, "json", "", "also write the table to this file")
	f.StringVar(&o.App, "app", "", "the app's binary (default: unitehub beside mainstay)")
	f.Uint64Var(&o.Seed, "seed", 1, "seed of the requests and of Claude's faults")
	f.Float64Var(&o.Rate, "rate", 0, "requests per second (default: 70% of what the bare app holds)")
	f.IntVar(&o.Slices, "slices", 3, "how often each side gets the load")
	f.DurationVar(&o.Slice, "slice", 0, "how long each time (default 10s)")
	return cmd
}
