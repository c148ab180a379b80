package memo

import (
	"bytes"
	"testing"

	"mainstay.dev/mainstay/pooler/internal/fingerprint"
	"mainstay.dev/mainstay/pooler/internal/scan"
)

func TestConstantsAreTakenOut(t *testing.T) {
	for _, c := range []struct {
		text, key string // "": none
	}{
		{"SELECT abalance FROM t1 WHERE aid = 123;", "SELECT abalance FROM t1 WHERE aid = \x01;"},
		{"select 'it', 5, -7, x1, a$1 from \"t 1\"", "select \x02, \x01, -\x01, x1, a$1 from \"t 1\""},
		{"select $1, $12", "select $1, $12"},
		{"select 1.5, .5, 1e5, 0x1F, 1$1", "select 1.5, .5, 1e5, 0x1F, 1$1"},
		{"select 1e+5", "select 1e+\x01"},
		{"", ""},
		{"select 'it''s'", ""},
		{"select E'a'", ""},
		{"select U&'a'", ""},
		{"select 'a\\b'", ""},
		{"select $$a$$", ""},
		{"select 1 -- 2", ""},
		{"select 1 /* 2 */", "select \x01 \x03"},
		{"select/**/1/*'*/", "select\x03\x01\x03"},
		{"select 1 /* 2 /* 3 */ */", ""},
		{"select 1 /*/* 3 */ */", ""},
		{"select 1 /* 3 /*/ 2", ""},
		{"select 1 /*/ 2", ""},
		{"select 1 /* 2", ""},
		{"select \"\x03\"", ""},
		{"select 'open", ""},
		{"select \"open", ""},
		{"select \x01", ""},
		{"select " + string(bytes.Repeat([]byte("a"), MaxText)), ""},
	} {
		key, ok := Key(nil, []byte(c.text))
		if ok != (c.key != "" || c.text == "") || ok && string(key) != c.key {
			t.Errorf("%q: %q, %v; want %q", c.text, key, ok, c.key)
		}
	}
}

func TestATableRemembersAndMakesRoom(t *testing.T) {
	m := New[int]()
	if _, ok := m.Get([]byte("a")); ok {
		t.Error("an empty table knows something")
	}
	key := []byte("a")
	m.Put(key, 1)
	key[0] = 'b'
	if v, ok := m.Get([]byte("a")); !ok || v != 1 {
		t.Errorf("a: %d, %v", v, ok)
	}
	if _, ok := m.Get(key); ok {
		t.Error("b is known as a is")
	}
	for i := range 10 * slots {
		m.Put([]byte{'k', byte(i), byte(i >> 8)}, i)
	}
	last := 10*slots - 1
	if v, ok := m.Get([]byte{'k', byte(last), byte(last >> 8)}); !ok || v != last {
		t.Errorf("the last that was put: %d, %v", v, ok)
	}
}

func TestLookingUpAllocatesNothing(t *testing.T) {
	m, sql := New[int](), []byte("SELECT abalance FROM t1 WHERE aid = 123 AND name = 'x';")
	var buf [MaxText]byte
	key, _ := Key(buf[:0], sql)
	m.Put(key, 1)
	if n := testing.AllocsPerRun(100, func() {
		if key, ok := Key(buf[:0], sql); ok {
			m.Get(key)
		}
	}); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

// Two texts with one key have the same shape, and if one of them does nothing that
// outlives it, so does the other.
func FuzzTextsWithOneKeyAreAlike(f *testing.F) {
	f.Add("SELECT abalance FROM t1 WHERE aid = 123 AND b = 'x'", 7, "y z")
	f.Add("insert into t values (1, 'a'), (2, 'b')", 0, "set role x")
	f.Add("select set_config('a.b', '1', true)", 1, "work_mem")
	f.Add("select 1 /* 2 */, 'x'/**/ + /*/ 3 */ 4", 1, "set x = 1")
	f.Add("do 'begin end'", 1, "set x = 1")
	f.Add("select 1e+5, interval '3 days', 5::text, (1), a[1], t1.c2", 99, "")
	f.Fuzz(func(t *testing.T, sql string, n int, s string) {
		key, ok := Key(nil, []byte(sql))
		if !ok || n < 0 || bytes.ContainsAny([]byte(s), "'\\") {
			return
		}
		var twin []byte
		for _, c := range key {
			switch c {
			case number:
				twin = append(twin, digits(n)...)
			case text:
				twin = append(append(append(twin, '\''), s...), '\'')
			case comment:
				twin = append(append(append(twin, "/*"...), bytes.ReplaceAll(bytes.ReplaceAll([]byte(s), []byte("*"), nil), []byte("/"), nil)...), "*/"...)
			default:
				twin = append(twin, c)
			}
		}
		if again, ok := Key(nil, twin); len(twin) <= MaxText && (!ok || !bytes.Equal(again, key)) {
			t.Fatalf("%q and %q: keys %q and %q", sql, twin, key, again)
		}
		one, _ := fingerprint.Normalise(nil, []byte(sql), fingerprint.Standard)
		other, _ := fingerprint.Normalise(nil, twin, fingerprint.Standard)
		if !bytes.Equal(one, other) {
			t.Fatalf("%q and %q: shapes %q and %q", sql, twin, one, other)
		}
		for _, backslash := range []bool{false, true} {
			if scan.Effects([]byte(sql), backslash) == 0 && scan.Effects(twin, backslash) != 0 {
				t.Fatalf("%q does nothing, %q does", sql, twin)
			}
		}
		var h scan.Hints
		if e, varies := h.Changes([]byte(sql), false); e == 0 && !varies {
			if e, _ := h.Changes(twin, false); e != 0 {
				t.Fatalf("%q changes nothing, %q does", sql, twin)
			}
		}
	})
}

func digits(n int) string {
	const all = "0123456789"
	if n < 10 {
		return all[n : n+1]
	}
	return digits(n/10) + digits(n%10)
}

func BenchmarkKey(b *testing.B) {
	sql := []byte("SELECT abalance FROM pgbench_accounts WHERE aid = 12345;")
	var buf [MaxText]byte
	b.ReportAllocs()
	for b.Loop() {
		Key(buf[:0], sql)
	}
}
