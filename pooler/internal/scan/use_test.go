package scan

import "testing"

func TestTheNameThatATextUsesIsFound(t *testing.T) {
	for sql, want := range map[string]string{
		"deallocate ps": "drops ps", " /* x */ DEALLOCATE Prepare Ps;": "drops ps", `deallocate "P""s"`: `drops P"s`,
		"deallocate prepare": "drops prepare", "deallocate all": "", "deallocate prepare all": "", "deallocate a; select 1": "",
		"deallocate a b": "", `deallocate U&"a"`: "drops a", `deallocate U&"\0061"`: "", `deallocate U&"!0061" uescape '!'`: "", `deallocate U&"a""b"`: "", "deallocate 'a'": "", "deallocate": "", "select 1": "",
		"execute ps": "runs ps", "execute ps(1, ';');": "runs ps", "execute a; execute b": "", "prepare a as select 1": "makes a", "prepare a as select 1; select 2": "",
		"explain (analyze) execute ps(1)": "runs ps", "create temp table t as execute ps": "runs ps",
		"create trigger x after insert on t execute function f()": "", "explain select 1": "",
	} {
		u, ok := UseOf([]byte(sql), false)
		got := ""
		if ok {
			got = map[bool]string{true: "drops ", false: "runs "}[u.Drops] + u.Name
			if u.Makes {
				got = "makes " + u.Name
			}
		}
		if got != want {
			t.Errorf("%s: %q, want %q", sql, got, want)
		}
	}
}

func FuzzUseOf(f *testing.F) {
	for _, sql := range []string{"deallocate ps", `deallocate U&"`, "explain execute", `execute "`, "create x as execute y"} {
		f.Add([]byte(sql))
	}
	f.Fuzz(func(t *testing.T, sql []byte) {
		if u, ok := UseOf(sql, false); ok && (u.From < 0 || u.To > len(sql) || u.From >= u.To) {
			t.Errorf("%q: %+v", sql, u)
		}
	})
}

func TestATextThatMakesOnePreparedStatementIsKnown(t *testing.T) {
	for sql, want := range map[string]string{
		"prepare q as select 1": "q", "/* x */ PREPARE Q (int) AS select $1 ; -- end": "q", `prepare "A ""q" as select 1`: `A "q`,
		"prepare transaction as select 1": "transaction", "prepare transaction 'x'": "", "prepare q as select 1; select 2": "",
		"prepare q as select ';'": "q", `prepare q as select '\'`: "", "select 1": "", "prepare": "", "": "", "; prepare q as select 1": "",
	} {
		if got, ok := PreparedBy([]byte(sql)); got != want && ok || ok != (want != "") {
			t.Errorf("%s: %q, %v; want %q", sql, got, ok, want)
		}
	}
}

func TestWhatIsLookedIntoWhenItIsPreparedIsKnown(t *testing.T) {
	for sql, want := range map[string]bool{
		"select 1": true, "/* x */ Update t set n = 1": true, "((select 1))": true, "with a as (select 1) select * from a": true, "create table t as select 1": true,
		"set search_path = x": false, "begin": false, "selects": false, "": false, "(": false,
	} {
		if got := Analysed([]byte(sql)); got != want {
			t.Errorf("%s: %v", sql, got)
		}
	}
}

func TestWhatReturnsNoRowsIsKnown(t *testing.T) {
	for sql, want := range map[string]bool{
		"": true, "set x = 1": true, "/* x */ INSERT into t values ($1)": true, "insert into t values ('returning')": true, "declare c cursor for select 1": true,
		"insert into t values (1) returning n": false, "select 1": false, "show x": false, "execute q": false, "with a as (select 1) insert into t select 1": false,
		"fetch c": false, "explain select 1": false, "call f()": false, "settle": false,
	} {
		if got := Rowless([]byte(sql)); got != want {
			t.Errorf("%s: %v", sql, got)
		}
	}
}

func TestParametersAreCounted(t *testing.T) {
	for sql, want := range map[string]int{
		"select $1, $3::int, '$4', $$ $5 $$ -- $6": 3, "select 1": 0, "(select $2)": 2, "prepare q as select $1": 0, "execute q ($1)": 0,
		"explain select $1": 1, "select $65536": 0, "": 0,
	} {
		if got := Parameters([]byte(sql), false); got != want {
			t.Errorf("%s: %d, want %d", sql, got, want)
		}
	}
}

