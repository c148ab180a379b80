package again

import (
	"strings"
	"testing"
	"unicode/utf8"

	"mainstay.dev/mainstay/pooler/internal/state"
)

var login = state.None.With("datestyle", "German").With("search_path", "a, b").With("role", "r").With("my.x", "it's").With("log_statement", "all")

const (
	date = `SET "datestyle" TO 'German'`
	path = `SET search_path TO 'a','b'`
	mine = `SET "my"."x" TO $_ms$it's$_ms$`
	role = `SET "role" TO 'r'`
	all  = date + ";" + mine + ";" + path
)

func TestWhatWasChosenFollowsWhatLeadsItBack(t *testing.T) {
	for text, want := range map[string]string{
		"reset datestyle":                     "reset datestyle;" + date,
		"reset datestyle; show datestyle":     "reset datestyle;" + date + "; show datestyle",
		"select 1; RESET DateStyle ;select 2": "select 1; RESET DateStyle;" + date + " ;select 2",
		"reset /* a */ datestyle -- b;":       "reset /* a */ datestyle;" + date + " -- b;",
		`reset "datestyle"`:                   `reset "datestyle";` + date,
		"set datestyle to default; x":         "set datestyle to default;" + date + "; x",
		"set session datestyle = default; x":  "set session datestyle = default;" + date + "; x",
		"set local datestyle = default; x":    `set local datestyle = default;SET LOCAL "datestyle" TO 'German'; x`,
		"set local search_path to default; x": "set local search_path to default;SET LOCAL search_path TO 'a','b'; x",
		"reset my.x;reset role":               "reset my.x;" + mine + ";reset role;" + role,
		"reset all; x":                        "reset all;" + all + "; x",
		"discard all; x":                      "discard all;" + date + ";" + mine + ";" + role + ";" + path + "; x",
		"reset session authorization; x":      "reset session authorization;" + role + "; x",
		"set session authorization default":   "set session authorization default;" + role,
		"discard all":                         "",
		"set local datestyle = default":       "",
		"x; set local datestyle = default ;":  "",
		"reset work_mem; x":                   "",
		"reset time zone; x":                  "",
		"reset log_statement; x":              "",
		"set datestyle = 'reset datestyle'":   "",
		"select 'x' as reset; x":              "",
		"create function f() returns int begin atomic select 1; end; reset datestyle; x":                      "",
		"create rule r as on insert to t do (notify a; notify b); reset datestyle; show datestyle":            "",
		"set xml option content; reset client_encoding; set names default; reset transaction isolation level": "",
	} {
		got := ""
		if longer, _ := Text([]byte(text), false, false, login); longer != nil {
			got = longer.Text()
		}
		if got != want {
			t.Errorf("%s\ngot  %s\nwant %s", text, got, want)
		}
	}
	if longer, _ := Text([]byte("reset datestyle"), false, false, login.With("my.y", "ä")); longer != nil {
		t.Errorf("not in every encoding: %s", longer.Text())
	}
	const local = "set local datestyle = default"
	if longer, _ := Text([]byte(local), false, true, login); longer == nil || longer.Text() != local+`;SET LOCAL "datestyle" TO 'German'` {
		t.Errorf("in a transaction: %v", longer)
	}
}

func TestThePlacesThatHaveMovedAreTold(t *testing.T) {
	const text = "select 'ä'; reset datestyle; select 1; reset my.x; select a"
	longer, ours := Text([]byte(text), false, false, login)
	was, is := []rune(text), []rune(longer.Text())
	ends := map[int]bool{} // what is ours begins behind these characters
	for _, reset := range []string{"reset datestyle", "reset my.x"} {
		before, _, _ := strings.Cut(text, reset)
		ends[utf8.RuneCountInString(before+reset)] = true
	}
	for i, from := 0, 0; i < len(is); i++ {
		if from < len(was) && is[i] == was[from] && !ends[from] {
			from++
			if to := longer.Place(i+1, 0, "", ""); to != from {
				t.Fatalf("%d, %q, was at %d, and is told at %d", i+1, is[i], from, to)
			}
			continue
		}
		delete(ends, from)
		for _, sql := range []string{date, mine} {
			if rest := string(is[i:]); strings.HasPrefix(rest, ";"+sql) {
				i += utf8.RuneCountInString(sql)
			}
		}
	}
	for i, want := range []bool{false, false, true, false, false, true, false} {
		if got := ours.Ours(false); got != want || ours.Ours(true) != want {
			t.Errorf("statement %d: %v", i, got)
		}
	}
}

func TestAnErrorInWhatIsExecutedBehindAResetStaysWhereItIs(t *testing.T) {
	const text = "reset datestyle; execute q(a); select b"
	longer, _ := Text([]byte(text), false, false, login)
	is := longer.Text()
	for what, done := range map[string]int{"a)": 1, "select b": 2, "q(a)": 0} {
		at := strings.Index(is, what) + 1
		if got, want := longer.Place(at, done, "42703", ""), strings.Index(text, what)+1; got != want {
			t.Errorf("%s: %d, want %d", what, got, want)
		}
	}
	if got := longer.Place(8, 1, "42P01", "parserOpenTable"); got != 8 {
		t.Errorf("in q itself: %d", got)
	}
}

func TestWhatFollowsOneStatement(t *testing.T) {
	if s := Behind([]byte("discard all"), false, login); s == nil || len(s.SQL) != 4 {
		t.Error(s)
	}
	if s := Behind([]byte("reset work_mem"), false, login); s != nil {
		t.Error(s)
	}
}
