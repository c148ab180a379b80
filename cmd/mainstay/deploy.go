package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"os/user"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"mainstay.dev/mainstay/internal/admin"
	"mainstay.dev/mainstay/internal/deploy"
	"mainstay.dev/mainstay/internal/setting"
)

func (c *cli) deploy() *cobra.Command {
	var request deploy.Request
	var asJSON bool
	var steps []string
	cmd := &cobra.Command{
		Use:   "deploy [-- COMMAND…]",
		Short: "Replace the running app without a failed request",
		Long: `Starts the command as the next color beside the one that serves, waits until it is
healthy, warms and verifies it, moves the traffic, and watches it, as app says in the
file. If the new color is not fit it is stopped, and the old one serves on untouched;
if it is worse than the old one the switch is undone. The old color stands by for a
rollback as long as app.settle says.

Without a command, what runs now is started anew. The verb ends when the deploy
does; Ctrl-C gives up a deploy that has not switched yet, and leaves one that has to
go on.

On a terminal one block shows the phases, the traffic and what the watch sees; else
every step is a line. With --json each step is an object {"progress": …} on a line of
its own, and the last line is {"record": …}, with an "error" if it did not settle.

Exit codes: 0 settled, 1 failed before the switch, 2 wrong usage, 3 rolled back,
4 frozen, 5 another deploy is at work or frozen, 130 interrupted.`,
		Example: `  mainstay deploy -- npm start
  mainstay deploy --version "$(git rev-parse --short HEAD)"
  mainstay deploy --env FEATURE_X=on --why "try feature X"`,
		RunE: func(cmd *cobra.Command, args []string) error {
			for _, s := range steps {
				share, err := setting.ParsePercent(s)
				if err != nil {
					return fmt.Errorf("%w: --steps: %w", errUsage, err)
				}
				request.Steps = append(request.Steps, share)
			}
			client, err := c.client()
			if err != nil {
				return err
			}
			request.Command, request.Who = args, whoami()
			return runDeploy(cmd, client, request, asJSON)
		},
	}
	f := cmd.Flags()
	f.StringVar(&request.Version, "version", "", "what is deployed, for people and traces")
	f.StringVar(&request.Image, "image", "", "the container image to run, where app.image says that containers do")
	f.StringVar(&request.Release, "release", "", "folder to run the release from: a whole path, or the name of a folder in app.release.dir")
	f.BoolVar(&request.Force, "force", false, "go on though a gate of app.gates is closed; needs --why, and the history keeps it")
	f.StringSliceVar(&request.Targets, "targets", nil, "addresses of the next release, where app.targets says that somebody else runs it, as 10.0.0.5:3008,10.0.0.6:3008")
	f.StringVar(&request.Why, "why", "", "why, for the record")
	f.StringVar(&request.Dir, "dir", "", "folder to run the command in (default: that of the app)")
	f.StringArrayVar(&request.Env, "env", nil, "KEY=value, laid over the app's environment; may be given several times")
	f.BoolVar(&request.Wait, "wait", false, "wait while another deploy is at work")
	f.BoolVar(&request.OneWay, "one-way", false, "cannot be undone (a migration): freeze instead of rolling back")
	f.StringSliceVar(&steps, "steps", nil, "shares of the traffic, one after the other, as 10%,50%")
	f.BoolVar(&asJSON, "json", false, "print progress and record as lines of JSON")
	return cmd
}

// runDeploy runs the deploy, shows how it goes and says how it ended.
func runDeploy(cmd *cobra.Command, client *admin.Client, request deploy.Request, asJSON bool) error {
	ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	out := cmd.OutOrStdout()
	tell, last := progress(out, asJSON), deploy.Progress{}
	shown := func() {}
	if f, ok := out.(*os.File); ok && !asJSON && terminal(f) && os.Getenv("TERM") != "dumb" {
		v := newLive(f)
		tell = v.step
		looking, enough := context.WithCancel(ctx)
		done := make(chan struct{})
		go func() { defer close(done); v.follow(looking, client.Status) }()
		shown = func() {
			enough()
			<-done
			if st, err := client.Status(cmd.Context()); err == nil { // how it is left
				v.look(st)
				v.draw(time.Now())
			}
		}
	}
	record, err := client.Deploy(ctx, request, func(p deploy.Progress) { last = p; tell(p) })
	shown()
	if asJSON {
		result := map[string]any{}
		if record.Number != 0 {
			result["record"] = record
		}
		if err != nil {
			result["error"] = err.Error()
		}
		if e := json.NewEncoder(out).Encode(result); e != nil {
			return e
		}
	}
	switch {
	case err != nil && ctx.Err() != nil:
		return deployError{fmt.Errorf("interrupted: %s", left(last)), 130}
	case err != nil:
		return ended(record, err)
	case asJSON:
		return nil
	}
	_, err = fmt.Fprintf(out, "deployed as %s in %s\n", record.Target, (time.Duration(record.TookMS) * time.Millisecond).Round(10*time.Millisecond))
	return err
}

// left says what becomes of a deploy whose caller has gone.
func left(p deploy.Progress) string {
	switch p.Phase {
	case deploy.Switching, deploy.Watching:
		return fmt.Sprintf("the deploy of %s has traffic and goes on (%s) without you; mainstay status shows it, mainstay promote ends the watch, mainstay rollback undoes it", p.Target, p.Phase)
	case "":
		return "the deploy had not begun"
	}
	return fmt.Sprintf("the deploy of %s had no traffic yet and is given up; the old color serves on", p.Target)
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

// A deployError is the end of a deploy that did not settle, with its exit code.
type deployError struct {
	error
	code int
}

func (e deployError) Unwrap() error { return e.error }

// ended gives the end of a deploy its exit code.
func ended(r deploy.Record, err error) error {
	p, told := errors.AsType[*admin.Problem](err)
	switch {
	case r.Phase == deploy.RolledBack:
		return deployError{err, 3}
	case r.Phase == deploy.Frozen:
		return deployError{err, 4}
	case told && p.Status == http.StatusConflict:
		return deployError{err, 5}
	}
	return err
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
