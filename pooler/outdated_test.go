package pooler

import (
	"strings"
	"testing"
)

// What is prepared behind a change of a table that was made past the pooler is as it is since then, whoever prepared the
// same before.
func TestAStatementThatAnotherPreparedBeforeATableWasChangedIsPreparedAnew(t *testing.T) {
	h, m := newMatch(t, one)
	faults := 0
	begin, rollback := query("begin"), query("rollback")
	const star, where = "select * from changing", "select n from changing where n = $1"
	use := ask(bound("p"), executed)
	given := ask(bindTexts("", "p", []string{"x"}), executed)
	wider, typed := "alter table changing add column m int default 7", "alter table changing alter column n type text"
	for what, c := range map[string]struct {
		text, change string
		steps        []step
	}{
		"described with its Parse":     {star, wider, []step{ask(parsed("p", star), described("p")), use}},
		"described behind it":          {star, wider, []step{ask(parsed("p", star)), ask(described("p")), use, use}},
		"bound with its Parse":         {star, wider, []step{ask(parsed("p", star), bound("p"), frame('D', "P\x00"), executed), use}},
		"bound behind it":              {star, wider, []step{ask(parsed("p", star)), use, use}},
		"executed by SQL":              {star, wider, []step{ask(parsed("p", star)), query("execute p"), use}},
		"explained by SQL":             {star, wider, []step{ask(parsed("p", star)), query("explain (costs off) execute p"), use}},
		"executed by one prepared":     {star, wider, []step{ask(parsed("p", star)), ask(parsed("q", "execute p"))}},
		"with the unnamed one":         {star, wider, []step{ask(parsed("", "select 1"), parsed("p", star), bound("p"), executed), ask(bound(""), executed), use}},
		"closed and prepared":          {star, wider, []step{ask(parsed("p", "select 1")), ask(frame('C', "Sp\x00"), parsed("p", star), described("p")), use, ask(parsed("p", star))}},
		"two names":                    {star, wider, []step{ask(parsed("p", star), parsed("q", star)), ask(described("q")), use, ask(bound("q"), executed)}},
		"two cycles at once":           {star, wider, []step{{"two cycles", parsed("p", star) + synced + parsed("q", star) + synced, 2}, use, ask(bound("q"), executed)}},
		"which is then changed":        {star, wider, []step{ask(parsed("p", star)), use, query("alter table changing drop column m"), use, query("deallocate p"), ask(parsed("p", star)), use}},
		"which names its type":         {where, typed, []step{ask(parsed("p", where), described("p")), given, given}},
		"which names its type, bound":  {where, typed, []step{ask(parsed("p", where)), given}},
		"a fault of its own":           {"select 1 / n from changing", wider, []step{ask(parsed("p", "select 1 / n from changing")), use, use}},
		"a value that does not fit":    {where, wider, []step{ask(parsed("p", where), bindTexts("", "p", []string{"word"}), executed), ask(bindTexts("", "p", []string{"word"}), executed)}},
		"a name that is taken":         {where, wider, []step{ask(parsed("r", "select 'r'")), ask(parsed("p", where), bindTexts("", "p", []string{"word"}), executed, parsed("r", "select 'another'")), ask(parsed("r", star)), ask(bound("r"), executed)}},
		"whose table is gone":          {star, "drop table changing", []step{ask(parsed("p", star), described("p")), use}},
		"whose table is gone, another": {star, "alter table changing rename to another; create table changing as select 'x'::text as x", []step{ask(parsed("p", star), described("p")), use}},
		"by a client that listens":     {star, wider, []step{query("listen changes"), ask(parsed("p", star)), ask(described("p")), use}},
		"which an event loop began":    {star, wider, []step{ask(parsed("p", star), bound("p"), executed, parsed("fresh", "rollback"), bound("fresh"), executed), use}},
		"in a transaction, elsewhere":  {star, wider, []step{begin, rollback, ask(parsed("p", star), described("p")), begin, use, rollback, use}},
	} {
		t.Run(what, func(t *testing.T) {
			both := m.sides(nil)
			both[0].say(query("drop table if exists changing, another; create table changing as select 1 as n"))
			both[1].say(query("drop table if exists changing, another; create table changing as select 1 as n"))
			if got := both[0].hear(1) + both[1].hear(1); strings.Contains(got, "ERROR") {
				t.Fatal(got)
			}
			earlier := m.sides(nil)[0]
			defer earlier.conn.Close()
			for _, s := range []step{ask(parsed("p", c.text), described("p")), ask(parsed("fresh", "select 'to be known'")), query("set work_mem = '5MB'")} {
				earlier.say(s)
				earlier.hear(s.ready)
			}
			for _, name := range []string{"pooled", "direct"} {
				past := logIn(m.direct, m.password, []string{"user", "postgres", "database", name})
				past.say(query(c.change))
				if got := past.hear(1); strings.Contains(got, "ERROR") {
					t.Fatal(got)
				}
				past.conn.Close()
			}
			for _, p := range both {
				if p.err != nil {
					t.Fatal(p.err)
				}
				defer p.conn.Close()
			}
			faults += m.same(t, what, both, c.steps, func() {
				earlier.say(query("select 1")) // under its settings, which the server has to lay down then
				earlier.hear(1)
			})
		})
	}
	await(t, "what the clients have not been told of is not recorded", func() bool { return h.ledger.codes()[string(SQLError)] == faults })
}
