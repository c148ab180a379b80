package pooler

import (
	"context"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"mainstay.dev/mainstay/pooler/pgtest"
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
		"executed by, made anew":       {nil, []step{ask(parsed("p", "select 1")), ask(parsed("q", "execute p")), query("deallocate p"), german, ask(parsed("p", date)), iso}, []step{ask(bound("q"), executed), ask(bound("q"), executed)}},
		"executed by the unnamed one":  {nil, []step{german, ask(parsed("p", date)), iso, ask(parsed("", "execute p"))}, []step{ask(bound(""), executed)}},
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
			play := m.inTurn(t, c.login)
			play(c.before)
			do(t, other, "deallocate all", simple)
			play(c.then)
		})
	}
}

// A server that learns a FETCH later, or has learned it for another client, may have found a cursor then that there
// was not when its client prepared it, or none where there was one.
func TestAFetchIsDescribedAsItWasWhenItWasPrepared(t *testing.T) {
	_, m := newMatch(t, func(d *Database) { d.Pool.Max, d.Pool.Statements = 1, 3 })
	const fetch = "fetch 1 from c"
	begin, declare, rollback := query("begin"), query("declare c cursor for select n, 'x'::text as x from fixture"), query("rollback")
	held := query("declare c cursor with hold for select n from fixture order by n")
	wide := query("declare c cursor for select n" + strings.Repeat(`, n as "a name that is as long as a name may be, which takes room"`, 999) + " from fixture where n = 1")
	named, unnamed := ask(described("p")), ask(described(""))
	gone := func(name string) string { return frame('C', "S"+name+"\x00") }
	forget := ask(parsed("x", "select 1"), parsed("y", "select 2"), parsed("z", "select 3"), gone("x"), gone("y"), gone("z")) // the server has room for three
	theirs := step{story: "another client has the server"}
	use := ask(bound("p"), frame('D', "P\x00"), executed)
	for what, steps := range map[string][]step{
		"in a block":                       {ask(parsed("p", fetch)), forget, begin, declare, named, use, use, rollback, named, begin, declare, named, use, rollback},
		"of a cursor that stays":           {ask(parsed("p", fetch)), forget, held, named, use, forget, named, query("close c"), named},
		"behind another in its cycle":      {ask(parsed("", "select 1"), bound(""), executed, parsed("p", fetch)), forget, begin, declare, named, use, rollback},
		"before the cursor in its block":   {begin, ask(parsed("p", fetch), described("p")), declare, named, use, rollback, forget, begin, declare, named, rollback},
		"before the cursor in its cycle":   {begin, ask(parsed("p", fetch), parsed("", declare.story), bound(""), executed, described("p")), named, use, rollback, forget, begin, declare, named, rollback},
		"behind the cursor":                {begin, declare, ask(parsed("p", fetch)), named, use, rollback, forget, begin, declare, named, use, rollback},
		"behind the cursor in its cycle":   {begin, ask(parsed("", declare.story), bound(""), executed, parsed("p", fetch), described("p")), named, use, rollback, forget, begin, declare, named, rollback},
		"behind one that stays":            {held, ask(parsed("p", fetch)), forget, named, use},
		"a cursor of the protocol":         {begin, ask(parsed("", "select n from fixture"), frame('B', "c\x00\x00\x00\x00\x00\x00\x00\x00")), ask(parsed("p", fetch), described("p")), use, rollback},
		"the unnamed one":                  {ask(parsed("", fetch)), ask(parsed("begin", "begin"), bound("begin"), executed), ask(parsed("d", declare.story), bound("d"), executed), unnamed, ask(bound(""), frame('D', "P\x00"), executed)},
		"the unnamed one, elsewhere":       {ask(parsed("", fetch)), theirs, ask(parsed("begin", "begin"), bound("begin"), executed), ask(parsed("d", declare.story), bound("d"), executed), unnamed, ask(bound(""), executed)},
		"the unnamed one, in a block":      {begin, ask(parsed("", fetch)), ask(parsed("d", declare.story), bound("d"), executed), unnamed, ask(bound(""), executed), unnamed},
		"the unnamed one, with the cursor": {begin, declare, ask(parsed("", fetch)), unnamed, ask(bound(""), executed), ask(parsed("", "select 1"), described("")), unnamed},
		"the unnamed one, twice":           {begin, declare, ask(parsed("", "fetch 1 from d"), parsed("", fetch), described("")), unnamed, ask(parsed("", fetch), parsed("", "fetch 1 from d")), unnamed},
		"when all is lost":                 {ask(parsed("p", fetch), parsed("", fetch)), forget, begin, declare, query("select 1/0"), named, rollback, begin, declare, ask(parsed("q", fetch)), query("select 1/0"), ask(described("q")), named},
		"with a parameter":                 {ask(frame('P', "p\x00"+fetch+"\x00\x00\x01\x00\x00\x00\x17")), forget, begin, declare, named},
		"whose name is closed":             {begin, declare, ask(parsed("p", fetch)), ask(gone("p")), rollback, ask(parsed("p", fetch)), named, begin, declare, named},
		"prepared behind a failure":        {begin, declare, ask(bound("none"), parsed("p", fetch), described("p")), named, rollback, named, ask(parsed("p", fetch), described("p"))},
		"prepared twice":                   {begin, declare, ask(parsed("p", fetch)), ask(parsed("p", fetch), described("p")), rollback, begin, declare, named},
		"a MOVE":                           {ask(parsed("p", "move 1 in c")), forget, begin, declare, named, ask(bound("p"), executed), rollback},
		"of very many columns":             {begin, wide, ask(parsed("p", fetch), parsed("", "select 2"), bound(""), executed), named, use, rollback},
		"all at once":                      {begin, declare, {"three cycles", parsed("p", fetch) + synced + described("p") + synced + described("p") + bound("p") + executed + synced, 3}, rollback},
		"by SQL":                           {ask(parsed("p", fetch)), ask(parsed("q", "execute p")), forget, begin, declare, ask(described("q")), ask(parsed("", "execute p"), described("")), query("execute p"), ask(described("q"))},
	} {
		t.Run(what, func(t *testing.T) {
			// Another has the same statement, from when it had such a cursor.
			other := m.sides(nil)[0]
			defer other.conn.Close()
			for _, one := range []step{begin, declare, ask(parsed("p", fetch), bound("p"), executed), rollback} {
				other.say(one)
				other.hear(one.ready)
			}
			both := m.enter(t, nil)
			for i, one := range steps {
				if one.story == theirs.story {
					other.say(query("select 1"))
					other.hear(1)
					continue
				}
				for _, p := range both {
					p.say(one)
				}
				if pooled, direct := both[0].hear(one.ready), both[1].hear(one.ready); pooled != direct {
					t.Fatalf("%d. %q\nPOOLED\n%s\nDIRECT\n%s", i, one.story, pooled, direct)
				}
			}
		})
	}
}

