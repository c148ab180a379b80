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
