package scan

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"
)

func TestTheEffectsOfAFunctionsBodyAreSeen(t *testing.T) {
	for source, want := range map[string]Effect{
		"select 1": 0, "begin update t set a = 1; return new; end": 0, "begin perform set_config('a.b', x, true); end": 0,
		"begin perform set_config('a.b', x, false); end":                                            Setting,
		"select set_config(name, value, false)":                                                     AnyChange | Nameless,
		"select set_config($1, $2, false)":                                                          AnyChange | Nameless,
		"select set_config('a.b', 'c', false), set_config($1, $2, false)":                           Setting | AnyChange | Nameless,
		"begin if a then set role x; else reset role; end if; end":                                  Setting | Back,
		"begin set a = 1 then set b to default; begin set c = 1; end":                               Setting | Back,
		"begin set a = 1; begin set b to default else set local c = 1; end":                         Setting,
		"declare x int; begin for r in select 1 loop listen y; end loop; end":                       Listens,
		"begin create temp table x as select 1; drop table x; end":                                  Temporary,
		"begin execute 'set a.b = ''1'''; end":                                                      Setting,
		"begin execute format('set %I = %L', a, b); end":                                            Setting | AnyChange | Nameless,
		"begin execute a; end":                                                                      anything,
		"begin execute 'select '" + strings.Repeat(" || quote_literal(a)", maxPieces/3-1) + "; end": Executes, "begin execute 'select '" + strings.Repeat(" || quote_literal(a)", maxPieces) + "; end": anything,
		"begin execute 'select ' || quote_literal(" + strings.Repeat("a(", maxPieces) + strings.Repeat(")", maxPieces+1) + "; end": anything,
		"begin execute '' || a; execute format('%s', b); execute E'sel\\x65ct 1'; end":                                             anything,
		"begin execute 'select ' || a; end":                                      anything,
		"begin execute concat('select ', a); end":                                anything,
		"begin execute format('select %s', a) into b using c; end":               anything,
		"begin execute format('select s.%I()', a); end":                          anything,
		"begin execute format('select %1$I (1)', a); end":                        anything,
		"begin execute 'select ' || quote_ident(a) || '(1)'; end":                anything,
		"begin execute 'create ' || a || ' table b (c int)'; end":                anything,
		"begin execute 'declare ' || a || ' cursor with hold for select 1'; end": anything,
		"begin execute 'select' || a; end":                                       anything,
		"begin execute format('create table %I.%I (n int)', a, b); execute 'update ' || quote_ident(a) || ' set ' || quote_ident(b) || ' = ' || quote_literal(c); end": Temporary | Executes,
		"begin execute format('insert into %I.%I (a, b) values (%L, $1)', a, b, c); end":                                                                               Advances | Executes, "begin execute format('insert into %I (a) select %I.%I()', a, b, c); end": Advances | anything,
		"begin execute 'insert into ' || quote_ident(tg_table_schema) || '.' || tg_table_name || ' (a) values (1)'; end": Advances | Executes,
		"begin execute format('select ' || a); end": anything, "begin execute format('select %L ' || ', %s', 'a', b); end": anything, "begin execute 'insert into t ' || q; end": anything, "begin execute 'delete from ' || quote_ident(a) || ' where ' || b; end": anything,
		"begin execute 'select h.' || quote_ident(q) || '' || '()'; end": anything, "begin execute format('select %I/**/()', q); end": anything, "begin execute 'set a.b = ' || quote_literal(c); end": Setting,
		"begin execute format('select * from %I where a = %L', a, b); end":                                          Executes,
		"begin execute 'select * from ' || quote_ident(a) || ' where b = ' || quote_literal(lower(c)) using d; end": Executes,
		"begin execute 'insert into ' || tg_table_name || ' values ($1.*)' using new; end":                          Advances | Executes,
		"begin execute format('update %s set %I = 1', a, b); execute 'update ' || a || ' set ' || b || ' = 1'; end": anything,
		"begin execute 'create table ' || a || ' partition of b'; execute 'drop table ' || c; end":                  anything,
		"begin execute 'set a.b = 1' || c; execute 'set session ' || d; end":                                        Setting | anything | Nameless,
		"begin execute 'set a.b = 1; set c.' || d; end":                                                             Setting | anything | Nameless,
		"begin execute format('set a.%s = 1', b); execute format('set role %I', c); end":                            Setting | anything | Nameless,
		"begin execute 'set role ' || a; execute format('set local %I = 1', b); end":                                Setting | anything,
		"begin execute 'select set_config($1, $2, false)' using a, b; end":                                          AnyChange | Nameless,
		"begin perform set_config('a.b', 'c\\', false); end":                                                        Setting | AnyChange | Opaque,
		"begin raise notice 'it\\'s'; set a.b = 1; raise notice 'done'; end":                                        Setting,
		"begin create table t (a int default 1); create table u (b text default set_config('a.b', 'c', true)); end": Catalog | anything,
		"begin return nextval('s'); end":                                                                            Advances,
		"begin return lastval(); end":                                                                               Sequence,
		"begin perform pg_advisory_lock(1); end":                                                                    Locks,
		"begin perform pg_advisory_xact_lock(1); end":                                                               0,
		"-- set role x\nbegin raise notice 'set role x'; end":                                                       0,
		"declare c cursor for select 1; begin open c; end":                                                          0,
		"begin perform dblink_connect('x', 'y'); exception when others then load 'x'; end":                          Connects | Loads,
		"begin return query execute format('select * from %I', a) || b; end":                                        anything, "begin execute 'select '::text || a; execute 'select ' collate \"C\" || a; end": anything, "begin execute 'select ' || quote_ident(a)::text || b; end": anything,
		"for r in execute format('select * from %I', a) || ' where b = 1' loop end loop;": Executes, "open c for execute 'select 1' using a;": 0, "return query execute 'select a' || ' from b' using c;": 0, "execute (a); execute 'a', b; execute quote_ident(a);": anything,
		"execute 'select ' || tg_table_name || '_act()';": anything, "execute 'insert into ' || tg_table_name || '_log (a) values (1)' using new;": Advances | Executes, "execute 'insert into log.' || tg_table_name || '_log values (1)';": Advances | Executes,
		"execute format('insert into t select %I()', a);": Advances | anything, "execute format('insert into %I select %I()', a, b);": Advances | anything, "execute 'insert into t select ' || quote_ident(a) || '()';": Advances | anything,
		"execute format('create table %I as select %I()', a, b);": anything, "execute format('create index on %I (%I(n))', a, b);": anything, "execute format('create index %I on %I.%I (%I, lower(%I))', a, b, c, d, e);": Temporary | Executes,
		"execute format('create table if not exists %I.%I (n int, foreign key (%I) references %I (n))', a, b, c, d);": Temporary | Executes, "execute format('copy %I (a) from %L', a, b);": Advances | Executes, "execute format('create %I x', a); execute format('drop %I y', b);": anything,
		"execute format('explain %I x', a);": anything, "execute format('explain (analyze) select %I from %I', a, b);": Executes, "execute format('select ''%I''', a);": anything, "execute format('select ''%L''', a);": anything, "execute format('select 1 /* %L */', a);": anything, "execute format('select $$%L$$', a);": anything,
		"execute format('select 1; %I x', a);": anything, "execute format('select 1; do %L', a);": Unknown, "execute format('select %L::%I, %s%%', a, b);": anything, "execute format('select %L::%I, 1%%2', a, b);": Executes, "execute 'select ' || quote_ident(a) || ' ' || '()';": anything,
		"execute 'select set_' || 'config(''a.b'', ''c'', false)';": Setting, "execute 'select set_config' || '(''a.' || 'b'', ''c'', false)';": Setting, "execute 'se' || 't a.b = 1';": Setting, "execute 'set a' || '.b = ' || quote_literal(c);": Setting | AnyChange | Nameless,
		"execute function; execute procedure || '()';": anything, "create trigger t after insert on u execute procedure f.g();": Catalog | Advances | Executes | anything, "execute function operator(pg_catalog.||) a;": anything, "grant execute on function f(int) to u; execute format('grant execute on function %I(int) to u', a);": Executes,
		"execute $a$ do $b$ begin set a.b = 1; end $b$ $a$;": free, "execute $a$ do $b$ begin execute $c$ set a.b = 1 $c$; end $b$ $a$;": anything,
		"return query execute q;": anything, "for r in execute 'select 1' loop end loop;": 0, "grant execute on function f to x": 0, "set_config := 1;": 0,
		"begin update pg_catalog.pg_settings set setting = a where name = b; end":       AnyChange,
		"begin perform set_config('search_path', a, true); create table t (n int); end": Temporary, "begin perform set_config('search_path', 'b, c'::text, true); create table t (n int); end": 0, "begin perform set_config(a, b, true); execute 'create table t (n int)'; end": Temporary,
		"begin execute format('set local search_path to %I', a); create table t (n int); end": Temporary, "begin execute 'set schema ' || quote_literal(a); create table t (n int); end": Setting | Temporary, "begin set local search_path to b; create table t (n int); end": 0,
		"begin perform set_config('search_path', a, true); select 1 from t; end": 0, "begin execute format('set local %I = %L', a, b); create table t (n int); end": Temporary, "begin perform set_config('a.b', c, true); execute format('set local a.b = %L', d); create table t (n int); end": 0,
		"begin call other(); end": free,
		"begin insert into t values (1) on conflict do update set a = excluded.a; set x = 1; end": Setting | Advances,
	} {
		if got, _ := Body([]byte(source)); got&^(tables|alters) != want {
			t.Errorf("%s: %b, want %b", source, got, want)
		}
	}
}

