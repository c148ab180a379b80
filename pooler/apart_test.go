package pooler

import (
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// impatient gives a database one server, and its clients little time to wait for that.
func impatient(d *Database) {
	d.Pool.Min, d.Pool.Max, d.Pool.AcquireTimeout = 1, 1, 300*time.Millisecond
}

// impatientHouse runs a pooler with such a database, whose server is open.
func impatientHouse(t *testing.T, url string) *house {
	t.Helper()
	h := run(t, config(database(url, impatient)))
	await(t, "the server is open", func() bool { return h.Stats().Databases[0].Idle == 1 })
	return h
}

// ownAlone fails unless what a has left behind, a setting of this name or what is asked for, is seen by nobody else who
// gets the only server, if anybody does, and by a is seen as own; "-": that does not matter. a is closed.
func (h *house) ownAlone(t *testing.T, what string, a *pgx.Conn, name, own string) {
	t.Helper()
	show := name
	if !strings.HasPrefix(show, "select") {
		show = "select coalesce(current_setting('" + name + "', true), '')"
	}
	b := h.connect(t)
	for range 2 {
		if !b.IsClosed() { // a client that has waited in vain is disconnected
			results, err := b.PgConn().Exec(t.Context(), show).ReadAll()
			if err != nil && sqlState(err) != "53300" {
				t.Errorf("%s: %v", what, err)
			} else if err == nil && len(results[0].Rows[0][0]) > 0 {
				t.Errorf("%s: another client has %q", what, results[0].Rows[0][0])
			}
		}
		if got := tell(t, a, show); got != own && own != "-" {
			t.Errorf("%s: its own client has %q", what, got)
		}
	}
	_, _ = a.Close(t.Context()), b.Close(t.Context())
	await(t, "they give way to the next", func() bool { return h.Stats().Databases[0].Idle == 1 })
}

// tell is the answer to a query, in whatever encoding.
func tell(t *testing.T, conn *pgx.Conn, sql string) string {
	t.Helper()
	all, err := conn.PgConn().Exec(t.Context(), sql).ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	return string(all[0].Rows[0][0])
}
