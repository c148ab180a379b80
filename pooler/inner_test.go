package pooler

import (
	"strings"
	"testing"

	"mainstay.dev/mainstay/pooler/internal/pgwire"
)

// What is prepared behind a change of settings, in the same cycle, is made again as it was, whatever becomes of the cycle, its
// transaction and the settings; and nobody else is given it. What SQL's PREPARE has made so that nobody can tell keeps its server.
func TestWhatIsPreparedBehindAChangeInItsCycleIsMadeAgainAsItWas(t *testing.T) {
	h, m := newMatch(t, one)
	other := h.connect(t)
	const date = "select to_char('01.02.2026'::date, 'DD Mon')"
	const text = `select e'\x41', 'c\\d'`
	const off, german, american = "set standard_conforming_strings = off", "set datestyle = german", "set datestyle = 'SQL, MDY'"
	bind := func(portal, name string) string { return frame('B', portal+"\x00"+name+"\x00\x00\x00\x00\x00\x00\x00") }
	execute := func(portal string, rows byte) string { return frame('E', portal+"\x00\x00\x00\x00"+string(rows)) }
	change := func(sql string) string { return parsed("", sql) + bind("", "") + execute("", 0) }
	fails := parsed("z", "select 1/0") + bind("", "z")
	use, both := bind("", "p")+execute("", 0), bind("", "p")+execute("", 0)+bind("", "q")+execute("", 0)
	begin, commit, rollback := query("begin"), query("commit"), query("rollback")
	for what, c := range map[string]struct {
		first  []step // by another client
		before []step
		then   []step // another has had the server, unless it is kept
		keeps  bool
	}{
		"it fails":                              {nil, []step{ask(change(off), parsed("p", text), fails)}, []step{ask(use), ask(use)}, false},
		"it fails, a date":                      {nil, []step{ask(change(german), parsed("p", date), fails)}, []step{ask(use), ask(use)}, false},
		"it fails, a table":                     {nil, []step{ask(change("set search_path = other"), parsed("p", "select n from things"), fails)}, []step{ask(use), query("set search_path = other"), ask(use)}, false},
		"it fails before":                       {nil, []step{ask(change(off), fails, parsed("p", text)), ask(parsed("p", text))}, []step{ask(use)}, false},
		"begun before":                          {nil, []step{begin, ask(change(off), parsed("p", text)), commit, query("set standard_conforming_strings = on")}, []step{ask(use), ask(use)}, false},
		"begun in it":                           {nil, []step{ask(change("begin"), change(off), parsed("p", text)), commit, query("set standard_conforming_strings = on")}, []step{ask(use)}, false},
		"begun before, and fails":               {nil, []step{begin, ask(change(german), parsed("p", date), fails), rollback}, []step{ask(use)}, false},
		"begun and over in it":                  {nil, []step{ask(change("begin"), change("set local datestyle = german"), parsed("p", date), use, change("commit"))}, []step{ask(use)}, false},
		"for the transaction":                   {nil, []step{ask(change("set local standard_conforming_strings = off"), parsed("p", text))}, []step{ask(use), ask(use)}, false},
		"for the transaction, a date":           {nil, []step{ask(change("set local datestyle = german"), parsed("p", date))}, []step{ask(use)}, false},
		"changed again":                         {nil, []step{ask(change(off), parsed("p", text), change("set standard_conforming_strings = on"))}, []step{ask(use)}, false},
		"changed twice":                         {nil, []step{ask(change(german), parsed("p", date), change(american), parsed("q", date), use)}, []step{ask(both)}, false},
		"changed by a value":                    {nil, []step{ask(parsed("c", "select set_config('datestyle', $1, false)"), bindTexts("", "c", []string{"german"}), execute("", 0), parsed("p", date), fails)}, []step{ask(use)}, false},
		"many cycles at once":                   {nil, []step{{"three cycles", ask(change(german), parsed("p", date)).bytes + ask(change(american), parsed("q", date)).bytes + ask(both).bytes, 3}}, []step{ask(both)}, false},
		"the second use":                        {nil, []step{ask(change(german), parsed("p", date), use), ask(use)}, []step{ask(use), query("execute p")}, false},
		"a utility's text":                      {nil, []step{ask(change(off), parsed("p", `set my.x = 'c\\d'`), fails)}, []step{ask(use), query("show my.x")}, false},
		"no snapshot is taken":                  {nil, []step{begin, ask(change(german), parsed("p", "set transaction isolation level serializable"), use), query("show transaction_isolation"), commit}, []step{begin, ask(use), query("show transaction_isolation"), commit}, false},
		"a notice as before":                    {nil, []step{ask(parsed("c", "set local datestyle = german"), parsed("p", date), bind("", "c"), execute("", 0), use)}, []step{ask(use)}, false},
		"bound, and executed behind it":         {nil, []step{begin, ask(parsed("c", german), bind("c", "c"), parsed("p", date)), ask(execute("c", 0), parsed("q", date)), commit, query("set datestyle = iso")}, []step{ask(both)}, false},
		"bound before a cycle":                  {nil, []step{begin, ask(parsed("c", german), bind("c", "c")), ask(parsed("p", date)), ask(execute("c", 0)), ask(parsed("q", date)), commit, query("set datestyle = iso")}, []step{ask(both)}, false},
		"executed in parts":                     {nil, []step{begin, ask(parsed("c", "select set_config('datestyle', v, false) from unnest(array['german', 'SQL, MDY']) v"), bind("c", "c"), execute("c", 1), parsed("p", date), execute("c", 1), parsed("q", date)), commit, query("set datestyle = iso")}, []step{ask(both)}, false},
		"called by its number":                  {nil, []step{begin, query("set datestyle = 'ISO, DMY'"), ask(parsed("r", date)), {"set_config, by its number", frame('F', "\x00\x00\x08\x1e\x00\x00\x00\x03\x00\x00\x00\x09datestyle\x00\x00\x00\x06german\x00\x00\x00\x01f\x00\x00"), 1}, ask(parsed("p", date)), commit, query("set datestyle = iso")}, []step{ask(use)}, true},
		"amid a pipeline, by a query":           {nil, []step{{"a query amid a cycle", change("set work_mem = '5MB'") + query(german).bytes + ask(parsed("p", date), fails).bytes, 2}}, []step{ask(use)}, false},
		"described, and in a block":             {nil, []step{begin, ask(change(german), parsed("p", date), frame('D', "Sp\x00"), use), commit, query("set datestyle = iso")}, []step{begin, ask(frame('D', "Sp\x00"), use), commit}, false},
		"as others have prepared it":            {[]step{ask(change("set datestyle = german"), parsed("p", date), use)}, []step{ask(change(american), parsed("p", date), use)}, []step{ask(use)}, false},
		"as others have, how it is read":        {[]step{ask(change(off), parsed("p", text), use)}, []step{ask(change("set my.x = '1'"), parsed("p", text), use)}, []step{ask(use)}, false},
		"by SQL":                                {nil, []step{ask(change(german), change("prepare q as "+date), change(american))}, []step{query("execute q")}, false},
		"by SQL, and it fails":                  {nil, []step{ask(change(german), change("prepare q as "+date), fails)}, []step{query("execute q")}, true},
		"by SQL, by a statement":                {nil, []step{ask(parsed("s", "prepare q as "+date), change(german), bind("", "s"), execute("", 0), change(american))}, []step{query("execute q")}, false},
		"by SQL, by a statement, anew":          {nil, []step{query("prepare q as " + date), ask(parsed("d", "deallocate q"), parsed("s", "prepare q as "+date), change(german), bind("", "d"), execute("", 0), bind("", "s"), execute("", 0), change("set datestyle = iso"))}, []step{query("execute q")}, false},
		"by SQL, later":                         {nil, []step{begin, ask(parsed("", "prepare q as "+date)), ask(bind("c", "")), query("savepoint a"), ask(change(german)), ask(execute("c", 0)), commit, query("set datestyle = iso")}, []step{query("execute q")}, true},
		"by SQL, refused the second time":       {nil, []step{begin, query("savepoint a"), ask(change(german), change("prepare q as "+date)), ask(change("prepare q as " + date)), query("rollback to a"), commit}, []step{query("execute q")}, false},
		"by SQL, passed over, then made":        {nil, []step{begin, query("savepoint a"), ask(fails, change("prepare q as "+date)), query("rollback to a"), query(german), query("prepare q as " + date), commit, query("set datestyle = iso")}, []step{query("execute q")}, true},
		"by SQL, by a function":                 {nil, []step{query(german), query("do $f$ begin execute $g$prepare q as " + date + "$g$; end $f$"), query("set datestyle = iso")}, []step{query("execute q")}, true},
		"by SQL, by a function that sets":       {nil, []step{query("do $f$ begin set local datestyle = german; execute $g$prepare q as " + date + "$g$; end $f$")}, []step{query("execute q")}, true},
		"by SQL, by a function behind a change": {nil, []step{begin, query("set local datestyle = german"), query("do $f$ begin execute $g$prepare q as " + date + "$g$; end $f$"), commit}, []step{query("execute q"), query("deallocate q")}, true},
	} {
		t.Run(what, func(t *testing.T) {
			mine, others := m.sides(nil), m.sides(nil)
			for _, p := range append(mine[:], others[:]...) {
				if p.err != nil {
					t.Fatal(p.err)
				}
				defer p.conn.Close()
			}
			forget := func() { do(t, other, "deallocate all", simple) } // the server does
			if c.keeps {
				forget = nil
			}
			m.same(t, "first", others, c.first, nil)
			if c.first != nil { // on the same server, which knows it
				m.same(t, "before", mine, c.before, nil)
			} else {
				m.same(t, "before", mine, c.before, forget)
			}
			if c.keeps {
				await(t, "it is pinned", func() bool { return pinned(h) != "" })
			}
			m.same(t, "then", mine, c.then, forget)
		})
		await(t, "the server is back", func() bool { return h.Stats().Databases[0].Active == 0 })
	}
}

