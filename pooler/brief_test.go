package pooler

import (
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"mainstay.dev/mainstay/pooler/internal/prepared"
	"mainstay.dev/mainstay/pooler/pgtest"
)

// What servers keep prepared for the audit may be dropped, or forged, by a client: nothing is left to others for that.
func TestTheAuditsOwnStatementsAreNotBelievedBlindly(t *testing.T) {
	s := pg.Start(t)
	if err := s.Exec(t.Context(), `create or replace function audited(q text) returns void language plpgsql as $$ begin execute q; end $$;
		do $$ begin if not exists (select from pg_roles where rolname = 'audited') then create role audited; end if; end $$`); err != nil {
		t.Fatal(err)
	}
	const (
		forge = "do $f$ begin execute 'deallocate _ms_settings; prepare _ms_settings as select ''h'', ''HASH'', null; deallocate _ms_rest; prepare _ms_rest as select ''t'', null, null where false'; end $f$"
		mem   = "select case setting when '4096' then '' else setting end from pg_settings where name = 'work_mem'"
		locks = "select coalesce(max(objid::text), '') from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()"
	)
	for what, c := range map[string]struct {
		sql       []string
		look, own string
	}{
		"as ever":             {nil, mem, "7168"},
		"of a lesser role":    {[]string{"set role audited"}, mem, "7168"},
		"dropped":             {[]string{"do $$ begin execute 'deallocate _ms_settings; deallocate _ms_rest'; end $$"}, mem, "7168"},
		"dropped by all":      {[]string{"deallocate all"}, mem, "7168"},
		"forged":              {[]string{forge}, mem, "7168"},
		"forged unseen":       {[]string{"select audited($a$" + forge + "$a$)"}, mem, "7168"},
		"locks behind forged": {[]string{forge, "do $$ begin perform pg_advisory_lock(91); end $$"}, locks, "91"},
	} {
		h := impatientHouse(t, s.URL())
		a := h.connect(t)
		do(t, a, "do $$ begin end $$", simple) // its statements are there
		own := strings.NewReplacer("HASH", hashOf(t, a), "_ms", namePrefix)
		for _, sql := range c.sql {
			do(t, a, own.Replace(sql), simple)
		}
		do(t, a, "select audited('set work_mem = ''7MB''')", simple)
		if what != "locks behind forged" {
			do(t, a, "deallocate all", simple) // what is forged would keep the server
		}
		h.ownAlone(t, what, a, c.look, c.own)
	}
}

// hashOf is what the statement that hashes the settings says.
func hashOf(t *testing.T, a *pgx.Conn) string {
	t.Helper()
	sql := value(t, a, "select statement from pg_prepared_statements where name = '"+namePrefix+"_settings'", simple)
	answer, err := a.PgConn().Exec(t.Context(), sql).ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	return string(answer[0].Rows[0][1])
}

// How often the server lists all settings is known by what it ran last.
func TestNothingIsListedThatIsKnown(t *testing.T) {
	s := pg.Start(t)
	if err := s.Exec(t.Context(), `create or replace function audited(q text) returns void language plpgsql as $$ begin execute q; end $$`); err != nil {
		t.Fatal(err)
	}
	h := run(t, config(database(s.URL(), one)))
	a, b := h.connect(t), h.connect(t)
	do(t, a, "do $$ begin end $$", simple)
	do(t, a, "set work_mem = '7MB'; select audited('set app.x = 1')", simple)
	for i := range 3 {
		do(t, a, "select audited('set app.x = "+strings.Repeat("1", i+1)+"')", simple)
		do(t, b, "do $$ begin end $$", simple)
		await(t, "the server is free", func() bool { return h.Stats().Databases[0].Active == 0 })
		last, err := s.Value(t.Context(), "select query from pg_stat_activity where backend_type = 'client backend' and pid <> pg_backend_pid() order by state_change desc limit 1")
		if err != nil || strings.Contains(last, "pg_catalog.pg_settings") || !strings.Contains(last, "EXECUTE") {
			t.Errorf("%d: %s, %v", i, last, err)
		}
	}
}

// Where what a database gives its sessions has been altered since, the same values may be of a client's own.
func TestAHashIsOfOneServersBeginning(t *testing.T) {
	s := pg.Start(t)
	name, err := s.Value(t.Context(), "select quote_ident(current_database())")
	if err != nil {
		t.Fatal(err)
	}
	h := run(t, config(database(s.URL(), one)))
	before := h.connect(t)
	do(t, before, "do $$ begin end $$", simple) // its server's hash is known
	if err := s.Exec(t.Context(), "alter database "+name+" set work_mem = '8MB'"); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Exec(t.Context(), "alter database "+name+" reset work_mem") }()
	_ = s.Exec(t.Context(), "select pg_terminate_backend(pid) from pg_stat_activity where backend_type = 'client backend' and pid <> pg_backend_pid()")
	await(t, "the server is gone", func() bool { return h.Stats().Databases[0].Idle == 0 })
	mine, other := h.connect(t), h.connect(t)
	if got := value(t, mine, "show work_mem", simple); got != "8MB" {
		t.Fatal(got)
	}
	do(t, mine, "do $$ begin set work_mem = '4MB'; end $$", simple)
	if got := value(t, other, "show work_mem", simple); got != "8MB" {
		t.Errorf("another client has %s", got)
	}
	if got := value(t, mine, "show work_mem", simple); got != "4MB" {
		t.Errorf("its own client has %s", got)
	}
}

