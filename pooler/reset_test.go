package pooler

import (
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
)

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
	c := newFrontend(t, h, "options", `-c datestyle=German -c my.word=a -c search_path="Its",\ public`)
	for _, step := range []struct{ do, want string }{
		{"begin", "CZ"},
		{"reset application_name", "CZ"},
		{"reset search_path", "CZ"},
		{"set transaction isolation level serializable", "CZ"},
		{"select current_setting('transaction_isolation') || ' ' || current_setting('datestyle') || ' ' || current_setting('search_path')", "TDCZ"},
		{"commit", "CZ"},
	} {
		c.send(frame('Q', step.do+"\x00"))
		c.expectFor(step.do, step.want)
	}
	if want := `serializable German, DMY "Its", public`; c.row != want {
		t.Errorf("got %s, want %s", c.row, want)
	}
}

// What a client had set last may be the server's own default: then PostgreSQL has nothing to report when it is led back to
// that, and the client is to hear all the same of what it chose at login.
func TestAResetIsReportedAsByAServerOfItsOwn(t *testing.T) {
	_, m := newMatch(t, one)
	utc, show, begin, commit, rollback := query("set timezone = 'UTC'"), query("show timezone"), query("begin"), query("commit"), query("rollback")
	reset, local := query("reset timezone"), query("set local timezone to default")
	both := func(a, b step) step { return step{a.story + " and " + b.story, a.bytes + b.bytes, 2} }
	for what, c := range map[string][]step{
		"reset":                      {utc, reset, show},
		"from another value":         {query("set timezone = 'Asia/Kolkata'"), reset, show},
		"set to the default":         {utc, query("set timezone to default"), show},
		"set local to the default":   {utc, local, show},
		"time zone local":            {utc, query("set time zone local"), show},
		"all":                        {utc, query("reset all"), show},
		"all discarded":              {utc, query("discard all"), show},
		"all discarded behind":       {utc, both(query("set local work_mem = '6MB'"), query("discard all")), show},
		"another setting":            {utc, query("reset datestyle"), show},
		"another setting in a block": {begin, utc, query("reset datestyle"), show, commit, show},
		"in a block":                 {utc, begin, reset, show, commit, show},
		"in a block, undone":         {utc, begin, reset, show, rollback, show},
		"in a block, and committed":  {utc, begin, reset, commit, show},
		"in a block, undone at once": {utc, begin, reset, rollback, show},
		"for a block":                {utc, begin, local, commit, show},
		"for a block, and shown":     {utc, begin, local, show, commit, show},
		"set in the block":           {begin, utc, reset, show, commit, show},
		"set and led back for it":    {begin, utc, local, show, commit, show},
		"extended":                   {utc, ask(parsed("", "reset timezone"), bound(""), executed), show},
		"extended, prepared":         {ask(parsed("r", "reset timezone")), utc, ask(bound("r"), executed), show},
		"extended, and failed":       {utc, ask(parsed("", "reset timezone"), bound(""), executed, bound("nowhere")), show},
		"bound, and not executed":    {ask(parsed("utc", "set timezone = 'UTC'")), utc, ask(parsed("", "reset timezone"), bound("utc"), executed), show},
	} {
		t.Run(what, func(t *testing.T) { m.inTurn(t, []string{"timezone", "Asia/Tokyo"})(c) })
	}
}

func TestSetLocalToDefaultIsOverWithItsTransaction(t *testing.T) {
	_, m := newMatch(t, one)
	set, begin, commit, local, show := query("set work_mem = '5MB'"), query("begin"), query("commit"), query("set local work_mem to default"), query("show work_mem")
	for what, c := range map[string][]step{
		"set before":         {set, begin, local, show, commit, show},
		"not set":            {begin, local, show, commit, show},
		"set in it":          {begin, set, local, show, commit, show},
		"reset in it":        {set, begin, query("reset work_mem"), show, commit, show},
		"reset in it before": {set, begin, query("reset work_mem"), local, show, commit, show},
		"reset behind":       {set, begin, query("set local work_mem = '6MB'"), query("reset work_mem"), show, commit, show},
		"a word of its own":  {query("set my.word = 'b'"), begin, query("set local my.word to default"), query("show my.word"), commit, query("show my.word")},
	} {
		t.Run(what, func(t *testing.T) { m.inTurn(t, []string{"options", "-c work_mem=9MB -c my.word=a"})(c) })
	}
}

