package pooler

import (
	"strconv"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
)

// Each of these was once left to the server's next client. There is one server, and it is looked at by another client: it has
// nothing of the first, unless it is kept from it. own is what the first has of it afterwards; "-": it does not matter.
func TestWhatWasOnceLeftToOthersIsNot(t *testing.T) {
	s := pg.Start(t)
	if err := s.Exec(t.Context(), `drop schema if exists once cascade; create schema once; set search_path = once;
		create function sets() returns trigger language plpgsql as $$ begin perform set_config('o.trigger', 'left', false); return new; end $$;
		create table a (n text); create trigger g before insert on a for each row execute function sets(); create table b (n text); create trigger g before insert on b for each row execute function sets();
		create function dispatch(f text) returns void language plpgsql as $$ begin execute 'select once.' || f || '()'; end $$; create function locks() returns void language sql as 'select pg_advisory_lock(77)';
		create function makes(kind text) returns void language plpgsql as $$ begin execute 'create ' || kind || ' table made (n int)'; end $$;
		create function runs(q text) returns void language plpgsql as $$ declare r text := 'select 1'; begin r := coalesce(q, r); execute r; end $$;
		create function wraps(q text) returns void language plpgsql as $$ begin execute format('select * from (%s) as t', q); end $$;
		create function foo() returns void language plpgsql set search_path = nowhere, pg_temp as $$ begin create table made_too (n int); end $$;
		create function act() returns bool language plpgsql as $$ begin perform set_config('o.act', 'left', false); return true; end $$;
		create operator |+*/<>=~!@#%^&? (function = pg_try_advisory_lock, rightarg = bigint); create operator |+*/<>=~!@#%^&?? (function = pg_try_advisory_lock, rightarg = bigint);
		create function fmts(q text) returns void language plpgsql as $$ begin execute format('select ' || q); end $$; create function ins(q text) returns void language plpgsql as $$ begin execute 'insert into once.plain ' || q; end $$;
		create function tbl(a text, b text) returns void language plpgsql as $$ begin execute format('create table %I.%I (n int)', a, b); end $$; create table plain (n text);
		create table indexed (n int); create function idx(n int) returns int immutable language plpgsql as $$ begin perform pg_try_advisory_lock(79); return n; end $$; create index on indexed (idx(n)); insert into indexed values (1);
		create table parent (id int primary key); create table child (id int references parent); create function empties() returns trigger language plpgsql as $$ begin perform set_config('o.cascade', 'left', false); return null; end $$;
		create trigger e after truncate on child execute function empties()`); err != nil {
		t.Fatal(err)
	}
	const (
		locks = "select coalesce(max(objid::text), '') from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()"
		temp  = "select coalesce(max(relname)::text, '') from pg_class where relnamespace = pg_my_temp_schema() and relkind = 'r'"
	)
	long := strings.Repeat("x", 100_000)
	for _, c := range []struct {
		what string
		sql  []string
		look string
		own  string
	}{
		{"a prefix that is a keyword", []string{"set session.a = 'left'"}, "session.a", "left"},
		{"another", []string{"set local.a = 'left'; set time.a = 'left'"}, "local.a", "left"},
		{"with quotes", []string{`set "schema".a = 'left'`}, "schema.a", "left"},
		{"a name in quotes", []string{`select "set_config"('work_mem', '77MB', false)`}, "select replace(setting, '4096', '') from pg_settings where name = 'work_mem'", "78848"},
		{"a long text", []string{"set o.long = 'left'; select '" + long + "'"}, "o.long", "left"},
		{"the end of a long text", []string{"select '" + long + "'; set o.last = 'left'"}, "o.last", "-"},
		{"a long row with a trigger", []string{"insert into once.a values ('" + long + "')"}, "o.trigger", "left"},
		{"a long text that makes a function", []string{"create or replace function once.made() returns text language sql as $$ select set_config('o.made', 'left', false) $$; select '" + long + "'", "select once.made()"}, "o.made", "left"},
		{"a table by another name", []string{"alter table once.b rename to c; insert into once.c values (1)"}, "o.trigger", "-"},
		{"later", []string{"insert into once.c values (1)"}, "o.trigger", "left"},
		{"many names", []string{sets(250)}, "m.a249", "left"},
		{"a function that is gone", []string{"create function pg_temp.f() returns text language sql as $$ select set_config('o.gone', 'left', false) $$; select pg_temp.f(); drop function pg_temp.f()"}, "o.gone", "-"},
		{"a function that is gone, of all", []string{"begin; create function once.f() returns void language plpgsql as $$ begin perform set_config('o.' || 'all', 'left', false); end $$; select once.f(); drop function once.f(); commit"}, "o.all", "-"},
		{"code in quotes", []string{"do 'begin perform set_config(''o.quotes'', ''left'', false); end'"}, "o.quotes", "left"},
		{"code in code", []string{"do $$ begin execute 'select set_config(''o.code'', ''left'', false)'; end $$"}, "o.code", "left"},
		{"a dispatcher", []string{"select once.dispatch('locks')"}, locks, "77"},
		{"a dispatcher of settings", []string{"select once.dispatch('act')"}, "o.act", "-"},
		{"a kind of tables", []string{"select once.makes('temp')"}, temp, "made"},
		{"a command that is given", []string{"select once.runs('set o.given = ''left''')"}, "o.given", "left"},
		{"a query in another", []string{"select once.wraps('select set_config(''o.wrapped'', ''left'', false)')"}, "o.wrapped", "left"},
		{"an argument that is computed", []string{"prepare p(text) as select set_config($1, 'left', false)", "execute p('o.' || 'p')"}, "o.p", "-"},
		{"schemas that are not there", []string{"select once.foo()"}, temp, "made_too"},
		{"a search_path in capitals", []string{"begin; select set_config('search_path', 'Pg_Temp', true); create table capital (n int); commit"}, temp, "capital"},
		{"a temporary table's default", []string{"create temp table t (a text default set_config('o.td', 'left', false), n int); set o.x = 1", "insert into t (n) values (1); drop table t"}, "o.td", "-"},
		{"a long operator", []string{"select operator(once.|+*/<>=~!@#%^&?) 78::bigint"}, locks, "78"},
		{"another one", []string{"select operator(once.|+*/<>=~!@#%^&??) 81::bigint"}, locks, "81"},
		{"a format that is put together", []string{"select once.fmts('set_config(''o.fmt'', ''left'', false)')"}, "o.fmt", "left"},
		{"a query that is inserted", []string{"select once.ins('select pg_try_advisory_lock(80)::text')"}, locks, "80"},
		{"a schema that is given", []string{"select once.tbl('pg_temp', 'given')"}, temp, "given"},
		{"set schema", []string{"set schema 'pg_temp'; create table schemed (n int); set schema 'public'"}, temp, "schemed"},
		{"a search_path that is computed", []string{"begin; select set_config('search_path', concat('pg_', 'temp'), true); select 1 as n into computed; commit"}, temp, "computed"},
		{"one that goes on", []string{"begin; set local search_path to 'pg_'\n'temp'; create table joined (n int); commit"}, temp, "joined"},
		{"a setting of transactions", []string{"set session session characteristics as transaction deferrable"}, "select case setting when 'on' then 'on' else '' end from pg_settings where name = 'default_transaction_deferrable'", "on"},
		{"a view in a schema", []string{`create schema "Sv" create view v as select set_config('o.sv', 'left', false)`, `select * from "Sv".v; drop schema "Sv" cascade`}, "o.sv", "left"},
		{"analyze", []string{"analyze"}, locks, "79"},
		{"truncate cascade", []string{"truncate once.parent cascade"}, "o.cascade", "-"},
	} {
		h := impatientHouse(t, s.URL())
		a := h.connect(t)
		for _, sql := range c.sql {
			if _, err := a.PgConn().Exec(t.Context(), sql).ReadAll(); err != nil {
				t.Errorf("%s: %v", c.what, err)
			}
		}
		h.ownAlone(t, c.what, a, c.look, c.own)
	}
}

