package pooler

import (
	"fmt"
	"slices"
	"testing"
)

// Behind a RESET the client sees what it chose at login, at once.
func TestBehindAResetThereIsWhatWasChosenAtLogin(t *testing.T) {
	_, m := newMatch(t, func(d *Database) { d.Pool.Max = 2 })
	login := []string{"options", "-c datestyle=German -c work_mem=9MB -c my.x=1 -c search_path=other", "TimeZone", "Asia/Tokyo", "application_name", "chooser"}
	const look = "select current_setting('datestyle'), current_setting('work_mem'), current_setting('my.x'), current_setting('search_path'), current_setting('timezone'), current_setting('role')"
	change := query("set datestyle = 'SQL, MDY'; set work_mem = '5MB'; set my.x = 2; set search_path = public; set timezone = 'Europe/Paris'")
	named := func(text string) step { return ask(parsed("p", text)) }
	do := func(text string) string { return parsed("", text) + bound("") + executed }
	use := ask(bound("p"), executed, do(look))
	begin, commit, rollback, see := query("begin"), query("commit"), query("rollback"), query(look)
	for what, c := range map[string]struct {
		login []string
		steps []step
	}{
		"in a text":                      {login, []step{change, query("reset datestyle; " + look + "; select n from things"), see}},
		"all, in a text":                 {login, []step{change, query("reset all; " + look + "; select n from things"), see}},
		"one after the other":            {login, []step{change, query("reset datestyle;reset work_mem;" + look + ";reset my.x;" + look + ";reset search_path; select n from things;reset time zone;" + look), see}},
		"to default":                     {login, []step{change, query("set datestyle to default; set search_path = default; set time zone default;" + look), see}},
		"to local":                       {login, []step{change, query("set time zone local;" + look), see}},
		"locally":                        {login, []step{change, begin, query("set local work_mem to default; set local search_path to default;" + look), see, commit, see}},
		"locally, alone":                 {login, []step{change, begin, query("set local work_mem to default"), see, query("set local search_path = default"), see, commit, see}},
		"locally, in a text":             {login, []step{change, query("set local work_mem to default; " + look), see, query("set local work_mem to default"), see, query("select 1; set local work_mem = default"), see}},
		"alone":                          {login, []step{change, query("reset timezone"), query("reset datestyle"), see, query("reset all"), see}},
		"alone, to the server's default": {login, []step{query("set timezone = 'UTC'"), query("reset timezone"), query("set datestyle = 'ISO, MDY'"), query("reset datestyle"), see}},
		"in a transaction":               {login, []step{change, begin, query("reset datestyle"), query("reset all; " + look), see, rollback, see}},
		"behind a savepoint":             {login, []step{change, begin, query("savepoint a; reset all; " + look + "; rollback to a; " + look), commit, see}},
		"that is undone":                 {login, []step{change, query("reset all; select 1/0"), see, query("begin; reset all; rollback; " + look), see}},
		"when all is lost":               {login, []step{change, query("begin; select 1/0"), query("reset all; " + look), rollback, see}},
		"behind the end of what is lost": {login, []step{change, query("begin; select 1/0"), query("rollback; reset all; " + look), see}},
		"and then something else":        {login, []step{change, query("reset datestyle; set datestyle = 'ISO, MDY'; " + look), see}},
		"with errors behind it":          {login, []step{query("select 'ä'; reset all; select nothing"), query("reset all; select 1; selec"), query("reset work_mem; select n from nowhere; reset all"), query("reset all; select 1/0, 'x'::int")}},
		"with an error in front of it":   {login, []step{query("select nothing; reset all"), query("select n, nothing from things; reset all; select 1")}},
		"of what is no setting":          {login, []step{query("reset nothing; " + look), query("reset my.y; " + look)}},
		"of what was not chosen":         {login, []step{query("set work_mem = '1MB'; set enable_sort = off; reset enable_sort; show enable_sort; show work_mem")}},
		"the role":                       {[]string{"options", "-c role=lesser"}, []step{query("set role none; select current_setting('role'); reset role; select current_setting('role')"), query("set role none; reset all; select current_setting('role')"), query("reset session authorization; select current_setting('role')")}},
		"what superusers alone may set":  {[]string{"options", "-c log_statement=none -c work_mem=9MB"}, []step{query("set role lesser; reset all; show work_mem"), query("show log_statement")}},
		"by set_config":                  {login, []step{change, query("select set_config('work_mem', null, false) is null"), see, begin, query("select set_config('datestyle', null, false) is null"), see, commit, see}},
		"beside COPY":                    {login, []step{change, {"copy", query("copy notes from stdin; reset all; "+look+"; copy notes to stdout").bytes + frame('d', "1\t2\n") + frame('c', ""), 1}, see}},
		"with rows in front":             {login, []step{change, query("select generate_series(1, 3); reset all; select generate_series(4, 6); " + look)}},
		"with empty statements":          {login, []step{change, query(";; reset all ;;; " + look + ";;")}},
		"beside a function's body":       {login, []step{query("create or replace function two() returns int begin atomic select 1; select 2; end; select two(); show work_mem")}},
		"discard all":                    {login, []step{change, query("discard all"), see, query("discard all; select 1"), see}},
		"in a cycle":                     {login, []step{change, ask(do("reset datestyle"), do(look)), ask(do("reset all"), do(look), do("select n from things")), see}},
		"in a cycle, described":          {login, []step{change, ask(parsed("", "reset all"), bound(""), frame('D', "P\x00"), executed, executed, do(look)), see}},
		"in a cycle, prepared":           {login, []step{change, named("reset all"), use, change, use, see}},
		"in a cycle, to default":         {login, []step{change, ask(do("set search_path to default"), do("set my.x to default"), do(look))}},
		"in a cycle, locally":            {login, []step{change, ask(do("set local work_mem to default"), do(look)), begin, ask(do("set local work_mem to default"), do(look)), commit, see}},
		"in a cycle, discard all":        {login, []step{change, ask(do("discard all"), do(look)), see}},
		"in a cycle that fails":          {login, []step{change, ask(do("reset all"), do("select 1/0"), do(look)), see, ask(do("select 1/0"), do("reset all")), see}},
		"in a cycle in a transaction":    {login, []step{change, begin, ask(do("reset all"), do(look)), rollback, see}},
		"in a cycle, and then another":   {login, []step{change, ask(do("reset timezone"), do("set timezone = 'UTC'")), see, change, begin, ask(do("reset timezone"), do("set timezone = 'UTC'"), do(look)), see, rollback, see}},
		"in a cycle, and its isolation":  {[]string{"TimeZone", "Asia/Tokyo"}, []step{begin, ask(do("reset timezone")), query("set transaction isolation level serializable"), commit}},
		"in a cycle, names":              {login, []step{change, ask(parsed("a", "select 1"), do("reset all"), parsed("b", "select n from things"), bound("a"), executed, bound("b"), executed), ask(bound("b"), executed, bound("a"), executed)}},
		"in cycles at once":              {login, []step{change, {"three cycles", do("reset datestyle") + synced + do(look) + synced + do("reset all") + do(look) + synced, 3}, see}},
		"in texts at once":               {login, []step{change, {"three texts", query("reset datestyle; "+look).bytes + query(look).bytes + query("reset all;"+look).bytes, 3}, see}},
		"bound twice":                    {login, []step{change, ask(parsed("", "reset all"), bound(""), bound(""), executed, do(look)), ask(parsed("", "reset all"), bound(""), parsed("", look), bound(""), executed), see}},
		"the unnamed one stays":          {login, []step{change, ask(parsed("", "select 'here'"), parsed("p", "reset all"), bound("p"), executed, bound(""), executed), ask(bound(""), executed)}},
		"in a cycle, executed by name":   {login, []step{change, named("reset all"), ask(parsed("e", "execute p")), ask(bound("e"), executed, do(look)), change, ask(parsed("", "execute e"), bound(""), executed, do(look)), see}},
		"executed by name":               {login, []step{change, named("reset all"), query("execute p"), see, change, ask(parsed("e", "execute p")), query("execute e"), see, change, begin, query("execute e"), see, rollback, see}},
		"beside what SQL prepared":       {login, []step{query("prepare q as select n from things where n = 'a'"), query("prepare q (text) as select n from things where n = $1::int"), change, query("reset all; execute q ('1')"), query("reset all; execute q ('x')"), query("reset all; execute q (nothing)"), query("select 1; reset work_mem; execute q ("), see}},
		"by a client that listens":       {login, []step{query("listen a"), change, query("reset all; " + look), ask(do("reset all"), do(look)), see}},
	} {
		t.Run(what, func(t *testing.T) {
			both := m.enter(t, c.login)
			m.same(t, what, both, c.steps, nil)
		})
	}
}

