package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"mainstay.dev/mainstay/internal/admin"
	"mainstay.dev/mainstay/pooler"
)

// db gathers the verbs for the pooler.
func (c *cli) db() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "db",
		Short:   "Look at the pooler and steer it",
		Example: "  mainstay db top\n  mainstay db pools\n  mainstay db clients\n  mainstay db pause app && pg_ctl restart -m fast; mainstay db resume app",
		Args:    knownVerb,

		SuggestionsMinimumDistance: 2,

		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(
		look(c, "top", "Show where the time went in the last minutes, by query and by user", printTop),
		look(c, "pools", "Show the pools of connections to PostgreSQL", printPools),
		look(c, "clients", "List the clients, those that wait or work for longest first", printClients),
		c.dbKill(), c.dbPause(),
		c.dbOrder("resume", "Serve again after a pause", "Clients that wait are served, in their order."),
		c.dbOrder("reconnect", "Replace every connection to PostgreSQL", `Idle ones are closed now, others when their transaction ends: after a failover, a new
certificate, or ALTER ROLE … SET.`),
	)
	return cmd
}

// look makes a verb that shows one of the pooler's views.
func look[T any](c *cli, what, short string, show func(io.Writer, T) error) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: what, Short: short, Args: noArgs,
		Example: fmt.Sprintf("  mainstay db %s\n  mainstay db %s --json", what, what),
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := c.client()
			if err != nil {
				return err
			}
			var v T
			if err := client.LookDB(cmd.Context(), what, &v); err != nil {
				return err
			}
			if asJSON {
				enc := json.NewEncoder(cmd.OutOrStdout())
				enc.SetIndent("", "  ")
				return enc.Encode(v)
			}
			return show(cmd.OutOrStdout(), v)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print everything as JSON; times are in nanoseconds")
	return cmd
}

func printPools(out io.Writer, st pooler.Stats) error {
	fmt.Fprintf(out, "%d of %d clients\n\n", st.Clients, st.MaxClients)
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "DATABASE\tMODE\tIN USE\tIDLE\tCONNECTING\tMAX\tWAITING\tLONGEST WAIT\tLONGEST USE\tSTATE\tUPSTREAM")
	for _, d := range st.Databases {
		state := "serves"
		switch {
		case d.Paused != nil:
			state = "paused " + age(time.Since(*d.Paused))
		case d.Outage != "":
			state = "down"
		}
		most := strconv.Itoa(d.Max)
		if d.Reserve > 0 {
			most += "+" + strconv.Itoa(d.Reserve)
		}
		fmt.Fprintf(w, "%s\t%s\t%d\t%d\t%d\t%s\t%d\t%s\t%s\t%s\t%s\n", d.Database, d.Mode, d.Active, d.Idle, d.Connecting, most, d.Waiting,
			brief(d.LongestWait), brief(d.LongestUse), state, d.Upstream)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, d := range st.Databases {
		if d.Outage != "" {
			fmt.Fprintf(out, "\n%s: %s\n", d.Database, d.Outage)
		}
	}
	return nil
}

// topShown bounds the rows of each table that a person gets; --json has more.
const topShown = 20

func printTop(out io.Writer, t pooler.Top) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	head := "CALLS\tFAILED\tROWS\tTIME\tQUEUE\tPOSTGRES\tCLIENT\tP50\tP95\tP99\t"
	fmt.Fprintln(w, head+"FINGERPRINT\tQUERY")
	row := func(q pooler.Summary, what string) {
		fmt.Fprintf(w, "%d\t%d\t%d\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", q.Calls, q.Failed, q.Rows, brief(q.Took), brief(q.Waited), brief(q.Postgres),
			brief(q.Client), brief(q.P50), brief(q.P95), brief(q.P99), what)
	}
	for i, q := range t.Queries {
		if text := []rune(q.Text); len(text) > 100 {
			q.Text = string(text[:99]) + "…"
		}
		if i < topShown && q.Calls > 0 {
			row(q, q.Fingerprint+"\t"+q.Text)
		}
	}
	fmt.Fprintln(w, "\n"+head+"USER")
	for i, u := range t.Users {
		if i < topShown && u.Calls > 0 {
			row(u, u.User)
		}
	}
	return w.Flush()
}

