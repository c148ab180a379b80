package pooler

import (
	"slices"
	"strings"
	"testing"
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
			mine, others := m.enter(t, nil), m.enter(t, nil)
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
	for what, one := range map[string]struct{ before, fault, use, code string }{
		"a setting too long to be shown":         {german + long + parsed("p", date), "", bound("p") + executed, "0A000"},
		"the unnamed one, in a cycle that fails": {german + parsed("", date) + fails, "22012", bound("") + executed, "26000"},
	} {
		if got := c.outcome(one.before + synced); got != one.fault {
			t.Errorf("%s: it is prepared with %q, want %q", what, got, one.fault)
		}
		do(t, other, "deallocate all", simple) // the server forgets it
		if got := c.outcome(one.use + synced); got != one.code {
			t.Errorf("%s: %q, want %q", what, got, one.code)
		}
	}
}

// What a client prepares where it sees what others do not, or what stands for the moment, is nobody else's, nor what others have
// prepared by the same text before.
func TestWhatOthersDoNotSeeIsPreparedForOneClientAlone(t *testing.T) {
	h, m := newMatch(t, func(d *Database) { d.Pool.Max = 2 })
	admin := h.connect(t)
	begin, commit, rollback := query("begin"), query("commit"), query("rollback")
	use := ask(bound("p"), executed)
	prepare := func(sql string) step { return ask(parsed("p", sql), bound("p"), executed) }
	describe := func(sql string) step { return ask(parsed("p", sql), described("p")) }
	change := func(sql string) string { return parsed("c"+sql[:4], sql) + bound("c"+sql[:4]) + executed }
	swap := "alter type sa rename to sc; alter type sb rename to sa"
	last := "select enum_last(null::sa)::text"
	type turn struct {
		who  int
		says step
	}
	for what, c := range map[string]struct {
		make  string
		turns []turn
	}{
		"the moment":                 {"create table ins (t timestamptz)", []turn{{0, prepare("insert into ins values ('now')")}, {1, query("select pg_sleep(0.05)")}, {1, begin}, {1, prepare("insert into ins values ('now')")}, {1, query("select bool_or(t = now()), count(distinct t) from ins")}, {1, commit}}},
		"a table made in the cycle":  {"create schema if not exists far; create table far.near as select 1 as n", []turn{{0, query("set search_path = public, far")}, {1, query("set search_path = public, far")}, {0, prepare("select n from near")}, {1, ask(change("create table public.near (n int)"), parsed("p", "select n from near"), bound("p"), executed)}, {1, use}, {1, query("drop table public.near")}}},
		"a type dropped in a block":  {"create schema if not exists far; create type far.ty as enum ('f'); create type public.ty as enum ('p')", []turn{{0, query("set search_path = public, far")}, {1, query("set search_path = public, far")}, {0, prepare("select enum_last(null::ty)::text")}, {1, begin}, {1, query("drop type public.ty")}, {1, prepare("select enum_last(null::ty)::text")}, {1, rollback}}},
		"types that are swapped":     {"create type sa as enum ('x'); create type sb as enum ('y')", []turn{{0, begin}, {0, query(swap)}, {1, prepare(last)}, {0, prepare(last)}, {0, commit}, {0, use}, {1, begin}, {1, query("select 1")}, {0, use}, {1, commit}}},
		"types swapped, undone":      {"create type sa as enum ('x'); create type sb as enum ('y')", []turn{{1, begin}, {1, query("savepoint a")}, {1, query(swap)}, {1, prepare(last)}, {1, query("rollback to a")}, {1, ask(parsed("r", last), bound("r"), executed)}, {1, rollback}}},
		"a function that is not yet": {"create function pf(bigint) returns text language sql as 'select $1::text'", []turn{{0, begin}, {0, query("create function pf(int) returns text language sql as 'select $1::text'; drop function pf(bigint)")}, {0, describe("select pf($1)")}, {1, describe("select pf($1)")}, {0, rollback}}},
		"a temporary table":          {"create table tp (n int)", []turn{{0, query("create temp table tp (n bigint)")}, {0, describe("select 1 from tp where n = $1")}, {1, describe("select 1 from tp where n = $1")}}},
		"what each has by SQL":       {"", []turn{{0, query("prepare q as select 1 as a")}, {0, ask(parsed("p", "execute q"))}, {1, query("prepare q as select 'x'::text as b")}, {1, ask(parsed("p", "execute q"))}, {1, ask(described("p"), bound("p"), executed)}, {0, ask(described("p"), bound("p"), executed)}}},
	} {
		t.Run(what, func(t *testing.T) {
			const clean = "drop schema if exists far cascade; drop table if exists ins, tp, public.near; drop type if exists sa, sb, sc, public.ty; drop function if exists pf(int); drop function if exists pf(bigint)"
			do(t, admin, clean, simple)
			sides := [2][2]*player{m.enter(t, nil), m.enter(t, nil)}
			m.same(t, "made", [2]*player{sides[0][0], sides[0][1]}, []step{query("select 1")}, nil)
			if c.make != "" {
				do(t, admin, c.make, simple)
				sides[0][1].say(query(clean + ";" + c.make))
				sides[0][1].hear(1)
			}
			for i, one := range c.turns {
				m.same(t, "turn", sides[one.who], []step{one.says}, nil)
				_ = i
			}
		})
	}
}

