package scan

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

// adversaries are texts that are made to be slow: of units, as many as there is room for, behind a prefix.
var adversaries = []struct{ name, prefix, unit, suffix string }{
	{"set in DO", "do '", "begin set ", "'"},
	{"set in a function", "create function f() as $q$", "then set a ", "$q$"},
	{"set local", "do '", "loop set local a to b else ", "';"},
	{"set and reset", "do $$", "begin set reset ", "$$"},
	{"empty sets", "", "set;", ""},
	{"sets to default", "", "set a to default;", ""},
	{"parts of a name", "set a", ".b", " to default"},
	{"parts of a reset name", "reset a", ".é", ""},
	{"quoted parts", `do 'set "a"`, `."B""b"`, "'"},
	{"names", "do 'begin ", "set a.set reset a.reset ", "'"},
	{"set_config in set_config", "select ", "set_config(", ""},
	{"set_config behind brackets", "select ", "(set_config([", ""},
	{"set_config without an end", "select ", "set_config('a', ", ""},
	{"set_config of set_config", "do $$ begin perform ", "set_config(f('a', 'b'), set_config('c', null, ", "$$"},
	{"set_config of many", "select set_config('a'", " || b(',')", ", true)"},
	{"set_config", "select ", "set_config('a.b', 'c', false), ", "1"},
	{"execute", "do '", "execute ''set a'' ", "'"},
	{"execute format", "do $q$", "begin execute format($r$ execute $s$ execute $t$ begin set x $t$ $s$ $r$); ", "$q$"},
	{"execute what is put together", "do $q$", "begin execute $r$ execute $s$ execute a || b $s$ || quote_ident(execute) $r$ || format($s$ execute $t$ set x $t$ || $t$.y $t$ $s$); ", "$q$"},
	{"execute and no more", "do $$begin ", "execute ", "$$"},
	{"create", "do 'begin ", "create ", "'"},
	{"create or replace function", "", "create or replace function f() language sql as 'select 1';", ""},
	{"discard and prepare", "begin; ", "discard;prepare;deallocate prepare;", ""},
	{"uses", "", "execute p ('é', 1);", ""},
	{"uses and drops", "", `deallocate prepare "é";explain execute p;create table t as execute p (1)`, ""},
	{"arguments", "execute p (", "1, 'é', ", "1)"},
	{"explain", "", "explain select ", ""},
	{"constants", "do ", "'' ", ""},
	{"quotes", "do ", "'", ""},
	{"escapes", "do E'", `\'E`, "'"},
	{"unicode escapes", "select ", `U&'\' U&"\"`, ""},
	{"names in quotes", "select ", `"""`, ""},
	{"dollars", "select ", "$", ""},
	{"dollar quotes", "do ", "$$ $a$ ", ""},
	{"dollar words", "do ", "$a", "$"},
	{"comments", "", "/*", ""},
	{"ended comments", "select 1", "/**/--\n", ""},
	{"slashes", "", "/", ""},
	{"parentheses", "", "(", ""},
	{"both parentheses", "select ", "f(a[])", ""},
	{"closing brackets", "select set_config(set_config(", ")]", ""},
	{"semicolons", "", ";", ""},
	{"statements", "", "select 1;", ""},
	{"semicolons in constants", "", "select ';", "'"},
	{"operators", "select 1 ", "+-", "2"},
	{"functions", "select ", "f() + ", "1"},
	{"changes of the schema", "", "create ", ""},
	{"a word", "", "a", ""},
	{"bytes", "select '", "\xff", "'"},
	{"parameters", "select ", "$1,$2222222", ""},
	{"white space", "select", " \n", "1;"},
}

// adversary is the text of one of them, or of constants that are in one another.
func adversary(n, size int) []byte {
	if n < len(adversaries) {
		a := adversaries[n]
		return []byte(a.prefix + strings.Repeat(a.unit, max(0, size-len(a.prefix)-len(a.suffix))/len(a.unit)) + a.suffix)
	}
	var tags []string
	for room := size / 2; room > 0; room -= len(tags[len(tags)-1]) {
		tags = append(tags, fmt.Sprintf(" $a%x$ ", len(tags)))
	}
	text := "do " + strings.Join(tags, "")
	slices.Reverse(tags)
	return []byte(text + strings.Join(tags, ""))
}

func adversaryName(n int) string {
	if n < len(adversaries) {
		return adversaries[n].name
	}
	return "constants in constants"
}

// readAll does all with a text that the pooler may.
func readAll(t testing.TB, sql []byte, backslash bool) {
	settings := make([]string, MaxMentions-1)
	for i := range settings {
		settings[i] = fmt.Sprintf("a.%03d", i)
	}
	hints := Hints{"f(": {Effect: Setting, Settings: settings}, "a!": {Effect: Setting, Settings: []string{"b"}}, Operator + "+": {Effect: Locks}, Schema: {Effect: Setting, Settings: settings}}
	var m Mentions
	Effects(sql, backslash)
	hints.Find(sql, backslash, &m)
	hints.Changes(sql, backslash)
	Hints(nil).Changes(sql, backslash)
	m.Find(sql, backslash, Effect(len(sql))&1*Opaque)
	Resets(sql, backslash)
	First(sql, backslash)
	Repeatable(sql, backslash)
	UseOf(sql, backslash)
	PreparedBy(sql)
	DropsAll(sql)
	Rowless(sql)
	Takes(sql, 0)
	Reveal([]Routine{{Name: "f", Source: string(sql)}, {Name: "g", Source: "set x = 1"}}, []Link{{"f(", "g("}})
	r, statements := Rename(sql, backslash), 0
	for _, u := range Uses(sql, backslash) {
		if statements = u.Index + 1; u.Name != "" {
			r.Use(u, "another")
		}
	}
	behind := utf8.RuneCountInString(r.Text()) + 1
	r.Place(behind, statements-1, "42703", "")
	if got, want := r.Place(behind, statements, "42703", ""), utf8.RuneCount(sql)+1; got != want {
		t.Errorf("the end is at %d, not at %d", got, want)
	}
}

// A client chooses its texts, and how long they are: what takes more than a few looks at each of their bytes takes
// minutes here, and days if it looks at all of them for each of them. The race detector, which has nothing to find
// here, gets shorter ones.
func TestNoTextOfAMegabyteTakesLong(t *testing.T) {
	size := 1 << 20
	if raceEnabled {
		size >>= 2
	}
	for n := range len(adversaries) + 1 {
		t.Run(adversaryName(n), func(t *testing.T) { readAll(t, adversary(n, size), n%2 == 1) })
	}
}

// The time for a byte is to be the same for short texts and for long ones.
func BenchmarkAdversarial(b *testing.B) {
	for n := range len(adversaries) + 1 {
		for _, size := range []int{16 << 10, 256 << 10} {
			sql := adversary(n, size)
			b.Run(fmt.Sprintf("%s/%d", adversaryName(n), size>>10), func(b *testing.B) {
				for b.Loop() {
					readAll(b, sql, n%2 == 1)
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(len(sql)), "ns/byte")
			})
		}
	}
}