func printClients(out io.Writer, clients []pooler.ClientStats) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "ID\tUSER\tDATABASE\tAPPLICATION\tCOLOR\tADDRESS\tTLS\tCONNECTED\tSTATE\tFOR\tBACKEND\tLISTENS TO\tPINNED BY")
	for _, c := range clients {
		backend := ""
		if c.Server != 0 {
			backend = strconv.FormatUint(uint64(c.Server), 10)
		}
		channels := ""
		if c.Channels > 0 {
			channels = strconv.Itoa(c.Channels)
		}
		fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", c.ID, c.User, c.Database, c.Application, c.Color, c.Address,
			map[bool]string{true: "yes", false: "no"}[c.TLS], age(time.Since(c.Since)), c.State, brief(c.For), backend, channels, c.Pinned)
	}
	return w.Flush()
}

// brief writes a length of time the way a person reads it; nothing for none.
func brief(d time.Duration) string {
	if d == 0 {
		return ""
	}
	if d < 10*time.Second {
		return millis(float64(d) / float64(time.Millisecond))
	}
	return age(d)
}

// database is the one word that a verb may take.
func database(cmd *cobra.Command, args []string) (string, error) {
	switch len(args) {
	case 0:
		return "", nil
	case 1:
		return args[0], nil
	}
	return "", fmt.Errorf("%w: %s takes one database, got %q", errUsage, cmd.CommandPath(), args)
}

func (c *cli) dbOrder(verb, short, long string) *cobra.Command {
	return &cobra.Command{
		Use: verb + " [DATABASE]", Short: short, Long: long + "\nWithout a name it is about all databases.",
		Example: fmt.Sprintf("  mainstay db %s\n  mainstay db %s app", verb, verb),
		RunE: func(cmd *cobra.Command, args []string) error {
			name, err := database(cmd, args)
			if err != nil {
				return err
			}
			return c.orderDB(cmd, verb, admin.DBOrder{Database: name, Who: whoami()})
		},
	}
}

func (c *cli) orderDB(cmd *cobra.Command, verb string, o admin.DBOrder) error {
	client, err := c.client()
	if err != nil {
		return err
	}
	done, err := client.OrderDB(cmd.Context(), verb, o)
	if err != nil {
		return err
	}
	text := "done"
	if verb == "kill" {
		text = fmt.Sprintf("%d ended", done.Killed)
	}
	_, err = fmt.Fprintln(cmd.OutOrStdout(), text)
	return err
}

func (c *cli) dbPause() *cobra.Command {
	var within time.Duration
	cmd := &cobra.Command{
		Use: "pause [DATABASE]", Short: "Let clients wait, and close the connections to PostgreSQL",
		Long: `New transactions wait, from now on. The verb ends when all that are open have ended and
no connection to PostgreSQL is left: then it can be restarted, and no client sees an
error. Clients that wait for longer than acquire_timeout do. If transactions take longer
than --within the verb fails, and the pause stays: end it with mainstay db resume.`,
		Example: "  mainstay db pause app\n  mainstay db pause --within 10s",
		RunE: func(cmd *cobra.Command, args []string) error {
			name, err := database(cmd, args)
			if err != nil {
				return err
			}
			return c.orderDB(cmd, "pause", admin.DBOrder{Database: name, Who: whoami(), Within: within})
		},
	}
	cmd.Flags().DurationVar(&within, "within", time.Minute, "how long to wait for transactions to end")
	return cmd
}

func (c *cli) dbKill() *cobra.Command {
	var o admin.DBOrder
	cmd := &cobra.Command{
		Use: "kill [ID]", Short: "End clients, whatever they do",
		Long: `Ends the client with this id (see mainstay db clients), or all that fit the flags. They
get SQLSTATE 57P01, and their transactions are rolled back.`,
		Example: "  mainstay db kill 4711\n  mainstay db kill --user report --why \"it blocks the shop\"",
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 {
				return fmt.Errorf("%w: mainstay db kill takes one id, got %q", errUsage, args)
			}
			if len(args) == 1 {
				id, err := strconv.ParseUint(args[0], 10, 32)
				if err != nil || id == 0 {
					return fmt.Errorf("%w: %q is no client's id; see mainstay db clients", errUsage, args[0])
				}
				o.ID = uint32(id)
			}
			if o.ID == 0 && strings.TrimSpace(o.User+o.Database) == "" {
				return fmt.Errorf("%w: say whom to end: an id, --user or --database", errUsage)
			}
			o.Who = whoami()
			return c.orderDB(cmd, "kill", o)
		},
	}
	cmd.Flags().StringVar(&o.User, "user", "", "all clients of this user")
	cmd.Flags().StringVar(&o.Database, "database", "", "all clients of this database")
	cmd.Flags().StringVar(&o.Why, "why", "", "why; the clients are told")
	return cmd
}
