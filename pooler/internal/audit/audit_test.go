package audit

import (
	"encoding/binary"
	"slices"
	"strings"
	"testing"

	"mainstay.dev/mainstay/pooler/internal/pgwire"
	"mainstay.dev/mainstay/pooler/internal/scan"
	"mainstay.dev/mainstay/pooler/internal/state"
)

// row is a DataRow's body; "-" stands for null.
func row(columns ...string) []byte {
	b := binary.BigEndian.AppendUint16(nil, uint16(len(columns)))
	for _, c := range columns {
		if c == "-" {
			b = binary.BigEndian.AppendUint32(b, 1<<32-1)
			continue
		}
		b = append(binary.BigEndian.AppendUint32(b, uint32(len(c))), c...)
	}
	return b
}

func TestOnlyWhatMayHaveChangedIsAsked(t *testing.T) {
	q := Question{Effects: scan.Setting, Names: []string{"it's"}, Known: state.None}
	if got := q.SQL(); !strings.Contains(got, `unnest(ARRAY[$_ms$it's$_ms$]`) || strings.Contains(got, "pg_settings") || strings.Contains(got, "pg_locks") {
		t.Error(got)
	}
	q = Question{Effects: scan.Unseen, Known: state.None.With("app.x", "1")}
	for _, want := range []string{"pg_settings", "pg_locks", "pg_cursors", "pg_depend", "'app.x'", "'role'"} {
		if got := q.SQL(); !strings.Contains(got, want) {
			t.Errorf("%s is missing in %s", want, got)
		}
	}
}

func TestWhatIsEncodedAnewIsAskedFor(t *testing.T) {
	known := state.None.With("app.town", "Zo\u00eb").With("app.x", "1").With("application_name", "\u00e9")
	for name, want := range map[string]bool{"client_encoding": true, "work_mem": false} {
		q := Question{Effects: scan.Setting, Names: []string{name}, Known: known}
		if sql := q.SQL(); strings.Contains(sql, "app.town") != want || strings.Contains(sql, "application_name") != want || strings.Contains(sql, "app.x") {
			t.Errorf("%s: %s", name, sql)
		}
	}
}

func TestWhatWentBackIsWhatWasGivenAtLogin(t *testing.T) {
	login := state.None.With("work_mem", "7MB").With("app.x", "start")
	q := Question{Effects: scan.Setting | scan.Back, Names: []string{"work_mem", "app.x"}, Known: login.With("timezone", "UTC")}
	var found Findings
	for _, r := range [][]byte{
		row("a", "TimeZone", "UTC"), row("a", "transaction_isolation", "serializable"), row("s", "role", "none"), row("s", "work_mem", "4MB"),
		row("s", "session_authorization", "ann"), row("s", "app.x", ""), row("s", "app.unknown", "-"), row("l", "-", "-"),
	} {
		if err := found.Row(r); err != nil {
			t.Fatal(err)
		}
	}
	has, wants := found.Settings(&q, login, "ann")
	if !has.Equal(state.None.With("timezone", "UTC")) || !wants.Equal(login.With("timezone", "UTC")) || found.Pins != scan.Locks {
		t.Errorf("has %q, wants %q, pins %b", has.Key(), wants.Key(), found.Pins)
	}
}

func TestLimitsThatWereLiftedAreThoseOfTheClient(t *testing.T) {
	q := Question{Effects: scan.AnyChange, Names: []string{"lock_timeout"}, Known: state.None, Untimed: true}
	if sql := q.SQL(); strings.Index(sql, "statement_timeout=0") > strings.Index(sql, "pg_settings") || strings.Index(sql, "lock_timeout=0") > strings.Index(sql, "pg_settings") {
		t.Error(sql)
	}
	var found Findings
	for _, r := range [][]byte{
		row("v", "statement_timeout", "1ms"), row("d", "statement_timeout", "5s"), row("v", "lock_timeout", "0"), row("d", "lock_timeout", "0"),
		row("a", "statement_timeout", "0"), row("a", "lock_timeout", "0"), row("a", "work_mem", "5MB"), row("s", "lock_timeout", "0"),
	} {
		if err := found.Row(r); err != nil {
			t.Fatal(err)
		}
	}
	if has, _ := found.Settings(&q, state.None, "ann"); !has.Equal(state.None.With("statement_timeout", "1ms").With("work_mem", "5MB")) {
		t.Errorf("has %q", has.Key())
	}
	q = Question{Effects: scan.Setting, Names: []string{"statement_timeout"}, Known: state.None, Untimed: true}
	found = Findings{named: []pgwire.Param{{Name: "statement_timeout", Value: "0"}}, limits: []pgwire.Param{{Name: "statement_timeout", Value: "1ms"}}}
	if has, _ := found.Settings(&q, state.None, "ann"); !has.Equal(state.None.With("statement_timeout", "1ms")) {
		t.Errorf("has %q", has.Key())
	}
}

