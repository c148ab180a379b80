package pooler

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"mainstay.dev/mainstay/pooler/internal/audit"
	"mainstay.dev/mainstay/pooler/internal/upstream"
)

func TestWhatFunctionsLeaveFollowsTheClientOrPins(t *testing.T) {
	s := pg.Start(t)
	if err := s.Exec(t.Context(), `drop schema if exists hid cascade; create schema hid; set search_path = hid;
		create table log (n int); create view seen as select * from log;
		create function login(who text) returns text language plpgsql as $$ begin perform set_config('app.user', who, false); return who; end $$;
		create function outer_login(who text) returns text language sql as 'select hid.login(who)';
		create function be_slow() returns void language plpgsql as $$ begin execute 'set work_mem = ''7MB'''; end $$;
		create function local_only() returns text language plpgsql as $$ begin perform set_config('app.user', 'local', true); return 'x'; end $$;
		create function note() returns trigger language plpgsql as $$ begin set application_name = 'noted'; perform pg_advisory_lock(4711); return new; end $$;
		create trigger note before insert on log for each row execute function note();
		create function scratch() returns void language plpgsql as $$ begin create temp table scratched as select 1; end $$;
		create function last() returns text language sql as 'select lastval()::text'`); err != nil {
		t.Fatal(err)
	}
	const look = "select coalesce(current_setting('app.user', true), '') || current_setting('work_mem') || current_setting('application_name')"
	for what, c := range map[string]struct{ do, want, pins string }{
		"a setting":                {"select hid.login('ann')", "ann4MB", ""},
		"of a function in another": {"select hid.outer_login('ann')", "ann4MB", ""},
		"executed as text":         {"select hid.be_slow()", "7MB", ""},
		"by DO":                    {"do $$ begin perform hid.login('ann'); end $$", "ann4MB", ""},
		"local":                    {"select hid.local_only()", "4MB", ""},
		"by a trigger":             {"insert into hid.log values (1)", "4MBnoted", "advisory lock"},
		"through a view":           {"insert into hid.seen values (1)", "4MBnoted", "advisory lock"},
		"a temporary table":        {"select hid.scratch()", "4MB", "temporary table"},
	} {
		for _, mode := range everyMode {
			t.Run(what+" "+mode.String(), func(t *testing.T) {
				h := run(t, config(database(s.URL(), func(d *Database) { d.Pool.Max = 2 })))
				mine, other := h.connect(t), h.connect(t)
				clean := value(t, other, look, simple)
				do(t, mine, c.do, mode)
				for range 2 {
					if got := value(t, other, look, simple); got != clean {
						t.Errorf("another client sees %s, was %s", got, clean)
					}
					if got := value(t, mine, look, mode); got != c.want {
						t.Errorf("got %s, want %s", got, c.want)
					}
				}
				await(t, "it is pinned by what it holds", func() bool { return pinned(h) == c.pins })
			})
		}
	}
}

