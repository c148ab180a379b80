package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"mainstay.dev/mainstay/internal/calls"
)

// claude gathers the verbs for the Claude plane.
func (c *cli) claude() *cobra.Command {
	cmd := &cobra.Command{
		Use: "claude", Short: "Look at the calls to Claude, and rehearse its outage",
		Example:                    "  mainstay claude calls\n  mainstay claude calls --failed\n  mainstay claude drill overload",
		SuggestionsMinimumDistance: 2,
		Args:                       knownVerb,
		RunE:                       func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(c.claudeCalls(), c.claudeDrill())
	return cmd
}

func (c *cli) claudeCalls() *cobra.Command {
	var asJSON, follow bool
	var q calls.Query
	cmd := &cobra.Command{
		Use: "calls", Short: "List the latest calls: attempts, waits, cost, and what saved each", Args: noArgs,
		Long: `Shows the latest calls that have ended, the newest last. ATTEMPTS tells how each try
ended, and after how long a wait it began. SAVED BY tells what made a call go well
that would have failed otherwise: retry, hold, resume, aggregate, attach or route.
What was said to Claude and what it answered is not shown.`,
		Example: "  mainstay claude calls\n  mainstay claude calls --failed -n 100\n  mainstay claude calls --follow --json | jq -r .id",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if q.Last < 1 {
				return fmt.Errorf("%w: -n must be from 1 on", errUsage)
			}
			return c.showCalls(cmd, q, asJSON, follow)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print everything, one call a line, as JSON; times are in nanoseconds")
	cmd.Flags().BoolVar(&q.Failed, "failed", false, "only calls that got no good answer")
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on with the calls that end from now on, until ^C")
	cmd.Flags().IntVarP(&q.Last, "number", "n", 20, "how many calls")
	return cmd
}

func (c *cli) showCalls(cmd *cobra.Command, q calls.Query, asJSON, follow bool) error {
	client, err := c.client()
	if err != nil {
		return err
	}
	const all = 1000
	ctx, out, head := cmd.Context(), cmd.OutOrStdout(), true
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		found, err := client.Calls(ctx, q)
		if err != nil {
			return unlessInterrupted(ctx.Err(), err)
		}
		if err := printCalls(out, found, asJSON, head); err != nil {
			return err
		}
		if !follow {
			return nil
		}
		if len(found) > 0 {
			q.After, head = found[len(found)-1].N, false
		}
		q.Last = all
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// unlessInterrupted is err, unless it was the person at the keyboard who ended the verb.
func unlessInterrupted(interrupted, err error) error {
	if interrupted != nil && errors.Is(err, interrupted) {
		return nil
	}
	return err
}

func printCalls(out io.Writer, found []calls.Call, asJSON, head bool) error {
	if asJSON {
		enc := json.NewEncoder(out)
		for _, call := range found {
			if err := enc.Encode(call); err != nil {
				return err
			}
		}
		return nil
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	if head {
		fmt.Fprintln(w, "WHEN\tID\tMODEL\tCODE\tTOOK\tATTEMPTS\tIN\tOUT\tCOST\tUSER\tSAVED BY")
	}
	for _, call := range found {
		what, who := call.Model, call.User
		if what == "" {
			what = call.Route
		}
		if call.Workspace != "" {
			who += "@" + call.Workspace
		}
		if who == "" {
			who = call.Caller
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%d\t%d\t%s\t%s\t%s\n", call.Start.Local().Format(time.TimeOnly), call.ID, what, call.Code, brief(call.Took),
			attempts(call), call.Input+call.CacheRead+call.CacheWrite, call.Output, dollars(call), who, call.SavedBy)
	}
	return w.Flush()
}

// attempts tells how each try of a call ended: "overloaded, 251 ms, overloaded, 1.2 s, ok".
func attempts(call calls.Call) string {
	var parts []string
	for i, a := range call.Attempts {
		how := a.Cause
		if how == "" {
			how = "ok"
		}
		if wait := brief(a.Waited); wait != "" && (i > 0 || a.Waited > time.Second) {
			parts = append(parts, wait)
		}
		parts = append(parts, how)
	}
	if more := call.Tries - len(call.Attempts); more > 0 {
		parts = append(parts, fmt.Sprintf("and %d more", more))
	}
	if len(parts) == 0 {
		return "none"
	}
	return strings.Join(parts, ", ")
}

func dollars(call calls.Call) string {
	if call.Unpriced {
		return "no price"
	}
	if call.Dollars == 0 {
		return ""
	}
	return fmt.Sprintf("$%.6f", call.Dollars)
}
