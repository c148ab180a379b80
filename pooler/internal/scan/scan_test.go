package scan

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestTheEffectsOfATextAreSeen(t *testing.T) {
	for sql, want := range map[string]Effect{
		"select 1": 0, "": 0, ";;": 0, "update t set a = 1": 0, "insert into temp values (1)": Advances, "select temp from weather": 0,
		"select 'set x = 1; listen a'": 0, "select $$set x$$": 0, "select $a$ $$ listen $a$": 0, "/* set */ select 1 -- listen": 0,
		"/* /* nested */ listen x */ select 1": 0, "select E'it\\'s; set x = 1'": 0, `select "set_configs"`: 0,
		"set x = 1": Setting, "  SET Session x TO 'a'": Setting, "set local x = 1": Local, "set local x to default": Local | Back, "set transaction read only": 0,
		"set constraints all deferred": 0, "set x to default": Setting | Back, "reset all": Setting | Back, "reset x": Setting | Back,
		"begin; set x = 1; commit; start transaction": Setting | Ends | Begins, "begin": Begins, "select * from pg_listening_channels()": Listens, "set time zone 'UTC'": Setting, "set time zone local": Setting | Back, "set seed to 0.5": Seeds, "select setseed(0.5)": Seeds,
		"select set_config('a.b', 'c', true)": Local, "select set_config('a.b', 'c', false)": Setting, "select set_config($1, $2, true)": Local,
		"select set_config('a.b', null, false)": Setting | Back, "select set_config('a.b', NULL, true)": Local, "select set_config($1, null, $2)": AnyChange | Back,
		"select set_config($1, $2, $3)": AnyChange, "select set_config(n, v, false) from t": AnyChange | Nameless, "select pg_catalog.set_config('a', f(1, 2), $1)": Setting | Local,
		"select set_config('a.' || 'b', 'c', false)": AnyChange | Nameless, "select set_config($1 || 'b', 'c', false)": AnyChange | Nameless,
		"select set_config($1::text, $2::text, false)": AnyChange, "select set_config('a.b'::text, 'c', false)": Setting, "select set_config('a.' || 'b', 'c', true)": Local,
		"select set_config('a', b[1,2], 't')": Local, "select set_config('request.jwt.claims', '{}', true), set_config('role', 'x', false)": Setting | Local,
		"select set_config('a', set_config('b', 'c', true), true)": Local, "select set_config('a', set_config('b', 'c', false), true)": Setting | Local,
		"select set_config(set_config('a', 'b', true), 'c', true)": Local, "select set_config(set_config('a', 'b', true), 'c', false)": AnyChange | Nameless | Local,
		"select set_config('a', coalesce(set_config($1, null, false), b[1]), false)": Setting | AnyChange | Back, "select set_config((select 'a'), 'c', true)": AnyChange | Nameless,
		"select set_config('a', f(set_config('b')), true)": AnyChange | Nameless | Local, "select set_config('a', (b, true), set_config('c', null, true))": Setting | Local,
		"select set_config('a', 'b'; select set_config('c', 'd', true), set_config('e', 'f'": Setting | AnyChange | Nameless | Local,
		"create temp table x()": Temporary | Makes, "create temporary view x as select 1": Temporary | Makes, "create or replace temp view x as select 1": Temporary | Makes,
		"create local temporary table x()": Temporary | Makes, "select 1 into temp x": Temporary | Makes, "create table pg_temp.x()": Temporary | Makes,
		`create table "pg_temp".x()`: Temporary | Makes, "drop table x": Temporary, "explain analyze create temp table x as select 1": Temporary,
		"select pg_advisory_lock(1)": Locks, `select "pg_advisory_lock"(1)`: Locks, "select pg_advisory_xact_lock(1)": 0, "select pg_try_advisory_lock(1, 2)": Locks,
		"declare c cursor with hold for select 1": Hold, "declare c cursor for select 1": 0, "close c": Hold, "/* x */ FETCH 1 from c": Fetches, "move 1 in c": 0,
		"listen a": Listens, "unlisten *": Listens, "notify a, 'x'": Notifies, "select pg_notify('a', 'b')": Notifies,
		"prepare x as select 1": Prepares, "prepare transaction 'x'": Ends, "execute x(1)": Executes | Advances, "deallocate all": Prepares,
		"explain execute x": Executes, "create table y as execute x": Executes | Makes, "select currval('s')": Sequence, "select lastval()": Sequence,
		"load 'x'": Loads, "discard all": Discards | Back, "commit": Ends, "ROLLBACK": Ends, "vacuum": Alone | anything, "vacuum a": Alone, "analyze (verbose)": anything, "analyze a": 0, "analyze verbose": anything, "analyse verbose a": 0, "vacuum full freeze verbose analyze;": Alone | anything, "vacuum full a": Alone,
		"reindex table a": Alone, "reindex index a": Alone | anything, "reindex schema a": Alone | anything, "reindex (verbose) table a": Alone | anything, "cluster": Alone | anything, "cluster a using b": Alone, "select brin_summarize_new_values('a')": anything,
		"do $$ begin perform 1; end $$": AnyChange | Temporary | Locks | Hold | Listens | Prepares | Advances,
		"select nextval('s')":           Advances, "with x as (insert into t select 1 returning a) select a from x": Advances, "copy t from stdin": Advances, "explain analyze insert into t values (1)": Advances,
		"select dblink_connect('x', '')": Connects,
		"set É.x = 1":                    Setting | AnyChange | Nameless, `set session "É".x = 1`: Setting | AnyChange | Nameless, "set local É.x = 1": Local,
		`set u&"\0061".x = 1`: Setting | Unknown, `set u&"!0061" uescape '!'.x = 1`: Setting | Unknown, "set session.x = 'É'": Setting,
		"set x." + strings.Repeat("y", 64) + " = 1": Setting | AnyChange | Nameless, "set x." + strings.Repeat("y", 63) + " = 1": Setting,
		"select set_config('É.x', 'y', false)": AnyChange | Nameless, `select set_config(e'a\x2eb', 'y', false)`: AnyChange | Nameless, "select set_config('É.x', 'y', true)": Local,
		"select E'a'\n'\\'', set_config('a.b', 'c', false) --'": Setting, "select E'a' -- '\n\t'\\', setseed(1)'": 0, "select E'a' '\\', setseed(1) --'": Seeds, "select set_config('a.'\n'b', 'c', false)": AnyChange | Nameless,
		"do $$ begin execute 'insert into ' || t || ' values (1)'; end $$": anything, "do $$ begin execute 'insert into t values (1)'; end $$": free,
		"set search_path = 'Pg_Temp'": Setting | Temporary, "set local search_path = E'pg\137temp'": Local | Temporary, "set search_path = a, b": Setting, "truncate a cascade": anything, "truncate a": 0, "drop table a cascade": Temporary,
		"set session.a = 1; set transaction.b to 'c'; set constraints.d = 1": Setting, "set local.a = 1": Setting, "set session.seed = 1": Setting, `set "session".a = 1`: Setting, "set session session.a = 1": Setting,
		"set session seed to 0.5": Seeds, "set local seed to 0.5": Seeds, `set "seed" to 0.5`: Seeds, "select set_config('Seed', '0.5', true)": Seeds, "select set_config('seed '::bpchar, '0.5', true)": Seeds,
		`select u&"set\005fconfig"('x.y', 'z', false)`: Unknown, "select query_to_xml('', true, false, '')": anything, "(select 1 into local temp x)": Temporary,
		"do $$ begin perform lastval(); end $$":                                          free | Sequence,
		"do $$ begin perform setseed(1); end $$":                                         free | Seeds,
		"do language plpgsql $$ begin perform set_config('a' || 'b', '', false); end $$": free | Nameless,
		"update pg_settings set setting = '1' where name = 'a'":                          AnyChange, `with a as (update only ("pg_catalog".pg_settings) as s set setting = '1' returning 1) select 1`: AnyChange,
		"update t set a = (select setting from pg_settings)": 0, "select * from pg_settings": 0, "insert into pg_settings values (1)": Advances, "insert into t values (1) on conflict do update set a = (select 1 from pg_settings)": Advances,
		"do $a$ begin execute $b$ do $c$ begin execute $d$ set x = 1 $d$; end $c$ $b$; end $a$": anything, "do $a$ begin execute $b$ do $c$ begin perform 1; end $c$ $b$; end $a$": free,
		"do $$ $$ language plpython3u": anything | Unknown, "do E'begin perform set\\x5fconfig(); end'": anything | Unknown,
	} {
		if got := Effects([]byte(sql), false); got != want {
			t.Errorf("%q: %b, want %b", sql, got, want)
		}
	}
	if got := Effects([]byte(`select 'it\'s; set x = 1'`), true); got != 0 {
		t.Errorf("with backslashes: %b", got)
	}
}

