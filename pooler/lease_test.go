package pooler

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"mainstay.dev/mainstay/pooler/internal/pgwire"
)

// one limits a database to one server connection, so that every client gets the one
// that another has used.
func one(d *Database) { d.Pool.Max = 1 }

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
				if name == "an open transaction" {
					first.Close(t.Context())
				}
				if got := value(t, second, c.look, pgx.QueryExecModeSimpleProtocol); got != c.want {
					t.Errorf("%v: the next client sees %q, want %q", mode, got, c.want)
				}
				if now := value(t, second, "select pg_backend_pid()::text"); now != pid {
					t.Errorf("%v: it is another connection (%s, was %s), which proves nothing", mode, now, pid)
				}
				if name == "an open transaction" {
					break
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
	// A reset of what the client set itself brings back what it logged in with.
	do(t, a, "set statement_timeout = '1s'")
	value(t, plain, "select 'between'")
	if got := value(t, a, "show statement_timeout"); got != "5s" {
		t.Errorf("after a reset: %s", got)
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

func TestTheUnnamedStatementIsItsClientsOwn(t *testing.T) {
	h := run(t, config(database(pg.Start(t).URL(), one)))
	a, b := newFrontend(t, h), newFrontend(t, h)
	parse := func(sql string) string { return frame('P', "\x00"+sql+"\x00\x00\x00") }
	bindExecute := frame('B', "\x00\x00\x00\x00\x00\x00\x00\x00") + frame('E', "\x00\x00\x00\x00\x00") + frame('S', "")
	a.send(parse("select 'a'") + frame('S', ""))
	a.expect("1Z")
	b.send(bindExecute)
	b.expect("EZ") // there is none of its own
	b.send(parse("select 'b'") + frame('S', ""))
	b.expect("1Z")
	a.send(bindExecute)
	if a.expect("2DCZ"); !strings.Contains(a.row, "a") {
		t.Errorf("a got %q", a.row)
	}
	b.send(bindExecute)
	if b.expect("2DCZ"); !strings.Contains(b.row, "b") {
		t.Errorf("b got %q", b.row)
	}
	a.send(frame('Q', "select 1\x00"))
	a.expect("TDCZ")
	a.send(bindExecute)
	a.expect("EZ") // a simple query drops it
	a.send(parse("select 'a2'") + frame('S', ""))
	a.expect("1Z")
	a.send(parse("nonsense") + frame('S', ""))
	a.expect("EZ")
	a.send(bindExecute)
	a.expect("EZ")
}

func TestTheProtocolsOddCornersHold(t *testing.T) {
	h := run(t, config(database(pg.Start(t).URL(), one)))
	c := newFrontend(t, h)
	parse := func(name, sql string) string { return frame('P', name+"\x00"+sql+"\x00\x00\x00") }
	bind := func(name string) string { return frame('B', "\x00"+name+"\x00\x00\x00\x00\x00\x00\x00") }
	execute, sync, flush := frame('E', "\x00\x00\x00\x00\x00"), frame('S', ""), frame('H', "")
	for _, step := range []struct{ what, send, want string }{
		{"an empty query", frame('Q', "\x00"), "IZ"},
		{"several statements", frame('Q', "select 1; select 2; select 3\x00"), "TDCTDCTDCZ"},
		{"an error in the middle", frame('Q', "select 1; select 1/0; select 3\x00"), "TDCEZ"},
		{"nothing but a Sync", sync, "Z"},
		{"two Syncs", sync + sync, "ZZ"},
		{"a Flush before the Sync", parse("", "select 1") + bind("") + flush, "12"},
		{"and the rest", execute + sync, "DCZ"},
		{"an error before the Sync", parse("", "select nonsense") + flush, "E"},
		{"is skipped until it", parse("", "select 1") + bind("") + execute + sync, "Z"},
		{"a pipeline of cycles", parse("p", "select 1") + sync + bind("p") + execute + sync + bind("p") + execute + sync, "1Z2DCZ2DCZ"},
		{"a pipeline with an error", bind("p") + execute + bind("none") + execute + sync + bind("p") + execute + sync, "2DCEZ2DCZ"},
		{"close what is not there", frame('C', "Snone\x00") + frame('C', "Pnone\x00") + sync, "33Z"},
		{"close and prepare again", frame('C', "Sp\x00") + parse("p", "select 2") + bind("p") + execute + sync, "312DCZ"},
		{"describe", frame('D', "Sp\x00") + bind("p") + frame('D', "P\x00") + sync, "tT2TZ"},
		{"a function call", frame('F', "\x00\x00\x04\xad\x00\x00\x00\x01\x00\x00\x00\x04\x00\x00\x00\x05\x00\x00"), "EZ"},
		{"a COPY that fails at once", frame('Q', "copy nowhere from stdin\x00") + frame('d', "1\n") + frame('c', ""), "EZ"},
		{"a late CopyData", frame('d', strings.Repeat("x", 50000)) + frame('f', "no\x00") + frame('H', "") + frame('Q', "select 1\x00"), "TDCZ"},
		{"a COPY in the extended protocol", frame('Q', "create temp table cx (n int)\x00"), "CZ"},
		{"in a transaction", frame('Q', "begin; create temp table cx (n int)\x00"), "CCZ"},
		{"asks for data", parse("", "copy cx from stdin") + bind("") + execute + sync, "12G"},
		{"takes it", frame('d', "1\n") + frame('d', "2\n") + frame('c', "") + sync, "CZ"},
		{"and refuses it", parse("", "copy cx from stdin") + bind("") + execute + sync, "12G"},
		{"once", frame('d', "x\n") + frame('f', "enough\x00") + sync, "EZ"},
		{"and ends", frame('Q', "rollback\x00"), "CZ"},
		{"a large query", frame('Q', "select length('"+strings.Repeat("q", 1<<20)+"')\x00"), "TDCZ"},
		{"a large named statement", parse("big", "select length('"+strings.Repeat("q", 1<<19)+"')") + bind("big") + execute + sync, "12DCZ"},
		{"used again", bind("big") + execute + sync, "2DCZ"},
	} {
		c.send(step.send)
		c.expectFor(step.what, step.want)
	}
	await(t, "the server comes back", func() bool { return h.Stats().Databases[0].Active == 0 })
}

func TestNonsenseEndsTheSessionAndNotTheServer(t *testing.T) {
	h := run(t, config(database(pg.Start(t).URL(), one)))
	for what, send := range map[string]string{
		"an unknown type":       frame('!', "x"),
		"a length of three":     "Q\x00\x00\x00\x03",
		"a length of 4 GB":      "Q\xff\xff\xff\xff",
		"a length of 2 GB":      "Q\x80\x00\x00\x00",
		"a Bind without names":  frame('B', "xxxx") + frame('S', ""),
		"a Parse without names": frame('P', "xxxx") + frame('S', ""),
		"an endless name":       frame('B', strings.Repeat("n", 100000)),
		"a second startup":      startup("user", "ann"),
		"a huge statement":      frame('P', "name\x00"+strings.Repeat("x", 2<<20)),
	} {
		c := newFrontend(t, h)
		c.send(send)
		if got := lastWords(t, c.in); got != "08P01" && got != "0A000" {
			t.Errorf("%s: SQLSTATE %q", what, got)
		}
		value(t, h.connect(t), "select 'alive'")
	}
}

// A frontend speaks the protocol message by message.
type frontend struct {
	t    testing.TB
	conn net.Conn
	in   *pgwire.Reader
	row  string // the last row's first column
	pid  uint32
	key  []byte
}

func frame(typ byte, body string) string { return string(pgwire.Append(nil, typ, []byte(body))) }

func newFrontend(t testing.TB, h *house) *frontend {
	t.Helper()
	f := &frontend{t: t, conn: dialRaw(t, h.addr)}
	f.in = pgwire.NewReader(f.conn, 1<<16)
	f.send(startup("user", "ann", "database", "app"))
	for {
		typ, body, err := f.in.Next()
		if err != nil {
			t.Fatal(err)
		}
		switch typ {
		case pgwire.BackendKeyData:
			f.pid, f.key = binary.BigEndian.Uint32(body), append([]byte(nil), body[4:]...)
		case pgwire.ReadyForQuery:
			return f
		}
	}
}

func (f *frontend) send(bytes string) {
	f.t.Helper()
	if _, err := f.conn.Write([]byte(bytes)); err != nil {
		f.t.Fatal(err)
	}
}

// expect reads as many messages as there are types in want, and compares.
func (f *frontend) expect(want string) { f.t.Helper(); f.expectFor("", want) }

func (f *frontend) expectFor(what, want string) {
	f.t.Helper()
	got := ""
	for len(got) < len(want) {
		typ, body, err := f.in.Next()
		if err != nil {
			f.t.Fatalf("%s: got %s, want %s, then %v", what, got, want, err)
		}
		if typ == pgwire.NoticeResponse || typ == pgwire.ParameterStatus {
			continue
		}
		if typ == pgwire.DataRow && len(body) > 6 {
			f.row = string(body[6:])
		}
		if typ == pgwire.ErrorResponse && !strings.HasPrefix(want[len(got):], "E") {
			f.t.Logf("%s: %s", what, pgwire.Field(body, 'M'))
		}
		got += string(rune(typ))
	}
	if got != want {
		f.t.Fatalf("%s: got %s, want %s", what, got, want)
	}
}

func TestACancelReachesItsQueryAndNoOther(t *testing.T) {
	h := run(t, config(database(pg.Start(t).URL(), func(d *Database) { d.Pool.Max = 2 })))
	victim, bystander := newFrontend(t, h), newFrontend(t, h)
	victim.send(frame('Q', "select pg_sleep(60)\x00"))
	bystander.send(frame('Q', "begin\x00"))
	bystander.expect("CZ")
	await(t, "the query runs", func() bool { return h.Stats().Databases[0].Active == 2 })
	cancel := func(pid uint32, key []byte) {
		conn := dialRaw(t, h.addr)
		if _, err := conn.Write(pgwire.AppendCancel(nil, pid, key)); err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Errorf("a cancel request was answered: %v", err)
		}
	}
	cancel(victim.pid, []byte{1, 2, 3, 4}) // not the key
	cancel(4711, victim.key)               // not a session
	bystander.send(frame('Q', "select 'untouched'\x00"))
	bystander.expect("TDCZ")
	cancel(victim.pid, victim.key)
	victim.expect("TE")
	victim.expect("Z")
	cancel(victim.pid, victim.key) // it does nothing now, and has no server
	bystander.send(frame('Q', "commit\x00"))
	bystander.expect("CZ")
	victim.send(frame('Q', "select 'alive'\x00"))
	victim.expect("TDCZ")
	if n := h.ledger.codes()[string(Canceled)]; n != 1 {
		t.Errorf("%d canceled", n)
	}
}

func TestCancelsNeverHitTheNextClient(t *testing.T) {
	h := run(t, config(database(pg.Start(t).URL(), one)))
	stop := make(chan struct{})
	var hasty sync.WaitGroup
	for range 3 {
		hasty.Go(func() { // cancels around the moment at which its query ends
			for {
				select {
				case <-stop:
					return
				default:
				}
				ctx, cancel := context.WithTimeout(context.Background(), time.Duration(rand.IntN(3000))*time.Microsecond)
				conn, err := pgconn.Connect(t.Context(), h.url("hasty", ""))
				if err != nil {
					cancel()
					t.Error(err)
					return
				}
				_ = conn.Exec(ctx, "select pg_sleep(0.001)").Close() // however it ends
				_ = conn.CancelRequest(t.Context())
				conn.Close(t.Context())
				cancel()
			}
		})
	}
	conn := h.connect(t)
	for i := range 150 {
		if got := value(t, conn, "select count(*)::text from generate_series(1, 2000)"); got != "2000" {
			t.Errorf("%d: %s", i, got)
		}
	}
	close(stop)
	hasty.Wait()
}

func TestAClientThatHangsUpFreesItsServer(t *testing.T) {
	for what, send := range map[string]string{
		"in a transaction":         frame('Q', "begin; create table never (n int)\x00"),
		"while its query runs":     frame('Q', "select pg_sleep(600)\x00"),
		"in an open cycle":         frame('P', "x\x00select 1\x00\x00\x00") + frame('H', ""),
		"in the middle of a frame": frame('Q', "begin\x00") + "Q\x00\x00\xff\xffselect",
		"while rows come":          frame('Q', "select repeat('x', 1000) from generate_series(1, 10000000)\x00"),
		"in a COPY":                frame('Q', "begin; create temp table cc (n int); copy cc from stdin\x00") + frame('d', "1\n"),
	} {
		t.Run(what, func(t *testing.T) {
			h := run(t, config(database(pg.Start(t).URL(), one)))
			c := newFrontend(t, h)
			c.send(send)
			await(t, "it has the server", func() bool { return h.Stats().Databases[0].Active == 1 })
			c.conn.Close()
			await(t, "the server is free", func() bool { return h.Stats().Databases[0].Active == 0 })
			if got := value(t, h.connect(t), "select coalesce(to_regclass('never')::text, 'none')"); got != "none" {
				t.Errorf("a lost transaction was committed: %s", got)
			}
			await(t, "nothing runs on", func() bool {
				n, err := pg.Start(t).Value(context.Background(), "select count(*) from pg_stat_activity where query like '%pg_sleep(600)%' and pid <> pg_backend_pid() and state = 'active'")
				return err == nil && n == "0"
			})
		})
	}
}

func TestAClientThatStallsIsDisconnected(t *testing.T) {
	for what, send := range map[string]string{
		"reads nothing":           frame('Q', "select repeat('x', 1000) from generate_series(1, 1000000)\x00"),
		"leaves a message undone": frame('P', "x\x00select 1\x00\x00\x00") + frame('H', "") + "Q\x00\x00\x01\x00select",
	} {
		t.Run(what, func(t *testing.T) {
			h := run(t, config(database(pg.Start(t).URL(), one), func(c *Config) { c.StallTimeout = 300 * time.Millisecond }))
			patient := h.connect(t)
			do(t, patient, "select pg_sleep(0.6)") // slow is not stalled
			do(t, patient, "begin")
			c := newFrontend(t, h)
			c.send(send)
			await(t, "it waits", func() bool { return h.Stats().Databases[0].Waiting == 1 })
			time.Sleep(600 * time.Millisecond) // idle in a transaction: no stall either
			do(t, patient, "commit")
			await(t, "it is gone", func() bool { return h.ledger.codes()[string(ClientStalled)] == 1 })
			await(t, "the server is free", func() bool { return h.Stats().Databases[0].Active == 0 })
		})
	}
}

func TestAGoodbyeBeforeTheAnswerLetsTheWorkFinish(t *testing.T) {
	s := pg.Start(t)
	if err := s.Exec(t.Context(), "drop table if exists parting; create table parting (n int)"); err != nil {
		t.Fatal(err)
	}
	h := run(t, config(database(s.URL(), one)))
	c := newFrontend(t, h)
	c.send(frame('Q', "insert into parting select 1 from pg_sleep(0.5)\x00") + frame('X', ""))
	await(t, "the row is there", func() bool {
		n, err := s.Value(context.Background(), "select count(*) from parting")
		return err == nil && n == "1"
	})
}

func TestAStormOfAbortsLeavesNothingBehind(t *testing.T) {
	s := pg.Start(t)
	if err := s.Exec(t.Context(), "drop table if exists ledger; create table ledger (client int, n int)"); err != nil {
		t.Fatal(err)
	}
	h := run(t, config(database(s.URL(), func(d *Database) { d.Pool.Max = 4 })))
	var stop atomic.Bool
	var vandals, honest sync.WaitGroup
	for v := range 8 {
		vandals.Go(func() {
			random := rand.New(rand.NewPCG(uint64(v), 42))
			for !stop.Load() {
				vandalise(h.addr, random)
			}
		})
	}
	for i := range 4 {
		honest.Go(func() {
			conn, err := pgx.Connect(t.Context(), h.url("ann", ""))
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close(t.Context())
			for n := range 100 {
				if err := honestly(t.Context(), conn, i, n); err != nil {
					t.Errorf("client %d, %d: %v", i, n, err)
					return
				}
			}
		})
	}
	honest.Wait()
	stop.Store(true)
	vandals.Wait()
	await(t, "no client and no lease is left", func() bool {
		st := h.Stats()
		return st.Clients == 0 && st.Databases[0].Active == 0 && st.Databases[0].Waiting == 0
	})
	n, err := s.Value(t.Context(), "select count(*) || '/' || count(*) filter (where client < 0) from ledger")
	if err != nil || n != "400/0" {
		t.Errorf("rows/of vandals: %s, %v", n, err)
	}
	if n := h.ledger.codes()[string(Internal)]; n > 0 {
		t.Errorf("%d exchanges ended with internal errors", n)
	}
}

// vandalise logs in, begins something and hangs up at a random byte of it.
func vandalise(addr string, random *rand.Rand) {
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		return
	}
	defer conn.Close()
	parse := frame('P', "v\x00insert into ledger values (-1, $1)\x00\x00\x00") + frame('B', "\x00v\x00\x00\x00\x00\x01\x00\x00\x00\x017\x00\x00")
	acts := []string{
		frame('Q', "begin; insert into ledger values (-1, 0)\x00"),
		frame('Q', "begin\x00") + frame('Q', "insert into ledger values (-1, 0)\x00") + frame('Q', "select repeat('x', 100000)\x00"),
		frame('Q', "begin\x00") + parse + frame('E', "\x00\x00\x00\x00\x00") + frame('H', ""),
		frame('Q', "begin; copy ledger from stdin\x00") + frame('d', "-1\t1\n") + frame('d', "-1\t2\n"),
		frame('Q', "select repeat('y', 1000) from generate_series(1, 3000)\x00"),
		parse[:len(parse)-3],
		frame('Q', "set search_path = pg_catalog; select pg_sleep(0.02)\x00"),
	}
	act := startup("user", "vandal", "database", "app") + acts[random.IntN(len(acts))]
	if _, err := conn.Write([]byte(act[:len(act)-random.IntN(len(act))])); err != nil {
		return
	}
	_ = conn.SetReadDeadline(time.Now().Add(time.Duration(random.IntN(15)) * time.Millisecond))
	_, _ = io.CopyN(io.Discard, conn, int64(random.IntN(5000)))
	if random.IntN(2) == 0 {
		_ = conn.(*net.TCPConn).SetLinger(0) // a reset instead of an end
	}
}

// honestly does what an application does and checks every answer.
func honestly(ctx context.Context, conn *pgx.Conn, client, n int) error {
	var echo string
	if err := conn.QueryRow(ctx, "select $1::text || current_schema()", fmt.Sprint(client, n)).Scan(&echo); err != nil || echo != fmt.Sprint(client, n)+"public" {
		return fmt.Errorf("echo %q: %w", echo, err)
	}
	tx, err := conn.Begin(ctx)
	if err != nil {
		return err
	}
	if _, err := tx.Exec(ctx, "insert into ledger values ($1, $2)", client, n); err != nil {
		return err
	}
	var mine int
	if err := tx.QueryRow(ctx, "select count(*) from ledger where client = $1 and n = $2", client, n).Scan(&mine); err != nil || mine != 1 {
		return fmt.Errorf("%d rows of mine: %w", mine, err)
	}
	return tx.Commit(ctx)
}

// startCancel is the request that would cancel f's query.
func startCancel(f *frontend) pgwire.Startup {
	return pgwire.Startup{Kind: pgwire.StartCancel, PID: f.pid, Key: f.key}
}