func TestWhatIsHiddenIsFoundByItsNames(t *testing.T) {
	h := Reveal([]Routine{
		{Name: "login", Source: "begin perform set_config('app.user', who, false); end"}, {Name: "outer", Source: "begin perform public.login('x'); end"}, {Name: "Outermost", Source: "select outer()"},
		{Name: "harmless", Source: "select count(*) from plain"}, {Name: "lock_it", Source: "select pg_advisory_lock(1)"}, {Name: "fills", Source: "insert into watched values (1)"}, {Name: "even", Source: "select odd()"}, {Name: "odd", Source: "select even()"},
	}, []Link{{"watched!", "lock_it("}, {"seen", "outer("}, {"above", "seen"}, {"plain", "harmless("}})
	for sql, want := range map[string]Effect{
		"select login('x')": Setting, "SELECT public.LOGIN ('x')": Setting, "select login from plain": 0, `select "Outermost"()`: Setting, "do $$ begin perform outer(); end $$": Setting, "select outermost()": 0,
		"analyze watched": Locks, "vacuum (full) watched": Locks, "reindex table watched": Locks, "explain analyze select * from watched": 0, "select cluster, analyze from watched": 0,
		"select * from above": Setting, "insert into watched values (1)": Locks, "select fills()": Locks | Advances, "select 'login()'": 0, "select harmless(), even()": 0,
		`update "watched" set a = 1`: Locks, "select * from watched": 0, "with x as (delete from watched returning *) select 1": Locks, "copy watched from stdin": Locks,
	} {
		var m Mentions
		if got := h.Find([]byte(sql), false, &m); got != want {
			t.Errorf("%s: %b, want %b", sql, got, want)
		} else if slices.Contains(m.Settings, "app.user") != (want&Setting != 0) {
			t.Errorf("%s: settings %q", sql, m.Settings)
		}
	}
	h = Reveal([]Routine{
		{Name: "act", Source: "select set_config('a.b', 'c', false)"}, {Name: "both", Source: "begin set x.y = 1; perform act(); end"}, {Name: "script", Source: "plpy.execute(\"set p.q = 1\"); GD['x'] = 1", Language: Foreign},
		{Name: "machine", Language: Machine},
	}, []Link{{Operator + "@@>", "both("}, {Schema, "both("}, {"coin", "act("}, {"tossed", "coin"}})
	for sql, want := range map[string]Hint{
		"select 1 @@>-2": {Setting, []string{"x.y", "a.b"}}, "select 1 operator(s.@@>) 2": {Setting, []string{"x.y", "a.b"}}, "select 1 @@ > 2": {}, "select 1 @@/*>*/ 2": {},
		"create table t (n int)": {Setting, []string{"x.y", "a.b"}}, "select (r).act from r": {Setting, []string{"a.b"}}, "select act from r": {}, "select * from tossed": {Setting, []string{"a.b"}},
		"select 'head'::coin": {Setting, []string{"a.b"}}, "select script()": {anything | Keeps, []string{"plpy.execute", "p.q"}}, "select machine()": {anything, nil},
	} {
		var m Mentions
		e := h.Find([]byte(sql), false, &m)
		slices.Sort(m.Settings)
		slices.Sort(want.Settings)
		if e != want.Effect || !slices.Equal(m.Settings, want.Settings) {
			t.Errorf("%s: %b %q", sql, e, m.Settings)
		}
	}
	h = Reveal([]Routine{{Name: "act", Source: "set x.y = 1"}}, []Link{{Always, "act("}})
	if got := h.Find([]byte("select 1"), false, nil); got != Setting {
		t.Errorf("any text: %b", got)
	}
	h = Reveal([]Routine{
		{Name: "fill", Source: "begin execute format('insert into %I values (1)', t); end"}, {Name: "act", Source: "set a.b = 1"}, {Name: "calls", Source: "select fill()"}, {Name: "seen", Source: "set_config(a, 'c'::text, false)", Language: Expression},
	}, []Link{{"t!", "act("}})
	for sql, want := range map[string]Effect{"select calls()": Setting | AnyChange | Opaque | Advances, "select 1 from t": 0, "insert into t values (1)": Setting, "do $$ begin execute 'insert into ' || t || ' values (1)'; end $$": 0} {
		if got := h.Find([]byte(sql), false, nil); got != want {
			t.Errorf("%s: %b, want %b", sql, got, want)
		}
	}
	h = Reveal([]Routine{
		{Name: "seen", Source: "set_config('a.b'::text, 'c'::text, false)", Language: Expression}, {Name: "kept!", Source: "currval('s'::regclass)", Language: Expression}, {Name: "at_once", Source: "set_config('a.b'::text, 'c'::text, true)", Language: Expression},
	}, []Link{{"outer", "seen"}, {Operator + "===", Builtin + "pg_advisory_lock"}, {"keyed", Operator + "==="}, {"far", "dblink_connect("}, {"sum(", Builtin + "set_config"}})
	for sql, want := range map[string]Hint{
		"select * from seen": {Setting, []string{"a.b"}}, "select * from outer": {Setting, []string{"a.b"}}, "insert into kept values (1)": {Sequence, nil}, "select * from kept, at_once": {},
		"select 1 === 2": {Locks, nil}, "select * from keyed": {Locks, nil}, "table far": {Connects, nil}, "select sum(a)": {AnyChange | Nameless, nil}, "select set_config('a', 'b', true)": {},
	} {
		var m Mentions
		if e := h.Find([]byte(sql), false, &m); e != want.Effect || !slices.Equal(m.Settings, want.Settings) {
			t.Errorf("%s: %b %q", sql, e, m.Settings)
		}
	}
	h = Reveal([]Routine{{Name: "act", Source: "set x.y = 1"}, {Name: "lock_it", Source: "select pg_advisory_lock(1)"}}, nil)
	for depth, want := range map[int]Effect{1: Setting, 4: Setting, 100: Setting | Locks} { // what is too deep may use any name
		tags, behind := "", ""
		for i := range depth {
			tag := fmt.Sprintf("$a%d$", i)
			tags, behind = tags+" "+tag, tag+" "+behind
		}
		if got := h.Find([]byte("do"+tags+" select act() "+behind), false, nil); got != want {
			t.Errorf("%d constants deep: %b, want %b", depth, got, want)
		}
	}
	h = Reveal([]Routine{
		{Name: "act", Source: "set x.y = 1"}, {Name: "plain", Source: "begin create table t (n int default 0); execute format('create table %I (n int)', a); create temp table u (like v); select 1 into b; insert into v values (1); end"},
		{Name: "defaults", Source: "create table t (n int default act())"}, {Name: "renames", Source: "alter table t rename to u"}, {Name: "attaches", Source: "begin execute format('create table %I partition of t default', a); end"}, {Name: "outer", Source: "select attaches('a')"},
		{Name: "quiet", Source: "begin update t set n = 1 where a like b; drop table t; end"},
	}, []Link{{"v!", "act("}})
	for name, want := range map[string]Effect{
		"plain": Temporary | Setting | Advances, "defaults": Setting | Catalog | anything, "renames": Catalog | anything, "attaches": Setting | Catalog | anything, "outer": Setting | Catalog | anything, "quiet": Temporary,
	} {
		if got := h.Find([]byte("select "+name+"()"), false, nil); got != want {
			t.Errorf("%s: %b, want %b", name, got, want)
		}
	}
	if h = Reveal([]Routine{{Name: "renames", Source: "alter table t rename to u"}, {Name: "makes", Source: "create table t (like u)"}}, nil); h != nil {
		t.Errorf("nothing is hidden: %v", h)
	}
	h = Reveal(nil, []Link{{"seen", "pg_settings"}, {"seen!", "pg_settings!"}})
	if h.Find([]byte("select * from seen, pg_settings"), false, nil) != 0 || h.Find([]byte("update seen set setting = '1'"), false, nil) != AnyChange {
		t.Error("a view of pg_settings")
	}
	h = Reveal([]Routine{{Name: "act", Source: "set x.y = 1"}, {Name: "cut", Source: "begin execute 'select a' || 'ct' || '()'; end"}, {Name: "named", Source: "begin execute 'select set_config(''p.' || 'q'', ''r'', false)'; end"}}, nil)
	for sql, want := range map[string][]string{"select cut()": {"x.y"}, "select named()": {"p.q"}, "do $$ begin execute 'select cu' || 't()'; end $$": {"x.y"}} {
		var m Mentions
		if h.Find([]byte(sql), false, &m); !slices.Equal(m.Settings, want) {
			t.Errorf("%s: %q", sql, m.Settings)
		}
	}
	if Reveal([]Routine{{Name: "f", Source: "select 1"}}, []Link{{"t", "f("}}) != nil {
		t.Error("hints of nothing")
	}
}