func TestFunctionsThatAreNewAreKnown(t *testing.T) {
	s := pg.Start(t)
	if err := s.Exec(t.Context(), "drop schema if exists fresh cascade; create schema fresh; create function fresh.act() returns text language sql as 'select ''nothing'''"); err != nil {
		t.Fatal(err)
	}
	const look = "select coalesce(nullif(current_setting('app.act', true), ''), 'none')"
	act := func(value string) string {
		return fmt.Sprintf("create or replace function fresh.act() returns text language sql as $$ select set_config('app.act', '%s', false) $$", value)
	}
	h := run(t, config(database(s.URL(), one)))
	mine, other := h.connect(t), h.connect(t)
	if got := value(t, mine, "select fresh.act()"); got != "nothing" { // prepared by the protocol
		t.Error(got)
	}
	check := func(what, want string) {
		t.Helper()
		if got := value(t, other, look, simple); got != "none" {
			t.Errorf("%s: another client sees %s", what, got)
		}
		if got := value(t, mine, look, simple); got != want {
			t.Errorf("%s: got %s, want %s", what, got, want)
		}
	}
	do(t, other, act("one"), simple)
	if got := value(t, mine, "select fresh.act()"); got != "one" {
		t.Error(got)
	}
	check("made through the pooler", "one")
	do(t, mine, "begin; "+act("two")+"; select fresh.act(); commit", simple)
	check("made and used in one transaction", "two")
	acts := func(name string) string {
		return fmt.Sprintf("create function fresh.%s() returns text language sql as $a$ select set_config('app.act', '%[1]s', false) $a$", name)
	}
	for name, text := range map[string]string{
		"by_several":  "begin; " + acts("by_several") + "; commit",
		"by_do":       "do $$ begin " + acts("by_do") + "; end $$",
		"by_function": "create function fresh.make() returns void language plpgsql as $$ begin " + acts("by_function") + "; end $$",
	} {
		do(t, other, text, simple)
		if name == "by_function" {
			do(t, other, "select fresh.make()", simple)
		}
		if got := value(t, mine, "select fresh."+name+"()"); got != name {
			t.Error(got)
		}
		check("made "+name, name)
	}
	// By the extended protocol, as drivers that prepare everything do.
	for _, mode := range []pgx.QueryExecMode{pgx.QueryExecModeCacheStatement, pgx.QueryExecModeDescribeExec} {
		do(t, other, "create or replace function fresh.named_"+fmt.Sprint(int(mode))+"() returns text language sql as $$ select set_config('app.act', 'named', false) $$", mode)
		do(t, mine, "select set_config('app.act', 'before', false)", simple)
		for range 2 {
			if got := value(t, mine, "select fresh.named_"+fmt.Sprint(int(mode))+"()", mode); got != "named" {
				t.Error(got)
			}
			check("made by the extended protocol", "named")
		}
	}
	// With such strings a backslash hides a quote.
	do(t, other, "set standard_conforming_strings = off", simple)
	do(t, other, `select 'it\'s'; create function fresh.slashed() returns text language sql as $$ select set_config('app.act', 'slashed', false) $$`, simple)
	do(t, other, "reset standard_conforming_strings", simple)
	do(t, mine, "select fresh.slashed()", simple)
	check("made behind a backslash", "slashed")
	if err := s.Exec(t.Context(), "create function fresh.aside() returns text language sql as $$ select set_config('app.act', 'three', false) $$"); err != nil {
		t.Fatal(err)
	}
	h.policy.Load().pools["app"].hidden.next.Store(1) // a minute later
	value(t, other, "select 'looks at the catalog, behind this'")
	if got := value(t, mine, "select fresh.aside()"); got != "three" {
		t.Error(got)
	}
	check("made elsewhere", "three")
}

func TestAStatementIsPreparedAnewWhenATableWasChangedElsewhere(t *testing.T) {
	s := pg.Start(t)
	if err := s.Exec(t.Context(), "drop table if exists remade; create table remade (n int); insert into remade values (7)"); err != nil {
		t.Fatal(err)
	}
	h := run(t, config(database(s.URL(), one)))
	first := h.connect(t)
	if _, err := first.Prepare(t.Context(), "ps", "select * from remade"); err != nil {
		t.Fatal(err)
	}
	if err := s.Exec(t.Context(), "alter table remade alter n type text"); err != nil {
		t.Fatal(err)
	}
	h.policy.Load().pools["app"].hidden.next.Store(1) // a minute later
	value(t, first, "select 'looks at the catalog, behind this'")
	second := h.connect(t)
	if _, err := second.Prepare(t.Context(), "ps", "select * from remade"); err != nil {
		t.Fatal(err)
	}
	if got := value(t, second, "ps"); got != "7" {
		t.Error(got)
	}
	if _, err := first.Exec(t.Context(), "ps"); sqlState(err) != "0A000" { // as with PostgreSQL itself
		t.Errorf("who had prepared it before: %v", err)
	}
}

