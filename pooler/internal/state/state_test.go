package state

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"mainstay.dev/mainstay/pooler/internal/pgwire"
)

func start(params ...string) *pgwire.Startup {
	s := &pgwire.Startup{}
	for i := 0; i < len(params); i += 2 {
		s.Parameters = append(s.Parameters, pgwire.Param{Name: params[i], Value: params[i+1]})
	}
	return s
}

func TestSettingsComeFromParametersAndOptions(t *testing.T) {
	got, err := OfStartup(start(
		"user", "ann", "database", "app", "_pq_.x", "1", "replication", "false", "Application_Name", "web",
		"options", `-c a=1 -cb.c=2 --Work-Mem=3MB -c d=two\ words\\`,
	))
	if err != nil {
		t.Fatal(err)
	}
	want := []pgwire.Param{{Name: "a", Value: "1"}, {Name: "application_name", Value: "web"}, {Name: "b.c", Value: "2"}, {Name: "d", Value: `two words\`}, {Name: "work_mem", Value: "3MB"}}
	if diff := cmp.Diff(want, got.list); diff != "" {
		t.Error(diff)
	}
	again, err := OfStartup(start("options", `-c d=two\ words\\ -c work_mem=3MB -c b.c=2`, "a", "1", "application_name", "web"))
	if err != nil || !got.Equal(again) || got.Equal(None) {
		t.Errorf("equal settings are not equal: %q, %q", got.Key(), again.Key())
	}
	last, err := OfStartup(start("work_mem", "1MB", "options", "-c a=1 -c b=1", "options", "-c work_mem=2MB -c a=2"))
	if want := None.With("a", "2").With("work_mem", "1MB"); err != nil || !last.Equal(want) {
		t.Errorf("%q, %v", last.Key(), err)
	}
	if none, err := OfStartup(start("user", "ann")); err != nil || none != None {
		t.Error("no settings are not None")
	}
}

func TestAStartupThatCannotBeObeyedIsRefused(t *testing.T) {
	for _, c := range []struct{ name, value, state string }{
		{"replication", "database", "0A000"}, {"a;b", "1", "42704"}, {"", "1", "42704"}, {"1a", "x", "42704"}, {"a b", "x", "42704"},
		{"options", "-x", "0A000"}, {"options", "-c", "0A000"}, {"options", "-c x", "0A000"}, {"options", "-c a';drop=1", "42704"},
	} {
		_, err := OfStartup(start(c.name, c.value))
		if refusal, ok := errors.AsType[*Refusal](err); !ok || refusal.SQLState != c.state {
			t.Errorf("%s=%s: %v", c.name, c.value, err)
		}
	}
}

func TestAChangeResetsWhatGoesAndSetsWhatComes(t *testing.T) {
	from, _ := OfStartup(start("a", "1", "b", "2"))
	to, _ := OfStartup(start("b", `it's \`, "c", "3"))
	want := `RESET "a";SELECT pg_catalog.set_config('b',$_ms$it's \$_ms$,false) IS NULL,pg_catalog.set_config('c','3',false) IS NULL`
	if got, back := from.Change(to); strings.Join(got, " | ") != want || back != 1 {
		t.Errorf("got %s\nwant %s", got, want)
	}
	if got, _ := None.Change(None); got != nil {
		t.Errorf("got %s", got)
	}
	// What a role may set and see depends on it: it goes first and comes last.
	from = None.With("role", "r").With("a.b", "1").With("client_encoding", "UTF8")
	to = None.With("role", "q").With("session_authorization", "u").With("client_encoding", "LATIN1").With("x.y", "\u00e9")
	want = `RESET ROLE;RESET ALL;SELECT pg_catalog.set_config('client_encoding','LATIN1',false) IS NULL | ` +
		`SELECT pg_catalog.set_config('client_encoding','LATIN1',false) IS NULL,pg_catalog.set_config('x.y','` + "\u00e9" + `',false) IS NULL;` +
		`SELECT pg_catalog.set_config('session_authorization','u',false) IS NULL;SELECT pg_catalog.set_config('role','q',false) IS NULL`
	if got, back := from.Change(to); strings.Join(got, " | ") != want || back != 2 {
		t.Errorf("got %s\nwant %s", got, want)
	}
	// What cuts statements short goes before all else. What may not be led back by its name is led back with all others, which are given again.
	from = None.With("role", "r").With("statement_timeout", "1ms").With("session_replication_role", "replica").With("work_mem", "5MB").With("zone", "a")
	to = None.With("statement_timeout", "2ms").With("work_mem", "5MB")
	want = "RESET statement_timeout;RESET ROLE;RESET ALL;SELECT pg_catalog.set_config('statement_timeout','2ms',false) IS NULL,pg_catalog.set_config('work_mem','5MB',false) IS NULL"
	if got, back := from.Change(to); strings.Join(got, " | ") != want || back != 3 {
		t.Errorf("got %s\nwant %s", got, want)
	}
}

func TestNothingIsSentInTheEncodingOfAnother(t *testing.T) {
	plain, town := None.With("app.town", "Bonn"), None.With("app.town", "Zo\u00eb")
	latin := None.With("client_encoding", "LATIN1")
	for _, c := range []struct {
		from, to *Settings
		queries  int
	}{
		{latin, town, 2}, {latin, plain, 1}, {None, town, 1}, {None, town.With("client_encoding", "LATIN1"), 2}, {latin, town.With("client_encoding", "LATIN1"), 1},
		{latin, town.With("client_encoding", "UTF8"), 2}, {latin, plain.With("client_encoding", "UTF8"), 1}, {town.With("client_encoding", "LATIN1"), None, 1},
	} {
		got, _ := c.from.Change(c.to)
		if len(got) != c.queries || len(got) == 2 && (!strings.Contains(got[0], "client_encoding") || strings.Contains(got[0], "Zo")) {
			t.Errorf("%q to %q: %q", c.from.Key(), c.to.Key(), got)
		}
	}
}

func TestEqualSettingsOfATableAreTheSame(t *testing.T) {
	var table Table
	a, b := table.Intern(None.With("x", "1").With("y", "2")), table.Intern(None.With("y", "2").With("x", "0").With("x", "1"))
	if a != b || table.Intern(a.Without("x").Without("y")) != None {
		t.Error("equal settings are not the same")
	}
	welcome := pgwire.AppendParameter(pgwire.AppendParameter(nil, "TimeZone", "UTC"), "x", "1")
	if s := table.OfWelcome(welcome); s != table.OfWelcome(welcome) || s.Len() != 2 {
		t.Errorf("%v", s.All())
	}
}

func FuzzOfStartup(f *testing.F) {
	f.Add("options", `-c a=1 \`)
	f.Add("search_path", "a,b")
	f.Fuzz(func(t *testing.T, name, value string) {
		s, err := OfStartup(start(name, value))
		if err != nil {
			return
		}
		for _, p := range s.list {
			if strings.Trim(p.Name, "abcdefghijklmnopqrstuvwxyz_.0123456789") != "" || p.Name == "" {
				t.Fatalf("a name that is no name: %q", p.Name)
			}
		}
		sql := s.SQL()
		for _, p := range s.list {
			sql = strings.ReplaceAll(sql, Literal(p.Value), "")
		}
		if strings.Count(sql, "'")%2 != 0 {
			t.Fatalf("a quote is open: %s", sql)
		}
	})
}

func FuzzLiteral(f *testing.F) {
	for _, s := range []string{"", "a", "$", "é", "it's", `\`, `'$_ms`, `'$_ms$`, `\$_ms$_ms`, `$_ms$'$_ms_ms$`, `'$_ms_ms`, "\x95\\", "'$"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got := Literal(s)
		tag, _, _ := strings.Cut(strings.TrimPrefix(got, "$"), "$")
		switch tag = "$" + tag + "$"; {
		case got == "'"+s+"'":
			if strings.ContainsAny(s, `'\`) {
				t.Errorf("%s has to be escaped", got)
			}
		case got != tag+s+tag, strings.Trim(tag, "$_ms") != "", strings.Index(s+tag, tag) != len(s):
			t.Errorf("%q is %s", s, got)
		}
	})
}

func TestAListIsGivenAgainBySETWhereThatWritesTheSame(t *testing.T) {
	for value, want := range map[string]string{
		"other": "SET search_path TO 'other'", `"$user", public`: "SET search_path TO '$user','public'", `"It's", a_1`: `SET search_path TO $_ms$It's$_ms$,'a_1'`,
		"a,b": "", "Other": "", `"public"`: "", "": "", `"a""b"`: "", "a , b": "", "1a": "", "a, ": "",
	} {
		got := None.With("search_path", value).Again("search_path", false)
		if want == "" {
			want = "SELECT WHERE pg_catalog.set_config('search_path'," + Literal(value) + ",false) IS NULL"
		}
		if len(got) != 1 || got[0] != want {
			t.Errorf("%s: %q, want %s", value, got, want)
		}
	}
}