func TestWhatChangesTheSchemaIsSeen(t *testing.T) {
	some := Hints{"f(": &Hint{Effect: Setting}}
	for sql, want := range map[string][2]bool{ // with hints, and without
		"create table t (a int)": {true, false}, "create temp table t (a int)": {}, "create operator === (function = f)": {true, false}, "create event trigger e on sql_drop execute function f()": {true, false}, "select 1": {}, "create extension x": {true, true}, "create or replace view v as select 1": {true, false}, "create trigger t after insert on x execute function f()": {true, false},
		"create function f() returns int language sql as 'select 1'": {true, false}, "create or replace function f() returns int language plpgsql as $$ begin set role x; end $$": {true, true},
		"create procedure f() begin atomic select set_config('a.b', 'c', false); end": {true, true}, "alter function f() rename to g": {true, false}, "drop policy p on t": {true, false},
		"begin; create function f() returns int language sql as $$ set x.y = 1; $$; commit": {true, true}, "create temp table t (a int); create table u (a int);": {true, false},
		"create schema s; create function s.f() returns int language sql as $$ set x.y = 1; $$": {true, true}, "alter role r set a to b; drop role q; create extension x": {true, true}, "create; create extension x": {true, true},
		"do 'begin create schema s; create trigger t after insert on x execute function f(); end'": {true, true}, "do; create extension x": {true, true},
		"select ';'; create extension x": {true, true}, "select '; create extension x'; ": {}, "create function f() begin atomic select 1; end; select 1;": {true, false}, "do $$ begin if true then create trigger t after insert on x execute function f(); end if; end $$": {true, true}, "do $$ begin create table t (n int); end $$": {true, false}, "do $$ begin execute what; end $$": {true, true},
		"do language plpgsql 'begin execute ''drop function f()''; end'; select 1": {true, true}, "select $$ create function $$": {}, "create function f() returns void language plpgsql as 'begin execute ''set a.b = 1''; end'": {true, true}, ";;alter table t add b int;": {true, false},
		"create view v as select set_config('a.b', 'c', false)": {true, true}, "create table t (a bigint default currval('s'), b int)": {true, true}, "create operator === (function = pg_advisory_lock)": {true, true},
		"create aggregate a(text, boolean) (sfunc = set_config, stype = text)": {true, true}, "create table t (a int); select setseed(1)": {true, false}, "do $$ begin create table t (a int default pg_catalog.pg_advisory_lock(1)); end $$": {true, true},
		"create function f() returns int language plpython3u as 'plpy.execute(q)'": {true, true}, `create function f() returns int as $$ 1 $$ language "plv8"`: {true, true}, "create function f() returns int as 'select 1' language 'sql'": {true, false},
		"create schema s authorization u create sequence q create view v as select set_config('a.b', 'c', false) create table t (n int)": {true, true}, "create schema if not exists s": {}, "alter schema s rename to t": {}, "create schema s create sequence q create table t (n int)": {true, false},
		"do $$ begin create schema s authorization u grant select on t to u create trigger t after insert on x execute function f(); end $$": {true, true},
		"create rule r as on insert to t do also (select 1; select setseed(1))":                                                              {true, true}, "do 'begin '\n'create view v as select 1; end'": {true, true},
	} {
		for i, h := range []Hints{some, nil} {
			if got, _ := h.Changes([]byte(sql), false); got&Catalog != 0 != want[i] {
				t.Errorf("%s, %d: %b", sql, i, got)
			}
		}
	}
}

