package pooler

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// Each of these was once left to the server's next client. A text that begins with "@b " is another client's.
func TestWhatCodeHidesIsNotLeftToOthers(t *testing.T) {
	s := pg.Start(t)
	defer func() { _ = s.Exec(context.Background(), "drop schema if exists hides cascade") }() // its indexes do something when other tests ANALYZE
	const (
		locks = "select coalesce(max(objid::text), '') from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()"
		temp  = "select coalesce(max(relname)::text, '') from pg_class where relnamespace = pg_my_temp_schema() and relkind = 'r'"
		mem   = "select case setting when '4096' then '' else setting end from pg_settings where name = 'work_mem'"
	)
	seed := "select case when random()::text = '" + seeded(t, s.URL()) + "' then 'seeded' else '' end"
	given := "insert into hides.serials (n) values ('a')"
	type found struct {
		what string
		sql  []string
		look string
	}
	for _, group := range []struct { // apart, since what tables do counts for what is put together too
		setup string
		cases []found
	}{
		{`create table plain (n text); insert into plain values ('x'); create table serials (id serial, n text); create view asks as select lastval() as l;
		create function act() returns text language sql as $$ select set_config('t.act', 'left', false) $$; 
		create function setting() returns void language sql as $$ update pg_settings set setting = '77MB' where name = 'work_mem' $$;
		create function searches(a text, filter text) returns setof text language plpgsql as $$ begin return query execute format('select n from hides.%I', a) || ' where ' || filter; end $$;
		create function adds(filter text) returns void language plpgsql as $$ begin execute format('select %L::text;', 'x') || filter; end $$;
		create function typed(f text) returns void language plpgsql as $$ begin execute 'select hides.'::text || f || '()'; end $$;
		create function collated(f text) returns void language plpgsql as $$ begin execute 'select hides.' collate "C" || f || '()'; end $$;
		create function byvar(function text) returns void language plpgsql as $$ begin execute function; end $$; create function byproc(procedure text) returns void language plpgsql as $$ begin execute procedure || '()'; end $$;
		create function inserts(f text) returns void language plpgsql as $$ begin execute format('insert into hides.plain select hides.%I()', f); end $$;
		create function inserts2(a text, f text) returns void language plpgsql as $$ begin execute format('insert into %I select %I()', a, f); end $$;
		create function inserts3(f text) returns void language plpgsql as $$ begin execute 'insert into hides.plain select hides.' || quote_ident(f) || '()'; end $$;
		create function makes(a text, f text) returns void language plpgsql as $$ begin execute format('create table hides.%I as select hides.%I()', a, f); end $$;
		create function spaced(f text) returns void language plpgsql as $$ begin execute 'select hides.' || quote_ident(f) || ' ' || '()'; end $$;
		create function split() returns void language plpgsql as $$ begin execute 'select set_' || 'config(''t.split'', ''left'', false)'; end $$;
		do $$ begin create function seeds() returns int language sql set seed = 0.5 as 'select 1'; exception when feature_not_supported then create function seeds() returns int language sql as 'select 1'; end $$;
		create function leads(p text) returns void language plpgsql as $$ begin perform set_config('search_path', p, true); create table led (n int); end $$;
		create function leads2(p text) returns void language plpgsql as $$ begin execute format('set local search_path to %I', p); create table led2 (n int); end $$;
		create function gets(q text) returns text language plpgsql as $$ declare r text; begin execute q into r; return r; end $$; create function views(n text) returns text language plpgsql as $$ declare r text; begin execute format('select l from hides.%I', n) into r; return r; end $$;`, []found{
			{"pg_settings", []string{"update pg_settings set setting = '77MB' where name = 'work_mem'"}, mem},
			{"pg_settings in a function", []string{"select hides.setting()"}, mem},
			{"behind a format", []string{"select * from hides.searches('plain', 'hides.act() <> ''''')"}, "t.act"},
			{"a command behind a format", []string{"select hides.adds('set t.added = ''left''')"}, "t.added"},
			{"a cast text", []string{"select hides.typed('act')"}, "t.act"},
			{"a collated text", []string{"select hides.collated('act')"}, "t.act"},
			{"a variable named function", []string{"select hides.byvar('set t.byvar = ''left''')"}, "t.byvar"},
			{"a variable named procedure", []string{"select hides.byproc('select hides.act')"}, "t.act"},
			{"insert of a function's", []string{"select hides.inserts('act')"}, "t.act"},
			{"insert of a function's, both named", []string{"begin; set local search_path = hides; select inserts2('plain', 'act'); commit"}, "t.act"},
			{"insert of a function's, quoted", []string{"select hides.inserts3('act')"}, "t.act"},
			{"create as a function's", []string{"select hides.makes('made', 'act')"}, "t.act"},
			{"a bracket behind a space", []string{"select hides.spaced('act')"}, "t.act"},
			{"a word in two constants", []string{"select hides.split()"}, "t.split"},
			{"a function's own seed", []string{"select hides.seeds()"}, seed},
			{"a function that leads itself to pg_temp", []string{"select hides.leads('pg_temp')"}, temp},
			{"another", []string{"select hides.leads2('pg_temp')"}, temp},
			{"lastval in DO", []string{given, "@b do $$ begin perform set_config('t.lv', lastval()::text, false); end $$"}, "t.lv"},
			{"lastval in a text", []string{given}, "select hides.gets('select lastval()')"},
			{"lastval in a view", []string{given}, "select hides.views('asks')"},
			{"lastval in xml", []string{given}, "select query_to_xml('select lastval()', true, false, '')::text"},
			{"DO in DO", []string{"do $a$ begin execute $b$ do $c$ begin execute $d$ set t.deep = 'left' $d$; end $c$ $b$; end $a$"}, "t.deep"},
			{"a name with a blank", []string{"select set_config('t.blank  '::bpchar, 'left', false)"}, "t.blank"},
			{"a schema with more", []string{"create schema hides2 authorization postgres create sequence sq create view v as select set_config('t.hides2', 'left', false) as a", "@b select 1", "select * from hides2.v; drop schema hides2 cascade"}, "t.hides2"},
			{"strings with backslashes", []string{"set standard_conforming_strings = off", "create domain hides.dom2 as int check (set_config('t.dom2', 'left', false) <> '')", "@b select 1", "select 1::hides.dom2"}, "t.dom2"},
		}},
		{`create extension if not exists amcheck with schema public; create function act() returns text language sql as $$ select set_config('t.act', 'left', false) $$; create function checks(n int) returns bool language plpgsql as $$ begin perform hides.act(); return true; end $$;
		create function fires() returns trigger language plpgsql as $$ begin perform set_config('t.act', 'left', false); return new; end $$;
		create table audited (n text); create function audited_act() returns text language sql as $$ select set_config('t.audited', 'left', false) $$;
		create function generic() returns trigger language plpgsql as $$ begin execute 'select hides.' || tg_table_name || '_act()'; return new; end $$; create trigger g before insert on audited for each row execute function generic();
		create table par (n int) partition by range (n); create table kid partition of par for values from (0) to (10); create trigger g before insert on kid for each row execute function fires();
		create domain dom as int check (checks(value)); create table domed (n dom);
		create table old (n text); create table new (n text); create trigger g before insert on new for each row execute function fires();
		create function swaps() returns void language plpgsql as $$ begin alter table hides.old rename to older; alter table hides.new rename to old; end $$;
		create table par2 (n int) partition by range (n); create table kid2 (n int); create trigger g before insert on kid2 for each row execute function fires();
		create function attaches(p text) returns void language plpgsql as $$ begin execute format('alter table hides.par2 attach partition hides.%I for values from (0) to (10)', p); end $$;
		create function creates() returns void language plpgsql as $$ begin create table hides.created (n int, a text default hides.act()); end $$;
		create type own as (a int); create function unlike(own, text) returns bool language plpgsql as $$ begin perform hides.act(); return true; end $$; create operator !~ (function = unlike, leftarg = own, rightarg = text); create table owns (c own); insert into owns values (row(1));
		create table indexed (n int); create function idx(n int) returns int immutable language plpgsql as $$ begin perform pg_try_advisory_lock(pg_backend_pid()); return n; end $$; create index ii on indexed (idx(n)); insert into indexed values (1);
		create table counted (n int); insert into counted values (1), (2); create statistics st on (idx(n)), n from counted;
		create function enabled() returns bool immutable language plpgsql as $$ begin perform set_config('t.enabled', 'left', false); return true; end $$; create table partial (n int); create index pi on partial (n) where enabled()`, []found{
			{"a function named for the table", []string{"insert into hides.audited values ('a')"}, "t.audited"},
			{"a parent renamed", []string{"alter table hides.par rename to parent", "@b select 1", "insert into hides.parent values (1)"}, "t.act"},
			{"a table with a domain renamed", []string{"alter table hides.domed rename to domed2", "@b select 1", "insert into hides.domed2 values (1)"}, "t.act"},
			{"tables swapped by a function", []string{"select hides.swaps()", "@b select 1", "insert into hides.old values ('a')"}, "t.act"},
			{"a partition attached by a function", []string{"select hides.attaches('kid2')", "@b select 1", "insert into hides.par2 values (1)"}, "t.act"},
			{"a table created by a function", []string{"select hides.creates()", "@b select 1", "insert into hides.created (n) values (1)"}, "t.act"},
			{"not similar", []string{"begin; set local search_path = hides; select * from owns where c not similar to 'a'; commit"}, "t.act"},
			{"check an index", []string{"select bt_index_check('hides.ii', true)"}, locks},
			{"analyze a table", []string{"analyze hides.indexed"}, locks},
			{"analyze all", []string{"analyze verbose"}, locks},
			{"vacuum analyze", []string{"vacuum analyze"}, locks},
			{"vacuum full", []string{"vacuum full"}, locks},
			{"reindex a schema", []string{"reindex schema hides"}, locks},
			{"reindex a table", []string{"reindex table hides.indexed"}, locks},
			{"reindex an index", []string{"reindex index hides.ii"}, locks},
			{"cluster", []string{"cluster hides.indexed using ii"}, locks},
			{"statistics", []string{"analyze hides.counted"}, locks},
			{"what the planner computes", []string{"select * from hides.partial where n = 1"}, "t.enabled"},
		}},
	} {
		if err := s.Exec(t.Context(), "drop schema if exists once cascade; drop schema if exists hides cascade; create schema hides; set search_path = hides; "+group.setup); err != nil {
			t.Fatal(err)
		}
		for _, c := range group.cases {
			h := impatientHouse(t, s.URL())
			show := c.look
			if !strings.HasPrefix(show, "select") {
				show = "select coalesce(current_setting('" + c.look + "', true), '')"
			}
			a, b := h.connect(t), h.connect(t)
			for _, sql := range c.sql {
				who := a
				if rest, ok := strings.CutPrefix(sql, "@b "); ok {
					who, sql = b, rest
				}
				if _, err := who.PgConn().Exec(t.Context(), sql).ReadAll(); err != nil && sqlState(err) != "53300" && sqlState(err) != "55000" {
					t.Errorf("%s: %v", c.what, err)
				}
			}
			all, err := b.PgConn().Exec(t.Context(), show).ReadAll()
			if err == nil {
				row := all[0].Rows[0]
				if got := string(row[len(row)-1]); got != "" {
					t.Errorf("%s: another client has %.40q", c.what, got)
					continue
				}
			} else if state := sqlState(err); state != "53300" && state != "55000" { // 55000: no lastval
				t.Errorf("%s: %v", c.what, err)
			}
			_ = a.Close(t.Context())
		}
	}
}

