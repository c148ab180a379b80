package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"mainstay.dev/mainstay/edge"
	"mainstay.dev/mainstay/internal/admin"
	"mainstay.dev/mainstay/internal/deploy"
)

func (c *cli) status() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "status",
		Short:   "Show how the running Mainstay stands",
		Example: "  mainstay status\n  mainstay status --json | jq .planes[0].figures",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := c.client()
			if err != nil {
				return err
			}
			st, err := client.Status(cmd.Context())
			if err != nil {
				return err
			}
			if asJSON {
				enc := json.NewEncoder(cmd.OutOrStdout())
				enc.SetIndent("", "  ")
				return enc.Encode(st)
			}
			return printStatus(cmd.OutOrStdout(), st)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print everything as JSON")
	return cmd
}

func printStatus(out io.Writer, st admin.Status) error {
	var b strings.Builder
	state := "ready"
	if !st.Ready {
		state = "not ready: " + st.Reason
	}
	fmt.Fprintf(&b, "%s · %s · mainstay %s · pid %d · up %s · %s\n\n", st.Service, st.Environment, st.Version, st.PID, age(st.Now.Sub(st.Began)), state)

	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "PLANE\tLISTENS ON\tLEADS TO\tPER SECOND\tP50\tP95\tP99\tERRORS\n")
	for _, p := range st.Planes {
		if p.State == "off" {
			fmt.Fprintf(w, "%s\toff\t%s\t\t\t\t\t\n", p.Name, p.Note)
			continue
		}
		f := p.Figures
		fmt.Fprintf(w, "%s\t%s\t%s\t%.1f\t%s\t%s\t%s\t%.2f%%\n", p.Name, p.Listen, p.Upstream, f.Rate, millis(f.P50), millis(f.P95), millis(f.P99), 100*f.ErrorRate)
	}
	fmt.Fprintf(w, "\nCOPY\tCOLOR\tSTATE\tSHARE\tPID\tADDRESS\tUP\tRESTARTS\tCOMMAND\n")
	for _, role := range []struct {
		name string
		copy *deploy.Copy
	}{{"live", st.App.Live}, {"next", st.App.Next}, {"old", st.App.Old}} {
		if c := role.copy; c != nil {
			fmt.Fprintf(w, "%s\t%s\t%s\t%d%%\t%d\t%s\t%s\t%d\t%s\n", role.name, c.Color, c.State, c.Share, c.PID, c.Address, age(st.Now.Sub(c.Began)), c.Restarts, c.Command)
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, p := range st.Planes {
		if p.Name == "edge" {
			unready(&b, p.Stats, st.Now)
		}
		if p.Name == "claude" && p.State != "off" && p.Note != "" {
			fmt.Fprintf(&b, "\nclaude: %s\n", p.Note)
		}
	}
	for _, c := range []*deploy.Copy{st.App.Live, st.App.Next} {
		if c != nil && c.Reason != "" {
			fmt.Fprintf(&b, "\n%s: %s\n", c.ID, c.Reason)
		}
	}
	for _, warning := range st.Warnings {
		fmt.Fprintf(&b, "\nwarning: %s\n", warning)
	}
	if st.App.Maintenance {
		fmt.Fprintf(&b, "\nmaintenance mode is on\n")
	}
	if f := st.App.Frozen; f != nil {
		fmt.Fprintf(&b, "\ndeploy no. %d is frozen; mainstay promote or mainstay rollback decides\n", f.Number)
	}
	if u := st.App.Deploying; u != nil {
		fmt.Fprintf(&b, "\ndeploying for %s: %s\n", age(st.Now.Sub(u.Since)), u.Text)
	}
	_, err := io.WriteString(out, b.String())
	return err
}

// unready tells of the copies that do not get their share, and why.
func unready(b *strings.Builder, stats any, now time.Time) {
	raw, err := json.Marshal(stats) // what came as JSON
	if err != nil {
		return
	}
	var st edge.Stats
	if json.Unmarshal(raw, &st) != nil {
		return
	}
	for _, t := range st.Targets {
		switch t.State {
		case edge.Ejected:
			fmt.Fprintf(b, "\n%s is ejected: it failed %d requests in a row; others take its requests, and it is tried again in %s\n", t.ID, t.Failed, age(max(0, t.Until.Sub(now))))
		case edge.SlowStart:
			fmt.Fprintf(b, "\n%s starts slowly: it has its whole share in %s\n", t.ID, age(max(0, t.Until.Sub(now))))
		}
	}
}

// millis writes milliseconds the way a person reads them.
func millis(ms float64) string {
	if ms < 10 {
		return fmt.Sprintf("%.1f ms", ms)
	}
	return fmt.Sprintf("%.0f ms", ms)
}

// age writes a length of time to the second.
func age(d time.Duration) string { return d.Round(time.Second).String() }
