package pooler

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"

	"mainstay.dev/mainstay/pooler/internal/pgwire"
)

// othersHaveNot fails if a client has this setting.
func othersHaveNot(t *testing.T, conn *pgx.Conn, name string) {
	t.Helper()
	if got := value(t, conn, "select coalesce(current_setting('"+name+"', true), '')", simple); got != "" {
		t.Errorf("another client has %q", got)
	}
}

// A client that has gone before it was answered has left no less behind.
func TestWhoIsGoneLeavesNothingUnread(t *testing.T) {
	s := pg.Start(t)
	if err := s.Exec(t.Context(), "drop function if exists gone_made()"); err != nil {
		t.Fatal(err)
	}
	h := run(t, config(database(s.URL(), one)))
	b, c := h.connect(t), h.connect(t)
	do(t, b, "select 1")
	f := newFrontend(t, h)
	f.send(frame('Q', "create function gone_made() returns text language sql as $$ select set_config('gone.made', 'left', false) $$\x00"))
	f.conn.Close()
	await(t, "the function is there and the server free", func() bool {
		n, err := s.Value(context.WithoutCancel(t.Context()), "select count(*) from pg_proc where proname = 'gone_made'")
		return err == nil && n == "1" && h.Stats().Clients == 2
	})
	do(t, b, "select gone_made()", simple)
	othersHaveNot(t, c, "gone.made")

	f = newFrontend(t, h)
	f.send(frame('Q', "begin; set local search_path to 'pg_'\n'temp'; create table gone_joined as select 'secret' as n; commit\x00"))
	f.conn.Close()
	await(t, "the client is gone", func() bool { return h.Stats().Clients == 2 })
	if got := tell(t, c, "select coalesce(max(relname)::text, '') from pg_class where relnamespace = pg_my_temp_schema() and relkind = 'r'"); got != "" {
		t.Errorf("another client has %q", got)
	}
}

// seeded is what random() returns first behind setseed(0.5).
func seeded(t *testing.T, url string) string {
	t.Helper()
	direct, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer direct.Close(t.Context())
	do(t, direct, "select setseed(0.5)")
	return value(t, direct, "select random()::text")
}

func TestASeedThatWasNotSeenIsNotLeftByWhoIsGone(t *testing.T) {
	s := pg.Start(t)
	if err := s.Exec(t.Context(), `create or replace function gone_runs(q text) returns void language plpgsql as $$ begin execute q; end $$`); err != nil {
		t.Fatal(err)
	}
	h := run(t, config(database(s.URL(), one)))
	c, f := h.connect(t), newFrontend(t, h)
	f.send(frame('Q', "select gone_runs('select setseed(0.5)')\x00"))
	f.expect("TDCZ")
	f.send(frame('Q', "begin; set work_mem = '5MB'\x00"))
	f.expect("CCZ")
	f.conn.Close()
	await(t, "the client is gone", func() bool { return h.Stats().Clients == 1 })
	if got := value(t, c, "select random()::text"); got == seeded(t, s.URL()) {
		t.Errorf("another client has the seed: %s", got)
	}
}

func TestInSessionModeNeitherSeedsNorConnectionsStay(t *testing.T) {
	s := pg.Start(t)
	if err := s.Exec(t.Context(), "create extension if not exists dblink"); err != nil {
		t.Fatal(err)
	}
	h := run(t, config(database(s.URL(), func(d *Database) { d.Pool.Max, d.Mode = 1, modeSession })))
	a := h.connect(t)
	do(t, a, "select setseed(0.5)")
	a.Close(t.Context())
	b := h.connect(t)
	if got := value(t, b, "select random()::text"); got == seeded(t, s.URL()) {
		t.Errorf("another client has the seed: %s", got)
	}
	do(t, b, "select dblink_connect('mine', '"+s.URL()+"')", simple)
	b.Close(t.Context())
	if got := value(t, h.connect(t), "select coalesce(array_to_string(dblink_get_connections(), ','), '')"); got != "" {
		t.Errorf("another client has the connection %s", got)
	}
}

// A function that is too long to be read may do anything, and hides no other.
func TestALongFunctionHidesNothing(t *testing.T) {
	s := pg.Start(t)
	if err := s.Exec(t.Context(), "drop schema if exists long cascade; create schema long; create function long.sly() returns text language sql as $$ select set_config('long.sly', 'left', false) $$;"+
		"create function long.huge() returns text language sql as $$ select set_config('long.huge', 'left', false) -- "+strings.Repeat("x", 5<<20)+"\n $$"); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Exec(context.WithoutCancel(t.Context()), "drop schema long cascade") }()
	for _, name := range []string{"sly", "huge"} {
		h := impatientHouse(t, s.URL())
		a := h.connect(t)
		do(t, a, "select long."+name+"()", simple)
		h.ownAlone(t, name, a, "long."+name, "-")
	}
}

