package pooler

import (
	"strings"
	"testing"
)

// ask is one cycle of the extended protocol.
func ask(messages ...string) step {
	s := strings.Join(messages, "")
	return step{s, s + synced, 1}
}

func described(name string) string { return frame('D', "S"+name+"\x00") }

// A server that has not got a client's statement gets it when the client uses it, maybe under other settings
// than those that it was prepared under.
func TestAStatementMeansWhatItMeantWhenItWasPrepared(t *testing.T) {
	h, m := newMatch(t, one)
	other := h.connect(t)
	const date = "select to_char('01.02.2026'::date, 'DD Mon'), current_setting('datestyle')"
	german, iso, lost, found := query("set datestyle = german"), query("set datestyle = 'ISO, MDY'"), query("set search_path = ''"), query("set search_path = other")
	use := ask(bound("p"), executed)
	for what, c := range map[string]struct {
		login  []string
		before []step
		then   []step // the server has forgotten the statement
	}{
		"a date":                       {nil, []step{german, ask(parsed("p", date)), iso}, []step{use, use}},
		"a date of the login":          {[]string{"datestyle", "German"}, []step{ask(parsed("p", date)), iso}, []step{use}},
		"a date in a transaction":      {nil, []step{german, ask(parsed("p", date))}, []step{query("begin"), query("set local datestyle = 'SQL, MDY'"), use, query("show datestyle"), query("commit"), query("show datestyle")}},
		"a date by SQL":                {nil, []step{german, ask(parsed("p", date)), iso}, []step{query("execute p")}},
		"a date by SQL in a block":     {nil, []step{german, ask(parsed("p", date))}, []step{query("begin"), query("set datestyle = 'ISO, MDY'"), query("select 1; execute p; show datestyle")}},
		"behind others of its cycle":   {nil, []step{german, ask(parsed("p", date)), iso}, []step{ask(parsed("", "select 1"), bound(""), executed, bound("p"), executed)}},
		"the unnamed one":              {nil, []step{german, ask(parsed("", date)), ask(parsed("iso", "set datestyle = 'ISO, MDY'"), bound("iso"), executed)}, []step{ask(bound(""), executed), ask(bound(""), executed)}},
		"both":                         {nil, []step{german, ask(parsed("p", date), parsed("", date)), ask(parsed("iso", "set datestyle = 'ISO, MDY'"), bound("iso"), executed)}, []step{ask(bound("p"), executed, bound(""), executed)}},
		"a backslash":                  {nil, []step{query("set standard_conforming_strings = off"), ask(parsed("p", `select 'a\\b'`)), query("set standard_conforming_strings = on")}, []step{use}},
		"a table":                      {nil, []step{found, ask(parsed("p", "select n from things")), query("set search_path = public")}, []step{use, query("execute p")}},
		"a table that is not found":    {nil, []step{found, ask(parsed("p", "select n from things")), lost}, []step{use, query("execute p"), query("execute p ()"), found, use}},
		"described there":              {nil, []step{found, ask(parsed("p", "select $1::int from things")), lost}, []step{ask(described("p")), found, ask(described("p"))}},
		"too few parameters":           {nil, []step{found, ask(parsed("p", "select $1::int from things")), lost}, []step{use, query("execute p"), query("execute p (1)"), query("execute p ('x')")}},
		"wrong parameters":             {nil, []step{found, ask(parsed("p", "select $1::int from things")), lost}, []step{ask(bindTexts("", "p", []string{"word"}), executed)}},
		"executed by another":          {nil, []step{german, ask(parsed("p", date)), ask(parsed("q", "execute p")), iso}, []step{ask(bound("q"), executed)}},
		"a cursor by SQL":              {nil, []step{ask(parsed("p", "declare held cursor with hold for select n from fixture")), lost}, []step{query("execute p ('1')"), query("execute p")}},
		"behind a commit in its cycle": {nil, []step{german, ask(parsed("p", date), parsed("end", "commit")), iso}, []step{ask(parsed("p", "select 'taken'"), bound("end"), executed, bound("p"), executed), ask(bound("end"), executed, bound("p"), executed), use}},
		"a table that is gone":         {nil, []step{query("create table gone (n int)"), ask(parsed("p", "select n from gone")), query("drop table gone")}, []step{query("execute p"), use, query("select 1; execute p"), query("execute nowhere")}},
		"before the isolation is set":  {nil, []step{ask(parsed("p", "set transaction isolation level serializable"))}, []step{query("begin"), query("set search_path = other"), use, query("show transaction_isolation")}},
		"in a savepoint of the client": {nil, []step{german, ask(parsed("p", date))}, []step{query("begin"), query("savepoint _ms"), query("set datestyle = 'ISO, MDY'"), use, query("rollback to _ms"), use, query("release _ms"), query("commit")}},
		"two in one transaction": {nil, []step{german, ask(parsed("p", date)), ask(parsed("q", "select 2, "+date[len("select "):]))},
			[]step{query("begin"), query("set datestyle = 'ISO, MDY'"), use, ask(bound("q"), executed), query("show datestyle"), query("commit")}},
		"two in one cycle of a transaction": {nil, []step{german, ask(parsed("p", date)), ask(parsed("q", "select 2, "+date[len("select "):])), iso},
			[]step{query("begin"), query("set timezone = 'Asia/Tokyo'"), ask(bound("p"), executed, bound("q"), executed), query("commit")}},
		"described when all is lost": {nil, []step{ask(parsed("p", "insert into notes values (1, 2)"), parsed("q", "unlisten *"), parsed("r", "select 1"),
			frame('P', "s\x00insert into notes values ($1, $2)\x00\x00\x02\x00\x00\x00\x17\x00\x00\x00\x17"))},
			[]step{query("begin; select 1/0"), ask(described("p")), ask(described("q")), ask(described("r")), ask(described("s")), ask(bound("s"), executed), ask(described("p"), bound("p"), executed)}},
		"the unnamed one when all is lost": {nil, []step{ask(parsed("", "insert into notes values (1, 2)"))},
			[]step{ask(parsed("begin", "begin"), bound("begin"), executed), ask(parsed("fails", "select 1/0"), bound("fails"), executed), ask(described(""))}},
		"behind a failure that is not told yet": {nil, []step{ask(parsed("p", "select 1"))},
			[]step{query("begin"), ask(parsed("", "select 1"), frame('H', ""), bound(""), executed), {"slow", frame('Q', "select pg_sleep(0.3); select 1/0\x00") + bindTexts("", "p", []string{"1"}) + executed + synced, 2}}},
		"as another role":         {nil, []step{query("set role lesser"), ask(parsed("p", "select n from fixture")), query("reset role")}, []step{use}},
		"while the table is away": {nil, []step{found, ask(parsed("p", "select n from things")), query("alter table other.things rename to away"), lost}, []step{use, query("alter table other.away rename to things"), found, use}},
	} {
		t.Run(what, func(t *testing.T) {
			both := m.sides(c.login)
			for _, p := range both {
				if p.err != nil {
					t.Fatal(p.err)
				}
				defer p.conn.Close()
			}
			play := func(steps []step) {
				for _, one := range steps {
					for _, p := range both {
						p.say(one)
					}
					if pooled, direct := both[0].hear(one.ready), both[1].hear(one.ready); pooled != direct {
						t.Fatalf("%q\nPOOLED\n%s\nDIRECT\n%s", one.story, pooled, direct)
					}
				}
			}
			play(c.before)
			do(t, other, "deallocate all", simple)
			play(c.then)
		})
	}
}