// Where it cannot be known what a statement was prepared under, it is never made again under something else: its client is told what
// drivers prepare it again for.
func TestWhatWasPreparedUnderSettingsThatAreNotKnownIsRefusedElsewhere(t *testing.T) {
	s := pg.Start(t)
	h := run(t, config(database(s.URL(), one)))
	c, other := newFrontend(t, h), h.connect(t)
	const date = "select to_char('01.02.2026'::date, 'DD Mon')"
	long := parsed("", "set search_path = '"+strings.Repeat("a", 600)+"', '"+strings.Repeat("b", 600)+"', pg_catalog") + bound("") + executed
	german := parsed("", "set datestyle = german") + bound("") + executed
	fails := parsed("z", "select 1/0") + bound("z")
	for what, one := range map[string]struct{ before, answer, use, code string }{
		"a setting too long to be shown":         {german + long + parsed("p", date), "12C12C1Z", bound("p") + executed, "0A000"},
		"the unnamed one, in a cycle that fails": {german + parsed("", date) + fails, "12C11EZ", bound("") + executed, "26000"},
	} {
		c.send(one.before + synced)
		c.expectFor(what, one.answer)
		do(t, other, "deallocate all", simple) // the server forgets it
		c.send(one.use + synced)
		if _, body, err := c.in.Next(); err != nil || string(pgwire.Field(body, 'C')) != one.code {
			t.Errorf("%s: %q, %v", what, body, err)
		}
		c.expectFor(what, "Z")
	}
}
