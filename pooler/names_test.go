package pooler

import (
	"errors"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
)

// shared is the server's name, which anybody can read, for what f prepares as a name with this text.
func sharedName(t *testing.T, f *frontend, name, sql string) string {
	t.Helper()
	f.send(parsed(name, sql) + synced)
	f.expect("1Z")
	f.send(frame('Q', "select name from pg_prepared_statements where not from_sql and statement = '"+strings.ReplaceAll(sql, "'", "''")+"'\x00"))
	f.expect("TDCZ")
	return f.row
}

// A client that names what others have prepared is answered as if there were no such thing, and may have its own by that name.
func TestNobodyUsesWhatOthersHavePreparedByItsName(t *testing.T) {
	h, m := newMatch(t, one)
	owner, other := newFrontend(t, h), h.connect(t)
	taken := sharedName(t, owner, "p", "select 'of another'")
	upper, quoted := strings.ToUpper(taken), `"`+taken+`"`
	make, execute, drop := query("prepare "+taken+" as select 'its own'"), query("execute "+taken), query("deallocate "+upper)
	extended := func(sql string) step { return ask(parsed("", sql), bound(""), executed) }
	parse, use, end := ask(parsed(taken, "select 'by the protocol'")), ask(bound(taken), executed), ask(frame('C', "S"+taken+"\x00"))
	for what, steps := range map[string][]step{
		"not there":                   {drop, execute, use, ask(described(taken)), end, drop},
		"quoted":                      {query("deallocate prepare " + quoted), query("execute " + quoted), query("explain (costs off) execute " + quoted + ";")},
		"extended":                    {extended("deallocate " + taken), extended("execute " + taken), ask(parsed("d", "deallocate "+quoted)), ask(bound("d"), executed)},
		"among several":               {query("select 1; deallocate " + taken), query("select 1;; /* ä */ execute " + taken + "; select 2"), query("begin; select 1; execute " + taken), query("rollback")},
		"beside one of the protocol":  {ask(parsed("q", "select 'q'")), drop, query("execute q; execute " + taken), query("deallocate q; deallocate " + taken)},
		"in a text of several blocks": {query("select 1 /* " + strings.Repeat("-", 20<<10) + " */; deallocate " + taken), query("deallocate " + taken + " /* " + strings.Repeat("-", 20<<10) + " */")},
		"made by SQL":                 {make, execute, make, use, ask(described(taken)), query("execute " + quoted + "(1)"), parse, execute, drop, drop, use},
		"made by SQL, extended":       {extended("prepare " + taken + " (int) as select $1 + 1"), extended("execute " + upper + "(1)"), extended("deallocate " + taken), execute},
		"made by SQL, and closed":     {make, end, execute, make, query("deallocate all"), use},
		"made by the protocol":        {parse, execute, use, make, parse, extended("execute " + taken), drop, execute, use},
		"prepared, and gone":          {parse, ask(parsed("d", "execute "+taken)), ask(bound("d"), executed), end, ask(bound("d"), executed), parse, ask(bound("d"), executed)},
		"unnamed, and gone":           {parse, ask(parsed("", "execute "+taken)), end, ask(bound(""), executed)},
		"prepared before":             {ask(parsed("d", "execute "+taken)), parse, ask(bound("d"), executed), query("discard all"), execute},
		"dropped by what is prepared": {parse, ask(parsed("d", "deallocate "+taken)), ask(bound("d"), executed), ask(bound("d"), executed), parse, ask(bound("d"), executed), use},
		"in one text":                 {parse, query("select 1; deallocate " + taken + "; execute " + taken), parse, query("execute " + upper + "; deallocate all; execute " + taken)},
		"in one cycle":                {ask(parsed(taken, "select 'x'"), parsed("", "execute "+taken), bound(""), executed, frame('C', "S"+taken+"\x00"), parsed("", "execute "+taken), bound(""), executed), ask(parsed(taken, "select 'x'"), described(taken), bound(taken), executed)},
		"in a transaction":            {query("begin"), make, drop, make, execute, parse, query("rollback"), execute, drop},
	} {
		t.Run(what, func(t *testing.T) {
			both := m.enter(t, nil)
			m.same(t, "then", both, steps, func() {
				owner.send(bound("p") + executed + synced)
				if owner.expect("2DCZ"); owner.row != "of another" {
					t.Errorf("the owner gets %s", owner.row)
				}
			})
		})
	}
	for _, sql := range []string{"deallocate " + taken, "execute " + upper, "select 1; execute " + quoted} {
		_, err := other.PgConn().Exec(t.Context(), sql).ReadAll()
		if e, ok := errors.AsType[*pgconn.PgError](err); !ok || e.Code != "26000" || e.Message != `prepared statement "`+taken+`" does not exist` {
			t.Errorf("%s: %v", sql, err)
		}
	}
}