// In session mode it is so in a function too.
func TestInSessionModeAServerIsEnteredAsItsClientEnters(t *testing.T) {
	h, m := newMatch(t, func(d *Database) { d.Pool.Max, d.Mode = 2, modeSession })
	const look = "select current_setting('datestyle'), current_setting('work_mem'), nullif(current_setting('my.x', true), ''), current_setting('search_path'), current_setting('timezone'), current_setting('role')"
	change := query("set datestyle = 'SQL, MDY'; set work_mem = '5MB'; set my.x = 2; set search_path = public; set timezone = 'UTC'")
	see := query(look)
	steps := []step{
		see, change, query("reset datestyle; " + look), query("do $$ begin reset all; end $$; " + look), change, query("select set_config('work_mem', null, false); " + look),
		change, ask(parsed("", "reset all"), bound(""), executed, parsed("", look), bound(""), executed), change, query("discard all"), see, query("begin; reset all; rollback; " + look), query("set role none; reset role; " + look),
	}
	for _, login := range [][]string{
		{"options", "-c datestyle=German -c work_mem=9MB -c my.x=1 -c search_path=other", "TimeZone", "Asia/Tokyo", "application_name", "chooser"},
		{}, {"DateStyle", "German"}, {"options", "-c role=lesser -c my.x=1"}, {"work_mem", "no number"}, {"DateStyle", "German"}, {"client_encoding", "LATIN1"},
	} {
		both := m.sides(login)
		if pooled, direct := both[0].err, both[1].err; (pooled == nil) != (direct == nil) || pooled != nil && pooled.Error() != direct.Error() {
			t.Fatalf("%q: %v, %v", login, pooled, direct)
		} else if pooled != nil {
			continue
		}
		m.same(t, fmt.Sprintf("%q", login), both, steps, nil)
		for _, p := range both {
			_, _ = p.conn.Write([]byte(frame('X', "")))
			p.conn.Close()
		}
	}
	await(t, "no lease is left", func() bool { st := h.Stats().Databases[0]; return st.Active == 0 && st.Waiting == 0 })
	if open := h.Stats().Databases[0]; open.Idle > 2 {
		t.Errorf("%d servers are open", open.Idle)
	}
}

