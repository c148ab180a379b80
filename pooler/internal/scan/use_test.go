package scan

import "testing"

func TestTheNameThatATextUsesIsFound(t *testing.T) {
	for sql, want := range map[string]string{
		"deallocate ps": "drops ps", " /* x */ DEALLOCATE Prepare Ps;": "drops ps", `deallocate "P""s"`: `drops P"s`,
		"deallocate prepare": "drops prepare", "deallocate all": "", "deallocate prepare all": "", "deallocate a; select 1": "",
		"deallocate a b": "", `deallocate U&"a"`: "", "deallocate 'a'": "", "deallocate": "", "select 1": "",
		"execute ps": "runs ps", "execute ps(1, ';');": "runs ps", "execute a; execute b": "", "prepare a as select 1": "",
		"explain (analyze) execute ps(1)": "runs ps", "create temp table t as execute ps": "runs ps",
		"create trigger x after insert on t execute function f()": "", "explain select 1": "",
	} {
		u, ok := UseOf([]byte(sql), false)
		got := ""
		if ok {
			got = map[bool]string{true: "drops ", false: "runs "}[u.Drops] + u.Name
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
