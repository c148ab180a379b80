package pooler

import (
	"bytes"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"mainstay.dev/mainstay/telemetry"
)

// A notebook is where a log goes.
type notebook struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (n *notebook) Write(p []byte) (int, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.buf.Write(p)
}

func (n *notebook) String() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.buf.String()
}

func TestQueriesAreSeenByShapeAndUserWithoutTheirLiterals(t *testing.T) {
	h := run(t, config(database(pg.Start(t).URL())))
	conn := h.as(t, "ann")
	for range 3 {
		do(t, conn, "select 'hunter2' || $1::text", "secret") // prepared, and used by its name
		do(t, conn, "select 4711, 'hunter2' from pg_class limit 2", pgx.QueryExecModeSimpleProtocol)
		do(t, conn, "select $1::text", pgx.QueryExecModeExec, "secret") // unnamed
	}
	_, err := conn.Exec(t.Context(), "select 1/0", pgx.QueryExecModeSimpleProtocol)
	refusedWith(t, err, "22012")
	top := h.Top(10)
	found := map[string]Summary{}
	for _, q := range top.Queries {
		found[q.Text] = q
	}
	for text, calls := range map[string]int64{"select ? || ?::text": 3, "select ? from pg_class limit ?": 3, "select ?::text": 3, "select ?/?": 1} {
		q := found[text]
		if q.Calls < calls || q.P50 <= 0 || q.Took < q.Postgres || len(q.Fingerprint) != 16 {
			t.Errorf("%s: %+v", text, q)
		}
	}
	if q := found["select ? from pg_class limit ?"]; q.Rows != 6 {
		t.Errorf("%+v", q)
	}
	if found["select ?/?"].Failed != 1 || top.Users[0].User != "ann" || top.Users[0].Calls < 10 {
		t.Errorf("%+v", top)
	}
	seen := false
	for _, x := range h.ledger.all() {
		if strings.Contains(x.DB.Text, "hunter2") || strings.Contains(x.DB.Text, "4711") {
			t.Errorf("a literal in %q", x.DB.Text)
		}
		seen = seen || x.DB.Text == "select ? from pg_class limit ?" && x.DB.Fingerprint == found[x.DB.Text].Fingerprint
	}
	if !seen {
		t.Error("no exchange has the shape")
	}
	names := map[string]bool{}
	for _, l := range h.Levels() {
		names[l.Name] = true
	}
	if !names["mainstay_pooler_fingerprint_seconds"] || !names["mainstay_pooler_user_queries"] {
		t.Errorf("%v", names)
	}
}

func TestASpanMayBeOfTheWholeTransaction(t *testing.T) {
	h := run(t, config(database(pg.Start(t).URL()), func(c *Config) { c.Span = spanTransaction }))
	conn := h.connect(t)
	simple := func(sql string) { do(t, conn, sql, pgx.QueryExecModeSimpleProtocol) }
	simple("begin")
	simple("select generate_series(1, 5)")
	simple("select generate_series(1, 2)")
	simple("commit")
	simple("select 1")
	simple("begin")
	conn.Close(t.Context())
	var all []*telemetry.Exchange
	await(t, "three are recorded", func() bool { all = h.ledger.all(); return len(all) == 3 })
	if x := all[0]; x.DB.Queries != 4 || x.DB.Rows != 7 || x.DB.Command != "SELECT" || x.DB.Text != "select generate_series(?)" || x.Code != string(OK) || x.DB.Client <= 0 || x.DB.Client > x.Took {
		t.Errorf("%+v", x)
	}
	if x := all[1]; x.DB.Queries != 1 || x.DB.Text != "select ?" {
		t.Errorf("%+v", x)
	}
}

func TestASlowQueryIsLoggedWithItsPlan(t *testing.T) {
	var log notebook
	h := run(t, config(database(pg.Start(t).URL()), func(c *Config) { c.Slow = Slow{Over: time.Second, Plan: true} }),
		func(d *Deps) { d.Log = slog.New(slog.NewTextHandler(&log, nil)) })
	conn := h.connect(t)
	do(t, conn, "select 1")
	do(t, conn, "select relname, pg_sleep(1.1) from pg_class where relname = 'pg_type'", pgx.QueryExecModeSimpleProtocol)
	await(t, "the plan is there", func() bool { return strings.Contains(log.String(), "plan of a slow query") })
	text := log.String()
	if strings.Contains(text, `query="select ?"`) || !strings.Contains(text, "Index") || !strings.Contains(text, "select relname, pg_sleep(?) from pg_class where relname = ?") {
		t.Error(text)
	}
	// A second statement in the text is never carried out.
	do(t, conn, "create table if not exists kept (n int)")
	do(t, conn, "select pg_sleep(1.1); drop table kept", pgx.QueryExecModeSimpleProtocol)
	do(t, conn, "create table kept (n int)")
	await(t, "it is refused", func() bool { return strings.Contains(log.String(), "cannot insert multiple commands") })
	do(t, conn, "drop table kept") // it is still there
}

func TestASlowStatementWithParametersIsLoggedWithItsGenericPlan(t *testing.T) {
	var log notebook
	h := run(t, config(database(pg.Start(t).URL()), func(c *Config) { c.Slow = Slow{Over: time.Second, Plan: true} }),
		func(d *Deps) { d.Log = slog.New(slog.NewTextHandler(&log, nil)) })
	do(t, h.connect(t), "select relname, pg_sleep(1.1) from pg_class where relname = $1", pgx.QueryExecModeExec, "pg_type")
	await(t, "the plan is there", func() bool { return strings.Contains(log.String(), "plan of a slow query") })
	if text := log.String(); !strings.Contains(text, "Index") || !strings.Contains(text, "$1") {
		t.Error(text)
	}
}