// What is temporary hides nothing of the catalog from the pooler: pg_temp is looked in first unless it is named.
func TestATemporaryTableDoesNotHideTheCatalog(t *testing.T) {
	s := pg.Start(t)
	if err := s.Exec(t.Context(), `drop schema if exists once cascade; drop schema if exists hides cascade; create schema hides; create table hides.t (n text);
		create function hides.fires() returns trigger language plpgsql as $$ begin perform pg_advisory_lock(pg_backend_pid()); return new; end $$; create trigger g before insert on hides.t for each row execute function hides.fires()`); err != nil {
		t.Fatal(err)
	}
	for _, hides := range []string{"create temp table pg_trigger (like pg_catalog.pg_trigger)", "create temp table pg_depend (like pg_catalog.pg_depend)"} {
		h := run(t, config(database(s.URL(), func(d *Database) { d.Pool.Max, d.Pool.AcquireTimeout = 2, 300*time.Millisecond })))
		evil, c, d := h.connect(t), h.connect(t), h.connect(t)
		do(t, evil, hides, pgx.QueryExecModeSimpleProtocol)
		do(t, evil, "create or replace function hides.unrelated() returns int language sql as 'select 1'", pgx.QueryExecModeSimpleProtocol)
		do(t, c, "insert into hides.t values ('a')", pgx.QueryExecModeSimpleProtocol)
		var n int
		if err := d.QueryRow(t.Context(), "select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()", pgx.QueryExecModeSimpleProtocol).Scan(&n); err == nil && n > 0 {
			t.Errorf("%s: another client has a lock", hides)
		} else if err != nil && sqlState(err) != "53300" {
			t.Error(err)
		}
	}
}

// No RESET takes back a seed that is chosen at login.
func TestASeedIsNotChosenAtLogin(t *testing.T) {
	h := run(t, config(database(pg.Start(t).URL(), one)))
	if _, err := pgx.Connect(t.Context(), h.url("ann", "", "options=-c seed=0.5")); sqlState(err) != "0A000" {
		t.Errorf("got %v", err)
	}
}