// PostgreSQL (15) crashes when it is to describe a FETCH that was prepared when there was a cursor, and there is none.
func TestAServerIsNotAskedAboutAFetchWhoseCursorIsGone(t *testing.T) {
	h := run(t, config(database(pg.Start(t).URL(), one)))
	for what, c := range map[string]struct{ before, fetch string }{
		"prepared now":             {"", parsed("p", "fetch 1 from c") + described("p")},
		"prepared with the cursor": {frame('Q', "begin; declare c cursor for select 1\x00") + parsed("p", "fetch 1 from c") + synced + frame('Q', "rollback\x00"), described("p")},
		"the unnamed one":          {parsed("begin", "begin") + bound("begin") + executed + parsed("d", "declare c cursor for select 1") + bound("d") + executed + parsed("", "fetch 1 from c") + parsed("end", "commit") + bound("end") + executed + synced, described("")},
		"executed by another":      {frame('Q', "begin; declare c cursor for select 1\x00") + parsed("p", "fetch 1 from c") + parsed("q", "execute p") + synced + frame('Q', "rollback\x00"), described("q")},
	} {
		t.Run(what, func(t *testing.T) {
			earlier, later := newFrontend(t, h), newFrontend(t, h)
			earlier.send(frame('Q', "begin; declare c cursor for select 1\x00") + parsed("p", "fetch 1 from c") + synced + frame('Q', "rollback\x00"))
			earlier.expect("CCZ1ZCZ")
			later.send(c.before + c.fetch + synced)
			var last byte
			for typ := byte(0); typ != 't'; last = typ {
				var err error
				if typ, _, err = later.in.Next(); err != nil || typ == 'E' {
					t.Fatalf("%c behind %c: %v", typ, last, err)
				}
			}
			later.expect("nZ")
		})
	}
}

