package pooler

import (
	"context"
	"testing"

	"github.com/jackc/pgx/v5"
)

// PL/pgSQL decides what a constant means when a session first gets there. That is the client's first time, not that of
// whoever had the server before.
func TestConstantsInFunctionsMeanWhatTheyMeanToTheirCaller(t *testing.T) {
	s := pg.Start(t)
	defer func() { _ = s.Exec(context.Background(), "drop schema if exists constants cascade") }()
	if err := s.Exec(t.Context(), `drop schema if exists constants cascade; create schema constants; set search_path = constants;
		create function instant() returns text language plpgsql as $$ begin return extract(epoch from '2024-07-01'::timestamptz)::int::text; end $$;
		create function day() returns text language plpgsql as $$ begin return extract(month from '01/02/2024'::date)::text; end $$;
		create function written() returns text language plpgsql as $$ begin return (1::float8 / 3)::text; end $$;
		create function span() returns text language plpgsql as $$ begin return extract(hour from '-1 2:03'::interval)::text; end $$;`); err != nil {
		t.Fatal(err)
	}
	h := impatientHouse(t, s.URL())
	const all = "select constants.instant() || ' ' || constants.day() || ' ' || constants.span()"
	plain, german, tokyo := h.connect(t), h.connect(t, "DateStyle=German"), h.connect(t, "TimeZone=Asia/Tokyo", "IntervalStyle=sql_standard")
	mover, terse := h.connect(t), h.connect(t, "extra_float_digits=-10")
	const inUTC, inGerman, inTokyo = "1719792000 1 2", "1719792000 2 2", "1719759600 1 -2"
	check := func(who string, conn *pgx.Conn, want string) {
		t.Helper()
		if got := tell(t, conn, all); got != want {
			t.Errorf("%s: %s, want %s", who, got, want)
		}
	}
	run := func(conn *pgx.Conn, sql string) {
		t.Helper()
		if _, err := conn.PgConn().Exec(t.Context(), sql).ReadAll(); err != nil {
			t.Fatal(err)
		}
	}
	for range 3 {
		check("plain", plain, inUTC)
		check("german", german, inGerman)
		check("tokyo", tokyo, inTokyo)
		run(mover, "set timezone = 'UTC'; set intervalstyle = 'postgres'")
		run(mover, "set timezone = 'Asia/Tokyo'; set intervalstyle = 'sql_standard'; "+all)
		check("plain behind who has set something else since", plain, inUTC)
		run(mover, "set timezone = 'UTC'; set intervalstyle = 'postgres'; "+all)
		run(mover, "set timezone = 'Asia/Tokyo'; set intervalstyle = 'sql_standard'; "+all)
		check("tokyo behind who has set the same since", tokyo, inTokyo)
		for conn, want := range map[*pgx.Conn]string{plain: "0.3333333333333333", terse: "0.33333"} {
			if got := tell(t, conn, "select constants.written()"); got != want {
				t.Errorf("a number is written as %s, want %s", got, want)
			}
		}
	}
	run(tokyo, "begin; do $$ begin execute 'select ' || chr(49); end $$; "+all) // which cannot be read: the server is wiped
	if err := tokyo.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	await(t, "the server is free", func() bool { return h.Stats().Databases[0].Idle == 1 })
	check("plain behind who has left", plain, inUTC)
	tokyo = h.connect(t, "TimeZone=Asia/Tokyo", "IntervalStyle=sql_standard")
	// What is prepared means the same on.
	if _, err := plain.Prepare(t.Context(), "p", "select extract(epoch from '2024-07-01'::timestamptz)::int::text || constants.instant()"); err != nil {
		t.Fatal(err)
	}
	if _, err := plain.Prepare(t.Context(), "c", "select 1"); err != nil {
		t.Fatal(err)
	}
	run(plain, "set timezone = 'Asia/Tokyo'")
	check("tokyo", tokyo, inTokyo)
	if got := value(t, plain, "p"); got[:10] != "1719792000" {
		t.Errorf("a statement of before is another: %s", got)
	}
}

// Who differs in nothing that matters has the server forget nothing.
func TestServersKeepWhatTheyHaveAnalysed(t *testing.T) {
	s := pg.Start(t)
	defer func() { _ = s.Exec(context.Background(), "drop function if exists analysed()") }()
	if err := s.Exec(t.Context(), "create or replace function analysed() returns int language plpgsql as $$ begin return 1; end $$"); err != nil {
		t.Fatal(err)
	}
	h := impatientHouse(t, s.URL())
	for _, params := range [][]string{{"DateStyle=ISO"}, {"DateStyle=sql,us"}, {"TimeZone=utc"}, {"work_mem=5MB", "application_name=x"}, {"search_path=pg_catalog"}} {
		a, b := h.connect(t), h.connect(t, params...)
		if _, err := a.Prepare(t.Context(), "p", "select 2::text"); err != nil {
			t.Fatal(err)
		}
		tell(t, b, "select 1")
		if got := tell(t, a, "select count(*) from pg_prepared_statements where statement = 'select 2::text'"); got != "1" {
			t.Errorf("behind a client with %q %s of what was prepared are left", params, got)
		}
		a.Close(t.Context())
		b.Close(t.Context())
	}
}

// A server that a client has again has what it has analysed under what the client had then, which it may have changed on another.
func TestConstantsAreThoseOfTheNextCallerWhereAClientComesBackWithOtherSettings(t *testing.T) {
	s := pg.Start(t)
	defer func() { _ = s.Exec(context.Background(), "drop function if exists instant_of()") }()
	if err := s.Exec(t.Context(), "create or replace function instant_of() returns text language plpgsql as $$ begin return extract(epoch from '2024-07-01'::timestamptz)::int::text; end $$"); err != nil {
		t.Fatal(err)
	}
	h := run(t, config(database(s.URL(), func(d *Database) { d.Pool.Max = 2 })))
	free := func(n int) {
		t.Helper()
		await(t, "the servers are free", func() bool { return h.Stats().Databases[0].Idle == n })
	}
	moves, holds, plain := h.connect(t), h.connect(t), h.connect(t)
	for _, conn := range []*pgx.Conn{moves, holds} { // of the two, moves had the first
		do(t, conn, "begin", simple)
	}
	do(t, moves, "rollback", simple)
	free(1)
	do(t, holds, "rollback", simple)
	free(2)
	do(t, moves, "set timezone = 'Asia/Tokyo'", simple) // on the second
	free(2)
	do(t, h.connect(t, "TimeZone=Asia/Tokyo"), "begin", simple)
	if got := tell(t, moves, "select instant_of()"); got != "1719759600" {
		t.Errorf("who has chosen Tokyo: %s", got)
	}
	free(1)
	if got := tell(t, plain, "select instant_of()"); got != "1719792000" {
		t.Errorf("who has chosen nothing: %s", got)
	}
}