func TestWhatIsReachedWithoutANameFollowsTheClientToo(t *testing.T) {
	s := pg.Start(t)
	if err := s.Exec(t.Context(), `drop schema if exists unnamed cascade; create schema unnamed; set search_path = unnamed;
		create function act(what text) returns text language plpgsql as $$ begin perform set_config('app.user', what, false); return what; end $$;
		create function matches(a int, b text) returns bool language plpgsql as $$ begin perform unnamed.act(b); return true; end $$;
		create operator @@> (function = matches, leftarg = int, rightarg = text);
		create view operated as select 1 @@> 'ann' as yes;
		create type coin as enum ('head', 'tail'); create type card as (name text);
		create function of_coin(c coin) returns int language plpgsql as $$ begin perform unnamed.act('ann'); return 1; end $$;
		create cast (coin as int) with function of_coin as assignment;
		create function of_card(c card) returns coin language sql as 'select (select ''head'' from unnamed.act(c.name))::unnamed.coin';
		create table tossed (c coin); create table counted (n int); insert into tossed values ('head');
		create function fits(n int) returns bool language plpgsql as $$ begin perform unnamed.act('ann'); return true; end $$;
		create domain number as int check (fits(value)); create domain part as number; create table parts (a part[]);
		create table plain (n int); create function idx(n int) returns int immutable language plpgsql as $$ begin perform unnamed.act('ann'); return n; end $$;
		create index on plain (idx(n));
		create table parent (id int primary key); create table child (id int references parent on delete cascade); insert into parent values (1), (2), (3), (4), (5), (6); insert into child select * from parent;
		create function note() returns trigger language plpgsql as $$ begin perform unnamed.act('ann'); return null; end $$;
		create trigger note after delete on child for each row execute function note();
		create table events (n int) partition by list (n); create table events1 partition of events for values in (1);
		create trigger note after insert on events1 for each row execute function note();
		create function step(total int, n int) returns int language plpgsql as $$ begin perform unnamed.act('ann'); return total + n; end $$;
		create aggregate add_up(int) (sfunc = step, stype = int, initcond = '0');
		create function on_ddl() returns event_trigger language plpgsql as $$ begin perform unnamed.act('ann'); end $$`); err != nil {
		t.Fatal(err)
	}
	const look = "select coalesce(nullif(current_setting('app.user', true), ''), 'nobody')"
	for what, sql := range map[string]string{
		"an operator":          "select 1 operator(unnamed.@@>) 'ann'",
		"a view's operator":    "select * from unnamed.operated",
		"a cast":               "select 'head'::unnamed.coin::int",
		"an assignment's cast": "insert into unnamed.counted select c from unnamed.tossed",
		"a row's function":     "select (r).of_card from (select row('ann')::unnamed.card as r) as x, unnamed.tossed",
		"a domain":             "select 1::unnamed.number",
		"a column of a domain": "insert into unnamed.parts values ('{1, 2}')",
		"an index":             "insert into unnamed.plain values (1)",
		"a cascade":            "delete from unnamed.parent where id = (select min(id) from unnamed.parent)",
		"a partition":          "insert into unnamed.events values (1)",
		"an aggregate":         "select unnamed.add_up(n) from generate_series(1, 2) as n",
	} {
		for _, mode := range []pgx.QueryExecMode{pgx.QueryExecModeSimpleProtocol, pgx.QueryExecModeCacheStatement} {
			t.Run(what+" "+mode.String(), func(t *testing.T) {
				h := run(t, config(database(s.URL(), one)))
				mine, other := h.connect(t), h.connect(t)
				do(t, mine, "set search_path = unnamed, public")
				do(t, mine, sql, mode)
				if got := value(t, other, look, pgx.QueryExecModeSimpleProtocol); got != "nobody" {
					t.Errorf("another client sees %s", got)
				}
				if got := value(t, mine, look, mode); got != "ann" {
					t.Errorf("got %s", got)
				}
			})
		}
	}
}

func TestAnEventTriggersFunctionFollowsTheClient(t *testing.T) {
	s := plainServer.Start(t)
	if err := s.Exec(t.Context(), `create function on_ddl() returns event_trigger language plpgsql as $$ begin perform set_config('app.user', 'ann', false); end $$;
		create event trigger noted on ddl_command_end execute function on_ddl()`); err != nil {
		t.Fatal(err)
	}
	h := run(t, config(database(s.URL(), one)))
	mine, other := h.connect(t), h.connect(t)
	do(t, mine, "create table made (n int)")
	if got := value(t, other, "select coalesce(nullif(current_setting('app.user', true), ''), 'nobody')"); got != "nobody" {
		t.Errorf("another client sees %s", got)
	}
}

