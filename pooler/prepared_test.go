package pooler

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

const simple = pgx.QueryExecModeSimpleProtocol

func TestWhatSQLPreparesFollowsItsClientAlone(t *testing.T) {
	s := pg.Start(t)
	if err := s.Exec(t.Context(), `create schema if not exists prep; create table if not exists prep.there as select 'there' as n;
		create or replace function prep.acts(a text) returns void language plpgsql as $$ begin execute a; end $$`); err != nil {
		t.Fatal(err)
	}
	for what, c := range map[string]struct {
		do        []string
		run, want string
	}{
		"a statement":                {[]string{"prepare q as select 'mine'"}, "execute q", "mine"},
		"with types":                 {[]string{"prepare q (int, text) as select $1 || $2;"}, "execute q(7, 'x')", "7x"},
		"named like a function":      {[]string{"prepare acts (int, text) as select $1 || $2;"}, "execute acts(7, 'x')", "7x"},
		"a quoted name":              {[]string{`prepare "A ""q" as select 'mine'`}, `execute "A ""q"`, "mine"},
		"two":                        {[]string{"prepare p as select 'a'", "prepare q as select 'b'"}, "execute q", "b"},
		"made anew":                  {[]string{"prepare q as select 'old'", "deallocate q", "prepare q as select 'new'"}, "execute q", "new"},
		"in a transaction":           {[]string{"begin", "prepare q as select 'mine'", "rollback"}, "execute q", "mine"},
		"under a setting":            {[]string{"set search_path = 'prep'", "prepare q as select n from there"}, "execute q", "there"},
		"by a function":              {[]string{"do $$ begin execute 'prepare q as select ''inner'''; end $$"}, "execute q", "inner"},
		"that sets something":        {[]string{"prepare set as select set_config('app.x', $1, false)", "execute set('kept')"}, "select current_setting('app.x')", "kept"},
		"executed and explained":     {[]string{"prepare q as select 'mine'", "explain execute q", "execute q"}, "execute q", "mine"},
		"by the extended protocol":   {[]string{"extended: prepare q as select 'mine'"}, "execute q", "mine"},
		"and stays after an error":   {[]string{"prepare q as select 'mine'", "error: prepare q as select 'other'"}, "execute q", "mine"},
		"after discard all":          {[]string{"prepare q as select 'old'", "discard all", "prepare q as select 'new'"}, "execute q", "new"},
		"beside one of the protocol": {[]string{"prepare q as select 'mine'", "protocol"}, "execute q", "mine"},
	} {
		t.Run(what, func(t *testing.T) {
			h := run(t, config(database(s.URL(), func(d *Database) { d.Pool.Max = 2 })))
			client, other, third := h.connect(t), h.connect(t), h.connect(t)
			for _, sql := range c.do {
				if sql == "protocol" {
					if _, err := client.Prepare(t.Context(), "by_protocol", "select 'protocol'"); err != nil {
						t.Fatal(err)
					}
					continue
				}
				mode := simple
				text, fails := strings.CutPrefix(sql, "error: ")
				if rest, ok := strings.CutPrefix(text, "extended: "); ok {
					text, mode = rest, pgx.QueryExecModeExec
				}
				if _, err := client.Exec(t.Context(), text, mode); (err != nil) != fails {
					t.Fatalf("%s: %v", sql, err)
				}
			}
			for range 3 {
				do(t, other, "prepare q as select 'of another'", simple)
				if got := value(t, other, "execute q", simple); got != "of another" {
					t.Errorf("another client has %s", got)
				}
				if _, err := third.Exec(t.Context(), "execute q", simple); sqlState(err) != "26000" {
					t.Errorf("a third client: %v", err)
				}
				for _, mode := range everyMode {
					if got := value(t, client, c.run, mode); got != c.want {
						t.Errorf("%v: got %s", mode, got)
					}
				}
				await(t, "nobody is pinned", func() bool { return h.Stats().Databases[0].Active == 0 })
				do(t, other, "deallocate q", simple)
			}
		})
	}
}

