package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"mainstay.dev/mainstay/internal/admin"
	"mainstay.dev/mainstay/internal/calls"
)

// claude gathers the verbs for the Claude plane.
func (c *cli) claude() *cobra.Command {
	cmd := &cobra.Command{
		Use: "claude", Short: "Look at the calls to Claude, send one again, and rehearse an outage",
		Example:                    "  mainstay claude calls\n  mainstay claude calls --failed\n  mainstay claude replay req_1x2y3z\n  mainstay claude drill overload",
		SuggestionsMinimumDistance: 2,
		Args:                       knownVerb,
		RunE:                       func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(c.claudeCalls(), c.claudeReplay(), c.claudeDrill())
	return cmd
}

func (c *cli) claudeCalls() *cobra.Command {
	var asJSON, follow bool
	var since time.Duration
	var q calls.Query
	cmd := &cobra.Command{
		Use: "calls", Short: "List the latest calls: attempts, waits, cost, and what saved each", Args: noArgs,
		Long: `Shows the latest calls that have ended, the newest last. ATTEMPTS tells how each try
ended, and after how long a wait it began. VIA names the route and the key that served
it, where there is a choice (claude.routes, claude.keys). SAVED BY tells what made a call go well
that would have failed otherwise: retry, hold, resume, aggregate, attach or route.
What was said to Claude and what it answered is not shown.`,
		Example: "  mainstay claude calls\n  mainstay claude calls --failed -n 100\n  mainstay claude calls --since 10m --model claude-opus --route backup\n  mainstay claude calls --follow --json | jq -r .id",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if q.Last < 1 {
				return fmt.Errorf("%w: -n must be from 1 on", errUsage)
			}
			if since < 0 {
				return fmt.Errorf("%w: --since must not be negative", errUsage)
			}
			if since > 0 {
				q.Since = time.Now().Add(-since)
			}
			return c.showCalls(cmd, q, asJSON, follow)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print everything, one call a line, as JSON; times are in nanoseconds")
	cmd.Flags().BoolVar(&q.Failed, "failed", false, "only calls that got no good answer")
	cmd.Flags().StringVar(&q.Via, "route", "", "only calls that went by this route: claude, or one of claude.routes")
	cmd.Flags().StringVar(&q.Model, "model", "", "only calls of models whose names begin so")
	cmd.Flags().DurationVar(&since, "since", 0, "only calls that ended in the last 10m, or so")
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
		fmt.Fprintln(w, "WHEN\tID\tMODEL\tCODE\tTOOK\tATTEMPTS\tIN\tOUT\tCOST\tUSER\tVIA\tSAVED BY")
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
		id := call.ID
		if call.ReplayOf != "" {
			id += " (replay of " + call.ReplayOf + ")"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%d\t%d\t%s\t%s\t%s\t%s\n", call.Start.Local().Format(time.TimeOnly), id, what, call.Code, brief(call.Took),
			attempts(call), call.Input+call.CacheRead+call.CacheWrite, call.Output, dollars(call), who, call.Via, call.SavedBy)
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

func (c *cli) claudeReplay() *cobra.Command {
	var yes, asJSON bool
	var q admin.ReplayRequest
	cmd := &cobra.Command{
		Use: "replay ID", Short: "Send a call again, through Mainstay, and show the answer",
		Long: `Sends the request of a call again, as a call like any other: it is paid for, and it
is asked whether that is meant. Requests are there to be sent again only if
claude.keep.requests in the file says failed or all. Keys are never kept: it uses
claude.keys, or without them the key in ANTHROPIC_API_KEY.

The answer goes to standard output, what it came to and cost to standard error.`,
		Example: "  mainstay claude replay req_1x2y3z\n  mainstay claude replay --yes --json req_1x2y3z | jq -r .body",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return fmt.Errorf("%w: say which call: mainstay claude replay ID; mainstay claude calls lists them", errUsage)
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := c.client()
			if err != nil {
				return err
			}
			q.ID = args[0]
			kept, err := client.Kept(cmd.Context(), q.ID)
			if err != nil {
				return err
			}
			if q.Key = os.Getenv("ANTHROPIC_API_KEY"); kept.NeedsKey && q.Key == "" {
				return fmt.Errorf("there are no claude.keys, and callers' keys are not kept: set ANTHROPIC_API_KEY")
			}
			if !kept.NeedsKey {
				q.Key = "" // none is needed: none is sent
			}
			if kept.Removed > 0 && !q.Redacted {
				return fmt.Errorf("something was taken out of the request before it was kept, in %d places; --redacted sends it with [redacted] there", kept.Removed)
			}
			if err := confirm(cmd, kept, yes); err != nil {
				return err
			}
			done, err := client.Replay(cmd.Context(), q)
			if err != nil {
				return err
			}
			return showReplay(cmd, done, asJSON)
		},
	}
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask; it is meant to be paid for")
	cmd.Flags().BoolVar(&q.Redacted, "redacted", false, "send it though something was taken out of it")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print everything as JSON; times are in nanoseconds")
	return cmd
}

// confirm asks whether the call is meant to be paid for again.
func confirm(cmd *cobra.Command, k calls.Kept, yes bool) error {
	if yes {
		return nil
	}
	cost := "what that costs is not known"
	if k.First != nil && k.First.Dollars > 0 {
		cost = "the first time it cost " + dollars(*k.First)
	}
	model := k.Model
	if model == "" {
		model = k.Path
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "Send call %s of %s (%s, %d bytes) again? It is paid for; %s. [y/N] ", k.ID, k.At.Local().Format(time.DateTime), model, k.Bytes, cost)
	line, err := bufio.NewReader(io.LimitReader(cmd.InOrStdin(), 1<<10)).ReadString('\n')
	switch strings.ToLower(strings.TrimSpace(line)) {
	case "y", "yes":
		return nil
	}
	if err != nil {
		return fmt.Errorf("%w: nobody said yes; --yes does not ask", errUsage)
	}
	return fmt.Errorf("not sent")
}

func showReplay(cmd *cobra.Command, done calls.Replayed, asJSON bool) error {
	if asJSON {
		if err := json.NewEncoder(cmd.OutOrStdout()).Encode(done); err != nil {
			return err
		}
	} else {
		fmt.Fprintln(cmd.OutOrStdout(), strings.TrimSuffix(done.Body, "\n"))
		fmt.Fprintf(cmd.ErrOrStderr(), "%s: %s, status %d, %s, %d attempts, $%.6f\n", done.ID, done.Code, done.Status, brief(done.Took), done.Attempts, done.Dollars)
	}
	if done.Code != "ok" {
		return fmt.Errorf("the call failed: %s", done.Code)
	}
	return nil
}
