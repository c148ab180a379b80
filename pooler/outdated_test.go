package pooler

import (
	"encoding/binary"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
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

// elsewhere lets a client go on on another server than it began on, behind a change of the schema by another client.
func (h *house) elsewhere(t *testing.T, m *match, made string, first []step, change string, then []step) (faults int) {
	t.Helper()
	client, changes, holds := m.enter(t, nil), m.enter(t, nil), m.enter(t, nil)
	m.same(t, "made", changes, []step{query("drop table if exists moving; " + made)}, nil)
	faults = m.same(t, "first", client, first, nil)
	m.same(t, "changed", changes, []step{query(change)}, nil)
	h.rests(t)
	m.same(t, "held", holds, []step{query("begin")}, nil) // the server that the client had is the first that is given out again
	return faults + m.same(t, "then", client, then, nil)
}

// rests waits until no server is lent.
func (h *house) rests(t *testing.T) {
	await(t, "no server is lent", func() bool { return h.Stats().Databases[0].Active == 0 })
}

func bindBinary(name, value string, formats ...uint16) string {
	body := "\x00" + name + "\x00\x00\x01\x00\x01\x00\x01"
	body += string(binary.BigEndian.AppendUint32(nil, uint32(len(value)))) + value
	body += string(binary.BigEndian.AppendUint16(nil, uint16(len(formats))))
	for _, f := range formats {
		body += string(binary.BigEndian.AppendUint16(nil, f))
	}
	return frame('B', body)
}

// PostgreSQL keeps the types of a statement's parameters; a client sends values as it was told them.
func TestParametersHaveTheTypesThatTheClientWasToldOnEveryServer(t *testing.T) {
	h, m := newMatch(t, func(d *Database) { d.Pool.Max = 2 })
	const made, seven = "create table moving (v bigint); insert into moving values (5)", "\x00\x00\x00\x00\x00\x00\x00\x07"
	const five = "\x00\x00\x00\x00\x00\x00\x00\x05"
	const update, look = "update moving set v = $1", "select v::text from moving where v = $1"
	toFloat, see := "alter table moving alter v type float8", query("select v::text from moving")
	write, read := ask(bindBinary("p", seven), executed), ask(bindBinary("p", five, 0), executed)
	unnamed := ask(bindBinary("", seven), executed)
	for what, c := range map[string]struct {
		change      string
		first, then []step
	}{
		"what is written":           {toFloat, []step{ask(parsed("p", update), described("p"))}, []step{write, see, ask(described("p")), write}},
		"in a later cycle":          {toFloat, []step{ask(parsed("p", update)), ask(described("p"))}, []step{write, see}},
		"what is looked for":        {toFloat, []step{ask(parsed("p", look), described("p")), read}, []step{read, read}},
		"which is shorter":          {"alter table moving alter v type int", []step{ask(parsed("p", update), described("p"))}, []step{write, see}},
		"which does not fit":        {"alter table moving alter v type text", []step{ask(parsed("p", look), described("p"))}, []step{read, see}},
		"in an aborted transaction": {toFloat, []step{ask(parsed("p", update), described("p"))}, []step{query("begin; select 1 / 0"), ask(described("p")), query("rollback"), write, see}},
		"prepared again":            {toFloat, []step{ask(parsed("p", update), described("p"))}, []step{ask(frame('C', "Sp\x00")), ask(parsed("p", update), described("p")), ask(bindBinary("p", "\x40\x1c\x00\x00\x00\x00\x00\x00"), executed), see}},
		"under two names":           {toFloat, []step{ask(parsed("p", update), described("p")), ask(parsed("q", update))}, []step{ask(bindBinary("q", seven), executed), see, ask(described("q"))}},
		"the unnamed one":           {toFloat, []step{ask(parsed("", update), described(""))}, []step{unnamed, see}},
		"the unnamed one, known":    {toFloat, []step{ask(parsed("", update), described("")), ask(parsed("", update), described(""))}, []step{unnamed, see}},
		"the unnamed one, later":    {toFloat, []step{ask(parsed("", update)), ask(described(""))}, []step{unnamed, see}},
		"told behind an error":      {toFloat, []step{ask(parsed("", update)), ask(bound("none"), described("")), ask(described(""))}, []step{unnamed, see}},
		"and told again":            {toFloat, []step{ask(parsed("", update), described(""))}, []step{ask(described("")), unnamed, see}},
		"behind another":            {toFloat, []step{ask(parsed("", "select 1"), described(""), parsed("", update), described(""))}, []step{unnamed, see}},
		"all at once":               {toFloat, []step{{"two cycles", parsed("p", update) + described("p") + synced + parsed("", update) + described("") + synced, 2}}, []step{write, see}},
	} {
		t.Run(what, func(t *testing.T) { h.elsewhere(t, m, made, c.first, c.change, c.then) })
	}
	t.Run("who is told later", func(t *testing.T) { // on whichever server, it is what holds on all
		changes, client, holds := m.sides(nil)[0], m.sides(nil)[0], m.sides(nil)[0]
		defer changes.conn.Close()
		defer client.conn.Close()
		defer holds.conn.Close()
		tell := func(p *player, s step) string { p.say(s); return p.hear(s.ready) }
		tell(changes, query("drop table moving; "+made))
		tell(client, ask(parsed("p", update)))
		tell(changes, query(toFloat))
		h.rests(t)
		tell(holds, query("begin"))
		tell(client, ask(bindTexts("", "p", []string{"6"}), executed))
		tell(client, ask(described("p")))
		tell(changes, query("select 1"))
		tell(holds, query("rollback"))
		tell(client, ask(bindBinary("p", "\x40\x1c\x00\x00\x00\x00\x00\x00"), executed))
		if got := tell(client, see); !strings.Contains(got, "7") {
			t.Error(got)
		}
	})
}

// PostgreSQL lets no statement return other columns than it has told. Drivers prepare it anew for that.
func TestAStatementReturnsNoOtherColumnsThanItsClientWasToldOnAnyServer(t *testing.T) {
	h, m := newMatch(t, func(d *Database) { d.Pool.Max = 2 })
	const made, star = "create table moving (a int, b text); insert into moving values (7, 'x')", "select * from moving"
	const toBigint, wider = "alter table moving alter a type bigint", "alter table moving add c int default 3"
	told, use, portal := ask(parsed("p", star), described("p")), ask(bound("p"), executed), frame('D', "P\x00")
	byPortal := ask(parsed("p", star), bound("p"), portal, executed)
	shut := frame('C', "Sp\x00")
	fresh := ask(shut, parsed("p", star), described("p"), bound("p"), executed)
	begin, rollback := query("begin"), query("rollback")
	const unrelated, serializable, called = "create table if not exists unrelated (n int)", "set transaction isolation level serializable", "call proc(1)"
	made1, made2 := query("drop procedure if exists proc; create procedure proc(x int) language plpgsql as 'begin end'"), "drop procedure proc; create procedure proc(inout x int) language plpgsql as 'begin x := 5; end'"
	isolation := query("show transaction_isolation")
	for what, c := range map[string]struct {
		change      string
		first, then []step
	}{
		"another type":              {toBigint, []step{told}, []step{use, use, fresh, use}},
		"one more":                  {wider, []step{told}, []step{use, use, ask(shut), ask(parsed("p", star)), ask(described("p")), use}},
		"one less":                  {"alter table moving drop column b", []step{told}, []step{use, fresh}},
		"another name":              {"alter table moving rename a to c", []step{told}, []step{use, fresh}},
		"another length":            {"alter table moving alter b type varchar(7)", []step{told}, []step{use, fresh}},
		"another table like it":     {"drop table moving; " + made, []step{told}, []step{use, use, fresh}},
		"none":                      {"drop table moving", []step{told}, []step{use, use}},
		"the same":                  {"create table if not exists unrelated (n int)", []step{told}, []step{use, use, ask(described("p"))}},
		"and back":                  {toBigint + "; alter table moving alter a type int", []step{told}, []step{use, use}},
		"told of by a portal":       {toBigint, []step{byPortal}, []step{use, ask(bound("p"), portal, executed), fresh}},
		"of one that has a name":    {toBigint, []step{ask(parsed("p", star), bindTexts("c", "p", nil), frame('D', "Pc\x00"), executed)}, []step{use, fresh}},
		"told of later":             {toBigint, []step{ask(parsed("p", star)), use, ask(bound("p"), portal, executed)}, []step{use, fresh}},
		"in a transaction":          {toBigint, []step{told}, []step{begin, use, use, ask(described("p")), rollback, use, begin, query("select 1"), fresh, rollback, use}},
		"behind a savepoint":        {wider, []step{told}, []step{query("begin; savepoint s"), use, query("rollback to s"), use, query("rollback to s"), fresh, rollback}},
		"the same in a transaction": {"create table if not exists unrelated (n int)", []step{told}, []step{begin, use, use, rollback, use}},
		"behind what it does":       {wider, []step{told}, []step{ask(parsed("", "create table unrelated_too ()"), bound(""), executed, bound("p"), executed), query("drop table unrelated_too"), query("drop table if exists unrelated_too")}},
		"in two cycles at once":     {wider, []step{told}, []step{{"two cycles", bound("p") + executed + synced + bound("p") + executed + synced, 2}, fresh}},
		"in SQL":                    {wider, []step{told}, []step{query("execute p"), use, query("deallocate p"), told, query("execute p"), use}},
		"in SQL of several":         {wider, []step{told}, []step{query("select 1; execute p"), use}},
		"executed by another":       {wider, []step{told}, []step{ask(parsed("q", "execute p")), ask(bound("q"), executed), use}},
		"of the unnamed one":        {wider, []step{ask(parsed("", star), described(""))}, []step{ask(bound(""), executed), ask(bound(""), executed), ask(parsed("", star), described("")), ask(bound(""), executed)}},
		"which is known":            {wider, []step{ask(parsed("", star), described("")), ask(parsed("", star), described(""))}, []step{ask(bound(""), executed)}},
		"which is replaced":         {wider, []step{ask(parsed("", star), described(""))}, []step{ask(parsed("", star), bound(""), executed)}},
		"under two names":           {wider, []step{told, ask(parsed("q", star))}, []step{use, ask(bound("q"), executed), fresh}},
		"under other settings":      {wider, []step{query("set search_path = nowhere, public"), told, query("reset search_path")}, []step{use, use, begin, use, rollback, fresh}},
		"the same under others":     {"create table if not exists unrelated (n int)", []step{query("set search_path = nowhere, public"), told, query("set search_path = other")}, []step{use, use, begin, use, rollback}},
		"with parameters":           {wider, []step{ask(parsed("p", star+" where a = $1"), described("p"))}, []step{ask(bindTexts("", "p", []string{"7"}), executed), ask(shut, parsed("p", star+" where a = $1"), described("p")), ask(bindTexts("", "p", []string{"7"}), executed)}},
		"with too few":              {wider, []step{ask(parsed("p", star+" where a = $1"), described("p"))}, []step{use}},
		"behind the isolation":      {unrelated, []step{told, ask(parsed("i", serializable))}, []step{begin, ask(bound("i"), executed, bound("p"), executed), isolation, rollback}},
		"and where that is parsed":  {unrelated, []step{told}, []step{begin, ask(parsed("", serializable), bound(""), executed, bound("p"), executed), isolation, rollback}},
		"and behind a lock":         {unrelated, []step{told, ask(parsed("l", "lock table moving"))}, []step{begin, ask(bound("l"), executed, bound("p"), executed), query("set transaction read only"), rollback}},
		"of a procedure":            {made2, []step{made1, ask(parsed("p", called), described("p"))}, []step{use, ask(shut, parsed("p", called), described("p")), use}},
		"of what it writes":         {wider, []step{ask(parsed("p", "insert into moving (a) values (1) returning *"), described("p"))}, []step{use, query("select count(*) from moving")}},
		"of what returns none":      {wider, []step{ask(parsed("p", "delete from moving"), described("p"))}, []step{use}},
	} {
		t.Run(what, func(t *testing.T) { h.elsewhere(t, m, made, c.first, c.change, c.then) })
	}
}

// What does not fit the buffer cannot be looked over before.
func TestALongCycleGetsNoOtherColumnsThanItsClientWasTold(t *testing.T) {
	for change, want := range map[string]string{"create table unrelated (n int)": `\x017`, "alter table moving add c int default 3": "have changed", "select 1 --": "have changed"} {
		h, m := newMatch(t, func(d *Database) { d.Pool.Max = 2 })
		client, changes, holds := m.sides(nil)[0], m.sides(nil)[0], m.sides(nil)[0]
		tell := func(p *player, messages ...string) string {
			p.say(ask(messages...))
			return p.hear(1)
		}
		tell(changes, parsed("", "create table moving as select 7 as n"), bound(""), executed)
		tell(client, parsed("same", "select 1"), described("same"), parsed("p", "select * from moving"), described("p"))
		tell(changes, parsed("", change), bound(""), executed)
		h.rests(t)
		tell(holds, parsed("", "begin"), bound(""), executed)
		before := strings.Repeat(bound("same")+executed, 5000)
		if strings.HasSuffix(change, "--") { // as one does that makes the change itself
			before = parsed("", "alter table moving add c int default 3") + bound("") + executed
		}
		got := tell(client, before, bound("p"), executed)
		if got = got[max(0, len(got)-400):]; !strings.Contains(got, want) || strings.Contains(got, `\x013`) {
			t.Errorf("%s: %s", change, got)
		}
		for _, p := range []*player{client, changes, holds} {
			p.conn.Close()
		}
	}
}

// Nor do the types that another client was told keep a statement from being prepared that has others by now.
func TestAStatementWhoseTypesAnotherWasToldIsPreparedAnewOnEveryServer(t *testing.T) {
	_, m := newMatch(t, func(d *Database) { d.Pool.Max = 2 })
	const text = "select v from moving where v = $1"
	use := ask(bindTexts("", "p", []string{"x"}), executed)
	for what, steps := range map[string][]step{
		"with its Parse":   {ask(parsed("p", text), described("p")), use},
		"behind it":        {ask(parsed("p", text)), ask(described("p")), use},
		"in a transaction": {query("begin"), ask(parsed("p", text)), query("rollback"), ask(parsed("p", text), described("p")), use},
	} {
		t.Run(what, func(t *testing.T) {
			client, earlier, holds, makes := m.sides(nil), m.sides(nil), m.sides(nil), m.sides(nil)
			for _, both := range [][2]*player{client, earlier, holds, makes} {
				defer both[0].conn.Close()
				defer both[1].conn.Close()
			}
			m.same(t, "made", makes, []step{query("drop table if exists moving; create table moving as select 1 as v"), query("select 1")}, nil)
			m.same(t, "earlier", earlier, []step{ask(parsed("p", text), described("p"))}, nil)
			for _, name := range []string{"pooled", "direct"} {
				past := logIn(m.direct, m.password, []string{"user", "postgres", "database", name})
				past.say(query("alter table moving alter v type text"))
				if got := past.hear(1); strings.Contains(got, "ERROR") {
					t.Fatal(got)
				}
				past.conn.Close()
			}
			m.same(t, "held", holds, []step{query("begin")}, nil)
			if what == "in a transaction" { // where it may fail once
				for _, s := range steps[:3] {
					client[0].say(s)
					client[0].hear(s.ready)
				}
				steps = steps[3:]
			}
			m.same(t, what, client, steps, nil)
		})
	}
}

// Who prepares behind a table that another has made by a query is led there, as by a server of its own.
func TestWhoPreparesBehindANewTableIsLedThere(t *testing.T) {
	s := pg.Start(t)
	for _, act := range []string{"create table led_first.items as select 'first'::text as n", "create table led_first.items as select 'first'::text as n; select 1", "select 'first'::text as n into led_first.items"} {
		if err := s.Exec(t.Context(), "drop schema if exists led_first cascade; drop schema if exists led_then cascade; create schema led_first; create schema led_then; create table led_then.items as select 'then'::text as n"); err != nil {
			t.Fatal(err)
		}
		h := run(t, config(database(s.URL(), one)))
		a, b, c := h.connect(t, "options=-c search_path=led_first,led_then"), h.connect(t), h.connect(t, "options=-c search_path=led_first,led_then")
		value(t, a, "select max(n) from items", pgx.QueryExecModeCacheStatement)
		do(t, b, act, simple)
		if got := value(t, c, "select max(n) from items", pgx.QueryExecModeCacheStatement); got != "first" {
			t.Errorf("%s: %s", act, got)
		}
	}
}

// While a change is under way, it may be in force before the pooler hears of it.
func TestColumnsAreAsToldWhileTheSchemaIsChanging(t *testing.T) {
	h, m := newMatch(t, func(d *Database) { d.Pool.Max = 2 })
	const star = "select * from moving"
	told, use := ask(parsed("p", star), described("p")), ask(bound("p"), executed)
	none := []step{query("select 1")}
	for what, c := range map[string]struct{ first, then, others, later []step }{
		"of a name":         {[]step{told}, []step{use}, none, []step{use}},
		"of the unnamed":    {[]step{ask(parsed("", star), described(""))}, []step{ask(bound(""), executed)}, none, none},
		"in a transaction":  {[]step{told}, []step{query("begin"), use, query("rollback"), use}, none, none},
		"to another client": {[]step{told}, none, []step{told, use}, []step{use}},
	} {
		t.Run(what, func(t *testing.T) {
			client, other, changes := m.enter(t, nil), m.enter(t, nil), m.enter(t, nil)
			m.same(t, "made", changes, []step{query("drop table if exists moving; create table moving as select 7 as a")}, nil)
			m.same(t, "first", client, c.first, nil)
			h.rests(t)
			change := query("begin; alter table moving alter a type bigint; commit; select pg_sleep(1)") // which is answered at its end
			for _, p := range changes {
				p.say(change)
			}
			look := logIn(m.direct, m.password, []string{"user", "postgres", "database", "pooled"})
			defer look.conn.Close()
			await(t, "the change is in force", func() bool {
				look.say(query("select 'yes' from pg_stat_activity where query ~ 'alter a type' and wait_event = 'PgSleep' having count(*) = 2"))
				return strings.Contains(look.hear(1), "yes")
			})
			m.same(t, "then", client, c.then, nil)
			m.same(t, "others", other, c.others, nil)
			if pooled, direct := changes[0].hear(1), changes[1].hear(1); pooled != direct {
				t.Errorf("POOLED\n%s\nDIRECT\n%s", pooled, direct)
			}
			h.rests(t)
			for _, both := range [][2]*player{client, other} { // on the server that was the change's
				m.same(t, "later", both, c.later, nil)
			}
		})
	}
}

// Nor does who prepares the same meanwhile give what it finds to those who were told something else before.
func TestWhoPreparesWhileTheSchemaIsChangingDoesNotSpoilItForOthers(t *testing.T) {
	const star = "select * from moving"
	told, use := ask(parsed("p", star), described("p")), ask(bound("p"), executed)
	for what, others := range map[string][]step{
		"described": {told, use}, "not described": {ask(parsed("p", star)), use}, "at once": {ask(parsed("p", star), bound("p"), executed), use},
		"by its portal":    {ask(parsed("p", star), bound("p"), frame('D', "P\x00"), executed)},
		"in a transaction": {query("begin"), ask(parsed("p", star)), use, query("rollback"), use},
	} {
		t.Run(what, func(t *testing.T) {
			h, m := newMatch(t, func(d *Database) { d.Pool.Max = 2 })
			client, other, changes := m.sides(nil), m.sides(nil), m.sides(nil)
			for _, both := range [][2]*player{client, other, changes} {
				defer both[0].conn.Close()
				defer both[1].conn.Close()
			}
			m.same(t, "made", changes, []step{query("drop table if exists moving; create table moving as select 7 as a")}, nil)
			m.same(t, "first", client, []step{told}, nil)
			h.rests(t)
			for _, p := range changes { // on the only server that there is, which knows the client's
				p.say(query("begin; alter table moving alter a type bigint; commit; select pg_sleep(1)"))
			}
			look := logIn(m.direct, m.password, []string{"user", "postgres", "database", "pooled"})
			defer look.conn.Close()
			await(t, "the change is in force", func() bool {
				look.say(query("select 'yes' from pg_stat_activity where query ~ 'alter a type' and wait_event = 'PgSleep' having count(*) = 2"))
				return strings.Contains(look.hear(1), "yes")
			})
			m.same(t, "others", other, others, nil)
			m.same(t, "then", client, []step{use}, nil)
			if pooled, direct := changes[0].hear(1), changes[1].hear(1); pooled != direct {
				t.Errorf("POOLED\n%s\nDIRECT\n%s", pooled, direct)
			}
			h.rests(t)
			for _, both := range [][2]*player{client, other, client} {
				m.same(t, "later", both, []step{use, query("begin"), query("select 1"), use, query("rollback")}, nil)
			}
		})
	}
}

// So is one with a parameter of a type that is gone, for which PostgreSQL has an internal error.
func TestAStatementThatAnotherWasToldATypeOfThatIsGoneIsPreparedAnew(t *testing.T) {
	_, m := newMatch(t, one)
	p := ask(parsed("p", "select a from moody where m = $1"), described("p"))
	makes, earlier, client, past := m.sides(nil)[0], m.sides(nil)[0], m.sides(nil)[0], logIn(m.direct, m.password, []string{"user", "postgres", "database", "pooled"})
	for _, turn := range []struct {
		by *player
		step
	}{
		{makes, query("create type mood as enum ('a'); create table moody as select 7 as a, 'a'::mood as m")}, {earlier, p},
		{past, query("drop type mood cascade; create type mood as enum ('a'); alter table moody add m mood default 'a'")},
		{client, p}, {client, ask(bindTexts("", "p", []string{"a"}), executed)},
	} {
		turn.by.say(turn.step)
		if got := turn.by.hear(1); strings.Contains(got, "ERROR") {
			t.Errorf("%s: %s", turn.story, got)
		}
	}
	for _, p := range []*player{makes, earlier, client, past} {
		p.conn.Close()
	}
}

// However a change ends, it does.
func TestAChangeOfTheSchemaEnds(t *testing.T) {
	h := run(t, config(database(pg.Start(t).URL(), func(d *Database) { d.Pool.Max = 2 })))
	const change = "alter table ending add column if not exists n int"
	do(t, h.connect(t), "create table if not exists ending ()", simple)
	home := h.policy.Load().pools["app"].home()
	for _, sent := range []string{
		frame('Q', change+"\x00"), frame('Q', "begin; "+change+"; rollback\x00"), frame('Q', "begin; "+change+"\x00"), frame('Q', "alter table nowhere add n int\x00"), frame('Q', change+"; select 1/0\x00"),
		parsed("", change) + bound("") + executed + synced, parsed("", change) + synced, frame('Q', "create temp table mine (); "+change+"\x00"), frame('Q', "do $$ begin "+change+"; end $$\x00"),
		frame('Q', "begin; "+change+"; select pg_sleep(10)\x00"), frame('Q', "select 1 as n into temp also\x00"),
	} {
		for _, stays := range []bool{true, false} {
			f := newFrontend(t, h)
			if f.send(sent); stays {
				await(t, "it is answered", func() bool {
					return h.Stats().Databases[0].Active == 0 || strings.Contains(sent, "begin;") || strings.Contains(sent, "temp")
				})
			}
			f.conn.Close()
			await(t, "nothing is changing behind "+sent, func() bool { return h.Stats().Clients == 1 && home.hidden.changing.Load() == 0 })
		}
	}
}