// Whatever changes the settings, and whenever: what is prepared behind it is made again under those.
func TestTheSettingsOfAParseAreKnownWhateverHasChangedThem(t *testing.T) {
	h, m := newMatch(t, one)
	other := h.connect(t)
	const date, list = "select to_char('01.02.2026'::date, 'DD Mon')", "select array_to_string('{a,null}'::text[], ',', '*')"
	const german, off, on = "set datestyle = german", "set array_nulls = off", "set array_nulls = on" // the second is not reported
	bind := func(portal, name string) string { return frame('B', portal+"\x00"+name+"\x00\x00\x00\x00\x00\x00\x00") }
	execute := func(portal string) string { return frame('E', portal+"\x00\x00\x00\x00\x00") }
	run := func(name string) string { return bind("", name) + execute("") }
	change := func(sql string) string { return parsed("", sql) + run("") }
	use, sense, parse, fails := ask(run("p")), ask(parsed("a", "select 1")), ask(parsed("p", list)), bind("", "nosuch")
	begin, commit, savepoint, back := query("begin"), query("commit"), query("savepoint a"), query("rollback to a")
	cursor, unlimited := query("declare c cursor for select set_config('array_nulls','off',false)"), query("set local statement_timeout = 0")
	iso := query("set datestyle = iso, mdy")
	for what, c := range map[string]struct {
		login        []string
		before, then []step
		keeps        bool // its server
	}{
		"a FETCH":                          {nil, []step{begin, cursor, sense, query("fetch c"), parse, commit, query(on)}, []step{use}, false},
		"a FETCH, in a cycle":              {nil, []step{ask(change("begin"), parsed("c", "declare c cursor for select set_config('array_nulls','off',false)"), run("c"), parsed("a", "select 1"), change("fetch c"), parsed("p", list), change("commit")), query(on)}, []step{use}, false},
		"a MOVE":                           {nil, []step{begin, cursor, sense, query("move c"), parse, commit, query(on)}, []step{use}, false},
		"an Execute of a cursor":           {nil, []step{begin, cursor, sense, ask(execute("c"), parsed("p", list)), commit, query(on)}, []step{use}, false},
		"what SQL has prepared":            {nil, []step{begin, query("prepare s as select set_config('array_nulls','off',false)"), query("set local xmloption = content"), sense, query("execute s"), parse, commit, query(on)}, []step{use}, false},
		"a function made since":            {nil, []step{begin, query("set local xmloption = content"), query("create function made_since() returns text language sql as $$select set_config('array_nulls','off',false)$$"), sense, query("select made_since()"), parse, commit, query(on)}, []step{use}, false},
		"a portal that was passed over":    {nil, []step{begin, ask(parsed("c", off), bind("k", "c")), savepoint, ask(fails, execute("k")), back, sense, ask(execute("k")), parse, commit, query(on)}, []step{use}, false},
		"a portal whose name is taken":     {nil, []step{begin, ask(parsed("c", off), parsed("d", "select 1"), bind("k", "c")), savepoint, ask(bind("k", "d")), back, sense, ask(execute("k")), parse, commit, query(on)}, []step{use}, false},
		"a portal that drops, passed over": {nil, []step{ask(parsed("p", "select 1")), begin, ask(parsed("c", "deallocate p"), bind("k", "c")), savepoint, ask(fails, execute("k")), back, ask(execute("k")), commit}, []step{use}, false},
		"a portal that resets, so":         {[]string{"array_nulls", "off"}, []step{query(on), begin, ask(parsed("c", "reset array_nulls"), bind("k", "c")), savepoint, ask(fails, execute("k")), back, ask(execute("k"), parsed("p", list), run("p")), commit}, []step{use, query("show array_nulls")}, false},
		"a portal that prepares, so":       {nil, []step{begin, ask(parsed("c", "prepare q as "+date), bind("k", "c")), savepoint, ask(fails, execute("k")), back, query(german), ask(execute("k")), commit, iso}, []step{query("execute q")}, true},
		"without a right to pg_settings":   {nil, []step{query("revoke select on pg_catalog.pg_settings from public"), ask(change("set role lesser"), parsed("p", date), run("p")), query("reset role"), begin, query("set role lesser"), ask(parsed("r", date)), commit, query("reset role; grant select on pg_catalog.pg_settings to public")}, []step{use, ask(run("r"))}, false},
		"of a long text":                   {nil, []step{begin, unlimited, ask(parsed("p", date+"/*"+strings.Repeat("x", 100000)+"*/")), commit}, []step{use}, false},
		"of a utility's":                   {nil, []step{begin, unlimited, ask(parsed("p", "notify c, 'é'")), commit}, []step{use}, false},
		"before the snapshot":              {nil, []step{begin, ask(change(german), parsed("p", "set transaction isolation level serializable /* é */"), run("p")), query("show transaction_isolation"), commit}, nil, false},
		"a local one, by its value":        {nil, []step{ask(parsed("c", "select set_config('datestyle', 'german', $1::bool)"), bindTexts("", "c", []string{"true"}), execute(""), parsed("p", date))}, []step{use}, false},
	} {
		t.Run(what, func(t *testing.T) {
			both := m.enter(t, c.login)
			forget := func() {
				if !c.keeps {
					do(t, other, "deallocate all", simple)
				}
			}
			m.same(t, "before", both, c.before, forget)
			m.same(t, "then", both, c.then, forget)
		})
		await(t, "the server is back", func() bool { return h.Stats().Databases[0].Active == 0 })
	}
}

