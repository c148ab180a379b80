// Package explain asks PostgreSQL about a statement, on a connection of its own, without running it: for the
// plan of one that was slow, and for the types of parameters.
//
// Only the pooler imports it. It keeps neither a connection nor a goroutine.
package explain

import (
	"bytes"
	"context"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"mainstay.dev/mainstay/pooler/internal/pgwire"
	"mainstay.dev/mainstay/pooler/internal/upstream"
)

// A Query is what a plan is asked for.
type Query struct {
	SQL      string
	Settings string // SQL that sets what the client had set; may be empty
}

const limit = 5 * time.Second

// Refused is PostgreSQL's error.
type Refused struct{ SQLState, Message string }

func (r *Refused) Error() string { return fmt.Sprintf("%s (%s)", r.Message, r.SQLState) }

// Lasting reports whether it is of the statement: no matter of others at work, room, locks, time or a restart (classes 40, 53, 55, 57 and 58).
func (r *Refused) Lasting() bool {
	return !slices.Contains([]string{"40", "53", "55", "57", "58"}, r.SQLState[:min(2, len(r.SQLState))])
}

// Possible reports whether a statement, by its first word, is one that has a plan.
func Possible(sql []byte) bool {
	sql = bytes.TrimLeft(sql, " \t\r\n(")
	for _, word := range []string{"select", "insert", "update", "delete", "with", "values", "merge"} {
		if len(sql) > len(word) && strings.EqualFold(string(sql[:len(word)]), word) {
			return true
		}
	}
	return false
}

var parameter = regexp.MustCompile(`\$[0-9]`)

// Plan returns the plan's lines. The statement is only planned, in a transaction that
// can only read, whatever the client has set: to plan is to carry out what is said to be immutable; several statements in one text are refused by PostgreSQL.
func Plan(ctx context.Context, t *upstream.Target, dial upstream.Dial, q Query) (string, error) {
	c, err := connect(ctx, t, dial, q.Settings)
	if err != nil {
		return "", err
	}
	defer c.Close()
	if parameter.MatchString(q.SQL) {
		return generic(c, q.SQL)
	}
	return ask(c, single("EXPLAIN "+q.SQL))
}

// connect connects, for at most limit, to ask with these settings.
func connect(ctx context.Context, t *upstream.Target, dial upstream.Dial, settings string) (*upstream.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	c, err := t.Only("default_transaction_read_only=on", "statement_timeout=2000", "application_name=mainstay explain").Connect(ctx, dial)
	if err != nil {
		return nil, err
	}
	until, _ := ctx.Deadline()
	if err = c.SetDeadline(until); err == nil {
		_, err = ask(c, pgwire.AppendQuery(nil, settings+";SET statement_timeout=2000;SET lock_timeout=1000;SET default_transaction_read_only=on"))
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// Types returns the oids of the types of a statement's parameters. body is what stands behind the name in its Parse message.
func Types(ctx context.Context, t *upstream.Target, dial upstream.Dial, settings string, body []byte) ([]uint32, error) {
	c, err := connect(ctx, t, dial, settings)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	out := pgwire.Append(nil, pgwire.Parse, []byte{0}, body)
	out = pgwire.Append(out, pgwire.Describe, []byte{'S', 0})
	if _, err := c.Write(pgwire.Append(out, pgwire.Sync)); err != nil {
		return nil, err
	}
	var oids []uint32
	_, err = read(c, func(typ byte, body []byte) {
		if typ == pgwire.ParameterDesc {
			oids = pgwire.ParameterTypes(body)
		}
	})
	return oids, err
}

// generic returns the plan for parameters that are not known (the generic plan). EXPLAIN's own
// GENERIC_PLAN would need PostgreSQL 16; this goes from 12 on.
func generic(c *upstream.Conn, sql string) (string, error) {
	const name = "mainstay_explain"
	if _, err := ask(c, single("PREPARE "+name+" AS "+sql)); err != nil {
		return "", err
	}
	count, err := ask(c, single("SELECT cardinality(parameter_types) FROM pg_catalog.pg_prepared_statements WHERE name = '"+name+"'"))
	if err != nil {
		return "", err
	}
	execute := "EXPLAIN EXECUTE " + name
	if n, _ := strconv.Atoi(strings.TrimSpace(count)); n > 0 { // PostgreSQL's own digits
		execute += "(NULL" + strings.Repeat(", NULL", n-1) + ")"
	}
	if _, err := ask(c, single("SET plan_cache_mode = force_generic_plan")); err != nil {
		return "", err
	}
	return ask(c, single(execute))
}

// single is a cycle that runs a text of one statement; PostgreSQL refuses several in one.
func single(sql string) []byte {
	nul := []byte{0}
	out := pgwire.Append(nil, pgwire.Parse, nul, []byte(sql), nul, []byte{0, 0})
	out = pgwire.Append(out, pgwire.Bind, []byte{0, 0, 0, 0, 0, 0, 0, 0})
	out = pgwire.Append(out, pgwire.Execute, []byte{0, 0, 0, 0, 0})
	return pgwire.Append(out, pgwire.Sync)
}

// ask sends a cycle and returns its rows.
func ask(c *upstream.Conn, cycle []byte) (string, error) {
	if _, err := c.Write(cycle); err != nil {
		return "", err
	}
	return read(c, func(byte, []byte) {})
}

// maxPlan bounds a plan's text.
const maxPlan = 16 << 10

// read reads rows of one text column until ReadyForQuery. It shows all other messages to see.
func read(c *upstream.Conn, see func(typ byte, body []byte)) (string, error) {
	var plan strings.Builder
	var refused error
	for {
		typ, body, err := c.In.Next()
		if err != nil {
			return "", err
		}
		switch typ {
		case pgwire.DataRow:
			if len(body) > 6 && plan.Len() < maxPlan {
				plan.Write(body[6:])
				plan.WriteByte('\n')
			}
		case pgwire.ErrorResponse:
			refused = &Refused{string(pgwire.Field(body, 'C')), string(pgwire.Field(body, 'M'))}
		case pgwire.ReadyForQuery:
			return plan.String(), refused
		default:
			see(typ, body)
		}
	}
}