// A forged one is not asked, whatever is asked for besides.
func TestAForgedStatementIsNotAsked(t *testing.T) {
	h := run(t, config(database(pg.Start(t).URL(), one)))
	a := h.connect(t)
	do(t, a, "do $$ begin end $$", simple)
	forge := strings.NewReplacer("HASH", hashOf(t, a), "_ms", namePrefix)
	do(t, a, forge.Replace("do $$ begin execute 'deallocate _ms_settings; prepare _ms_settings as select ''h'', ''HASH'', null'; end $$"), simple)
	do(t, a, "set work_mem = '7MB'; reset timezone", simple) // which prepares nothing
	do(t, a, forge.Replace("do $$ begin execute 'deallocate _ms_settings'; end $$"), simple)
	await(t, "the server is free", func() bool { return h.Stats().Databases[0].Active == 0 })
	if got := value(t, h.connect(t), "show work_mem", simple); got != "4MB" {
		t.Errorf("another client has %s", got)
	}
	if got := value(t, a, "show work_mem", simple); got != "7MB" {
		t.Errorf("its own client has %s", got)
	}
}

// Code may drop what the protocol has prepared, for its client and for others.
func TestWhatCodeDropsIsPreparedAgainForOthers(t *testing.T) {
	s := pg.Start(t)
	if err := s.Exec(t.Context(), `create or replace function forgetful() returns void language plpgsql as $$ begin execute 'deallocate all'; end $$`); err != nil {
		t.Fatal(err)
	}
	const prepared = "select 'prepared' || $1::text"
	for _, drops := range []string{
		"do $$ begin deallocate all; end $$", "select forgetful()", "do $$ declare v text := replace('deallocate xall', 'x', ''); begin execute v; end $$",
		"do $$ declare v text; begin for v in select name from pg_prepared_statements loop execute 'deallocate ' || quote_ident(v); end loop; end $$",
	} {
		h := run(t, config(database(s.URL(), one)))
		a, b := h.connect(t), h.connect(t)
		value(t, b, prepared, pgx.QueryExecModeCacheStatement, "")
		do(t, a, drops, simple)
		for _, conn := range []*pgx.Conn{b, h.connect(t)} {
			if got := value(t, conn, prepared, pgx.QueryExecModeCacheStatement, "!"); got != "prepared!" {
				t.Errorf("%s: %s", drops, got)
			}
		}
	}
}

// What is hashed does not hold what a library brings along that is loaded later.
func TestASettingOfALibrarysIsFound(t *testing.T) {
	s := pg.Start(t)
	if err := s.Exec(t.Context(), "create extension if not exists pg_trgm"); err != nil {
		t.Fatal(err)
	}
	for _, sets := range []string{"select set_limit(0.9)", "update pg_settings set setting = '0.9' where name like 'pg_trgm.similarity_t%'"} {
		h := run(t, config(database(s.URL(), one)))
		a, b := h.connect(t), h.connect(t)
		do(t, a, "do $$ begin end $$", simple) // what is hashed is known
		do(t, a, "select show_limit()", simple)
		do(t, a, sets, simple)
		if got := value(t, b, "select show_limit()::text", simple); got != "0.3" {
			t.Errorf("%s: another client has %s", sets, got)
		}
		if got := value(t, a, "select show_limit()::text", simple); got != "0.9" {
			t.Errorf("%s: its own client has %s", sets, got)
		}
	}
}

// A role that may not ask briefly is asked otherwise, and it alone.
func TestARoleThatMayNotAskBrieflySpoilsItForNobody(t *testing.T) {
	s := pg.Start(t)
	if err := s.Exec(t.Context(), "do $$ begin if not exists (select from pg_roles where rolname = 'narrow') then create role narrow; end if; end $$; revoke execute on function pg_catalog.sha256(bytea) from public"); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Exec(t.Context(), "grant execute on function pg_catalog.sha256(bytea) to public") }()
	h := run(t, config(database(s.URL(), one)))
	a, b := h.connect(t), h.connect(t)
	do(t, a, "do $$ begin end $$", simple)
	do(t, b, "set role narrow", simple)
	do(t, b, "do $$ begin set work_mem = '7MB'; end $$", simple)
	for range 2 {
		do(t, a, "do $$ begin end $$", simple)
	}
	h.rests(t)
	if last := h.lastQuery(t, s); !strings.Contains(last, "EXECUTE "+prepared.Prefix+"_settings") {
		t.Error(last)
	}
	if got := value(t, b, "select current_setting('work_mem') || current_user", simple); got != "7MBnarrow" {
		t.Error(got)
	}
}

// What a client drops of it, by whatever protocol, is made again before it is used.
func TestNothingIsAskedByWhatADiscardHasDropped(t *testing.T) {
	s := pg.Start(t)
	h := run(t, config(database(s.URL(), one)))
	a := h.connect(t)
	do(t, a, "do $$ begin end $$", simple)
	for _, mode := range []pgx.QueryExecMode{simple, pgx.QueryExecModeExec} {
		do(t, a, "discard all", mode)
		do(t, a, "do $$ begin end $$", simple)
		h.rests(t)
		if last := h.lastQuery(t, s); !strings.Contains(last, "EXECUTE "+prepared.Prefix+"_settings") {
			t.Errorf("%v: %s", mode, last)
		}
	}
}

// lastQuery is what the pooler's only server was asked last.
func (h *house) lastQuery(t *testing.T, s *pgtest.Server) string {
	t.Helper()
	last, err := s.Value(t.Context(), "select query from pg_stat_activity where backend_type = 'client backend' and pid <> pg_backend_pid() order by state_change desc limit 1")
	if err != nil {
		t.Fatal(err)
	}
	return last
}
