// Package explain asks PostgreSQL for the plan of a statement that was slow, on a
// connection of its own, without running it.
//
// Only the pooler imports it. It keeps neither a connection nor a goroutine.
package explain

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"regexp"
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
// can only read; several statements in one text are refused by PostgreSQL.
func Plan(ctx context.Context, t *upstream.Target, dial upstream.Dial, q Query) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	c, err := t.Only("default_transaction_read_only=on", "statement_timeout=2000", "application_name=mainstay explain").Connect(ctx, dial)
	if err != nil {
		return "", err
	}
	defer c.Close()
	if until, ok := ctx.Deadline(); ok {
		if err := c.SetDeadline(until); err != nil {
			return "", err
		}
	}
	explain := "EXPLAIN "
	if parameter.MatchString(q.SQL) {
		if version(c) < 16 {
			return "", errors.New("a statement with parameters needs PostgreSQL 16 for a generic plan")
		}
		explain = "EXPLAIN (GENERIC_PLAN) "
	}
	nul := []byte{0}
	var out []byte
	ends := 1
	if q.Settings != "" {
		out = pgwire.AppendQuery(out, q.Settings)
		ends++
	}
	out = pgwire.Append(out, pgwire.Parse, nul, []byte(explain+q.SQL), nul, []byte{0, 0})
	out = pgwire.Append(out, pgwire.Bind, []byte{0, 0, 0, 0, 0, 0, 0, 0})
	out = pgwire.Append(out, pgwire.Execute, []byte{0, 0, 0, 0, 0})
	out = pgwire.Append(out, pgwire.Sync)
	if _, err := c.Write(out); err != nil {
		return "", err
	}
	return lines(c, ends)
}

func version(c *upstream.Conn) int {
	for _, p := range c.Params {
		if p.Name == "server_version" {
			major, _, _ := strings.Cut(p.Value, ".")
			n, _ := strconv.Atoi(strings.TrimRight(major, " abcdefghijklmnopqrstuvwxyz")) // 0: as if it were old
			return n
		}
	}
	return 0
}

// maxPlan bounds a plan's text.
const maxPlan = 16 << 10

// lines reads rows of one text column until the last of so many ReadyForQuery.
func lines(c *upstream.Conn, ends int) (string, error) {
	var plan strings.Builder
	var refused error
	for {
		typ, body, err := c.In.Next()
		if err != nil {
			return "", err
		}
		switch typ {
		case pgwire.DataRow:
			if ends == 1 && len(body) > 6 && plan.Len() < maxPlan {
				plan.Write(body[6:])
				plan.WriteByte('\n')
			}
		case pgwire.ErrorResponse:
			refused = fmt.Errorf("%s (%s)", pgwire.Field(body, 'M'), pgwire.Field(body, 'C'))
		case pgwire.ReadyForQuery:
			if ends--; ends == 0 || refused != nil {
				return plan.String(), refused
			}
		}
	}
}
