package main

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"mainstay.dev/mainstay/internal/app"
	"mainstay.dev/mainstay/internal/deploy"
)

func (c *cli) run() *cobra.Command {
	return &cobra.Command{
		Use:   "run [-- COMMAND…]",
		Short: "Run the app behind the planes",
		Long: `Starts the planes, then the command (or app.run of the file) as the first color,
waits until it is healthy and serves. The command gets PORT, DATABASE_URL and
ANTHROPIC_BASE_URL that lead to the planes; the originals from Mainstay's own
environment become the upstreams. A plane without an upstream is off.

SIGHUP reads the file again. SIGINT or SIGTERM drains and stops; a second one
stops at once. After a kill -9 the app goes on, and the next run adopts it.`,
		Example: `  mainstay run -- npm start
  mainstay run -c mainstay.yaml
  DATABASE_URL=postgres://… ANTHROPIC_API_KEY=… mainstay run -- ./server`,
		RunE: func(_ *cobra.Command, args []string) error {
			// From here on a signal means stop, also while things start.
			signals := make(chan os.Signal, 4)
			signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
			// Who reads the log may go away: that is an error of the write then, and not our end. Not
			// ignored, which the app would inherit.
			signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
			a, err := app.New(app.Options{
				Load: c.load, Command: deploy.Command(args), Environ: os.Environ(), Version: versionText(),
				Logs: os.Stderr, Terminal: terminal(os.Stderr), Out: os.Stdout,
			})
			if err != nil {
				return err
			}
			ctx, stop := context.WithCancelCause(context.Background())
			defer stop(nil)
			go obey(ctx, signals, a, stop)
			return a.Run(ctx)
		},
	}
}

// obey turns signals into what they ask for.
func obey(ctx context.Context, signals <-chan os.Signal, a *app.App, stop context.CancelCauseFunc) {
	for sig := range signals {
		switch {
		case sig == syscall.SIGHUP:
			go func() { _ = a.Reload(ctx) }() // it tells its outcome in the log
		case ctx.Err() == nil:
			stop(errors.New(sig.String()))
		default:
			a.Kill() // it tells so in the log
			os.Exit(128 + int(sig.(syscall.Signal)))
		}
	}
}
