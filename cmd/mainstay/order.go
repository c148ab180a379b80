package main

import (
	"encoding/json"
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"mainstay.dev/mainstay/internal/deploy"
)

// orders are the verbs that say something about a deploy.
func (c *cli) orders() []*cobra.Command {
	return []*cobra.Command{
		c.order("rollback", "Go back to the color before", `Gives the traffic back to the color before, which still runs: one switch, no start. A
deploy that is watched is rolled back; one that has no traffic yet is called off.`),
		c.order("promote", "Give the new color everything at once", `Ends the watch, or the freeze, of a deploy and gives its color all the traffic.`),
		c.order("freeze", "Leave the traffic of a deploy as it is", `Stops the steps and the watch of the deploy at work; promote or rollback decides later.`),
		c.order("settle", "Take the old color down", `Stops the old color that stands by, or updates it if app.settle.old says so.`),
	}
}

func (c *cli) order(verb, short, long string) *cobra.Command {
	var why string
	cmd := &cobra.Command{
		Use: verb, Short: short, Long: long, Args: noArgs,
		Example: fmt.Sprintf("  mainstay %s\n  mainstay %s --why \"checkout is slow\"", verb, verb),
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := c.client()
			if err != nil {
				return err
			}
			r, err := client.Order(cmd.Context(), verb, deploy.Order{Who: whoami(), Why: why})
			if err != nil {
				return err
			}
			text := "done"
			if r.Number != 0 {
				text = fmt.Sprintf("deploy no. %d: %s", r.Number, r.Phase)
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), text)
			return err
		},
	}
	cmd.Flags().StringVar(&why, "why", "", "why, for the record")
	return cmd
}

func (c *cli) maintenance() *cobra.Command {
	var why string
	cmd := &cobra.Command{
		Use: "maintenance on|off", Short: "Answer everybody with a maintenance page, or serve again",
		Example: "  mainstay maintenance on --why \"moving the database\"\n  mainstay maintenance off",
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 || args[0] != "on" && args[0] != "off" {
				return fmt.Errorf("%w: say mainstay maintenance on, or off", errUsage)
			}
			client, err := c.client()
			if err != nil {
				return err
			}
			return client.Maintenance(cmd.Context(), args[0] == "on", deploy.Order{Who: whoami(), Why: why})
		},
	}
	cmd.Flags().StringVar(&why, "why", "", "why, for the log")
	return cmd
}

func (c *cli) history() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "history", Short: "List past deploys, newest first", Args: noArgs,
		Example: "  mainstay history\n  mainstay history --json | jq '.[0].evidence'",
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := c.client()
			if err != nil {
				return err
			}
			records, err := client.Deploys(cmd.Context())
			if err != nil {
				return err
			}
			if asJSON {
				return json.NewEncoder(cmd.OutOrStdout()).Encode(records)
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			fmt.Fprintln(w, "NO\tWHEN\tKIND\tCOPY\tVERSION\tENDED AS\tTOOK\tWHO\tWHY")
			for _, r := range records {
				fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", r.Number, r.Began.Local().Format(time.DateTime), r.Kind, r.Target, r.Version, r.Phase,
					(time.Duration(r.TookMS) * time.Millisecond).Round(10*time.Millisecond), r.Who, r.Why)
			}
			return w.Flush()
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print everything as JSON")
	return cmd
}