func TestHowManyParametersAStatementTakesIsKnown(t *testing.T) {
	for sql, want := range map[string]int{
		"select $1, $3::int": 3, "insert into t values (1)": 0, "declare c cursor for select $2": 2, "set x = 1": 0, "execute q ($1)": 0, "create table t (n int)": 0, "": 0,
		"create view v as select $1": -1, "explain execute q ($1)": -1, "call f($1)": -1, `select 'a\' || $1`: -1, `select '\', '$1'`: -1,
	} {
		if got, certain := Takes([]byte(sql), 0); certain != (want >= 0) || certain && got != want {
			t.Errorf("%s: %d, %v, want %d", sql, got, certain, want)
		}
	}
	if got, certain := Takes([]byte("call f($1, $2)"), 2); got != 2 || !certain {
		t.Errorf("got %d, %v of types that are declared", got, certain)
	}
}

func TestWhatComesBeforeASnapshotIsKnown(t *testing.T) {
	for sql, want := range map[string]bool{
		"set transaction isolation level serializable": true, "SET LOCAL transaction_isolation = 'serializable'": true, "set session transaction_read_only = on": true, " /* */ lock t": true,
		"": false, "select 1": false, "set local work_mem = 1": false, "set session characteristics as transaction read only": false, "select * from transaction": false, "set transaction.x = 1": false,
	} {
		if got := Early([]byte(sql)); got != want {
			t.Errorf("%s: %v", sql, got)
		}
	}
}

func TestConstantsThatSettingsInterpretAreFound(t *testing.T) {
	for sql, want := range map[string][2]bool{ // sensitive at all, and by its constants
		"select '1.2.2026'::date": {true, true}, "select $x$2 days$x$::interval": {true, true}, "select ' Now '": {true, true}, "select '{a,null}'::text[]": {true, true},
		"select n = NULL from t": {true, true}, "select xml 'word'": {true, true}, `select e'a\n'`: {true, true}, "select 'ä'": {true, true}, "set my.x = 'ä'": {true, true},
		"select n from t where m = $1 limit 10": {true, false}, "select 'word', \"a 1\"": {true, false}, "select null": {true, false},
		"set work_mem = 1": {false, false}, "commit": {false, false}, "": {false, false},
	} {
		if got := [2]bool{Sensitive([]byte(sql)), HasConstants([]byte(sql))}; got != want {
			t.Errorf("%s: %v", sql, got)
		}
	}
}

func TestConstantsThatStandForTheMomentAreFound(t *testing.T) {
	for sql, want := range map[string]bool{
		"insert into t values ('now')": true, "select '[ Today,)'::tstzrange": true, "select $$yesterday allballs$$::timestamp": true, `select 'it\'s', 'now'`: true,
		"select now()": false, "select 'unknown', 'snow', \"now\"": false, "select 1 -- 'now'": false, "": false,
	} {
		if got := Momentary([]byte(sql)); got != want {
			t.Errorf("%s: %v", sql, got)
		}
	}
}

func TestAPlaceIsFoundInTheClientsText(t *testing.T) {
	const long = "a_longer_name"
	sql := "select 'é'; ; execute p ('x', y); execute q"
	r := Rename([]byte(sql), false)
	for i, u := range Uses([]byte(sql), false) {
		if u.Index != i+1 {
			t.Errorf("the use of %s is in statement %d", u.Name, u.Index)
		}
		r.Use(u, long)
	}
	if got, want := r.Text(), "select 'é'; ; execute a_longer_name ('x', y); execute a_longer_name"; got != want {
		t.Fatal(got)
	}
	for what, c := range map[string]struct {
		at, done          int
		sqlstate, routine string
		want              int
	}{
		"in front of all":           {8, 0, "42883", "", 8},
		"an argument":               {38, 1, "22P02", "", 26},
		"the second":                {43, 1, "42703", "", 31},
		"between two":               {39, 1, "42703", "", 39},
		"what is executed":          {38, 1, "42P01", "parserOpenTable", 38},
		"in its end":                {60, 1, "42703", "", 60},
		"syntax":                    {47, 0, "42601", "scanner_yyerror", 35},
		"what is executed without":  {47, 2, "42703", "", 47},
		"syntax behind arguments":   {47, 1, "42601", "", 35},
		"behind all that was there": {47, 3, "42703", "", 35},
	} {
		if got := r.Place(c.at, c.done, c.sqlstate, c.routine); got != c.want {
			t.Errorf("%s: %d, want %d", what, got, c.want)
		}
	}
}
