package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"mainstay.dev/mainstay/internal/admin"
	"mainstay.dev/mainstay/internal/limits"
)

func (c *cli) limits() *cobra.Command {
	cmd := &cobra.Command{
		Use: "limits", Short: "See who is near a rate limit, and change it for one caller",
		Long: `A caller is named user:ID, workspace:ID or address:ADDRESS. What is granted holds at
once, on all nodes that share the Redis, and is written into the audit log.`,
		Example: `  mainstay limits top
  mainstay limits show user:ann
  mainstay limits grant user:ann --requests 5000 --window 1h --for 24h --why "launch day"`,
		SuggestionsMinimumDistance: 2,
		Args:                       knownVerb,
		RunE:                       func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(c.limitsTop(), c.limitsShow(), c.limitsReset(), c.limitsGrant(), c.limitsAudit())
	return cmd
}

// oneCaller wants the name of one caller.
func oneCaller(cmd *cobra.Command, args []string) error {
	if len(args) != 1 {
		return fmt.Errorf("%w: name one caller, such as %s user:ann; see %s --help", errUsage, cmd.CommandPath(), cmd.CommandPath())
	}
	if _, err := limits.ParseCaller(args[0]); err != nil {
		return fmt.Errorf("%w: %q %w", errUsage, args[0], err)
	}
	return nil
}

func (c *cli) limitsTop() *cobra.Command {
	var asJSON bool
	var n int
	cmd := &cobra.Command{
		Use: "top", Short: "List who is nearest to a limit, and the grants", Args: noArgs,
		Example: "  mainstay limits top\n  mainstay limits top -n 100 --json | jq '.top[] | select(.used > 0.8).key'",
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := c.client()
			if err != nil {
				return err
			}
			l, err := client.Limits(cmd.Context(), n)
			if err != nil {
				return err
			}
			if asJSON {
				return json.NewEncoder(cmd.OutOrStdout()).Encode(l)
			}
			return printLimits(cmd.OutOrStdout(), l)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print everything as JSON")
	cmd.Flags().IntVarP(&n, "number", "n", 20, "how many callers")
	return cmd
}

func printLimits(out io.Writer, l admin.Limits) error {
	if !l.On {
		_, err := fmt.Fprintln(out, "nobody is limited: the file has no limits section")
		return err
	}
	var b strings.Builder
	switch {
	case l.Down:
		fmt.Fprintf(&b, "Redis does not answer: limits go on as on_store_failure says; callers of %d nodes\n", l.Told)
	case l.Redis:
		fmt.Fprintf(&b, "shared by Redis, %d nodes live, callers of %d\n", l.Nodes, l.Told)
	default:
		fmt.Fprintf(&b, "counted by this node alone\n")
	}
	if l.Shadow {
		fmt.Fprintf(&b, "shadow: nobody is refused\n")
	}
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "\nCALLER\tTIER\tRULE\tUSED\tLEFT\tLIMIT\tREFUSED\tSEEN\n")
	for _, s := range l.Top {
		fmt.Fprintf(w, "%s\t%s\t%s\t%.0f%%\t%d\t%d\t%d\t%s ago\n", s.Key, s.Tier, s.Rule, 100*s.Used, s.Remaining, s.Limit, s.Refused, age(l.Now.Sub(s.Seen)))
	}
	if len(l.Grants) > 0 {
		fmt.Fprintf(w, "\nGRANT\tREQUESTS\tWINDOW\tUNTIL\tWHO\tWHY\n")
		for _, g := range l.Grants {
			key := g.Key
			if g.Claude {
				key += " (Claude)"
			}
			fmt.Fprintf(w, "%s\t%d\t%s\t%s\t%s\t%s\n", key, g.Requests, g.Window, until(g.Until), g.Who, g.Why)
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	_, err := io.WriteString(out, b.String())
	return err
}

func until(t time.Time) string {
	if t.IsZero() {
		return "it is ended"
	}
	return t.Local().Format(time.DateTime)
}

// hints are the flags that say more of a caller than its name.
func hints(cmd *cobra.Command, q *limits.Inquiry) {
	cmd.Flags().StringVar(&q.Workspace, "workspace", "", "the user's workspace (default: the one it was last seen with)")
	cmd.Flags().StringVar(&q.Tier, "tier", "", "the caller's tier (default: the one it was last seen with)")
}

func (c *cli) limitsShow() *cobra.Command {
	var asJSON bool
	var q limits.Inquiry
	cmd := &cobra.Command{
		Use: "show CALLER", Short: "Show how one caller stands", Args: oneCaller,
		Example: "  mainstay limits show user:ann\n  mainstay limits show user:ann --workspace acme --tier pro\n  mainstay limits show address:192.0.2.7 --json",
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := c.client()
			if err != nil {
				return err
			}
			q.Key = args[0]
			s, err := client.ShowLimits(cmd.Context(), q)
			if err != nil {
				return err
			}
			if asJSON {
				return json.NewEncoder(cmd.OutOrStdout()).Encode(s)
			}
			return printShowing(cmd.OutOrStdout(), s)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print everything as JSON")
	hints(cmd, &q)
	return cmd
}

func printShowing(out io.Writer, s limits.Showing) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s · tier %s · limits from the %s", s.Key, s.Tier, s.From)
	if s.Workspace != "" && !strings.HasPrefix(s.Key, "workspace:") {
		fmt.Fprintf(&b, " · workspace %s", s.Workspace)
	}
	if s.Exempt != "" {
		fmt.Fprintf(&b, " · on the %s list", s.Exempt)
	}
	if s.Mode != "exact" {
		fmt.Fprintf(&b, " · Redis does not answer, counted %s", s.Mode)
	}
	if g := s.Grant; g != nil {
		fmt.Fprintf(&b, "\ngranted by %s until %s: %s", g.Who, until(g.Until), g.Why)
	}
	if g := s.Claude; g != nil {
		fmt.Fprintf(&b, "\ngranted for Claude by %s until %s: %s", g.Who, until(g.Until), g.Why)
	}
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "\n\nRULE\tLEFT\tLIMIT\tWINDOW\tNEXT\tALL BACK IN\n")
	for _, r := range s.Rules {
		name := r.Name
		if r.Shadow {
			name += " (shadow)"
		}
		fmt.Fprintf(w, "%s\t%d\t%d\t%s\t%s\t%s\n", name, r.Remaining, r.Limit, span(r.Window), span(r.Next), span(r.Reset))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	_, err := io.WriteString(out, b.String())
	return err
}

// span writes seconds as a length of time.
func span(seconds float64) string { return age(time.Duration(seconds * float64(time.Second))) }

func (c *cli) limitsReset() *cobra.Command {
	var q limits.Inquiry
	cmd := &cobra.Command{
		Use: "reset CALLER", Short: "Forget what one caller has taken", Args: oneCaller,
		Example: "  mainstay limits reset user:ann --why \"a runaway script of ours\"",
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := c.client()
			if err != nil {
				return err
			}
			q.Key, q.Who = args[0], whoami()
			if err := client.ResetLimits(cmd.Context(), q); err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s begins anew\n", q.Key)
			return err
		},
	}
	cmd.Flags().StringVar(&q.Why, "why", "", "why, for the audit log")
	hints(cmd, &q)
	return cmd
}

func (c *cli) limitsGrant() *cobra.Command {
	var g admin.GrantRequest
	var end bool
	cmd := &cobra.Command{
		Use: "grant CALLER", Short: "Give one caller a limit of its own, or take it back", Args: oneCaller,
		Example: `  mainstay limits grant user:ann --requests 5000 --window 1h --for 24h --why "launch day"
  mainstay limits grant workspace:acme --requests 100 --window 1s --burst 200
  mainstay limits grant user:ann --claude --requests 1000000 --window 1h --for 24h
  mainstay limits grant user:ann --end`,
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := c.client()
			if err != nil {
				return err
			}
			g.Key, g.Who = args[0], whoami()
			say := "%s has a limit of its own\n"
			switch {
			case end:
				say = "%s has its tier's limit again\n"
				err = client.EndGrant(cmd.Context(), limits.Inquiry{Key: g.Key, Claude: g.Claude, Who: g.Who, Why: g.Why})
			case g.Requests == 0 && g.AtOnce == 0:
				return fmt.Errorf("%w: say how much, such as --requests 5000 --window 1h, or --end", errUsage)
			default:
				err = client.GrantLimits(cmd.Context(), g)
			}
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), say, g.Key)
			return err
		},
	}
	f := cmd.Flags()
	f.IntVar(&g.Requests, "requests", 0, "how many requests …")
	f.DurationVar(&g.Window, "window", 0, "… in any window of this length")
	f.IntVar(&g.Burst, "burst", 0, "spaced evenly, so many at once")
	f.IntVar(&g.AtOnce, "at-once", 0, "how many may run at the same time")
	f.DurationVar(&g.For, "for", 0, "for how long (default: until it is ended)")
	f.StringVar(&g.Why, "why", "", "why, for the audit log")
	f.BoolVar(&g.Claude, "claude", false, "of calls to Claude, in place of limits.claude (--requests are calls or tokens)")
	f.BoolVar(&end, "end", false, "end the grant")
	return cmd
}

func (c *cli) limitsAudit() *cobra.Command {
	var asJSON bool
	var n int
	cmd := &cobra.Command{
		Use: "audit", Short: "List who changed whose limits, newest first", Args: noArgs,
		Example: "  mainstay limits audit\n  mainstay limits audit -n 500 --json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := c.client()
			if err != nil {
				return err
			}
			entries, err := client.LimitsAudit(cmd.Context(), n)
			if err != nil {
				return err
			}
			if asJSON {
				return json.NewEncoder(cmd.OutOrStdout()).Encode(entries)
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			fmt.Fprintln(w, "WHEN\tWHAT\tCALLER\tBEFORE\tAFTER\tWHO\tWHY")
			for _, e := range entries {
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", e.Time.Local().Format(time.DateTime), e.What, e.Key, e.Before, e.After, e.Who, e.Why)
			}
			return w.Flush()
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print everything as JSON")
	cmd.Flags().IntVarP(&n, "number", "n", 50, "how many entries")
	return cmd
}