func TestTheNamesThatATextChangesAreFound(t *testing.T) {
	for sql, want := range map[string]Mentions{
		"set a = 1; reset b; set session c.D to 'x'; set local e = 1":                                                                                                         {Settings: []string{"a", "b", "c.d"}},
		"set time zone 'UTC'; set names 'x'; set schema 'y'; set role z; reset all":                                                                                           {Settings: []string{"timezone", "client_encoding", "search_path", "role", "all"}},
		"set session authorization x; reset session authorization":                                                                                                            {Settings: []string{"session_authorization"}},
		"set session characteristics as transaction read only":                                                                                                                {Settings: []string{"default_transaction_isolation", "default_transaction_read_only", "default_transaction_deferrable"}},
		"set session.a = 1; set time.b = 1; set local.c = 1; set session session.d = 1; set transaction.e = 1; set local f = 1":                                               {Settings: []string{"session.a", "time.b", "local.c", "session.d", "transaction.e"}},
		`set "schema".a = 1; set "time" = 1; reset session.b; reset session authorization`:                                                                                    {Settings: []string{"schema.a", "time", "session.b", "session_authorization"}},
		`select "set_config"('work_mem', '1', false); do 'begin perform set_config(''a.b'', ''c'', false); execute ''select set_config(''''d.e'''', '''''''', false)''; end'`: {Settings: []string{"work_mem", "a.b", "d.e"}},
		`set "Custom"."Name" = 1`: {Settings: []string{"custom.name"}},
		"select set_config('A.b', 'x', false), set_config(n, 'x', false)":                                                                                    {Settings: []string{"a.b"}},
		"do $$ begin execute 'set a' || '.b = ' || quote_literal(c); execute format('set %I.c = 1', d); execute format('set local e.%I = %L', f, g); end $$": {Settings: []string{"a.b", "a"}},
		"select set_config('a.b  '::bpchar, '', false); do $$ begin perform set_config('c.d '::bpchar, '', false); end $$":                                   {Settings: []string{"a.b", "c.d"}},
		"do $$ begin perform set_config('x.y', '1', false); execute 'set p.q = 1'; end $$":                                                                   {Settings: []string{"x.y", "p.q"}},
	} {
		var got Mentions
		got.Find([]byte(sql), false, 0)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: %s", sql, diff)
		}
	}
	var m Mentions
	for _, value := range []string{"app.tenant", "plain", "a b.c", "1.2", "", strings.Repeat("x", 70) + ".y", ".x"} {
		m.Guess([]byte(value))
	}
	if diff := cmp.Diff(Mentions{Settings: []string{"app.tenant"}, Odd: true}, m); diff != "" {
		t.Error(diff)
	}
	for sql, odd := range map[string]bool{
		"set a.b = 'É'": false, "do $$ begin set É.b = 1; end $$": true, "do $$ begin perform set_config('É.b', '', false); end $$": true, "execute p('É.b')": true, "execute p('É')": false,
	} {
		var m Mentions
		if m.Find([]byte(sql), false, 0); m.Odd != odd {
			t.Errorf("%s: odd %v", sql, m.Odd)
		}
	}
}

func TestLookingForEffectsAllocatesNothing(t *testing.T) {
	sql := []byte("update accounts set balance = balance + $1 where id = $2 and name = 'x' /* comment */")
	if n := testing.AllocsPerRun(100, func() { Effects(sql, false) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func FuzzEffects(f *testing.F) {
	for _, s := range []string{"set x = 'a", "select $a$", "select U&\"x\" \"", "/*", "--", "e'\\", "set_config(", "set_config('a',,", "do $$ set $$", "prepare", "u&'"} {
		f.Add([]byte(s), true)
	}
	f.Fuzz(func(t *testing.T, sql []byte, backslash bool) {
		Effects(sql, backslash)
		var m Mentions
		m.Find(sql, backslash, Effect(len(sql))&1*Opaque)
	})
}

func BenchmarkEffects(b *testing.B) {
	sql := []byte("select abalance from accounts where aid = 4711")
	for b.Loop() {
		Effects(sql, false)
	}
}
