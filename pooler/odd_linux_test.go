package pooler

import (
	"context"
	"encoding/binary"
	"strconv"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"mainstay.dev/mainstay/pooler/internal/pgwire"
)

// A setting that PostgreSQL has under another name than the text gives, or under one that is not found by its lower case,
// keeps its server with its client: no other client sees it.
func TestASettingWithAnOddNameIsNotLeftToOthers(t *testing.T) {
	long, cut := strings.Repeat("a", 70), strings.Repeat("a", 63)
	accents := strings.Repeat("é", 40)
	h := impatientHouse(t, pg.Start(t).URL())
	for _, c := range []struct {
		sql  string
		args []any
		name string
	}{
		{"set " + long + ".b to 'left'", nil, cut + ".b"},
		{"set session x." + long + " to 'left'", nil, "x." + cut},
		{"set " + accents + ".e to 'left'", nil, accents[:62] + ".e"},
		{"set É.q to 'left'", nil, "É.q"},
		{`set "É".r to 'left'`, nil, "É.r"},
		{`set u&"\0061aa".d to 'left'`, nil, "aaa.d"},
		{`set u&"!0061ab" uescape '!'.d to 'left'`, nil, "aab.d"},
		{"select set_config('" + long + ".c', 'left', false)", nil, long + ".c"},
		{"select set_config('É.s', 'left', false)", nil, "É.s"},
		{`select set_config(e'f\x2eb', 'left', false)`, nil, "f.b"},
		{`select set_config(u&'f\002ec', 'left', false)`, nil, "f.c"},
		{`select set_config(u&'f!002ed' uescape '!', 'left', false)`, nil, "f.d"},
		{"do $$ begin set É.t to 'left'; end $$", nil, "É.t"},
		{"select set_config($1, 'left', false)", []any{"É.u"}, "É.u"},
		{"select set_config($1, 'left', false)", []any{long + ".u"}, long + ".u"},
		{"execute odd('É.v')", nil, "É.v"},
		{"execute odd('" + long + ".v')", nil, long + ".v"},
		{`select U&"set\005fconfig"('k.a', 'left', false)`, nil, "k.a"},
		{`select u&"set!005fconfig" uescape '!' ('k.b', 'left', false)`, nil, "k.b"},
		{"do 'begin perform set_config(''k''||''.c'',''left'',false); end'", nil, "k.c"},
		{`do E'begin perform set\x5fconfig(\'k.d\',\'left\',false); end'`, nil, "k.d"},
		{"do 'begin perform set_'\n'config(''k.e'',''left'',false); end'", nil, "k.e"},
		{"select query_to_xml('select set_config(''k.f'',''left'',false)', true, false, '')", nil, "k.f"},
	} {
		a := h.connect(t)
		if strings.HasPrefix(c.sql, "execute") {
			do(t, a, "prepare odd(text) as select set_config($1, 'left', false)")
		}
		if _, err := a.Exec(t.Context(), c.sql, c.args...); err != nil {
			t.Errorf("%s: %v", c.sql, err)
			continue
		}
		h.ownAlone(t, c.sql, a, c.name, "left")
	}
}

// What only looks like such a name, a token say, does not keep a server.
func TestALongValueKeepsNoServer(t *testing.T) {
	h := run(t, config(database(pg.Start(t).URL(), one)))
	token := strings.Repeat("eyJhbGciOiJIUzI1NiJ9", 5) + "." + strings.Repeat("x", 80)
	for _, sql := range []string{
		"set request.jwt to '" + token + "'", "select set_config('request.jwt', '" + token + "', false)",
		"set app.town to 'Zoë.é'",
	} {
		do(t, h.connect(t), sql)
	}
	a := h.connect(t)
	if _, err := a.Exec(t.Context(), "select set_config('request.jwt', $1, false)", token); err != nil {
		t.Fatal(err)
	}
	if got := value(t, h.connect(t), "select coalesce(current_setting('request.jwt', true), '')"); got != "" {
		t.Errorf("another client has %q", got)
	}
}

