package pooler

import (
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
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
