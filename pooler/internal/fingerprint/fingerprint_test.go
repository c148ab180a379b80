package fingerprint

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

func TestAShapeIsTheTextWithoutItsLiterals(t *testing.T) {
	for sql, want := range map[string]string{
		"SELECT  abalance\nFROM pgbench_accounts WHERE aid = 4711;":   "select abalance from pgbench_accounts where aid = ?",
		"select $1::text, 'it''s', E'a\\'b', $$x$$, $t$ $$ $t$ -- 7":  "select ?::text, ?",
		"select * from t where id in (1, 2,3 , 4) and x = -1.5e+3":    "select * from t where id in (?) and x = -?",
		"insert into t (a, b) values (1, 'x'), (2, 'y'),(3,'z')":      "insert into t (a, b) values (?)",
		`select "Na""me", t1.c2 /* a /* nested */ comment */ from t1`: `select "Na""me", t1.c2 from t1`,
		"select U&'\\0041', B'01', x'ff', n'abc'":                     "select ?",
		"select e'a' --\n'\\' secret' as b, 'b' 'c'":                  "select ? as b, ? ?",
		"select 'never closed":                                        "select ?",
		"select $tag$ never closed":                                   "select ?",
		"select a$b, $ from t":                                        "select a$b, $ from t",
		"select 1 -- it's\r, 'a\nsecret'":                             "select ?",
		`select 'a\', 'b'`:                                            "select ?",
		`select 1e'a\' secret', 2e5`:                                  "select ??",
	} {
		if got, _ := Normalise(nil, []byte(sql), Standard); string(got) != want {
			t.Errorf("%s\n got %s\nwant %s", sql, got, want)
		}
	}
}

func FuzzNoLiteralIsEverInAShape(f *testing.F) {
	f.Add("select ", "secret", " from t")
	f.Add("/* ", "x'y\\", " */ $$")
	f.Fuzz(func(t *testing.T, before, secret, after string) {
		const canary = "qzxj7wkv"
		shape, _ := Normalise(nil, []byte("select '"+canary+strings.NewReplacer("'", "''", `\`, "").Replace(secret)+"' "+after), Standard)
		if strings.Contains(strings.ToLower(string(shape)), canary) && !strings.Contains(strings.ToLower(after), canary) {
			t.Fatalf("the literal is in %q", shape)
		}
		_, _ = Normalise(nil, []byte(before+secret+after), Standard) // must not panic
	})
}

func TestTextsThatDifferInLiteralsShareAFingerprintThatIsStable(t *testing.T) {
	table := NewTable()
	a, b := table.Of([]byte("select 1 from t"), Standard), table.Of([]byte("SELECT 22  FROM t"), Standard)
	if a != b || a.ID != "4a33acb8fd4fc0c4" && len(a.ID) != 16 {
		t.Errorf("%v %v", a.ID, b.ID)
	}
	if again := NewTable().Of([]byte("select 3 from t"), Standard); again.ID != a.ID {
		t.Error("another table gives another fingerprint")
	}
}

func TestTheTableIsBoundedAndMakesRoom(t *testing.T) {
	table := NewTable()
	for i := range 3 * maxShapes {
		table.Of(fmt.Appendf(nil, "select c%d from t", i), Standard).Add(Sample{Took: time.Millisecond})
		table.User(fmt.Sprint("u", i)).Add(Sample{Took: time.Millisecond})
	}
	if len(table.shapes) > maxShapes || len(table.users) > maxUsers || len(table.texts) > maxTexts {
		t.Errorf("%d shapes, %d users, %d texts", len(table.shapes), len(table.users), len(table.texts))
	}
	queries, users := table.Top(5)
	if len(queries) != 6 || queries[5].Fingerprint != other || queries[5].Calls != 2*maxShapes || len(users) != 6 || users[5].Calls != 3*maxShapes-maxUsers {
		t.Errorf("%+v %+v", queries, users)
	}
	table.Turn()
	table.Turn()
	if len(table.shapes) != 0 || len(table.users) != 0 {
		t.Error("what did nothing for two windows is remembered")
	}
	old := table.Of([]byte("select kept"), Standard)
	table.Turn()
	table.Turn()
	table.Record(old, "ann", Sample{}) // a prepared statement that rested for long
	if queries, _ := table.Top(9); len(queries) != 2 || queries[0].Text != "select kept" {
		t.Errorf("%+v", queries)
	}
}

func TestAUserWhoWasForgottenIsCountedAgain(t *testing.T) {
	table := NewTable()
	shape := table.Of([]byte("select 1"), Standard)
	for range 3 {
		table.Record(shape, "ann", Sample{})
	}
	table.Turn()
	table.Turn()
	table.Record(shape, "ann", Sample{})
	if _, users := table.Top(9); len(users) != 2 || users[0].User != "ann" || users[0].Calls != 1 {
		t.Errorf("%+v", users)
	}
}

func TestPercentilesAreWithinAnEighth(t *testing.T) {
	table := NewTable()
	s := table.Of([]byte("select"), Standard)
	for i := 1; i <= 1000; i++ {
		s.Add(Sample{Took: time.Duration(i) * time.Millisecond, Waited: time.Microsecond, Client: time.Microsecond, Rows: 2, Failed: i%10 == 0})
	}
	q, _ := table.Top(1)
	for want, got := range map[time.Duration]time.Duration{500 * time.Millisecond: q[0].P50, 950 * time.Millisecond: q[0].P95, 990 * time.Millisecond: q[0].P99} {
		if got < want || got > want*9/8+time.Millisecond {
			t.Errorf("got %v, want %v", got, want)
		}
	}
	if q[0].Calls != 1000 || q[0].Failed != 100 || q[0].Rows != 2000 || q[0].Postgres != q[0].Took-2*time.Millisecond {
		t.Errorf("%+v", q[0])
	}
	for i := range buckets - 1 {
		if bucket(upper(i)-time.Microsecond) > i || bucket(upper(i)) <= i {
			t.Fatalf("bucket %d ends at %v", i, upper(i))
		}
	}
}

func BenchmarkOf(b *testing.B) {
	for name, sql := range map[string]string{
		"parameters": "SELECT abalance FROM pgbench_accounts WHERE aid = $1", "literals": "SELECT abalance FROM pgbench_accounts WHERE aid = 471112",
	} {
		b.Run(name, func(b *testing.B) {
			table := NewTable()
			b.ReportAllocs()
			for b.Loop() {
				table.Of([]byte(sql), Standard)
			}
		})
	}
}