// A server goes back to the client that may have set there what nobody can name, as it left it, and to another one
// when it has been wiped.
func TestAServerWhoseStateNobodyCanNameIsWipedForOthersAlone(t *testing.T) {
	s := pg.Start(t)
	if err := s.Exec(t.Context(), `create or replace function public.composes(n text) returns void language plpgsql as $$ declare q text; begin q := 'set w.' || n || ' = 1'; execute q; end $$`); err != nil {
		t.Fatal(err)
	}
	h := run(t, config(database(s.URL(), func(d *Database) { d.Pool.Max = 2 })))
	wiped := func() uint64 { return h.Stats().Databases[0].wiped }
	a, b, c := h.connect(t), h.connect(t), h.connect(t)
	do(t, a, "set work_mem = '77MB'")
	do(t, b, "begin")
	do(t, a, "select composes('a')")
	do(t, b, "commit") // its server is the one that was used last
	for range 5 {
		if got := value(t, a, "select current_setting('w.a') || current_setting('work_mem')"); got != "177MB" {
			t.Errorf("got %s", got)
		}
	}
	if n := wiped(); n > 0 {
		t.Errorf("wiped %d times", n)
	}
	do(t, b, "begin")
	do(t, c, "begin")
	for _, other := range []*pgx.Conn{b, c} {
		if got := value(t, other, "select coalesce(current_setting('w.a', true), '') || current_setting('work_mem')"); got == "177MB" {
			t.Errorf("another client has %s", got)
		}
		do(t, other, "rollback")
	}
	if n := wiped(); n != 1 {
		t.Errorf("wiped %d times, not once", n)
	}
	if got := value(t, a, "show work_mem"); got != "77MB" {
		t.Errorf("its own client has %s", got)
	}
}