// What is called by its OID, as libpq calls functions for large objects, is seen too.
func TestWhatIsCalledByItsOIDIsNotLeftToOthers(t *testing.T) {
	h := run(t, config(database(pg.Start(t).URL(), func(d *Database) { d.Pool.Max = 4 })))
	conn := dialRaw(t, h.addr)
	in := pgwire.NewReader(conn, 1<<16)
	if _, err := conn.Write([]byte(startup("user", "ann", "database", "app"))); err != nil {
		t.Fatal(err)
	}
	untilReady(t, in)
	call := binary.BigEndian.AppendUint32(nil, 2880) // pg_advisory_lock(bigint)
	call = append(call, 0, 0, 0, 1, 0, 0, 0, 3)
	call = append(append(call, "999"...), 0, 0)
	if _, err := conn.Write(pgwire.Append(nil, pgwire.FunctionCall, call)); err != nil {
		t.Fatal(err)
	}
	untilReady(t, in)
	for range 5 {
		if got := value(t, h.connect(t), "select count(*)::text from pg_locks where locktype = 'advisory' and objid = 999 and pid = pg_backend_pid()", pgx.QueryExecModeSimpleProtocol); got != "0" {
			t.Error("another client has its lock")
		}
	}
}

// handOver stands for the server's being given to another client.
const handOver = "; hand over"

// What PostgreSQL reads in another way than it is written at first sight is read so here too: strings that go on in another line,
// strings behind a change of how they are written that has not been answered yet, and encodings with half a character that
// is a backslash.
func TestATextThatIsReadInAnotherWayIsNotLeftToOthers(t *testing.T) {
	h := impatientHouse(t, pg.Start(t).URL())
	for _, c := range []struct{ before, sql, name string }{
		{"", "select E'a'\n'\\'', set_config('l.a', 'left', false) --'", "l.a"},
		{"", "select E'a' -- it's\r\t\n'\\'', set_config('l.b', 'left', false) --'", "l.b"},
		{"", "select 1 as a, set_config('l.'\n'c', 'left', false)", "l.c"},
		{"", "do $$ declare q text := 'select set_config(''l.'\n'd'', ''left'', false)'; begin execute q; end $$", "l.d"},
		{"set client_encoding = sjis", "select E'\x95\\', set_config('l.e', 'left', false) --'", "l.e"},
		{"set client_encoding = gbk", "select E'\x95\\', set_config('l.f', 'left', false) --'", "l.f"},
		{"set client_encoding = big5", "select E'\xa5\\', set_config('l.g', 'left', false) --'", "l.g"},
		{"set client_encoding = uhc; begin", "select E'\xb0\xa1', set_config('l.h', 'left', false) --'", "l.h"},
		{"set standard_conforming_strings = off; begin", "select '\\'', set_config('l.i', 'left', false) --'; commit", "l.i"},
		{"set client_encoding = sjis" + handOver, "select E'\x95\\', set_config('l.j', 'left', false) --'", "l.j"},
		{"set standard_conforming_strings = off" + handOver, "select '\\'', set_config('l.k', 'left', false) --'", "l.k"},
	} {
		a := h.connect(t)
		if before, hands := strings.CutSuffix(c.before, handOver); before != "" {
			do(t, a, before, pgx.QueryExecModeSimpleProtocol)
			if hands { // what was chosen is replayed in front of the text
				do(t, h.connect(t), "select 1")
			}
		}
		if _, err := a.PgConn().Exec(t.Context(), c.sql).ReadAll(); err != nil {
			t.Errorf("%s: %v", c.sql, err)
		}
		_, _ = a.PgConn().Exec(t.Context(), "commit").ReadAll()
		h.ownAlone(t, c.before+"; "+c.sql, a, c.name, "left")
	}
	// In one pipeline, with an unnamed and a named statement.
	for i, named := range []string{"", "s"} {
		a, name := h.connect(t), "p.a"+strconv.Itoa(i)
		p := a.PgConn().StartPipeline(t.Context())
		p.SendQueryParams("set standard_conforming_strings = off", nil, nil, nil, nil)
		sql := `select '\'', set_config('` + name + `', 'left', false) --'`
		if named != "" {
			p.SendPrepare(named, sql, nil)
			p.SendQueryPrepared(named, nil, nil, nil)
		} else {
			p.SendQueryParams(sql, nil, nil, nil, nil)
		}
		if err := p.Sync(); err != nil {
			t.Fatal(err)
		}
		if err := p.Close(); err != nil {
			t.Errorf("%s: %v", sql, err)
		}
		h.ownAlone(t, "a pipeline of "+named, a, name, "left")
	}
}