func TestAPreparedStatementWhoseTableIsGoneIsLostAlone(t *testing.T) {
	h := run(t, config(database(pg.Start(t).URL(), one)))
	client, other := h.connect(t), h.connect(t)
	do(t, client, "create table if not exists fading as select 1 as n", simple)
	do(t, client, "prepare gone as select n::text from fading", simple)
	do(t, client, "prepare kept as select 'kept'", simple)
	do(t, other, "drop table fading", simple)
	if got := value(t, client, "execute kept", simple); got != "kept" {
		t.Error(got)
	}
	if _, err := client.Exec(t.Context(), "execute gone", simple); sqlState(err) != "42P01" {
		t.Errorf("got %v", err)
	}
	do(t, other, "create table fading (n int); insert into fading values (3)", simple)
	if got := value(t, client, "execute gone", simple); got != "3" {
		t.Error(got)
	}
	do(t, other, "drop table fading", simple)
	do(t, client, "select 1", simple)
	do(t, client, "prepare gone as select '2'", simple)
	do(t, other, "create table fading (n int); insert into fading values (3)", simple)
	if got := value(t, client, "execute gone", simple); got != "2" {
		t.Error(got)
	}
}

// What can't be made again for the moment is made later.
func TestAPreparedStatementWhoseTableIsLockedIsNotLost(t *testing.T) {
	s := pg.Start(t)
	lock, free := lockable(t, s, "public.held")
	for what, c := range map[string]struct {
		limit time.Duration // query_timeout
		set   string
		while [][2]string // what the client sends while the table is locked, and whether it fails
	}{
		"by a lock timeout":           {0, "set lock_timeout = '50ms'", [][2]string{{"select 1", ""}, {"execute p", "fails"}}},
		"by a statement timeout":      {0, "set statement_timeout = '50ms'", [][2]string{{"select 1", ""}, {"execute p", "fails"}}},
		"under other settings":        {0, "set lock_timeout = '50ms'; set datestyle = german", [][2]string{{"select 1", ""}, {"execute p", "fails"}}},
		"in a transaction":            {0, "set lock_timeout = '50ms'", [][2]string{{"begin", ""}, {"execute p", "fails"}, {"rollback", ""}}},
		"while another is made":       {0, "set lock_timeout = '50ms'", [][2]string{{"prepare q as select 'q'", ""}, {"execute q", ""}}},
		"while one is dropped":        {0, "prepare q as select 'q'; set lock_timeout = '50ms'", [][2]string{{"deallocate q", ""}}},
		"by a cancel request":         {200 * time.Millisecond, "set work_mem = '5MB'", [][2]string{{"execute p", "fails"}}},
		"by one for a long query":     {200 * time.Millisecond, "set work_mem = '5MB'", [][2]string{{"select pg_sleep(60)", "fails"}}},
		"by one for a long text":      {200 * time.Millisecond, "set work_mem = '5MB'", [][2]string{{"/*" + strings.Repeat(" ", 100_000) + "*/ select pg_sleep(60)", "fails"}}},
		"by one for an end":           {200 * time.Millisecond, "set work_mem = '5MB'", [][2]string{{"rollback; select pg_sleep(60)", "fails"}}},
		"by one, among several":       {200 * time.Millisecond, "prepare q as select n from public.held", [][2]string{{"select pg_sleep(60)", "fails"}}},
		"by one in their transaction": {200 * time.Millisecond, "set datestyle = german", [][2]string{{"select pg_sleep(60)", "fails"}}},
	} {
		t.Run(what, func(t *testing.T) {
			h := run(t, config(database(s.URL(), one, func(d *Database) { d.QueryTimeout = c.limit })))
			a := newFrontend(t, h)
			for _, sql := range append([]string{"prepare p as select n::text, date '01/02/2020' from public.held"}, strings.Split(c.set, "; ")...) {
				a.send(frame('Q', sql+"\x00"))
				a.expect("CZ")
			}
			if err := h.Reconnect("app"); err != nil {
				t.Fatal(err)
			}
			lock()
			t.Cleanup(free)
			for _, one := range c.while {
				a.send(frame('Q', one[0]+"\x00"))
				got := ""
				for !strings.HasSuffix(got, "Z") {
					got += a.next()
				}
				if strings.Contains(got, "E") != (one[1] == "fails") {
					t.Errorf("%.40s: got %s", one[0], got)
				}
			}
			free()
			a.send(frame('Q', "execute p\x00"))
			a.expect("TDCZ")
			if a.row[:1] != "7" {
				t.Errorf("got %s", a.row)
			}
		})
	}
}

