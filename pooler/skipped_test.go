package pooler

import (
	"strings"
	"testing"

	"mainstay.dev/mainstay/pooler/internal/pgwire"
)

// Messages of the extended protocol.
func parse(name, sql string) string { return frame('P', name+"\x00"+sql+"\x00\x00\x00") }

func runs(portal, name string, values ...string) string {
	return bindTexts(portal, name, values) + frame('E', portal+"\x00\x00\x00\x00\x00")
}

var endCycle = frame('S', "")

// fails expects an error, with this SQLSTATE, and the cycle's end.
func (f *frontend) fails(what, before, code string) {
	f.t.Helper()
	for _, want := range before + "EZ" {
		typ, body, err := f.in.Next()
		for err == nil && typ == pgwire.ParameterStatus {
			typ, body, err = f.in.Next()
		}
		if err != nil || rune(typ) != want {
			f.t.Fatalf("%s: got %c, %v; want %c", what, typ, err, want)
		}
		if typ == pgwire.ErrorResponse && string(pgwire.Field(body, 'C')) != code {
			f.t.Errorf("%s: %s %s, want %s", what, pgwire.Field(body, 'C'), pgwire.Field(body, 'M'), code)
		}
	}
}

func TestWhatAnErrorSkipsHasNotReplacedTheUnnamedStatement(t *testing.T) {
	h := run(t, config(database(pg.Start(t).URL(), one)))
	c, other := newFrontend(t, h), newFrontend(t, h)
	disturb := func() { // the server's unnamed statement is another's
		other.send(parse("", "select 'theirs'") + runs("", "") + endCycle)
		other.expect("12DCZ")
	}
	for what, skipped := range map[string]string{
		"replaced": parse("", "select 'new'"), "twice": parse("", "select 'new'") + parse("", "select 'newer'") + runs("", ""),
		"closed": frame('C', "S\x00"), "deallocates": parse("", "deallocate none"),
	} {
		for _, disturbed := range []bool{true, false} {
			c.send(parse("", "select 'old'") + endCycle)
			c.expectFor(what, "1Z")
			if disturbed {
				disturb()
			}
			c.send(runs("c", "none") + skipped + endCycle)
			c.fails(what, "", "26000")
			if disturbed {
				disturb()
			}
			c.send(runs("", "") + endCycle)
			if c.expectFor(what, "2DCZ"); c.row != "old" {
				t.Errorf("%s: got %s", what, c.row)
			}
		}
	}
	c.send(parse("", "select 'old'") + endCycle)
	c.expect("1Z")
	disturb()
	c.send(runs("c", "none") + runs("", "") + frame('H', "") + endCycle + runs("", "") + endCycle) // it is not given to the server at once
	if c.expect("EZ2DCZ"); c.row != "old" {
		t.Errorf("pipelined: got %s", c.row)
	}
	c.send(parse("", "select 'old'") + runs("", "") + parse("", "selec") + endCycle) // it fails itself
	c.fails("refused", "12DC", "42601")
	c.send(runs("", "") + endCycle)
	c.fails("refused", "", "26000")
	c.send(parse("", "select 'old'") + endCycle + runs("c", "none") + parse("", "select 'new'") + endCycle + frame('Q', "select 1\x00"))
	c.expect("1ZEZTDCZ") // which drops what was there
	c.send(runs("", "") + endCycle)
	c.fails("a simple query", "", "26000")
}

func TestTheUnnamedStatementIsWhatItWasBehindNamesThatAreTakenOrSkipped(t *testing.T) {
	h := run(t, config(database(pg.Start(t).URL(), one)))
	c := newFrontend(t, h)
	c.send(parse("p", "select 1") + endCycle + frame('Q', "begin read only\x00") + parse("", "select 1 into temp mine") + runs("", "") + endCycle)
	c.fails("it writes", "1ZCZ12", "25006")
	c.send(parse("p", "select 1") + parse("", "select 'new'") + endCycle)
	c.fails("the name is taken", "", "25P02")
	c.send(frame('D', "S\x00") + runs("", "") + endCycle)
	c.fails("as the server has it still", "tn", "25P02")
	c.send(runs("", "none") + parse("q", "select 1") + endCycle)
	c.fails("it is known by another name", "", "26000")
	c.send(frame('D', "S\x00") + runs("", "") + endCycle)
	c.fails("as the server has it still", "tn", "25P02")
}