// Functions of PostgreSQL's own that views, defaults, rules and their like call do no less than those that texts call.
func TestWhatTheCatalogCallsDirectlyIsNotLeftToOthers(t *testing.T) {
	s := pg.Start(t)
	defer func() { _ = s.Exec(context.Background(), "drop schema if exists direct cascade") }() // other tests use such names
	if err := s.Exec(t.Context(), `drop schema if exists direct cascade; drop role if exists directed; create schema direct; set search_path = direct;
		create view v as select set_config('d.v', 'left', false); create view w as select * from v;
		create table t (a text default set_config('d.t', 'left', false), b int); create table plain (a int); create table kept (a int);
		create table c (a int check (set_config('d.c', 'left', false) <> '')); create rule r as on insert to plain do also select set_config('d.r', 'left', false);
		create domain dom as int check (set_config('d.d', 'left', false) <> ''); create domain dad as text default set_config('d.e', 'left', false); create table doms (a dad, b int);
		create table secured (a int); alter table secured enable row level security, force row level security; create policy p on secured using (set_config('d.p', 'left', false) <> ''); insert into secured values (1);
		create function nothing() returns trigger language plpgsql as 'begin return new; end'; create trigger g before insert on kept for each row when (set_config('d.g', 'left', false) <> '') execute function nothing();
		create function f(a text default set_config('d.f', 'left', false)) returns text language sql as 'select a'; create procedure pr(a text default set_config('d.o', 'left', false)) language sql as 'select a';
		create operator === (function = pg_try_advisory_lock, leftarg = int, rightarg = int); create view ow as select 7 === 9 as a;
		create aggregate agg(text, boolean) (sfunc = set_config, stype = text, initcond = 'd.agg');
		create function q(a text) returns void language plpgsql as $$ begin execute a; end $$; create function q2(a text) returns void language plpgsql as $$ begin execute format('%s', '' || a); end $$;
		create function q3(a text, b text) returns void language plpgsql as $$ begin perform set_config('d.x', 'some', false); execute 'select set_config($1, $2, false)' using a, b; end $$;
		create function q4(a text) returns void language plpgsql as $$ declare sql text; begin sql := 'set session ' || a; execute sql; end $$;
		create function q5(a text, b text) returns text language sql as 'select set_config($1, $2, false)'; create function q6() returns void language plpgsql as $$ begin execute 'set d.y = ''some''; set ' || 'd.q6 = ''left'''; end $$;
		create function tt() returns void language plpgsql set search_path = pg_temp as $$ begin create table made (a int); end $$;
		create role directed; grant all on schema direct to directed; grant all on all tables in schema direct to directed`); err != nil {
		t.Fatal(err)
	}
	h := impatientHouse(t, s.URL())
	const locks, temp = "select coalesce(max(objid::text), '') from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()", "select coalesce(max(relname)::text, '') from pg_class where relnamespace = pg_my_temp_schema()"
	for _, c := range []struct{ sql, name, has string }{
		{"select * from direct.v", "d.v", "left"}, {"select * from direct.w", "d.v", "left"},
		{"insert into direct.t (b) values (1)", "d.t", "left"}, {"insert into direct.c values (1)", "d.c", "left"}, {"insert into direct.plain values (1)", "d.r", "left"},
		{"select 1::direct.dom", "d.d", "left"}, {"insert into direct.doms (b) values (1)", "d.e", "left"}, {"insert into direct.kept values (1)", "d.g", "left"},
		{"set role directed; select * from direct.secured; reset role", "d.p", "left"}, {"select direct.f()", "d.f", "left"}, {"call direct.pr()", "d.o", "left"},
		{"select 7 operator(direct.===) 8", locks, "8"}, {"select * from direct.ow", locks, "9"}, {"select direct.agg('left', false) from (values (1)) as one", "d.agg", "left"},
		{"select direct.q('set d.q1 = ''left''')", "d.q1", "left"}, {"select direct.q2('set d.q2 = ''left''')", "d.q2", "left"}, {"select direct.q3('d.q' || 3, 'left')", "d.q3", "left"},
		{"select direct.q4('d.q' || 4 || ' = ''left''')", "d.q4", ""}, {"select direct.q5('d.q' || 5, 'left')", "d.q5", "left"}, {"select direct.q6()", "d.q6", "left"},
		{"select direct.tt()", temp, "made"}, {"set search_path = 'pg_temp'; select 1 into made_too", temp, "made_too"},
		{"begin; select set_config('search_path', 'pg_temp', false); select 1 into made_three; set search_path = public; commit", temp, "made_three"},
	} {
		a := h.connect(t)
		if _, err := a.PgConn().Exec(t.Context(), c.sql).ReadAll(); err != nil {
			t.Errorf("%s: %v", c.sql, err)
			continue
		}
		h.ownAlone(t, c.sql, a, c.name, c.has)
	}
}