// cutConn breaks with the first query.
type cutConn struct{ net.Conn }

func (c *cutConn) Write(p []byte) (int, error) {
	if len(p) > 0 && p[0] == pgwire.Query {
		c.Conn.Close()
		return 0, errors.New("cut")
	}
	return c.Conn.Write(p)
}

// If the catalog cannot be read at first, it is read behind the next transaction.
func TestAFirstLookThatFailsIsMadeAgain(t *testing.T) {
	s := pg.Start(t)
	if err := s.Exec(t.Context(), `create or replace function first_sly() returns text language sql as $$ select set_config('first.sly', 'left', false) $$`); err != nil {
		t.Fatal(err)
	}
	var dials atomic.Int32
	h := run(t, config(database(s.URL(), one)), func(d *Deps) {
		d.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
			c, err := (&net.Dialer{}).DialContext(ctx, network, addr)
			if err == nil && dials.Add(1) == 1 {
				return &cutConn{Conn: c}, nil
			}
			return c, err
		}
	})
	b, c := h.connect(t), h.connect(t)
	do(t, b, "select first_sly()", simple)
	othersHaveNot(t, c, "first.sly")
}

// What a function has listened to and prepared that was made past the pooler is gone when that is known.
func TestWhatAFunctionLeftBeforeItWasKnownIsWiped(t *testing.T) {
	s := pg.Start(t)
	if err := s.Exec(t.Context(), "drop function if exists late_ears()"); err != nil {
		t.Fatal(err)
	}
	h := run(t, config(database(s.URL(), one)))
	a := h.connect(t)
	do(t, a, "select 1")
	if err := s.Exec(t.Context(), `create function late_ears() returns void language plpgsql as $$ begin execute 'listen secrets'; execute 'prepare leaked as select 4711'; end $$`); err != nil {
		t.Fatal(err)
	}
	do(t, a, "select late_ears()", simple)
	a.Close(t.Context())
	h.policy.Load().pools["app"].hidden.lookSoon(0) // the minute is over
	do(t, h.connect(t), "select 1", simple)
	if got := value(t, h.connect(t), "select coalesce(string_agg(c, ','), '') from (select pg_listening_channels() as c union all select name from pg_prepared_statements where from_sql) as one", simple); got != "" {
		t.Errorf("another client's server has %s", got)
	}
	b := h.connect(t)
	do(t, b, "prepare leaked as select 1", simple)
	if got := value(t, b, "execute leaked", simple); got != "1" {
		t.Errorf("got %s", got)
	}
}

// A function that is replaced while a client's unnamed statement calls it, between two of its cycles, is seen.
func TestAFunctionThatIsReplacedUnderAnUnnamedStatementIsSeen(t *testing.T) {
	s := pg.Start(t)
	if err := s.Exec(t.Context(), `create or replace function replaced() returns text language sql as $$ select 'plain'::text $$`); err != nil {
		t.Fatal(err)
	}
	h := impatientHouse(t, s.URL())
	f, b := newFrontend(t, h), h.connect(t)
	f.send(frame('P', "\x00select replaced()\x00\x00\x00") + frame('S', ""))
	f.expect("1Z")
	do(t, b, `create or replace function replaced() returns text language sql as $$ select set_config('replaced.by', 'left', false) $$`, simple)
	f.send(frame('B', "\x00\x00\x00\x00\x00\x00\x00\x00") + frame('E', "\x00\x00\x00\x00\x00") + frame('S', ""))
	f.expect("2DCZ")
	othersHaveNot(t, b, "replaced.by")
}

// In an open transaction the server is told nothing that is the pooler's: who is taken up by a goroutine there has been equipped.
func TestNothingIsReplayedInTheMiddleOfATransaction(t *testing.T) {
	h := run(t, config(database(tickets(t), func(d *Database) { d.Pool.Max = 2 })))
	a, f, c := h.connect(t), newFrontend(t, h), h.connect(t)
	do(t, a, "insert into tickets (n) values (1)", simple)
	for _, sql := range []string{"begin", "insert into tickets (n) values (2)", "set datestyle = 'ISO, DMY'"} {
		f.send(frame('Q', sql+"\x00"))
		f.expectFor(sql, "CZ")
	}
	_, _ = tryValue(t, c, "select lastval()::text", simple) // the first to ask, on another server
	f.send(frame('P', "s\x00select 1 from tickets\x00\x00\x00") + frame('S', ""))
	f.expect("1Z")
	f.send(frame('Q', "commit\x00"))
	f.expect("CZ")
}