func TestAnAbortedTransactionRefusesAStatementForPostgreSQLsReason(t *testing.T) {
	h := run(t, config(database(pg.Start(t).URL(), one)))
	c, other := newFrontend(t, h), h.connect(t)
	c.send(parse("p", "select $1::int + $2") + parse("end", "rollback") + parse("", "select $1::text") + endCycle)
	c.expect("111Z")
	for _, name := range []string{"p", ""} {
		do(t, other, "discard all") // the server knows nothing now
		do(t, other, "select 'theirs'")
		if name == "" {
			c.send(parse("", "select $1::text") + endCycle)
			c.expect("1Z")
			do(t, other, "select 'theirs'")
		}
		c.send(parse("b", "begin") + runs("", "b") + endCycle + runs("", "none") + frame('C', "Sb\x00") + endCycle)
		c.expect("12CZEZ")
		c.send(frame('C', "Sb\x00") + endCycle)
		c.expect("3Z")
		c.send(runs("", name, "1", "2", "3") + endCycle)
		c.fails("too many parameters", "", "08P01")
		values := []string{"1", "2"}
		if name == "" {
			values = values[:1]
		}
		c.send(runs("", name, values...) + endCycle)
		c.fails("as many as there are", "", "25P02")
		c.send(parse("q", "select 1") + endCycle)
		c.fails("Parse", "", "25P02")
		c.send(runs("", "end") + runs("", name, values...) + endCycle)
		c.expect("2C2DCZ")
	}
}

func TestAParseIsRefusedWhereTheSettingsHaveChanged(t *testing.T) {
	s := pg.Start(t)
	if err := s.Exec(t.Context(), "create table if not exists located (n int)"); err != nil {
		t.Fatal(err)
	}
	h := run(t, config(database(s.URL(), one)))
	c, other := newFrontend(t, h), newFrontend(t, h)
	other.send(parse("theirs", "select n from located") + endCycle) // the server knows it
	other.expect("1Z")
	for _, sql := range []string{"set local search_path = pg_catalog", "select set_config('search_path', '', true)", "set search_path = pg_catalog"} {
		c.send(parse("b", "begin") + runs("", "b") + frame('C', "Sb\x00") + parse("s", sql) + runs("", "s") + frame('C', "Ss\x00") + endCycle)
		want := "12C312C3Z"
		if strings.HasPrefix(sql, "select") {
			want = "12C312DC3Z"
		}
		c.expectFor(sql, want)
		c.send(parse("mine", "select n from located") + endCycle)
		c.fails(sql, "", "42P01")
		c.send(parse("r", "rollback") + runs("", "r") + frame('C', "Sr\x00") + parse("mine", "select n from located") + frame('C', "Smine\x00") + endCycle)
		c.expectFor(sql, "12C313Z")
	}
}

func TestWhatIsPipelinedBehindAResetSeesTheLoginsSettings(t *testing.T) {
	h := run(t, config(database(pg.Start(t).URL(), func(d *Database) { d.Pool.Max = 2 })))
	c := newFrontend(t, h, "options", "-c work_mem=9MB", "application_name", "at login")
	for _, r := range []struct{ sql, want string }{
		{"reset work_mem", "CZ"}, {"reset all", "CZ"}, {"discard all", "CZ"}, {"set work_mem = default", "CZ"},
		{"begin; set work_mem = '5MB'; reset work_mem", "CCCZ"}, {"begin; set local work_mem = default", "CCZ"},
	} {
		c.send(frame('Q', "set work_mem = '7MB'\x00") + frame('Q', r.sql+"\x00") + frame('Q', "show work_mem\x00") + frame('Q', "show application_name\x00") + frame('Q', "rollback\x00"))
		c.expectFor(r.sql, "CZ"+r.want+"TDCZ")
		got := c.row
		c.expectFor(r.sql, "TDCZCZ")
		if got != "9MB" || c.row != "at login" {
			t.Errorf("%s: %s, %s", r.sql, got, c.row)
		}
	}
}

// A name that SQL's PREPARE has made is dropped by what is pipelined before a Parse of it:
// the Parse must leave nothing on the server under that name, which others could use.
func TestAParseBehindWhatDropsItsNameIsItsClientsOwn(t *testing.T) {
	h := run(t, config(database(pg.Start(t).URL(), func(d *Database) { d.Pool.Max = 1 })))
	for _, drops := range []string{"discard all", "deallocate all", "deallocate p1"} {
		c, other := newFrontend(t, h), newFrontend(t, h)
		c.send(frame('Q', "prepare p1 as select 'by SQL'\x00"))
		c.expectFor(drops, "CZ")
		c.send(parse("", drops) + runs("", "") + parse("p1", "select 'by the protocol'") + runs("", "p1") + endCycle)
		c.expectFor(drops, "12C12DCZ")
		other.send(frame('D', "Sp1\x00") + endCycle)
		other.fails(drops+", the next client", "", "26000")
		c.send(runs("", "p1") + endCycle)
		c.expectFor(drops, "2DCZ")
		if c.row != "by the protocol" {
			t.Errorf("%s: p1 is %q", drops, c.row)
		}
		c.send(parse("p1", "select 'once more'") + endCycle)
		c.fails(drops+", once more", "", "42P05")
	}
}