// inTurn logs in to both sides and returns what plays the same steps on both, whose answers must not differ.
func (m *match) inTurn(t *testing.T, login []string) (play func([]step)) {
	t.Helper()
	both := m.enter(t, login)
	return func(steps []step) {
		t.Helper()
		for _, one := range steps {
			for _, p := range both {
				p.say(one)
			}
			if pooled, direct := both[0].hear(one.ready), both[1].hear(one.ready); pooled != direct {
				t.Fatalf("%q\nPOOLED\n%s\nDIRECT\n%s", one.story, pooled, direct)
			}
		}
	}
}

// lockable makes a table, with one row, and returns what locks it and what frees it, and does something before.
func lockable(t *testing.T, s *pgtest.Server, table string, before ...string) (lock, free func()) {
	t.Helper()
	if err := s.Exec(t.Context(), "drop table if exists "+table+"; create table "+table+" as select 7 as n"); err != nil {
		t.Fatal(err)
	}
	locker, err := pgx.Connect(t.Context(), s.URL())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { locker.Close(context.WithoutCancel(t.Context())) })
	do := func(sql string) {
		if _, err := locker.Exec(context.WithoutCancel(t.Context()), sql, simple); err != nil {
			t.Error(err)
		}
	}
	return func() { do("begin; lock table " + table) }, func() { do(strings.Join(append(before, "rollback"), ";")) }
}

// A server that does not take a statement for the moment, since somebody has locked its table, is not told it under
// other settings, which others who have prepared the same would be given too.
func TestAStatementThatIsRefusedForTheMomentKeepsItsMeaning(t *testing.T) {
	s := pg.Start(t)
	lock, free := lockable(t, s, "public.locked", `do $$ begin
		for n in 1..20000 loop exit when exists (select from pg_locks where not granted); perform pg_sleep(0.001); end loop;
		perform pg_sleep(0.15); end $$`) // longer than the limit, and before it would give up once more
	change := func(name, sql string) string { return parsed(name, sql) + bound(name) + executed + synced } // a Query drops the unnamed one
	for what, c := range map[string]struct{ use, want string }{
		"by the protocol": {bound("s") + executed + synced, "2DCZ"},
		"behind others":   {parsed("", "select 'other'") + bound("") + executed + bound("s") + executed + synced, "12DC2DCZ"},
		"described":       {described("s") + bound("s") + executed + synced, "tT2DCZ"},
		"in SQL":          {frame('Q', "execute s\x00"), "TDCZ"},
		"in a long text":  {frame('Q', "/*"+strings.Repeat(" ", 8000)+"*/ execute s\x00"), "TDCZ"},
		"in a long cycle": {bound("s") + executed + parsed("", "/*"+strings.Repeat(" ", 100_000)+"*/") + bound("s") + executed + synced, "2DC12DCZ"},
		"unnamed":         {bound("") + executed + synced, "2DCZ"},
	} {
		for _, begin := range []string{"", "begin"} {
			t.Run(what+" "+begin, func(t *testing.T) {
				h := run(t, config(database(s.URL(), one)))
				a, other := newFrontend(t, h), newFrontend(t, h)
				for _, f := range []*frontend{other, a} {
					f.send(change("dmy", "set datestyle = 'ISO, DMY'"))
					f.expect("12CZ")
					for _, name := range []string{"s", ""} {
						f.send(parsed(name, "select (date '01/02/2020')::text from public.locked") + synced)
						f.expect("1Z")
					}
				}
				a.send(change("mdy", "set datestyle = 'ISO, MDY'") + change("limit", "set lock_timeout = '100ms'"))
				a.expect("12CZ12CZ")
				if err := h.Reconnect("app"); err != nil {
					t.Fatal(err)
				}
				lock()
				if begin != "" {
					a.send(change("begin", begin))
					a.expect("12CZ")
				}
				freed := make(chan struct{})
				go func() { free(); close(freed) }()
				a.send(c.use)
				a.fails("while the table is locked", "", "55P03")
				if begin != "" {
					a.send(change("one", "select 1"))
					a.fails("in the aborted transaction", "", "25P02")
					a.send(change("rollback", "rollback"))
					a.expect("12CZ")
				}
				<-freed
				for _, f := range []*frontend{a, other} {
					f.send(c.use)
					f.expectFor(what, c.want)
					if f.row != "2020-02-01" {
						t.Errorf("got %s", f.row)
					}
				}
			})
		}
	}
}