// PostgreSQL looks into a statement again when a table has changed, or has been analysed, under the settings of whoever uses it then.
// What that makes of its constants is not for others.
func TestWhatPostgreSQLMakesOfAStatementSinceIsNotForOthers(t *testing.T) {
	h, m := newMatch(t, one)
	admin := h.connect(t)
	const date, array = "select '01/02/2026'::date - '2026-01-01'::date from again", "select array_to_string('{a,null}'::text[], ',', '*') from again"
	begin, commit := query("begin"), query("commit")
	prepare := func(sql string) step { return ask(parsed("p", sql), bound("p"), executed) }
	use := ask(bound("p"), executed)
	for what, c := range map[string]struct {
		sql string
		set []step // by another, in a transaction
	}{
		"a date":                  {date, []step{query("set local datestyle = 'SQL, DMY'")}},
		"an array":                {array, []step{query("set local array_nulls = off")}},
		"a date, by a value":      {date, []step{ask(parsed("", "select set_config($1, 'SQL, DMY', true)"), bindTexts("", "", []string{"datestyle"}), executed)}},
		"a date, by a function":   {date, []step{query("do $$ begin perform set_config('datestyle', 'SQL, DMY', true); end $$")}},
		"a date, for the session": {date, []step{query("set datestyle = 'SQL, DMY'")}},
		"by its name in SQL":      {date, []step{query("set local datestyle = 'SQL, DMY'"), query("execute p")}},
		"what interprets nothing": {date, []step{query("set local work_mem = '5MB'"), query("set local search_path = public")}},
		"a use that is pipelined": {date, []step{{"two cycles", query("set local datestyle = 'SQL, DMY'").bytes + use.bytes, 2}}},
	} {
		t.Run(what, func(t *testing.T) {
			do(t, admin, "drop table if exists again; create table again as select 1 as n", simple)
			a, b := m.enter(t, nil), m.enter(t, nil)
			make := query("drop table if exists again; create table again as select 1 as n")
			b[1].say(make)
			b[1].hear(1)
			for range 2 {
				m.same(t, "one", a, []step{prepare(c.sql)}, nil)
				m.same(t, "the other", b, []step{prepare(c.sql)}, nil)
				do(t, admin, "create index on again (n)", simple)
				b[1].say(query("create index on again (n)"))
				b[1].hear(1)
				m.same(t, "one, set", a, append(append([]step{begin}, c.set...), use, commit), nil)
				m.same(t, "the other, after", b, []step{use, query("execute p"), use}, nil)
				m.same(t, "the other, at last", b, []step{use, ask(frame('C', "Sp\x00"))}, nil)
				m.same(t, "one, at last", a, []step{ask(frame('C', "Sp\x00"))}, nil)
			}
		})
	}
}

