package pooler

import (
	"fmt"
	"testing"
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