func TestARoleThatWasSetToNoneStaysSo(t *testing.T) {
	login := state.None.With("role", "r")
	for effects, want := range map[scan.Effect]*state.Settings{
		scan.Setting: state.None, scan.Setting | scan.AnyChange: state.None, scan.Setting | scan.Back: login, scan.Discards | scan.Back: login,
	} {
		q := Question{Effects: effects, Names: []string{"role"}, Known: login}
		var found Findings
		if err := found.Row(row("s", "role", "none")); err != nil {
			t.Fatal(err)
		}
		if has, wants := found.Settings(&q, login, "ann"); !has.Equal(state.None) || !wants.Equal(want) {
			t.Errorf("%b: has %q, wants %q", effects, has.Key(), wants.Key())
		}
	}
}

func TestEveryPinHasAReason(t *testing.T) {
	for pin := scan.Effect(1); pin != 0; pin <<= 1 {
		if (Pins|Sticky)&pin != 0 && Reasons(pin) == "" {
			t.Errorf("%b", pin)
		}
	}
}

func FuzzRow(f *testing.F) {
	f.Add(row("a", "b", "c"))
	f.Add([]byte{0, 3, 0, 0, 0, 1, 'a', 255, 255, 255, 255})
	f.Fuzz(func(t *testing.T, body []byte) {
		var found Findings
		_ = found.Row(body)
	})
}

func TestWhatIsGoneIsNotAskedFor(t *testing.T) {
	known := state.None.With("work_mem", "7MB").With("app.x", "1").With("role", "me")
	const all = scan.Setting | scan.Discards | scan.Temporary | scan.Locks | scan.Hold | scan.Listens | scan.Prepares
	for _, c := range []struct {
		effects, cleared scan.Effect
		sql              []string // in the question, which has these parts alone
		has, wants       *state.Settings
	}{
		{scan.Discards | scan.Back, all, nil, state.None, state.None.With("app.x", "login")},
		{scan.Setting | scan.Back, scan.Setting, nil, state.None.With("role", "me"), state.None.With("role", "me").With("app.x", "login")},
		{scan.Setting | scan.Back | scan.Locks, scan.Setting, []string{"pg_locks"}, state.None.With("role", "me"), state.None.With("role", "me").With("app.x", "login")},
		{scan.Discards | scan.Back, all &^ scan.Locks &^ scan.Listens, []string{"pg_locks", "pg_listening_channels"}, state.None, state.None.With("app.x", "login")},
	} {
		q := Question{Effects: c.effects, Names: []string{"all"}, Known: known, Cleared: c.cleared}
		sql := q.SQL()
		if (sql == "") != (c.sql == nil) {
			t.Errorf("%b: %s", c.cleared, sql)
		}
		for _, part := range []string{"pg_settings", "current_setting", "pg_depend", "pg_locks", "pg_cursors", "pg_prepared_statements", "pg_listening_channels"} {
			if asked := strings.Contains(sql, part); asked != slices.Contains(c.sql, part) {
				t.Errorf("%b: %s is asked for: %v", c.cleared, part, asked)
			}
		}
		has, wants := new(Findings).Settings(&q, state.None.With("app.x", "login"), "owner")
		if !has.Equal(c.has) || !wants.Equal(c.wants) {
			t.Errorf("%b: has %v, wants %v", c.cleared, has.All(), wants.All())
		}
		if q.Asked() == 0 && c.effects&scan.Discards != 0 {
			t.Error("nothing is over")
		}
	}
}