// A table that is temporary because search_path leads there is the client's own in later transactions too.
func TestATableMadeWhereSearchPathLeadsIsNotLeftToOthers(t *testing.T) {
	h := run(t, config(database(pg.Start(t).URL(), func(d *Database) { d.Pool.Max = 4 })))
	a := h.connect(t)
	do(t, a, "set search_path = pg_temp")
	do(t, a, "create table later (n int)")
	do(t, a, "insert into later values (1)")
	for range 3 { // all other servers
		b := h.connect(t)
		do(t, b, "begin")
		if got := tell(t, b, "select count(*)::text from pg_class where relnamespace = pg_my_temp_schema()"); got != "0" {
			t.Errorf("another client has %s", got)
		}
	}
	if got := value(t, a, "select n::text from later"); got != "1" {
		t.Errorf("got %s", got)
	}
}

// Nor does what only looks like such things keep a server.
func TestWhatPutsItsOwnCommandsTogetherKeepsNoServer(t *testing.T) {
	s := pg.Start(t)
	if err := s.Exec(t.Context(), `drop schema if exists honest cascade; create schema honest; create table honest.t (a int default 1, b text default current_setting('app.user', true));
		create view honest.v as select current_setting('app.user', true) as a, set_config('app.local', 'x', true) as b;
		create function honest.find(a text) returns setof honest.t language plpgsql as $$ declare q text := 'select * from honest.t'; begin if a is not null then q := q || ' where b = $1'; end if; return query execute q using a; end $$;
		create function honest.act() returns void language plpgsql as $$ declare r record; begin execute format('insert into honest.%I values (1)', 't'); for r in select format('analyze honest.%I', 't') as c loop execute r.c; end loop; end $$;
		create function honest.safe() returns int language sql security definer set search_path = honest, pg_temp as 'select 1'`); err != nil {
		t.Fatal(err)
	}
	h := run(t, config(database(s.URL(), one)))
	for _, sql := range []string{
		"insert into honest.t values (1)", "select * from honest.v", "select * from honest.find('a')", "select honest.act()", "select honest.safe()", "select 'né\\', 'x'", "select 'C:\\', 1", "select 1 as é, E'é\\n'",
	} {
		a := h.connect(t)
		do(t, a, sql)
		do(t, a, sql, pgx.QueryExecModeSimpleProtocol)
		do(t, h.connect(t), "select 1")
	}
}