// To compile a question to the catalog takes PostgreSQL far longer than to answer it.
func TestQuestionsToTheCatalogAreNotCompiled(t *testing.T) {
	s := pg.Start(t)
	c, err := pgx.Connect(t.Context(), s.URL())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close(t.Context())
	for what, sql := range map[string]string{"state": audit.State(true), "state without tables": audit.State(false), "catalog": audit.Catalog(15, true)} {
		text, ok := strings.CutSuffix(sql, "COMMIT")
		if !ok {
			t.Fatalf("%s is asked otherwise: %s", what, sql)
		}
		results, err := c.PgConn().Exec(t.Context(), "SET jit = on;"+text+"SHOW jit;COMMIT").ReadAll()
		if err != nil {
			t.Fatal(err)
		}
		if last := results[len(results)-2]; string(last.Rows[0][0]) != "off" {
			t.Errorf("%s: jit is %s", what, last.Rows[0][0])
		}
	}
}

// Clients that commit while another looks at the catalog share one look, and each of them carries what
// the functions that it made and used have set.
func TestWhoSharesALookAtTheCatalogKnowsWhatItSet(t *testing.T) {
	s := pg.Start(t)
	const act = "create function looked.act%d() returns text language sql as $$ select set_config('looked.s%[1]d', 'mine', false) $$;"
	if err := s.Exec(t.Context(), "drop schema if exists looked cascade; create schema looked;"+fmt.Sprintf(act, 9)); err != nil {
		t.Fatal(err)
	}
	locker, err := pgx.Connect(t.Context(), s.URL())
	if err != nil {
		t.Fatal(err)
	}
	defer locker.Close(context.WithoutCancel(t.Context()))
	h := run(t, config(database(s.URL(), func(d *Database) { d.Pool.Max = 3 })))
	clients := []*pgx.Conn{h.connect(t), h.connect(t), h.connect(t)}
	var servers []string
	for n, c := range clients {
		do(t, c, "select 'connects'", simple)
		if err := s.Exec(t.Context(), fmt.Sprintf(act, n)); err != nil { // past the pooler: only a look can tell what it sets
			t.Fatal(err)
		}
		do(t, c, fmt.Sprintf("begin; create function looked.f%d() returns text language sql as 'select looked.act%[1]d()'; select looked.f%[1]d()", n), simple)
		servers = append(servers, value(t, c, "select pg_backend_pid()::text", simple))
	}
	do(t, locker, "begin; lock table pg_catalog.pg_policy in access exclusive mode", simple) // so that a look waits
	waiting := func(where string) int {
		do(t, locker, "select pg_stat_clear_snapshot()", simple)
		n, _ := strconv.Atoi(value(t, locker, "select count(*)::text from pg_stat_activity where pid in ("+strings.Join(servers, ",")+") and "+where, simple))
		return n
	}
	committed := make(chan error, len(clients))
	for n, c := range clients {
		go func() {
			_, err := c.Exec(context.WithoutCancel(t.Context()), "commit", simple)
			committed <- err
		}()
		if n == 0 {
			await(t, "the first looks", func() bool { return waiting("wait_event_type = 'Lock'") == 1 })
		}
	}
	await(t, "the others have committed", func() bool { return waiting("state = 'idle' and query = 'commit'") == 2 })
	do(t, locker, "rollback", simple)
	for range clients {
		if err := <-committed; err != nil {
			t.Error(err)
		}
	}
	for n := range clients {
		for who, c := range clients {
			want := "none"
			if who == n {
				want = "mine"
			}
			if got := value(t, c, fmt.Sprintf("select coalesce(nullif(current_setting('looked.s%d', true), ''), 'none')", n), simple); got != want {
				t.Errorf("client %d sees %s of client %d, want %s", who, got, n, want)
			}
		}
	}
}