// What drivers send when a connection goes back to a pool of theirs needs no question to the server, in whatever protocol,
// and is believed only if it was carried out.
func TestWhatClearsAllIsNotAskedAfter(t *testing.T) {
	s := pg.Start(t)
	if err := s.Exec(t.Context(), "do $$ begin if not exists (select from pg_roles where rolname = 'cleared') then create role cleared; end if; end $$"); err != nil {
		t.Fatal(err)
	}
	const (
		discard  = "DISCARD ALL"
		asyncpg  = "SELECT pg_advisory_unlock_all();\nCLOSE ALL;\nUNLISTEN *;\nRESET ALL;"
		npgsql   = "SET SESSION AUTHORIZATION DEFAULT;RESET ALL;CLOSE ALL;UNLISTEN *;SELECT pg_advisory_unlock_all();DISCARD SEQUENCES;DISCARD TEMP"
		look     = "select current_setting('work_mem') || ' ' || coalesce(current_setting('my.x', true), '') || ' ' || current_setting('role') || ' ' || current_setting('datestyle')"
		extended = pgx.QueryExecModeExec
	)
	for what, c := range map[string]struct {
		login, before, clears string
		mode                  pgx.QueryExecMode
		asked                 bool
		want                  string
	}{
		"discard":                          {"", "set work_mem = '7MB'; set my.x = 1; set role cleared", discard, simple, false, "4MB  none ISO, MDY"},
		"discard, extended":                {"", "set work_mem = '7MB'; set my.x = 1; set role cleared", discard, extended, false, "4MB  none ISO, MDY"},
		"discard to what was chosen":       {"-c work_mem=9MB -c my.x=login", "set work_mem = '7MB'; set my.x = 1", discard, simple, false, "9MB login none ISO, MDY"},
		"to what was chosen, extended":     {"-c work_mem=9MB -c my.x=login", "set work_mem = '7MB'; set my.x = 1", discard, extended, false, "9MB login none ISO, MDY"},
		"discard to a role":                {"-c role=cleared", "set role none", discard, simple, true, "4MB  cleared ISO, MDY"},
		"what is reported":                 {"", "set datestyle = german", discard, simple, false, "4MB  none ISO, MDY"},
		"reset all":                        {"", "set work_mem = '7MB'; set my.x = 1; set role cleared", "reset all", simple, false, "4MB  cleared ISO, MDY"},
		"reset all to what was chosen":     {"-c work_mem=9MB -c datestyle=german", "set work_mem = '7MB'; set datestyle = sql; set my.x = 1", "reset all", simple, false, "9MB  none German, DMY"},
		"asyncpg":                          {"-c work_mem=9MB", "set work_mem = '7MB'; set my.x = 1; listen heard; declare c cursor with hold for select 1", asyncpg, simple, false, "9MB  none ISO, MDY"},
		"asyncpg with a lock":              {"", "set my.x = 1; select pg_advisory_lock(5)", asyncpg, simple, true, "4MB  none ISO, MDY"},
		"npgsql":                           {"", "set my.x = 1; set role cleared; create temp table gone (n int); select 1", npgsql, simple, false, "4MB  none ISO, MDY"},
		"npgsql with what was chosen":      {"-c my.x=login", "set my.x = 1; set role cleared", npgsql, simple, false, "4MB login none ISO, MDY"},
		"temporary tables alone":           {"", "set my.x = 1; create temp table gone (n int)", "discard temp", simple, false, "4MB 1 none ISO, MDY"},
		"what was prepared":                {"", "prepare p as select 1", "deallocate all", simple, false, "4MB  none ISO, MDY"},
		"a block that is rolled back":      {"", "set my.x = 1", "begin; reset all; rollback", simple, true, "4MB 1 none ISO, MDY"},
		"one that fails":                   {"", "set my.x = 1", "reset all; select 1 / 0", simple, true, "4MB 1 none ISO, MDY"},
		"discard where it is not possible": {"", "set my.x = 1", "select 1; discard all", simple, true, "4MB 1 none ISO, MDY"},
		"one that cannot be carried out":   {"", "set my.x = 1", "close all; discard all", simple, true, "4MB 1 none ISO, MDY"},
		"more":                             {"", "set work_mem = '7MB'", "reset all; set my.x = 1", simple, true, "4MB 1 none ISO, MDY"},
	} {
		h := impatientHouse(t, s.URL())
		a := h.connect(t, "options="+c.login)
		do(t, a, "begin; "+c.before+"; commit", simple)
		_, err := a.Exec(t.Context(), c.clears, c.mode)
		if fails := strings.Contains(c.clears, "/ 0") || strings.HasSuffix(c.clears, "; discard all"); (err != nil) != fails {
			t.Errorf("%s: %v", what, err)
		}
		await(t, what+" gives the server back", func() bool { return h.Stats().Databases[0].Active == 0 })
		last, err := s.Value(t.Context(), "select query from pg_stat_activity where backend_type = 'client backend' and pid <> pg_backend_pid() order by state_change desc limit 1")
		if err != nil {
			t.Fatal(err)
		}
		if asked := last != c.clears; asked != c.asked && c.login == "" && c.mode == simple {
			t.Errorf("%s: asked %v", what, asked)
		}
		for range 2 {
			if got := value(t, h.connect(t), look, simple); got != "4MB  none ISO, MDY" {
				t.Errorf("%s: another client has %s", what, got)
			}
			if got := value(t, a, look, simple); got != c.want {
				t.Errorf("%s: got %s, want %s", what, got, c.want)
			}
		}
	}
}