// One that has been entered in the same way is not entered again, and stays while there is room for others.
func TestInSessionModeAServerThatWasEnteredAlikeIsUsedAgain(t *testing.T) {
	h, m := newMatch(t, func(d *Database) { d.Pool.Max, d.Mode = 2, modeSession })
	pids := map[string][]string{}
	for range 3 {
		for _, style := range []string{"German", "SQL"} {
			p := m.sides([]string{"DateStyle", style})[0]
			p.say(query("select pg_backend_pid()"))
			pids[style] = append(pids[style], p.hear(1))
			_, _ = p.conn.Write([]byte(frame('X', "")))
			p.conn.Close()
			await(t, "the server is free", func() bool { return h.Stats().Databases[0].Active == 0 })
		}
	}
	for style, all := range pids {
		if len(slices.Compact(all)) != 1 {
			t.Errorf("%s: %q", style, all)
		}
	}
}

// However many others have logged in since, and chosen otherwise.
func TestAClientIsToldAgainWhatItWasToldAtLogin(t *testing.T) {
	h, m := newMatch(t)
	both := m.enter(t, []string{"DateStyle", "German"})
	p := h.policy.Load().pools["app"]
	p.mu.Lock()
	clear(p.welcome) // as others have, when they are maxWelcomes
	p.mu.Unlock()
	m.same(t, "told", both, []step{query("discard all"), query("set datestyle = iso"), query("discard all")}, nil)
}
