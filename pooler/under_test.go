package pooler

import "testing"

// What was prepared is made again on another server as it was made, whether by the protocol or by SQL, and behind a
// change of settings in the same transaction too.
func TestWhatIsMadeAgainIsMadeUnderTheSettingsOfThen(t *testing.T) {
	h, m := newMatch(t, one)
	other := h.connect(t)
	const date = "select to_char('01.02.2026'::date, 'DD Mon')"
	german, iso, lost, found := query("set datestyle = german"), query("set datestyle = 'ISO, MDY'"), query("set search_path = ''"), query("set search_path = other")
	begin, commit, rollback := query("begin"), query("commit"), query("rollback")
	locally, pinned := query("set local search_path = other"), query("set local datestyle = german")
	parse, use := ask(parsed("p", "select n from things")), ask(bound("p"), executed)
	given := ask(bindTexts("", "p", []string{"1"}), executed)
	prepare, execute := query("prepare q as select n from things"), query("execute q")
	drop := query("deallocate q")
	change := func(sql string) string { return parsed("", sql) + bound("") + executed }
	lose, parseFixture := query("select 1/0"), ask(parsed("p", "select n from fixture where n < 3"))
	for what, c := range map[string]struct {
		login  []string
		before []step
		then   []step // another has had the server
	}{
		"by SQL, a table":                       {nil, []step{found, prepare, query("set search_path = public")}, []step{execute, query("explain (costs off) execute q"), found, execute}},
		"by SQL, a table that is not found":     {nil, []step{found, prepare, lost}, []step{execute, query("execute q (1)"), ask(bound("q"), executed), ask(described("q")), found, execute}},
		"by SQL, too few parameters":            {nil, []step{found, query("prepare q (int) as select $1 from things"), lost}, []step{execute, query("execute q (1)"), query("execute q ('x')"), drop, execute}},
		"by SQL, too few parameters, unnamed":   {nil, []step{found, query("prepare q as select $1 + 1 from things"), lost}, []step{execute, query("execute q (1)")}},
		"by SQL, dropped where it is lost":      {nil, []step{found, prepare, lost}, []step{drop, prepare, found, prepare, execute}},
		"by SQL, a date":                        {nil, []step{german, query("prepare q as " + date), iso}, []step{execute}},
		"by SQL, a date of the login":           {[]string{"datestyle", "German"}, []step{query("prepare q as " + date), iso}, []step{execute}},
		"by SQL, as another role":               {nil, []step{query("set role lesser"), query("prepare q as select n from fixture where n = 1"), query("reset role")}, []step{execute}},
		"by SQL, for another role":              {nil, []step{query("prepare q as select n from fixture where n = 1"), query("set role lesser")}, []step{execute, query("reset role")}},
		"by SQL, behind a change":               {nil, []step{begin, locally, prepare, commit}, []step{execute, query("execute q (1)"), found, execute}},
		"by SQL, a date behind a change":        {nil, []step{begin, pinned, query("prepare q as " + date), commit}, []step{execute}},
		"by SQL, behind one that is undone":     {nil, []step{begin, query("set search_path = other"), prepare, rollback}, []step{execute}},
		"by SQL, made twice":                    {nil, []step{german, query("prepare q as " + date), query("deallocate q"), iso, query("prepare q as " + date), german}, []step{execute}},
		"by SQL, made twice at once":            {nil, []step{begin, german, query("prepare q as " + date), query("deallocate all"), iso, query("prepare q as " + date), german, commit}, []step{execute}},
		"by SQL, refused the second time":       {nil, []step{german, query("prepare q as " + date), iso, query("prepare q as " + date)}, []step{execute}},
		"by SQL, a table that is gone":          {nil, []step{query("create table gone (n int)"), query("prepare q as select n from gone"), query("drop table gone")}, []step{execute, ask(bound("q"), executed), drop}},
		"by SQL, a table that is gone, dropped": {nil, []step{query("create table gone (n int)"), query("prepare q as select n from gone"), query("drop table gone")}, []step{drop, prepare}},
		"by SQL, in the extended protocol":      {nil, []step{found, ask(parsed("", "prepare q as select n from things"), bound(""), executed), lost}, []step{execute, found, execute}},
		"by SQL, two":                           {nil, []step{found, prepare, german, query("prepare r as " + date), iso, lost}, []step{query("execute r"), execute, query("execute r"), found, execute}},
		"behind a change":                       {nil, []step{begin, locally, parse, commit}, []step{use, ask(described("p")), query("execute p"), found, use}},
		"behind a change, a date":               {nil, []step{begin, pinned, ask(parsed("p", date)), use, commit}, []step{use, query("execute p")}},
		"behind a change, in a transaction":     {nil, []step{begin, pinned, ask(parsed("p", date)), use, commit}, []step{begin, query("set local datestyle = 'SQL, MDY'"), use, query("show datestyle"), rollback}},
		"behind a change, parameters":           {nil, []step{begin, locally, ask(parsed("p", "select $1::int from things")), commit}, []step{use, given, ask(bindTexts("", "p", []string{"word"}), executed)}},
		"behind a change that is undone":        {nil, []step{begin, query("savepoint a"), locally, parse, query("rollback to a"), ask(parsed("r", "select n from things")), rollback}, []step{use, ask(bound("r"), executed)}},
		"behind two changes":                    {nil, []step{begin, locally, parse, pinned, ask(parsed("d", date)), lost, ask(parsed("e", "select 'x'::text as x"), bound("e"), executed), rollback}, []step{ask(bound("d"), executed), use, ask(bound("e"), executed)}},
		"behind a change by a function":         {nil, []step{begin, query("select set_config('search_path', 'other', true)"), parse, commit}, []step{use, found, use}},
		"behind a change of its own name":       {nil, []step{begin, query("set local my.x = 1"), parse, use, commit}, []step{use, lost, use}},
		"behind a change of the login's":        {[]string{"datestyle", "German", "search_path", "other"}, []step{begin, query("set local my.x = 1"), parse, ask(parsed("d", date)), commit}, []step{use, ask(bound("d"), executed), iso, ask(bound("d"), executed)}},
		"behind a change of the role":           {nil, []step{begin, query("set local role lesser"), ask(parsed("p", "select n from fixture where n = 1")), commit}, []step{use}},
		"behind a change, all at once":          {nil, []step{{"four cycles", begin.bytes + locally.bytes + parse.bytes + commit.bytes, 4}}, []step{use, found, use}},
		"behind a change, all at once, by SQL":  {nil, []step{{"four cycles", begin.bytes + locally.bytes + prepare.bytes + commit.bytes, 4}}, []step{execute, found, execute}},
		"behind a change, known already":        {nil, []step{begin, pinned, ask(parsed("p", date)), commit, begin, ask(parsed("r", date)), pinned, ask(parsed("s", date)), commit}, []step{use, ask(bound("r"), executed), ask(bound("s"), executed)}},
		"behind a change, with its isolation":   {nil, []step{begin, pinned, ask(parsed("i", "set transaction isolation level serializable"), bound("i"), executed, parsed("p", "select 1"), bound("p"), executed), query("show transaction_isolation"), commit}, []step{use}},
		"behind a change, before its isolation": {nil, []step{begin, pinned, ask(parsed("p", "set transaction isolation level serializable")), use, query("show transaction_isolation"), commit},
			[]step{begin, use, query("show transaction_isolation"), commit}},
		"behind a change, with the unnamed one": {nil, []step{begin, locally, ask(parsed("", "select n from things")), parse, ask(bound(""), executed), commit}, []step{use}},
		"behind a change, when all is lost":     {nil, []step{begin, locally, query("select 1/0"), parse, prepare, rollback}, []step{use, execute}},
		"behind a change in its cycle":          {nil, []step{ask(change("set search_path = other"), parsed("p", "select n from things"), parsed("", "select n || '!' from things")), lost}, []step{use, ask(described("p")), ask(bound(""), executed), query("execute p"), found, use}},
		"behind a change in its cycle, a date":  {nil, []step{ask(change("set datestyle = german"), parsed("p", date), bound("p"), executed), iso}, []step{use, use}},
		"behind a change in its cycle, values":  {nil, []step{ask(change("set search_path = other"), parsed("p", "select $1::int from things")), lost}, []step{use, given, ask(bindTexts("", "p", []string{"word"}), executed)}},
		"behind one that is undone":             {nil, []step{begin, query("savepoint a"), ask(change("set search_path = other"), parsed("p", "select $1::int from things")), query("rollback to a"), commit}, []step{found, given, use}},
		"by SQL, in a cycle behind a change":    {nil, []step{ask(change("set search_path = other"), change("prepare q as select n from things")), lost}, []step{execute}},
		"before a change that is bound":         {nil, []step{ask(parsed("s", "set datestyle = german")), ask(frame('B', "c\x00s\x00\x00\x00\x00\x00\x00\x00"), parsed("p", date), frame('E', "c\x00\x00\x00\x00\x00"), bound("p"), executed), iso}, []step{use}},
		"behind a local change in its cycle":    {nil, []step{ask(change("set work_mem = '5MB'"), change("set local datestyle = german"), parsed("p", date), bound("p"), executed)}, []step{begin, pinned, use, rollback}},
		"behind changes in its cycle":           {nil, []step{ask(change("set search_path = other"), parsed("p", "select n from things"), change("set datestyle = german"), parsed("d", date))}, []step{use, ask(bound("d"), executed), query("set datestyle = iso"), ask(bound("d"), executed), use}},
		"behind a change that fails":            {nil, []step{ask(change("set datestyle = german"), parsed("p", date), bound("p"), executed, parsed("", "select 1/0"), bound(""), executed)}, []step{query("show datestyle")}},
		"behind the end of what is lost":        {nil, []step{parseFixture}, []step{begin, lose, query("rollback; execute p")}},
		"behind its end, in another":            {nil, []step{parseFixture}, []step{begin, lose, query("rollback; start transaction; select 'x'; execute p; execute p; commit"), begin, lose, query("commit;; explain (costs off) execute p;")}},
		"behind its end, in a chain":            {nil, []step{parseFixture}, []step{begin, lose, query("rollback and chain; execute p"), commit}},
		"behind a savepoint":                    {nil, []step{parseFixture}, []step{begin, query("savepoint a"), lose, query("rollback to a; execute p"), commit}},
		"behind no savepoint":                   {nil, []step{parseFixture}, []step{begin, lose, query("rollback to a; execute p"), query("select 1"), rollback, use}},
		"behind its end, with an error":         {nil, []step{parseFixture}, []step{begin, lose, query("/* ä */ rollback; execute p; select nothing; insert into notes values (1, 1)"), query("select count(*) from notes")}},
		"behind its end, an error before":       {nil, []step{parseFixture}, []step{begin, lose, query("select 1; rollback; execute p"), query("rollback; select 1/0; execute p"), use}},
		"behind its end, with bad syntax":       {nil, []step{parseFixture}, []step{begin, lose, query("rollback; execute p; selec"), query("rollback; execute p (")}},
		"behind its end, many":                  {nil, []step{parseFixture}, []step{begin, lose, {"three texts", query("rollback; execute p").bytes + begin.bytes + query("select 2").bytes + ask(bound("p"), executed).bytes, 4}, rollback}},
		"behind no savepoint, many":             {nil, []step{parseFixture}, []step{begin, lose, {"three texts", query("rollback to a; execute p").bytes + rollback.bytes + query("select 2").bytes, 3}}},
		"described when all is lost":            {nil, []step{ask(parsed("p", "insert into notes values ($1, $2 + 1)")), ask(parsed("r", "select n from notes where n = $1"))}, []step{begin, query("select 1/0"), ask(described("p")), ask(described("p")), ask(described("r")), use, rollback, ask(described("p"))}},
		"described when all is lost, unnamed":   {nil, []step{ask(parsed("b", "begin"), parsed("z", "select 1/0"), parsed("", "insert into notes values ($1, $2 + 1)"))}, []step{ask(bound("b"), executed), ask(bound("z"), executed), ask(described("")), ask(described("")), rollback}},
		"described when all is lost, a table":   {nil, []step{found, ask(parsed("p", "update things set n = $1")), lost}, []step{begin, query("select 1/0"), ask(described("p")), rollback, ask(described("p"))}},
	} {
		t.Run(what, func(t *testing.T) {
			both := m.enter(t, c.login)
			forget := func() { do(t, other, "deallocate all", simple) } // the server does
			m.same(t, "before", both, c.before, forget)
			m.same(t, "then", both, c.then, forget)
		})
	}
}