// Some of what was chosen at login is not given again right behind what leads it back: that a superuser alone may set.
func TestWhatIsNotGivenAgainAtOnceIsGivenLater(t *testing.T) {
	h := run(t, config(database(pg.Start(t).URL(), one)))
	c, other := newFrontend(t, h, "options", "-c log_statement=mod -c work_mem=9MB"), h.connect(t)
	p := func(sql string) string { return parsed("", sql) + bound("") + executed + synced }
	for _, step := range []struct{ send, want string }{
		{frame('Q', "reset all\x00"), "CZ"}, {frame('Q', "reset all;close all\x00"), "CCZ"}, {frame('Q', "discard all\x00"), "CZ"}, {p("discard all"), "12CZ"}, {p("reset all"), "12CZ"},
	} {
		c.send(step.send)
		c.expectFor(step.send, step.want)
		if got := value(t, other, "select current_setting('log_statement') || ' ' || current_setting('work_mem')", simple); got != "none 4MB" {
			t.Errorf("%q: another client has %s", step.send, got)
		}
		c.send(frame('Q', "select current_setting('log_statement') || ' ' || current_setting('work_mem')\x00"))
		if c.expect("TDCZ"); c.row != "mod 9MB" {
			t.Errorf("%q: %s", step.send, c.row)
		}
	}
	for _, sql := range []string{"begin", "reset all"} {
		c.send(frame('Q', sql+"\x00"))
		c.expect("CZ")
	}
	c.send(frame('Q', "select current_setting('log_statement') || ' ' || current_setting('work_mem')\x00"))
	if c.expect("TDCZ"); c.row != "mod 9MB" {
		t.Errorf("in a transaction: %s", c.row)
	}
}

// Behind a DISCARD ALL in the same cycle something may be left all the same, by what is not even completed.
func TestWhatFollowsADiscardIsAskedAfter(t *testing.T) {
	h := run(t, config(database(pg.Start(t).URL(), one)))
	c, other := newFrontend(t, h), h.connect(t)
	c.send(parsed("", "discard all") + bound("") + executed + parsed("", "select set_config('work_mem', '7MB', false) from generate_series(1, 2)") + bound("") + frame('E', "\x00\x00\x00\x00\x01") + synced)
	c.expect("12C12DsZ")
	if got := value(t, other, "show work_mem", simple); got != "4MB" {
		t.Errorf("another client has %s", got)
	}
	c.send(frame('Q', "show work_mem\x00"))
	if c.expect("TDCZ"); c.row != "7MB" {
		t.Errorf("its own client has %s", c.row)
	}
}

// The value that a client has set may be the server's own, and the server may have it by itself.
func TestAResetLeavesWhatItDoesNotName(t *testing.T) {
	h := run(t, config(database(pg.Start(t).URL(), one)))
	for _, resets := range []string{"reset datestyle", "reset role", "set session authorization default"} {
		c, other := h.connect(t, "options=-c work_mem=9MB -c datestyle=german"), h.connect(t)
		do(t, c, "set work_mem = '4MB'", simple)
		do(t, other, "reset all", simple)
		do(t, other, "begin; set work_mem = '6MB'; rollback", simple)
		do(t, c, resets, simple)
		if got := value(t, c, "select current_setting('work_mem') || ' ' || current_setting('datestyle')", simple); got != "4MB German, DMY" {
			t.Errorf("%s: %s", resets, got)
		}
	}
}
