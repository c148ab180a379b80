package pooler

import (
	"encoding/binary"
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
	h := run(t, config(database(pg.Start(t).URL(), func(d *Database) { d.Pool.Max = 40 })))
	b := h.connect(t)
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
		{"prepare odd(text) as select set_config($1, 'left', false)", nil, ""},
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
		if c.name == "" {
			continue
		}
		show := "select coalesce(current_setting('" + c.name + "', true), '')"
		for range 3 {
			if got := value(t, b, show, pgx.QueryExecModeSimpleProtocol); got != "" {
				t.Errorf("%s: another client has %q", c.sql, got)
			}
			if got := value(t, a, show, pgx.QueryExecModeSimpleProtocol); got != "left" {
				t.Errorf("%s: its own client has %q", c.sql, got)
			}
		}
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