// PostgreSQL passes over a Query, too, in the middle of a cycle that has failed, and waits for a Sync.
func TestAQueryAmidACycleThatFailsIsPassedOver(t *testing.T) {
	for _, mode := range []string{modeTransaction, modeSession} {
		_, m := newMatch(t, func(d *Database) { d.Mode = mode })
		bad, good, long := parse("", "select broken"), parse("", "select 'good'"), "/*"+strings.Repeat(" ", 100_000)+"*/"
		of := func(ready int, parts ...string) step { return step{mode, strings.Join(parts, ""), ready} }
		simple := func(sql string) string { return query(sql).bytes }
		for what, steps := range map[string][]step{
			"a query":            {of(1, bad, simple("select 1"), endCycle)},
			"executed":           {of(2, good, runs("", ""), simple("select 1"), endCycle)},
			"fails itself":       {of(2, good, runs("", ""), simple("select broken"), endCycle)},
			"two":                {of(1, bad, simple("select 1"), simple("select 2"), runs("", ""), endCycle)},
			"with more behind":   {of(2, bad, simple("select 1"), good, runs("", ""), endCycle, good, runs("", ""), endCycle)},
			"in a transaction":   {query("begin"), of(1, good, runs("c", "none"), simple("commit"), endCycle), query("rollback")},
			"that deallocates":   {query("prepare p as select 'p'"), of(1, bad, simple("deallocate p"), endCycle), query("execute p"), query("deallocate p")},
			"a late Sync":        {of(1, bad, simple("select 1"), frame('H', ""), endCycle)},
			"named before":       {of(1, parse("", "select 'kept'"), runs("c", "none"), simple("select 1"), endCycle), of(1, runs("", ""), endCycle)},
			"unnamed by a query": {of(2, parse("", "select 'dropped'"), runs("", ""), simple("select 1"), runs("", ""), endCycle)},
			"closes before":      {of(2, frame('C', "Sp\x00"), frame('C', "Pc\x00"), good, runs("", ""), simple("select 1"), frame('C', "Sp\x00"), endCycle)},
			"one transaction":    {query("create table if not exists amid (n int unique); truncate amid"), of(2, parse("", "insert into amid values (1)"), runs("", ""), simple("insert into amid values (1)"), endCycle), query("select * from amid")},
			"a function":         {of(1, bad, frame('F', "\x00\x00\x04\xe5\x00\x00\x00\x00\x00\x00"), endCycle)},
			"waits in COPY":      {of(1, parse("", "copy things from stdin"), runs("", ""), simple("select 1"), endCycle)},
			"behind a COPY":      {of(2, parse("", "copy things from stdin"), runs("", ""), frame('c', ""), simple("select 1"), endCycle)},
			"a long one":         {of(1, bad, simple("select 1"+long), endCycle)},
			"behind a long one":  {of(1, parse("", "select 1 "+long+" + 'x'"), simple("select 1"), endCycle)},
			"a slow one":         {of(2, parse("", "select pg_sleep(0.3)"), runs("", ""), simple("select pg_sleep(0.3)"), endCycle), of(1, good, runs("c", "none"), simple("select pg_sleep(0.3)"), endCycle)},
		} {
			both := m.sides(nil)
			m.same(t, what, both, append(steps, query("select 'end'")), nil)
			for _, p := range both {
				p.conn.Close()
			}
		}
	}
}

// What SQL executes by name, amid a cycle, is not learned behind a Sync of ours: that would commit what comes before it.
func TestAQueryAmidACycleCommitsNothingOfIt(t *testing.T) {
	h := run(t, config(database(pg.Start(t).URL(), one, func(d *Database) { d.Pool.Statements = 1 })))
	do(t, h.connect(t), "create table if not exists committed (n int); truncate committed", simple)
	c := newFrontend(t, h)
	for _, name := range []string{"p", "q"} { // the server has forgotten p when it knows q
		c.send(parse(name, "select '"+name+"'") + runs("", name) + endCycle)
		c.expect("12DCZ")
	}
	c.send(parse("", "insert into committed values (1)") + runs("", "") + frame('Q', "execute p; select 1/0\x00") + endCycle)
	c.expect("12CEZZ")
	c.send(frame('Q', "select count(*) from committed\x00"))
	if c.expect("TDCZ"); c.row != "0" {
		t.Errorf("%s rows of a cycle that failed are there", c.row)
	}
}

// What is prepared behind a SET of its cycle is looked at once more when the server has been given back.
func TestATextWithABackslashIsPreparedBehindASet(t *testing.T) {
	h := run(t, config(database(pg.Start(t).URL(), one)))
	c, other := newFrontend(t, h), newFrontend(t, h)
	c.send(parse("", "set datestyle = 'German'") + runs("", "") + parse("p", `select '\x6162'::bytea::text`) + endCycle)
	c.expect("12C1Z")
	c.send(runs("", "p") + endCycle)
	if c.expect("2DCZ"); c.row != `\x6162` {
		t.Errorf("got %s", c.row)
	}
	other.send(frame('Q', "select 1\x00"))
	other.expect("TDCZ")
}
