package pooler

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
)

// one limits a database to one server connection, so that every client gets the one
// that another has used.
func one(d *Database) { d.Pool.Max = 1 }

// pinning are those that keep a server with its client until it leaves.
var pinning = map[string]bool{
	"an open transaction": true, "a temporary table": true, "select into": true, "an advisory lock": true,
	"a prepared statement": true, "a cursor": true,
}

func TestNothingOfOneClientsSessionReachesAnother(t *testing.T) {
	s := pg.Start(t)
	if err := s.Exec(t.Context(), "drop role if exists lesser; create role lesser; grant lesser to postgres"); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct{ leave, look, want string }{
		"a setting":            {"set statement_timeout = '77s'", "show statement_timeout", "0"},
		"a setting's function": {"select SET_Config('app.tenant', '42', false)", "select coalesce(current_setting('app.tenant', true), '')", ""},
		"search_path":          {"set search_path = pg_catalog", "show search_path", `"$user", public`},
		"a role":               {"set role lesser", "select current_user::text", "postgres"},
		"a read-only session":  {"set session characteristics as transaction read only", "show transaction_read_only", "off"},
		"a temporary table":    {"create temp table mine as select 1", "select coalesce(to_regclass('pg_temp.mine')::text, 'none')", "none"},
		"select into":          {"select 1 as n into temporary mine", "select coalesce(to_regclass('pg_temp.mine')::text, 'none')", "none"},
		"an advisory lock":     {"select pg_advisory_lock(4711)", "select count(*)::text from pg_locks where locktype = 'advisory'", "0"},
		"a prepared statement": {"prepare mine as select 1", "select count(*)::text from pg_prepared_statements where name = 'mine'", "0"},
		"a cursor":             {"declare mine cursor with hold for select 1", "select count(*)::text from pg_cursors where name = 'mine'", "0"},
		"listening":            {"listen mine", "select count(*)::text from pg_listening_channels()", "0"},
		"a DO block's setting": {"do $$ begin perform pg_catalog.set_config('work_mem', '7MB', false); end $$", "show work_mem", "4MB"},
		"an open transaction":  {"begin", "select case when now() = statement_timestamp() then 'none' else 'open' end", "none"},
	} {
		t.Run(name, func(t *testing.T) {
			h := run(t, config(database(s.URL(), one)))
			first, second := h.connect(t), h.connect(t)
			pid := value(t, first, "select pg_backend_pid()::text")
			// Prepared and simple: both ways must be seen.
			for _, mode := range []pgx.QueryExecMode{pgx.QueryExecModeSimpleProtocol, pgx.QueryExecModeExec, pgx.QueryExecModeCacheStatement} {
				if rows, err := first.Query(t.Context(), c.leave, mode); err != nil {
					t.Fatal(err)
				} else if rows.Close(); rows.Err() != nil {
					t.Fatal(rows.Err())
				}
				if pinning[name] {
					first.Close(t.Context())
				}
				if got := value(t, second, c.look, pgx.QueryExecModeSimpleProtocol); got != c.want {
					t.Errorf("%v: the next client sees %q, want %q", mode, got, c.want)
				}
				if now := value(t, second, "select pg_backend_pid()::text"); now != pid {
					t.Errorf("%v: it is another connection (%s, was %s), which proves nothing", mode, now, pid)
				}
				if pinning[name] {
					first = h.connect(t)
				}
			}
		})
	}
}

func TestWhatAFunctionHidesIsWipedWithResetAlways(t *testing.T) {
	s := pg.Start(t)
	if err := s.Exec(t.Context(), "create or replace function hide() returns void language plpgsql as $$ begin perform set_config('app.hidden', 'yes', false); end $$"); err != nil {
		t.Fatal(err)
	}
	h := run(t, config(database(s.URL(), one, func(d *Database) { d.Reset = resetAlways })))
	first, second := h.connect(t), h.connect(t)
	do(t, first, "select hide()")
	if got := value(t, second, "select coalesce(current_setting('app.hidden', true), '')"); got != "" {
		t.Errorf("the next client sees %q", got)
	}
}

