package pooler

import "testing"

// A text that uses what the protocol prepared reaches PostgreSQL with other names in it.
func TestAnErrorPointsIntoTheTextThatItIsIn(t *testing.T) {
	_, m := newMatch(t, one)
	const lost = "set search_path = ''"
	for what, c := range map[string]struct{ settings, sql string }{
		"what is executed, alone":             {lost, "execute p"},
		"what is executed, first":             {lost, "execute p; select 1"},
		"what is executed, behind others":     {lost, "select 1; ; execute p ('1', 2); select 1"},
		"what is executed, and written twice": {lost, "deallocate q; execute p; execute p"},
		"what is executed, by SQL's name":     {lost, "execute p0; execute r"},
		"what is explained":                   {lost, "select 1; explain (costs off) execute p (1)"},
		"what fills a table":                  {lost, "select 1; create temp table filled as execute p"},
		"another statement behind it":         {"", "execute p0; select * from nowhere"},
		"another statement in front of it":    {"", "select * from nowhere; execute p0"},
		"syntax in front of it":               {"", "selekt 1; execute p0"},
		"syntax behind it":                    {"", "execute p0; selekt 1"},
		"an argument":                         {"", "execute p1 ('word')"},
		"an argument behind others":           {"", "select 'ä'; execute p0; execute p1 ( 'word'); execute p0"},
		"a column as an argument":             {"", "execute p0; execute p1 (nothing)"},
		"a table in an argument":              {"", "execute p0; execute p1 ((select 1 from nowhere))"},
		"too few arguments":                   {"", "execute p0; execute p1"},
		"a notice of another statement":       {"", "execute p0; select 'a\\\\b'"},
		"an option of EXPLAIN":                {"", "execute p0; explain (nonsense) execute p0"},
	} {
		t.Run(what, func(t *testing.T) {
			play := m.inTurn(t, nil)
			play([]step{
				query("set escape_string_warning = on"), ask(parsed("p", "select n, 1, 2, 3, 4, 5, 6, 7, 8, 9 from things")), ask(parsed("p0", "select 1")), ask(parsed("p1", "select $1::int")), ask(parsed("q", "select 1")),
				query("prepare r as select 1, 2, 3, 4, 5, 6, 7 from things"),
				query(c.settings), query(c.sql), query("select 1"), query(c.sql),
			})
		})
	}
}

// A statement that a server has not got is prepared where it is used, and may not be possible any more.
func TestTheNumberOfParametersIsLookedAtBeforeAllElse(t *testing.T) {
	h, m := newMatch(t, one)
	other := h.connect(t)
	rolledBack := []step{query("begin"), query("create table passing (n int)"), ask(parsed("", "insert into passing values (1)"), parsed("p", "select $1::int, n from passing"), parsed("all", "table passing")), query("rollback")}
	unnamed := ask(parsed("", "insert into passing values (1)"), described(""), bindTexts("", "", []string{"1"}))
	passed := []step{ask(parsed("c", "create table passing (n int)"), bound("c"), executed), unnamed, ask(parsed("d", "drop table passing"), bound("d"), executed)}
	german := []step{query("set search_path = other"), ask(parsed("p", "select $1::text, n from things")), query("set search_path = public")}
	with := func(name string, values ...string) string { return bindTexts("", name, values) + executed }
	for what, c := range map[string]struct {
		before []step
		then   []step // the server has forgotten the statement
	}{
		"too many for the unnamed one":           {passed, []step{ask(with("", "1")), ask(with(""))}},
		"too many for it, in a cycle":            {passed, []step{ask(parsed("", "select 1"), with(""), with("", "1"))}},
		"too few":                                {rolledBack, []step{ask(with("p")), ask(with("p", "1", "2")), ask(with("p", "1"))}},
		"too many for a named one":               {rolledBack, []step{ask(with("all", "1")), ask(with("all"))}},
		"in a transaction":                       {rolledBack, []step{query("begin"), ask(with("all", "1")), query("rollback"), query("begin"), ask(with("p")), query("commit")}},
		"in a transaction that is aborted":       {rolledBack, []step{query("begin"), query("select 1/0"), ask(with("all", "1")), ask(with("p")), ask(with("p", "1")), query("rollback")}},
		"behind a failure that is not told yet":  {[]step{ask(parsed("p", "select $1"))}, []step{query("begin"), {"slow", frame('Q', "select pg_sleep(0.3); select 1/0\x00") + with("p") + synced, 2}}},
		"where search_path does not lead to it":  {german, []step{ask(with("p")), ask(with("p", "1"))}},
		"changed and prepared in a transaction":  {[]step{query("begin"), query("set search_path = other"), ask(parsed("p", "select 1 from things where n = 'other'")), query("commit")}, []step{query("set search_path = ''"), ask(with("p", "1"))}},
		"an end of the transaction does not end": {[]step{ask(parsed("p", "commit"))}, []step{query("begin"), ask(with("p", "1")), query("commit")}},
		"declared, and not used":                 {[]step{ask(frame('P', "p\x00select 1\x00\x00\x01\x00\x00\x00\x17"))}, []step{ask(with("p")), ask(with("p", "1"))}},
		"of what is not looked into":             {[]step{ask(parsed("p", "execute q ($1)")), query("prepare q as select 1")}, []step{ask(with("p", "1")), ask(with("p"))}},
	} {
		t.Run(what, func(t *testing.T) {
			play := m.inTurn(t, nil)
			play(c.before)
			do(t, other, "deallocate all", simple)
			play(c.then)
		})
	}
}