// A goroutine that takes up an open transaction leaves its server as it is.
func TestNothingIsMadeAgainInTheMiddleOfATransaction(t *testing.T) {
	s := pg.Start(t)
	if err := s.Exec(t.Context(), "drop table if exists public.fallen, public.risen; create table public.fallen (n int)"); err != nil {
		t.Fatal(err)
	}
	h := run(t, config(database(s.URL(), one)))
	a := newFrontend(t, h)
	a.send(frame('Q', "prepare p as select n from public.fallen\x00"))
	a.expect("CZ")
	if err := s.Exec(t.Context(), "drop table public.fallen"); err != nil {
		t.Fatal(err)
	}
	if err := h.Reconnect("app"); err != nil {
		t.Fatal(err)
	}
	for _, sql := range []string{"begin", "rollback", "begin", "create table public.risen (n int)", "set datestyle = 'ISO, DMY'"} {
		a.send(frame('Q', sql+"\x00"))
		a.expect("CZ")
	}
	a.send(parsed("s", "select n from public.risen") + synced + frame('Q', "commit\x00"))
	a.expect("1ZCZ")
}

func TestTheProtocolUsesWhatSQLPrepared(t *testing.T) {
	h := run(t, config(database(pg.Start(t).URL(), one)))
	c, other := newFrontend(t, h), h.connect(t)
	c.send(frame('Q', "prepare q as select 'by sql'\x00"))
	c.expect("CZ")
	for _, step := range []struct{ send, want string }{
		{bound("q") + executed + synced, "2DCZ"},
		{parsed("q", "select 'taken'") + synced, "EZ"},
		{frame('D', "Sq\x00") + synced, "tTZ"},
		{frame('C', "Sq\x00") + synced, "3Z"},
		{bound("q") + executed + synced, "EZ"},
		{parsed("q", "select 'free'") + bound("q") + executed + synced, "12DCZ"},
	} {
		value(t, other, "select 'has the server'", simple)
		c.send(step.send)
		c.expectFor(step.send, step.want)
	}
	if c.row != "free" {
		t.Error(c.row)
	}
}

func TestManyStatementsPin(t *testing.T) {
	h := run(t, config(database(pg.Start(t).URL(), func(d *Database) { d.Pool.Max = 2 })))
	client := h.connect(t)
	pinned := func() bool { return h.Stats().Databases[0].Active == 1 }
	for i := range 101 {
		do(t, client, fmt.Sprintf("prepare q%d as select '%d'", i, i), simple)
	}
	await(t, "it is pinned", pinned)
	do(t, client, "deallocate q7", simple)
	await(t, "it is free", func() bool { return !pinned() })
	if got := value(t, client, "execute q100", simple); got != "100" {
		t.Error(got)
	}
}

func TestADriverGoesOnBehindAChangeOfTheTypesThatItSends(t *testing.T) {
	for _, typ := range []string{"float8", "int", "numeric", "text"} {
		h := run(t, config(database(pg.Start(t).URL(), func(d *Database) { d.Pool.Max = 2 })))
		client, changes, holds := h.connect(t), h.connect(t), h.connect(t)
		do(t, changes, "drop table if exists sent; create table sent (id int, v bigint); insert into sent values (1, 5)", simple)
		for i := range 4 {
			if i == 2 {
				do(t, changes, "alter table sent alter v type "+typ, simple)
				h.rests(t)
				do(t, holds, "begin", simple) // on the server that the client had
			}
			do(t, client, "update sent set v = $1 where id = $2", 7+i, 1)
			if got, want := value(t, changes, "select v::text from sent", simple), fmt.Sprint(7+i); got != want {
				t.Errorf("as %s it is %s, want %s", typ, got, want)
			}
		}
	}
}

func TestADriverGoesOnBehindAChangeOfTheColumnsThatItReads(t *testing.T) {
	for change, want := range map[string]string{
		"alter table read alter a type bigint": "[7 x]", "alter table read alter a type float8": "[7 x]", "alter table read add c int default 3": "[7 x 3]", "alter table read drop column b": "[7]",
	} {
		h := run(t, config(database(pg.Start(t).URL(), func(d *Database) { d.Pool.Max = 2 })))
		client, changes, holds := h.connect(t), h.connect(t), h.connect(t)
		do(t, changes, "drop table if exists read; create table read (a int, b text); insert into read values (7, 'x')", simple)
		read := func() (string, error) {
			rows, err := client.Query(t.Context(), "select * from read")
			if err != nil {
				return "", err
			}
			got, err := pgx.CollectExactlyOneRow(rows, func(row pgx.CollectableRow) ([]any, error) { return row.Values() })
			return fmt.Sprint(got), err
		}
		for i := range 6 {
			if i == 2 {
				do(t, changes, change, simple)
				h.rests(t)
				do(t, holds, "begin", simple)
			}
			got, err := read()
			if i == 2 && sqlState(err) == "0A000" || i < 2 && got == "[7 x]" || i > 2 && got == want {
				continue
			}
			t.Errorf("%s: %d. %s %v", change, i, got, err)
		}
	}
}
