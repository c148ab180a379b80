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
	want := `RESET a;SELECT pg_catalog.set_config(E'b',E'it\'s \\',false),pg_catalog.set_config(E'c',E'3',false)`
	if got := from.Change(to); got != want {
		t.Errorf("got %s\nwant %s", got, want)
	}
	if got := None.Change(None); got != "" {
		t.Errorf("got %s", got)
	}
}

func TestTheWordsThatBetrayAStatementAreSeen(t *testing.T) {
	for text, want := range map[string]Traces{
		"select 1": 0, "": 0, "temp": Tables, "CREATE TEMPORARY TABLE x()": Tables, "select SET_CONFIG('a','b',false)": Set,
		"select pg_try_advisory_lock(1)": Locks, "select pg_catalog.set_config($1,$2,true), pg_advisory_lock(1)": Set | Locks,
		"select * from contacts where a = 1": 0, "select stem, set, config from t": 0, "set_confi": 0, "tem": 0, "select attempt": Tables,
	} {
		if got := OfText([]byte(text)); got != want {
			t.Errorf("%q: %b, want %b", text, got, want)
		}
	}
}

func TestOnlyWhatWasLeftIsWiped(t *testing.T) {
	if got := OfTag([]byte("SET")).Wipe(); got != "SET SESSION AUTHORIZATION DEFAULT;RESET ALL;" {
		t.Error(got)
	}
	if got := (OfTag([]byte("SELECT")) | OfTag([]byte("UPDATE"))).Wipe(); got != "" {
		t.Error(got)
	}
	all := Any.Wipe()
	for _, want := range []string{"CLOSE ALL", "RESET ALL", "DEALLOCATE ALL", "UNLISTEN *", "DISCARD TEMP", "pg_advisory_unlock_all"} {
		if !strings.Contains(all, want) {
			t.Errorf("%s is missing in %s", want, all)
		}
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
		if sql := None.Change(s); strings.Count(strings.NewReplacer(`\\`, "", `\'`, "").Replace(sql), "'")%2 != 0 {
			t.Fatalf("a quote is open: %s", sql)
		}
	})
}
