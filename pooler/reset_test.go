package pooler

import "testing"

// What PostgreSQL answers directly stands in each step: it was asked.
func TestResetLeadsBackToWhatWasChosenAtLogin(t *testing.T) {
	s := pg.Start(t)
	if err := s.Exec(t.Context(), "drop role if exists chosen; create role chosen; drop role if exists taken; create role taken"); err != nil {
		t.Fatal(err)
	}
	const look = "select current_setting('role') || ' ' || current_setting('work_mem') || ' ' || current_setting('my.x', true)\x00"
	h := run(t, config(database(s.URL(), one)))
	c, other := newFrontend(t, h, "options", "-c role=chosen -c work_mem=9MB -c my.x=1"), h.connect(t)
	for _, step := range []struct{ do, want string }{
		{"select 1", "chosen 9MB 1"},
		{"set role none", "none 9MB 1"},
		{"reset all", "none 9MB 1"},
		{"do $$ begin end $$", "none 9MB 1"},
		{"set my.x = 2", "none 9MB 2"},
		{"reset my.x", "none 9MB 1"},
		{"select set_config('my.x', '', false)", "none 9MB "},
		{"set time zone local", "none 9MB "},
		{"begin", "none 9MB "},
		{"reset work_mem", "none 9MB "},
		{"commit", "none 9MB "},
		{"reset all", "none 9MB 1"},
		{"reset role", "chosen 9MB 1"},
		{"set work_mem = '5MB'", "chosen 5MB 1"},
		{"begin", "chosen 5MB 1"},
		{"reset work_mem", "chosen 9MB 1"},
		{"savepoint a", "chosen 9MB 1"},
		{"set work_mem = '7MB'", "chosen 7MB 1"},
		{"reset work_mem", "chosen 9MB 1"},
		{"set local my.x = 3", "chosen 9MB 3"},
		{"rollback to a", "chosen 9MB 1"},
		{"set local work_mem = '8MB'", "chosen 8MB 1"},
		{"reset all", "chosen 9MB 1"},
		{"rollback", "chosen 5MB 1"},
		{"discard all", "chosen 9MB 1"},
		{"set session authorization taken", "none 9MB 1"},
		{"reset session authorization", "chosen 9MB 1"},
	} {
		c.send(frame('Q', step.do+"\x00"))
		for typ := byte(0); typ != 'Z'; {
			var err error
			if typ, _, err = c.in.Next(); err != nil {
				t.Fatalf("%s: %v", step.do, err)
			}
		}
		if h.Stats().Databases[0].Active == 0 {
			value(t, other, "select 'has the server'", simple)
		}
		c.send(frame('Q', look))
		c.expectFor(step.do, "TDCZ")
		if c.row != step.want {
			t.Errorf("after %s: %s, want %s", step.do, c.row, step.want)
		}
	}
}

// A transaction's isolation can be set as long as it has no snapshot: what the pooler asks of
// its own must not take one where it need not.
func TestAResetOfWhatWasNotChosenAtLoginTakesNoSnapshot(t *testing.T) {
	h := run(t, config(database(pg.Start(t).URL(), one)))
	c := newFrontend(t, h, "options", "-c datestyle=German")
	for _, step := range []struct{ do, want string }{
		{"begin", "CZ"},
		{"reset application_name", "CZ"},
		{"set transaction isolation level serializable", "CZ"},
		{"select current_setting('transaction_isolation') || ' ' || current_setting('datestyle')", "TDCZ"},
		{"commit", "CZ"},
	} {
		c.send(frame('Q', step.do+"\x00"))
		c.expectFor(step.do, step.want)
	}
	if want := "serializable German, DMY"; c.row != want {
		t.Errorf("got %s, want %s", c.row, want)
	}
}