// U&"…" without an escape is a name like others; who writes it keeps the server.
func TestANameWithUnicodeEscapesMeansWhatItMeansWithout(t *testing.T) {
	h, m := newMatch(t, one)
	owner := newFrontend(t, h)
	quoted := `"` + sharedName(t, owner, "p", "select 'of another'") + `"`
	both := m.sides(nil)
	m.same(t, "then", both, []step{
		query("execute U&" + quoted), query("deallocate u&" + quoted), ask(parsed("", "execute U&"+quoted), bound(""), executed), query("prepare U&" + quoted + " as select 'its own'"), query("execute " + quoted),
		ask(parsed("q", "select 'q'")), query(`execute U&"q"`), query(`explain (costs off) execute U&"q"`), query(`select 1; deallocate U&"q"`), query("execute q"),
	}, nil)
	both[0].conn.Close()
	both[1].conn.Close()
	owner.send(bound("p") + executed + synced)
	if owner.expect("2DCZ"); owner.row != "of another" {
		t.Errorf("the owner gets %s", owner.row)
	}
}

// What code that cannot be read drops, or makes in its place, is made anew for those who have prepared it.
func TestWhatCodeDropsByItsNameIsMadeAnew(t *testing.T) {
	s := pg.Start(t)
	if err := s.Exec(t.Context(), `create or replace function dropping(q text) returns void language plpgsql as $$ begin execute q; end $$`); err != nil {
		t.Fatal(err)
	}
	h := run(t, config(database(s.URL(), one)))
	owner, other := newFrontend(t, h), h.connect(t)
	names := []string{sharedName(t, owner, "p", "select 'p'"), sharedName(t, owner, "q", "select 'q'")}
	for what, sql := range map[string]string{
		"one":           "do $$ begin execute 'deallocate NAME'; end $$",
		"by a loop":     "do $$ declare r record; begin for r in select name from pg_prepared_statements loop execute 'deallocate ' || quote_ident(r.name); end loop; end $$",
		"by a function": "select dropping('deallocate NAME')",
		"replaced":      `do $$ begin perform dropping('deallocate NAME'); perform dropping('prepare NAME as select ''not p'''); end $$`,
	} {
		do(t, other, strings.ReplaceAll(sql, "NAME", names[0]), simple)
		for range 2 {
			owner.send(bound("p") + executed + bound("q") + executed + synced)
			if owner.expectFor(what, "2DC2DCZ"); owner.row != "q" {
				t.Errorf("%s: %s", what, owner.row)
			}
			owner.send(bound("p") + executed + synced)
			if owner.expectFor(what, "2DCZ"); owner.row != "p" {
				t.Errorf("%s: %s", what, owner.row)
			}
			do(t, other, "select 1", simple)
		}
	}
}

// The prefix is as good as unknown to a client: names that begin as ours once did, or in another process do, are names like others.
func TestNoClientHasOurNamesByChance(t *testing.T) {
	h, m := newMatch(t, one)
	owner := newFrontend(t, h)
	owner.send(parsed("p", "select 1") + synced)
	owner.expect("1Z")
	both := m.enter(t, nil)
	for _, name := range []string{"_ms", "_ms0", "_ms1", "_ms_decoy", "_ms_settings", "_ms_undo", "_ms_fetch"} {
		m.same(t, name, both, []step{
			query("deallocate " + name), query("do $$ begin execute 'deallocate " + name + "'; end $$"), query("prepare " + name + " as select '" + name + "'"), query("execute " + name),
			query("do $$ begin execute 'prepare " + name + " as select 1'; end $$"), ask(bound(name), executed), query("deallocate " + name), ask(parsed(name, "select 2"), bound(name), executed),
		}, func() { owner.send(bound("p") + executed + synced); owner.expectFor(name, "2DCZ") })
	}
}