func TestSettingsGivenAtLoginHoldForTheirClientAlone(t *testing.T) {
	h := run(t, config(database(pg.Start(t).URL(), one)))
	a := h.connect(t, "application_name=a", "search_path=pg_catalog, public", "options=-c statement_timeout=5s --work-mem=9MB")
	b := h.connect(t, "application_name=it's b\\", "timezone=Asia/Tokyo")
	plain := h.connect(t)
	for range 3 {
		for _, c := range []struct {
			conn *pgx.Conn
			want string
		}{
			{a, "a|pg_catalog, public|5s|9MB|UTC"}, {b, `it's b\|"$user", public|0|4MB|Asia/Tokyo`}, {plain, `|"$user", public|0|4MB|UTC`},
		} {
			got := value(t, c.conn, `select concat_ws('|', current_setting('application_name'), current_setting('search_path'),
				current_setting('statement_timeout'), current_setting('work_mem'), current_setting('timezone'))`)
			if got != c.want {
				t.Errorf("got %s, want %s", got, c.want)
			}
		}
	}
	// What the client sets itself stays, and a reset brings back what it logged in with.
	for _, step := range []struct{ do, want string }{{"set statement_timeout = '1s'", "1s"}, {"reset statement_timeout", "5s"}, {"reset all", "5s"}} {
		do(t, a, step.do)
		if got := value(t, plain, "show statement_timeout"); got != "0" {
			t.Errorf("another client sees %s after %s", got, step.do)
		}
		if got := value(t, a, "show statement_timeout"); got != step.want {
			t.Errorf("after %s: %s", step.do, got)
		}
	}
}

func TestAClientHearsWhenItsSettingIsReset(t *testing.T) {
	h := run(t, config(database(pg.Start(t).URL(), one)))
	conn := h.connect(t)
	do(t, conn, "set timezone = 'Asia/Tokyo'")
	if got := value(t, conn, "show timezone"); got != conn.PgConn().ParameterStatus("TimeZone") {
		t.Errorf("the server has %s, the client believes %s", got, conn.PgConn().ParameterStatus("TimeZone"))
	}
	do(t, conn, "begin")
	do(t, conn, "set timezone = 'Asia/Tokyo'")
	if got := value(t, conn, "show timezone"); got != "Asia/Tokyo" || conn.PgConn().ParameterStatus("TimeZone") != got {
		t.Errorf("in a transaction: %s, %s", got, conn.PgConn().ParameterStatus("TimeZone"))
	}
	do(t, conn, "commit")
}

func TestPreparedStatementsMoveWithTheirClient(t *testing.T) {
	s := pg.Start(t)
	h := run(t, config(database(s.URL(), func(d *Database) { d.Pool.Max = 3; d.Pool.Statements = 2 })))
	conns := make([]*pgx.Conn, 6)
	for i := range conns {
		conns[i] = h.connect(t)
		for j := range 4 { // the same names for other texts in each client, more than a server keeps
			if _, err := conns[i].Prepare(t.Context(), fmt.Sprintf("s%d", j), fmt.Sprintf("select '%d-%d-' || $1::text", i*j%3, j)); err != nil {
				t.Fatal(err)
			}
		}
	}
	var all sync.WaitGroup
	for i, conn := range conns {
		all.Go(func() {
			for n := range 40 {
				j := rand.IntN(4)
				var got string
				want := fmt.Sprintf("%d-%d-%d", i*j%3, j, n)
				if err := conn.QueryRow(t.Context(), fmt.Sprintf("s%d", j), fmt.Sprint(n)).Scan(&got); err != nil || got != want {
					t.Errorf("got %q, want %q, %v", got, want, err)
					return
				}
			}
		})
	}
	all.Wait()
	n := value(t, conns[0], "select count(*)::text from pg_prepared_statements")
	if n > "3" { // two, and this very query
		t.Errorf("%s statements on a server that may keep 2", n)
	}
}

