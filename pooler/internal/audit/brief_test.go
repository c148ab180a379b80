package audit

import (
	"strings"
	"testing"

	"mainstay.dev/mainstay/pooler/internal/scan"
	"mainstay.dev/mainstay/pooler/internal/state"
)

func TestAHashStandsForTheListThatItWasLearntWith(t *testing.T) {
	var b Hashes
	set := state.None.With("work_mem", "7MB")
	hashed := func(hash string) *Findings {
		f := &Findings{}
		if err := f.Row(row("h", hash, "-")); err != nil {
			t.Fatal(err)
		}
		return f
	}
	b.Learn(set.With("app.x", "1").With("role", "me"), hashed("set"))
	b.Learn(state.None, hashed("none"))
	for _, c := range []struct {
		effects scan.Effect
		known   *state.Settings
		hash    string
		want    *state.Settings // nil: it is not settled
	}{
		{scan.AnyChange, set, "set", set},
		{scan.AnyChange, set.With("app.x", "2"), "set", set}, // names with a dot are asked for one by one
		{scan.AnyChange, set, "none", nil},
		{scan.AnyChange, state.None, "none", state.None},
		{scan.AnyChange, state.None, "set", nil},
		{scan.AnyChange, set.With("timezone", "UTC"), "set", nil},
		{scan.AnyChange | scan.Back, set, "none", state.None},
		{scan.AnyChange | scan.Back, set, "set", nil}, // one of them may have gone back to what it was
		{scan.Discards, set, "none", state.None},
	} {
		q, f := Question{Effects: c.effects, Known: c.known}, hashed(c.hash)
		if ok := b.Settles(&q, f); ok != (c.want != nil) {
			t.Errorf("%+v: settled %v", c, ok)
			continue
		}
		if has, _ := f.Settings(&q, state.None, "owner"); c.want != nil && !has.Equal(c.want) {
			t.Errorf("%+v: %v", c, has.All())
		}
	}
}

func TestNamesCountWhenAllAreThere(t *testing.T) {
	var b Brief
	var l, other Listing
	if l.Row(row("b", "work_mem", "-")) != nil || l.Row(row("b", "TimeZone", "-")) != nil || l.Row(row("x", "y", "-")) == nil || b.Read() {
		t.Error("the names are not read")
	}
	b.Name(l)
	_ = other.Row(row("b", "seqscan", "-"))
	if b.Name(other); !b.Read() || !strings.Contains(b.Statements()[0].Value, "ARRAY['work_mem','TimeZone']") {
		t.Error(b.Statements())
	}
}

func TestOnlyAQuestionForAllSettingsIsBrief(t *testing.T) {
	var b Brief
	b.Name(Listing{"TimeZone"})
	for _, c := range []struct {
		q    Question
		want bool
	}{
		{Question{Effects: scan.AnyChange, Names: []string{"timezone", "app.x", "role"}}, true},
		{Question{Effects: scan.AnyChange, Names: []string{"dynamic_library_path"}}, false}, // which is not hashed
		{Question{Effects: scan.Setting, Names: []string{"timezone"}}, false},
		{Question{Effects: scan.Locks}, false},
		{Question{Effects: scan.Discards, Cleared: scan.Setting}, false},
	} {
		if got := b.Serves(&c.q, state.None); got != c.want {
			t.Errorf("%+v: %v", c.q, got)
		}
	}
	chosen := state.None.With("work_mem", "7MB")
	if !b.Serves(&Question{Effects: scan.AnyChange}, chosen) || b.Serves(&Question{Effects: scan.AnyChange | scan.Back}, chosen) {
		t.Error("what was chosen at login does not matter")
	}
	if b.Off(); b.Serves(&Question{Effects: scan.AnyChange}, state.None) {
		t.Error("it is off")
	}
	q := Question{Effects: scan.Discards, Known: state.None, Brief: true}
	if got := q.SQL(); !strings.Contains(got, "EXECUTE "+briefName+";") || !strings.Contains(got, "EXECUTE "+restName+";") || strings.Contains(got, "pg_settings") || strings.Contains(got, "pg_locks") || !strings.Contains(got, "from_sql") {
		t.Error(got)
	}
	q.Cleared = scan.Locks
	if got := q.SQL(); strings.Contains(got, restName) || !strings.Contains(got, "pg_depend") {
		t.Error(got)
	}
	q.Brief, q.Hash = false, true
	if got := q.SQL(); !strings.Contains(got, briefName) || !strings.Contains(got, "source OPERATOR") {
		t.Error(got)
	}
}

func TestAStatementUnderOneOfOurNamesIsForged(t *testing.T) {
	var b Hashes
	b.Learn(state.None, &Findings{hash: "none"})
	f := &Findings{}
	for _, r := range [][]byte{row("h", "none", "-"), row("p", briefName, "prepare "+briefName+" as select 'h', 'none', null")} {
		if err := f.Row(r); err != nil {
			t.Fatal(err)
		}
	}
	if b.Settles(&Question{Effects: scan.AnyChange, Known: state.None}, f) || !f.Forged() || f.Pins&scan.Prepares == 0 {
		t.Error("it is believed")
	}
}