// What its server does not know yet is not prepared behind a change of settings of the cycle that uses it, but before.
func TestWhatIsUsedBehindAChangeInItsCycleMeansWhatItDid(t *testing.T) {
	h, m := newMatch(t, one)
	other := h.connect(t)
	const date = "select to_char('01.02.2026'::date, 'DD Mon')"
	change := func(sql string) string { return parsed("", sql) + bound("") + executed }
	use := bound("p") + executed
	filler := strings.Repeat(parsed("", "select '"+strings.Repeat("x", 40000)+"'")+bound("")+executed, 3) // what is behind it is not read yet
	for what, c := range map[string][]step{
		"nothing":    {ask(parsed("p", date)), ask(change("do $$ begin perform set_config('app.mine', 'x', false); end $$"), filler, use), ask(filler, described("p"), use)},
		"described":  {ask(parsed("p", date)), ask(change("do $$ begin perform set_config('app.mine', 'x', false); end $$"), filler, described("p"), use)},
		"local":      {ask(parsed("p", date)), ask(change("set local datestyle = german"), use), ask(use)},
		"session":    {ask(parsed("p", date)), ask(change("set datestyle = german"), use), ask(use)},
		"begun":      {ask(parsed("p", date)), ask(change("begin"), change("set datestyle = german"), use, change("commit")), ask(use)},
		"in a block": {ask(parsed("p", date)), query("begin"), ask(change("set datestyle = german"), use), query("commit"), ask(use)},
		"several":    {ask(parsed("p", date)), {"several", ask(change("set datestyle = german")).bytes + ask(use).bytes, 2}, ask(use)},
		"query":      {ask(parsed("p", date)), query("set datestyle = german; execute p"), ask(use)},
		"table":      {ask(parsed("p", "select n from things")), ask(change("set local search_path = other"), use), ask(use)},
		"named set":  {ask(parsed("p", date), parsed("s", "set datestyle = german")), ask(bound("s")+executed, use), ask(use)},
		"large":      {ask(parsed("p", date)), ask(parsed("", "set datestyle = german")+bound("")+executed, parsed("", "select '"+strings.Repeat("x", 40000)+"'"), bound(""), executed, use), ask(use)},
	} {
		t.Run(what, func(t *testing.T) {
			both := m.enter(t, nil)
			m.same(t, "x", both, c, func() { do(t, other, "deallocate all", simple) })
		})
	}
}