func TestPreparedStatementsBehaveAsInPostgreSQL(t *testing.T) {
	h := run(t, config(database(pg.Start(t).URL(), one)))
	conn, other := h.connect(t), h.connect(t)
	ctx := t.Context()
	raw := conn.PgConn()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	_, err := raw.Prepare(ctx, "twice", "select 1", nil)
	must(err)
	_, err = raw.Prepare(ctx, "twice", "select 2", nil)
	refusedWith(t, err, "42P05")
	_, err = raw.Prepare(ctx, "wrong", "select nonsense from nowhere", nil)
	refusedWith(t, err, "42P01")
	_, err = raw.ExecPrepared(ctx, "wrong", nil, nil, nil).Close()
	refusedWith(t, err, "26000")
	_, err = raw.Prepare(ctx, "wrong", "select 'now right'", nil)
	must(err)
	must(raw.Deallocate(ctx, "twice"))
	_, err = raw.ExecPrepared(ctx, "twice", nil, nil, nil).Close()
	refusedWith(t, err, "26000")
	// A name of our own making leads nowhere.
	for _, name := range []string{"_ms", "_ms1", "_ms2"} {
		_, err = raw.ExecPrepared(ctx, name, nil, nil, nil).Close()
		refusedWith(t, err, "26000")
	}
	_, err = other.PgConn().Prepare(ctx, "o", "select 'other'", nil)
	must(err)
	for _, all := range []string{"deallocate all", "discard all"} {
		do(t, conn, all, pgx.QueryExecModeSimpleProtocol)
		_, err = raw.ExecPrepared(ctx, "wrong", nil, nil, nil).Close()
		refusedWith(t, err, "26000")
		result := other.PgConn().ExecPrepared(ctx, "o", nil, nil, nil).Read()
		if result.Err != nil || string(result.Rows[0][0]) != "other" {
			t.Fatalf("%s of one client hit another: %v", all, result.Err)
		}
	}
}

func TestAStatementPipelinedBehindDeallocateAllStays(t *testing.T) {
	h := run(t, config(database(pg.Start(t).URL(), one)))
	conn := h.connect(t)
	p := conn.PgConn().StartPipeline(t.Context())
	p.SendPrepare("early", "select 1", nil)
	p.SendQueryParams("deallocate all", nil, nil, nil, nil)
	p.SendPrepare("late", "select 'late'", nil)
	p.SendQueryPrepared("late", nil, nil, nil)
	if err := p.Sync(); err != nil {
		t.Fatal(err)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	result := conn.PgConn().ExecPrepared(t.Context(), "late", nil, nil, nil).Read()
	if result.Err != nil || string(result.Rows[0][0]) != "late" {
		t.Fatalf("late: %v", result.Err)
	}
	_, err := conn.PgConn().ExecPrepared(t.Context(), "early", nil, nil, nil).Close()
	refusedWith(t, err, "26000")
}

func TestAPlanThatDoesNotFitAnyMoreIsMadeAnew(t *testing.T) {
	h := run(t, config(database(pg.Start(t).URL(), one)))
	conn, other := h.connect(t), h.connect(t)
	do(t, conn, "drop table if exists changing; create table changing (n int)", pgx.QueryExecModeSimpleProtocol)
	do(t, conn, "insert into changing values (1)")
	const sql = "select * from changing"
	value(t, conn, "select n::text from (select * from changing) c")
	do(t, conn, sql)
	do(t, conn, "alter table changing add column s text")
	if _, err := conn.Exec(t.Context(), sql); err != nil {
		refusedWith(t, err, "0A000") // as PostgreSQL does, once
	}
	do(t, conn, sql)
	do(t, other, sql) // a client that has never seen the old one
}

// A frontend speaks the protocol message by message.
// expect reads as many messages as there are types in want, and compares.
// vandalise logs in, begins something and hangs up at a random byte of it.
// honestly does what an application does and checks every answer.
// startCancel is the request that would cancel f's query.
