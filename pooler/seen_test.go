package pooler

import (
	"bytes"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"mainstay.dev/mainstay/internal/setting"
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
	simple("select generate_series(1, 2) /*traceparent='00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01'*/")
	simple("commit")
	simple("select 1")
	simple("begin")
	conn.Close(t.Context())
	var all []*telemetry.Exchange
	await(t, "three are recorded", func() bool { all = h.ledger.all(); return len(all) == 3 })
	if x := all[0]; x.DB.Queries != 4 || x.DB.Rows != 7 || x.DB.Command != "SELECT" || x.DB.Text != "select generate_series(?)" || x.Code != string(OK) || x.DB.Client <= 0 || x.DB.Client > x.Took || !x.Trace.Sampled() {
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
	do(t, conn, "create table if not exists planned_only (n int)")
	do(t, conn, "select pg_sleep(1.1); delete from planned_only", pgx.QueryExecModeSimpleProtocol)
	do(t, conn, "insert into planned_only values (1)")
	await(t, "it is refused", func() bool { return strings.Contains(log.String(), "cannot insert multiple commands") })
	if n := value(t, conn, "select count(*)::text from planned_only"); n != "1" {
		t.Errorf("%s rows are left", n)
	}
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

// How a string is written, and in which encoding, decides where it ends: what comes behind it is a literal, or is none.
func TestNoLiteralIsSeenHoweverItIsWritten(t *testing.T) {
	for _, mode := range []string{modeTransaction, modeSession} {
		t.Run(mode, func(t *testing.T) {
			h := run(t, config(database(pg.Start(t).URL(), one, func(d *Database) { d.Mode = mode })))
			const off = "set standard_conforming_strings = off"
			for _, c := range []struct{ first, sql string }{
				{"select 1", "select 1 -- x\r + length('a\nhunter2 ')"},
				{off, `select 'it\'s hunter2', 'b'`},
				{off, `select n'it\'s hunter2', 'b'`},
				{"begin;" + off, `select 'it\'s hunter2', 'b'`},
				{"set client_encoding = SJIS", "select E'\x95\x5c', 'hunter2'"},
			} {
				f := newFrontend(t, h)
				begun := len(h.ledger.all())
				first := frame('Q', c.first+"\x00")
				for _, cycle := range []string{frame('Q', c.sql+"\x00"), parsed("", c.sql) + bound("") + executed + synced, parsed("s", c.sql) + bound("s") + executed + synced} {
					f.send(first + cycle) // also behind what the server has not answered yet
					for ready := 0; ready < 2; {
						switch f.next() {
						case "Z":
							ready++
						case "E":
							t.Errorf("%s: refused", c.sql)
						}
					}
					first = frame('Q', "select 1\x00")
				}
				f.conn.Close()
				await(t, "all are recorded", func() bool { return len(h.ledger.all()) >= begun+6 })
				for _, x := range h.ledger.all()[begun:] {
					if strings.Contains(x.DB.Text, "hunter2") {
						t.Errorf("%s: %s: a literal in %q", c.first, c.sql, x.DB.Text)
					}
				}
			}
		})
	}
}

// What plans a statement carries out functions that are said to be immutable.
func TestAPlanChangesNothingAndIsTheClientsOwn(t *testing.T) {
	s := pg.Start(t)
	if err := s.Exec(t.Context(), `drop table if exists planned; create table planned (who text);
		do $$ begin create role planner; exception when duplicate_object then null; end $$; grant all on planned to planner;
		create or replace function note_planning() returns int language plpgsql as $$ begin insert into planned values (current_user); return 1; end $$;
		create or replace function not_immutable() returns int language plpgsql immutable as $$ begin return note_planning(); end $$`); err != nil {
		t.Fatal(err)
	}
	for _, mode := range []string{modeTransaction, modeSession} {
		for _, c := range []struct{ first, says string }{
			{"set default_transaction_read_only = off", "read-only transaction"},
			{"begin;set local role planner", "may have changed its settings"},
		} {
			t.Run(mode+" "+c.first, func(t *testing.T) {
				var log notebook
				h := run(t, config(database(s.URL(), one, func(d *Database) { d.Mode = mode }), func(c *Config) { c.Slow = Slow{Over: 200 * time.Millisecond, Plan: true} }),
					func(d *Deps) { d.Log = slog.New(slog.NewTextHandler(&log, nil)) })
				if mode == modeSession {
					c.says = "may have changed its settings"
				}
				f := newFrontend(t, h)
				for sql := range strings.SplitSeq(c.first, ";") {
					f.send(frame('Q', sql+"\x00"))
					f.expect("CZ")
				}
				f.send(frame('Q', "select pg_sleep(.3), not_immutable()\x00"))
				f.expect("TDCZ")
				await(t, "the plan is spoken of", func() bool { return strings.Contains(log.String(), "plan of a slow query") })
				if text := log.String(); !strings.Contains(text, c.says) {
					t.Error(text)
				}
				f.send(frame('Q', "commit\x00"))
				f.expect("CZ")
				if n, err := s.Value(t.Context(), "with gone as (delete from planned returning 1) select count(*) from gone"); err != nil || n != "1" {
					t.Errorf("carried out %s times, %v", n, err)
				}
				f.conn.Close()
			})
		}
	}
}

// A login is no query, however long it takes, and its user may be anybody.
func TestARefusedLoginIsNotInTheLogOfSlowQueries(t *testing.T) {
	var log strings.Builder
	h := run(t, config(database(pg.Start(t).URL()), func(c *Config) {
		c.Users, c.Slow.Over = map[string]setting.Secret{"ann": "pencil"}, time.Nanosecond
	}), func(d *Deps) { d.Log = slog.New(slog.NewTextHandler(&log, nil)) })
	for _, user := range []string{"ann", "nobody_there"} {
		refusedWith(t, enter(t, h, user, "crayon"), "28P01")
	}
	conn, err := pgx.Connect(t.Context(), h.url("ann", "pencil"))
	if err != nil {
		t.Fatal(err)
	}
	value(t, conn, "select 'a query'")
	conn.Close(t.Context())
	if err := h.stop(); err != nil {
		t.Error(err)
	}
	told := log.String()
	if !strings.Contains(told, `query="select ?"`) || strings.Count(told, "slow query") != strings.Count(told, `query="select ?"`) || strings.Contains(told, "nobody_there") {
		t.Errorf("the log: %s", told)
	}
}