func FuzzBody(f *testing.F) {
	for _, s := range []string{"begin execute 'set a = 1'; end", "execute", "execute format(", "begin", "execute '''';", "set $a$ x"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, source []byte) {
		Body(source)
		Hints(nil).Changes(append([]byte("create function f() as "), source...), false)
		Reveal([]Routine{{Name: "f", Source: string(source)}, {Name: "g", Source: "select f()"}, {Name: "h", Source: string(source), Language: Foreign}}, []Link{{"t", "g("}, {Operator + "=", "h("}}).Find(source, true, nil)
	})
}

// A text of many statements is read once or twice, not once for each of them: here that would be billions of bytes.
func TestChangesOfALongTextAreFoundInOneGo(t *testing.T) {
	for _, one := range []string{"create function f() returns int language sql as 'select 1';", "create schema s;", "do 'begin end';", "select 1;", "create table t (n int); ", ";", "drop role r; \n"} {
		long := bytes.Repeat([]byte(one), 1<<20/len(one))
		for _, h := range []Hints{nil, {"f(": &Hint{Effect: Setting}}} {
			if got, _ := h.Changes(append(long, bytes.Repeat([]byte(" "), 1<<20)...), false); got&Catalog != 0 && h == nil {
				t.Errorf("%s: %b", one, got)
			}
			if got, _ := h.Changes(append(long, "create extension x"...), true); got != Catalog|anything {
				t.Errorf("%s, and an extension: %b", one, got)
			}
		}
	}
}

// What functions call is followed link by link, not by looking at all links for each of them: here that would be
// tens of billions.
func TestFunctionsThatCallOneAnotherInALongLineAreFoundInOneGo(t *testing.T) {
	const line = 100_000
	routines := make([]Routine, 0, line+1)
	for i := range line {
		routines = append(routines, Routine{Name: fmt.Sprintf("f%d", i), Source: fmt.Sprintf("select f%d()", i+1)})
	}
	h := Reveal(append(routines, Routine{Name: fmt.Sprintf("f%d", line), Source: "set a.b = 1; select f0()"}), nil)
	for i := range line + 1 {
		if got := h[fmt.Sprintf("f%d(", i)]; got == nil || got.Effect != Setting || !slices.Equal(got.Settings, []string{"a.b"}) {
			t.Fatalf("function %d: %+v", i, got)
		}
	}
}
