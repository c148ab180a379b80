package scan

import "testing"

func TestOnlyWhatReadsMayBeRepeated(t *testing.T) {
	for sql, want := range map[string]bool{
		"select 1": true, " /* x */ SELECT count(*), max(n) FROM t WHERE a IN (1, 2) AND b = 'it''s; (';": true, "values (1), (2)": true, "table t": true, "show work_mem": true,
		"with a as (select 1) select * from a": true, `select "Name" from "T" t (a, b)`: false, "select * from t where (a, b) = (1, 2)": true, "select pg_sleep(1)": true,
		"with a as (delete from t returning *) select * from a": false, "select 1; select 2": false, "select 1;": true, "select 1 into t": false, "select * from t for update": false,
		"select nextval('s')": false, "select my_function()": false, "select public.count(1)": false, `select "f"(1)`: false, "select f (1)": false, "select pg_notify('a', 'b')": false,
		"insert into t values (1)": false, "begin": false, "": false, "explain analyze delete from t": false, "select * from t for no key update": false, "select * from t for share": false,
		"select dblink_exec('x')": false, "select pg_advisory_lock(1)": false, "select set_config('a.b', 'c', false)": false,
	} {
		if got := Repeatable([]byte(sql), false); got != want {
			t.Errorf("%q: %v", sql, got)
		}
	}
}

func FuzzRepeatable(f *testing.F) {
	f.Add([]byte("select count(*) from t"))
	f.Fuzz(func(t *testing.T, sql []byte) { Repeatable(sql, len(sql)%2 == 0) })
}
