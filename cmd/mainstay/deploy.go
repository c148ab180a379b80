package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/signal"
	"os/user"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"mainstay.dev/mainstay/internal/deploy"
)

func (c *cli) deploy() *cobra.Command {
	var request deploy.Request
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "deploy [-- COMMAND…]",
		Short: "Replace the running app without a failed request",
		Long: `Starts the command as the next color beside the one that serves, waits until it is
healthy, switches the traffic, drains the old color and stops it. If the new color
does not become healthy it is stopped, and the old one serves on untouched.

Without a command, what runs now is started anew. The verb ends when the deploy
does; Ctrl-C gives up a deploy that has not switched yet.`,
		Example: `  mainstay deploy -- npm start
  mainstay deploy --version "$(git rev-parse --short HEAD)"
  mainstay deploy --env FEATURE_X=on --why "try feature X"`,
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := c.client()
			if err != nil {
				return err
			}
			request.Command, request.Who = args, whoami()
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGINT, syscall.SIGTERM)
			defer stop()
			out := cmd.OutOrStdout()
			record, err := client.Deploy(ctx, request, progress(out, asJSON))
			if err != nil {
				return err
			}
			if asJSON {
				return json.NewEncoder(out).Encode(map[string]any{"record": record})
			}
			_, err = fmt.Fprintf(out, "deployed as %s in %s\n", record.Target, (time.Duration(record.TookMS) * time.Millisecond).Round(10*time.Millisecond))
			return err
		},
	}
	f := cmd.Flags()
	f.StringVar(&request.Version, "version", "", "what is deployed, for people and traces")
	f.StringVar(&request.Why, "why", "", "why, for the record")
	f.StringVar(&request.Dir, "dir", "", "folder to run the command in (default: that of the app)")
	f.StringArrayVar(&request.Env, "env", nil, "KEY=value, laid over the app's environment; may be given several times")
	f.BoolVar(&asJSON, "json", false, "print progress and record as lines of JSON")
	return cmd
}

// progress prints what happens as it happens.
func progress(out io.Writer, asJSON bool) func(deploy.Progress) {
	if asJSON {
		enc := json.NewEncoder(out)
		return func(p deploy.Progress) { _ = enc.Encode(map[string]any{"progress": p}) }
	}
	return func(p deploy.Progress) {
		fmt.Fprintf(out, "%s  %-9s %s\n", p.Time.Local().Format("15:04:05"), p.Step, p.Text)
	}
}

// whoami is who asks, for the record.
func whoami() string {
	name := "unknown"
	if u, err := user.Current(); err == nil {
		name = u.Username
	}
	if host, err := os.Hostname(); err == nil {
		name += "@" + host
	}
	return name
}