// What PostgreSQL makes of a text, or of a function, under settings that are in force for a transaction alone is for that alone.
func TestWhatIsPlannedUnderASettingOfATransactionIsNotForOthers(t *testing.T) {
	h, m := newMatch(t, one)
	admin := h.connect(t)
	const functions = `create or replace function inlined() returns text language sql immutable as $$ select ('01/02/2026'::date - '2026-01-01'::date)::text || (1::float8 / 3)::text $$;
		create or replace function analysed_once() returns text language plpgsql as $$ begin return '01/02/2026'::date - '2026-01-01'::date; end $$`
	do(t, admin, functions, simple)
	stay := []string{"select analysed_once()"} // as they were first found
	if tell(t, admin, "select (current_setting('server_version_num')::int >= 180000)::text") == "true" {
		stay = append(stay, "select inlined()")
	}
	begin, commit := query("begin"), query("commit")
	set := query("set local extra_float_digits = -10; set local bytea_output = 'escape'; set local quote_all_identifiers = on; set local datestyle = 'SQL, DMY'")
	use := ask(bound("p") + executed)
	for _, sql := range []string{"select (1::float8/3)::text", `select '\xff'::bytea::text`, "select quote_ident('word')", "select inlined()", "select analysed_once()"} {
		make, makes := ask(parsed("p", sql)), ask(parsed("p", sql), bound("p"), executed)
		for what, one := range map[string][]step{
			"prepared there":           {begin, set, makes, use, commit},
			"prepared before":          {make, begin, set, use, use, commit},
			"set in the same cycle":    {begin, ask(parsed("", "set local datestyle = 'SQL, DMY'"), bound(""), executed, parsed("p", sql), bound("p"), executed), commit},
			"unnamed":                  {begin, set, ask(parsed("", sql), bound(""), executed), commit},
			"set by what is not read":  {begin, query("do $$ begin perform set_config('extra_float_' || 'digits', '-10', true); perform set_config('date' || 'style', 'SQL, DMY', true); end $$"), makes, commit},
			"how it is written":        {begin, query("set local extra_float_digits = -10; set local bytea_output = 'escape'; set local quote_all_identifiers = on"), makes, commit},
			"rolled back to a default": {begin, query("savepoint s"), set, query("rollback to s"), makes, commit},
		} {
			t.Run(sql+" "+what, func(t *testing.T) {
				a, b := m.enter(t, nil), m.enter(t, nil)
				b[1].say(query(functions))
				b[1].hear(1)
				do(t, admin, "discard plans", simple)
				m.same(t, "one", a, one, nil)
				m.same(t, "another, after it", b, []step{makes, use, query(sql)}, nil)
				if !slices.Contains(stay, sql) && what != "prepared before" {
					m.same(t, "one, again", a, append([]step{ask(frame('C', "Sp\x00"))}, one...), nil)
				}
				m.same(t, "another, at last", b, []step{use, query("execute p"), query(sql)}, nil)
			})
		}
	}
}

// So it is where no function has to be analysed anew, and, once one has been made, with that.
func TestWhatIsPlannedUnderASettingOfATransactionIsNotForOthersWithoutPlans(t *testing.T) {
	s := pg.Start(t)
	for _, sql := range []string{"drop database if exists bare", "create database bare"} {
		if err := s.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	h := run(t, config(database(strings.Replace(s.URL(), "/app?", "/bare?", 1), one)))
	a, b := newFrontend(t, h), newFrontend(t, h)
	named := "set local extra_float_digits = -10; set local quote_all_identifiers = on; set local datestyle = 'SQL, DMY'"
	computed := "do $$ begin perform set_config('extra_float_' || 'digits', '-10', true), set_config('quote_all_' || 'identifiers', 'on', true), set_config('date' || 'style', 'SQL, DMY', true); end $$"
	for _, c := range [][3]string{
		{"", "select (1::float8/3)::text", "0.3333333333333333"}, {"", "select quote_ident('word')", "word"},
		{"create function inlined() returns text language sql immutable as $$ select extract(month from '01/02/2026'::date)::text $$", "select inlined()", "1"},
		{"create function analysed() returns text language plpgsql as $$ begin return extract(month from '01/02/2026'::date)::text; end $$", "select analysed()", "1"},
	} {
		if c[0] != "" {
			a.query(c[0])
		}
		for _, set := range []string{named, computed, "commit\nset extra_float_digits = -10; set quote_all_identifiers = on; set datestyle = 'SQL, DMY'\nbegin"} {
			a.query("discard all") // and the server has no plan
			a.outcome(parsed("p", c[1]) + synced)
			a.query("begin")
			for text := range strings.SplitSeq(set, "\n") {
				a.query(text)
			}
			a.outcome(bound("p") + executed + synced)
			a.query("commit; reset all")
			if b.outcome(parsed("p", c[1]) + bound("p") + executed + synced); b.row != c[2] {
				t.Errorf("%s behind %s: %q, want %q", c[1], set, b.row, c[2])
			}
			a.outcome(frame('C', "Sp\x00") + synced)
			b.outcome(frame('C', "Sp\x00") + synced)
		}
	}
}