// What goes away while PostgreSQL reads its catalog is an internal error of its, and gone the next time.
func TestTheCatalogIsAskedOnceMoreAfterAnInternalError(t *testing.T) {
	s := pg.Start(t)
	if err := s.Exec(t.Context(), "drop sequence if exists asked; create sequence asked"); err != nil {
		t.Fatal(err)
	}
	h := run(t, config(database(s.URL(), one)))
	do(t, h.connect(t), "select 1")
	p := h.policy.Load().pools["app"]
	await(t, "the server is idle", func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		return len(p.idle) == 1
	})
	p.mu.Lock()
	b := p.idle[0]
	p.idle = nil
	p.mu.Unlock()
	defer p.drop(b)
	refusal := func(err error) string {
		if refused, ok := errors.AsType[*upstream.Refused](err); ok {
			return refused.SQLState
		}
		return fmt.Sprint(err)
	}
	ask := func(state string, often int) (rows int, err error) {
		err = b.ask(fmt.Sprintf("BEGIN; DO $$ BEGIN IF nextval('asked') <= %d THEN RAISE 'gone' USING errcode = '%s'; END IF; END $$; SELECT 'row'; COMMIT", often, state), func([]byte) error { rows++; return nil })
		return rows, err
	}
	if rows, err := ask("XX000", 1); err != nil || rows != 1 {
		t.Errorf("%d rows, %v", rows, err)
	}
	if _, err := ask("XX000", 9); refusal(err) != "XX000" {
		t.Errorf("an error that stays: %v", err)
	}
	if err := b.rollBack(); err != nil {
		t.Fatal(err)
	}
	if _, err := ask("42501", 9); refusal(err) != "42501" {
		t.Errorf("what is no internal error: %v", err)
	}
	if err := b.rollBack(); err != nil {
		t.Fatal(err)
	}
	if err := b.ask("SELECT last_value FROM asked", func(row []byte) error {
		if string(row[6:]) != "5" { // two times each, and once for what is no internal error
			t.Errorf("asked %s times, want 5", row[6:])
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
}

// A statement without a name that is executed again later, by itself, changes what it did at first.
func TestAnUnnamedStatementThatIsExecutedLaterFollowsTheClient(t *testing.T) {
	s := pg.Start(t)
	if err := s.Exec(t.Context(), "drop schema if exists later cascade; create schema later; create function later.act() returns text language sql as $$ select set_config('later.x', 'mine', false) $$"); err != nil {
		t.Fatal(err)
	}
	h := run(t, config(database(s.URL(), one)))
	mine, other := newFrontend(t, h), h.connect(t)
	mine.send(parsed("", "select later.act()") + synced)
	mine.expect("1Z")
	value(t, other, "select 'has the server'", simple)
	mine.send(bound("") + executed + synced)
	mine.expect("2DCZ")
	if got := value(t, other, "select coalesce(nullif(current_setting('later.x', true), ''), 'none')", simple); got != "none" {
		t.Errorf("another client sees %s", got)
	}
}

// A text without constants is known by its key: what makes a function does otherwise with other constants.
func TestATextThatMakesAFunctionIsReadEachTime(t *testing.T) {
	s := plainServer.Start(t)
	for _, sql := range []string{"drop database if exists keyed with (force)", "create database keyed"} {
		if err := s.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	h := run(t, config(database(s.URLFor("postgres", s.Password(), "keyed"), one))) // without a function that leaves anything
	mine, other := h.connect(t), h.connect(t)
	for _, body := range []string{"select 1", "set keyed.x = 5"} {
		do(t, mine, "create or replace function act() returns void language sql as '"+body+"'", simple)
	}
	do(t, mine, "select act()", simple)
	if got := value(t, other, "select coalesce(nullif(current_setting('keyed.x', true), ''), 'none')", simple); got != "none" {
		t.Errorf("another client sees %s", got)
	}
}

func TestWhatIsUsedBeforeAnybodyHasLookedFollowsTheClient(t *testing.T) {
	s := pg.Start(t)
	const sets = "create or replace function once.act%s() returns text language sql as $f$ select set_config('once.x%[1]s', 'mine', false) $f$"
	if err := s.Exec(t.Context(), "drop schema if exists once cascade; create schema once;"+fmt.Sprintf(sets, "0")+"; create function once.make() returns void language plpgsql as $$ begin "+fmt.Sprintf(sets, "1")+"; end $$"); err != nil {
		t.Fatal(err)
	}
	h := run(t, config(database(s.URL(), one)))
	mine, other := h.connect(t), h.connect(t)
	for name, sql := range map[string]string{
		"1": "begin; select once.make(); select once.act1(); commit", "0": "select 1; do $$ begin perform once.act0(); end $$", "2": "begin; do $do$ begin " + fmt.Sprintf(sets, "2") + "; end $do$; select once.act2(); commit",
	} {
		do(t, mine, sql, simple)
		look := "select coalesce(nullif(current_setting('once.x" + name + "', true), ''), 'none')"
		if got := value(t, other, look, simple); got != "none" {
			t.Errorf("%s: another client sees %s", sql, got)
		}
		if got := value(t, mine, look, simple); got != "mine" {
			t.Errorf("%s: got %s", sql, got)
		}
	}
}