// Who uses a function that another client has only just made, before anybody has read it, leaves nothing to those who come later.
func TestAFunctionThatIsUsedBeforeItIsReadIsWipedLater(t *testing.T) {
	h := run(t, config(database(pg.Start(t).URL(), func(d *Database) { d.Pool.Max = 3 })))
	a, b := h.connect(t), h.connect(t)
	do(t, a, "drop function if exists public.fresh()")
	do(t, b, "select 1")
	used := make(chan error, 1)
	go func() {
		var err error
		for range 500 {
			if _, err = b.Exec(t.Context(), "select public.fresh()", pgx.QueryExecModeSimpleProtocol); err == nil {
				break
			}
		}
		used <- err
	}()
	do(t, a, "create function public.fresh() returns text language sql as $$ select set_config('o.fresh', 'left', false) $$")
	if err := <-used; err != nil {
		t.Fatal(err)
	}
	do(t, a, "select 1") // behind the look
	var others []*pgx.Conn
	for range 3 {
		c := h.connect(t)
		do(t, c, "begin")
		others = append(others, c)
		if got := value(t, c, "select coalesce(current_setting('o.fresh', true), '')", pgx.QueryExecModeSimpleProtocol); got != "" {
			t.Errorf("another client has %q", got)
		}
	}
	for _, c := range others {
		do(t, c, "rollback")
	}
	do(t, a, "drop function public.fresh()")
}

// Nor is it taken from who has it: a change of what functions do wipes no server that its client keeps, or has a transaction on.
func TestAChangeOfFunctionsTakesNothingFromWhoHasAServer(t *testing.T) {
	s := pg.Start(t)
	h := run(t, config(database(s.URL(), func(d *Database) { d.Pool.Max = 3 })))
	a, b, c := h.connect(t), h.connect(t), h.connect(t)
	do(t, a, "create temp table mine (n int); insert into mine values (1)", pgx.QueryExecModeSimpleProtocol)
	do(t, b, "begin; set local work_mem = '77MB'; select pg_advisory_xact_lock(81); create temp table ours (n int) on commit drop", pgx.QueryExecModeSimpleProtocol)
	for _, source := range []string{"set_config(''o.one'', ''x'', false)", "set_config(''o.two'', ''x'', false)"} {
		do(t, c, "create or replace function public.changed() returns text language sql as 'select "+source+"'", pgx.QueryExecModeSimpleProtocol)
		for _, mode := range []pgx.QueryExecMode{pgx.QueryExecModeSimpleProtocol, pgx.QueryExecModeCacheStatement, pgx.QueryExecModeExec} {
			if got := value(t, a, "select count(*)::text from mine", mode); got != "1" {
				t.Errorf("%v: got %s", mode, got)
			}
			if got := value(t, b, "select count(*)::text || current_setting('work_mem') from ours", mode); got != "077MB" {
				t.Errorf("%v: got %s", mode, got)
			}
		}
	}
	do(t, b, "commit")
	do(t, c, "drop function public.changed()")
}

// sets is a text that sets so many settings.
func sets(n int) string {
	var sql strings.Builder
	for i := range n {
		sql.WriteString("set m.a" + strconv.Itoa(i) + " = 'left'; ")
	}
	return sql.String()
}

// A table that others have locked does not keep the sources of functions from being read.
func TestALockedTableDoesNotHideTheCatalog(t *testing.T) {
	s := pg.Start(t)
	if err := s.Exec(t.Context(), `drop schema if exists locked cascade; create schema locked; create table locked.t (a int); create view locked.v as select set_config('lo.view', a::text, false) from locked.t;
		create function locked.act() returns text language sql as $$ select set_config('lo.act', 'left', false) $$; insert into locked.t values (5)`); err != nil {
		t.Fatal(err)
	}
	holder, err := pgx.Connect(t.Context(), s.URL())
	if err != nil {
		t.Fatal(err)
	}
	defer holder.Close(t.Context())
	do(t, holder, "begin; lock table locked.t", pgx.QueryExecModeSimpleProtocol)
	h := run(t, config(database(s.URL(), one)))
	a, b := h.connect(t), h.connect(t)
	if got := value(t, a, "select locked.act()"); got != "left" {
		t.Error(got)
	}
	const look = "select coalesce(current_setting($1, true), '')"
	if got := value(t, b, look, "lo.act"); got != "" {
		t.Errorf("another client has %q", got)
	}
	if got := value(t, a, look, "lo.act"); got != "left" {
		t.Errorf("its own client has %q", got)
	}
}
