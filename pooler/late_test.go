package pooler

import "testing"

// What a prepared EXECUTE or DEALLOCATE names is what has that name when it is executed.
func TestAPreparedExecuteRunsWhatHasTheNameThen(t *testing.T) {
	h, m := newMatch(t, one)
	other := h.connect(t)
	begin, declare, rollback := query("begin"), query("declare c cursor for select n from fixture order by n"), query("rollback")
	fetch := ask(parsed("f", "fetch 2 from c"))
	use := func(name string) step { return ask(bound(name), executed) }
	portal := func(name string) step { return ask(bound(name), frame('D', "P\x00"), executed) }
	p, e, e2 := ask(parsed("p", "select 'x'")), ask(parsed("e", "execute p")), ask(parsed("e2", "execute e"))
	bySQL, gone := query("prepare p as select 'y'"), query("deallocate p")
	for what, steps := range map[string][]step{
		"made by SQL later":               {e, bySQL, use("e"), ask(described("e")), portal("e"), query("execute e"), ask(described("e"))},
		"made by the protocol later":      {e, p, use("e"), ask(described("e")), portal("e"), query("execute e"), gone, query("execute e")},
		"unnamed, made by SQL later":      {ask(parsed("", "execute p"), parsed("x", "prepare p as select 'x'"), bound("x"), executed), use(""), ask(described("")), portal("")},
		"unnamed, made by it later":       {ask(parsed("", "execute p")), p, use(""), ask(described("")), portal("")},
		"made anew":                       {p, e, gone, use("e"), ask(parsed("p", "select 'z'")), use("e"), ask(described("e"))},
		"made anew by SQL":                {p, e, gone, bySQL, use("e"), ask(described("e"))},
		"made anew by the protocol":       {bySQL, e, gone, p, use("e"), ask(described("e"))},
		"in one cycle":                    {ask(parsed("e", "execute p"), parsed("p", "select 'x'"), bound("e"), executed), use("e")},
		"in one cycle by SQL":             {ask(parsed("e", "execute p"), parsed("m", "prepare p as select 1"), bound("m"), executed, bound("e"), executed), use("e")},
		"a DEALLOCATE of what comes":      {ask(parsed("d", "deallocate p")), p, use("d"), use("p"), use("d")},
		"a DEALLOCATE of another":         {p, ask(parsed("d", "deallocate p")), gone, bySQL, use("d"), query("execute p")},
		"a DEALLOCATE of itself":          {ask(parsed("p", "deallocate p")), use("p"), use("p"), p, use("p")},
		"a DEALLOCATE in its cycle":       {p, ask(parsed("d", "deallocate p")), ask(bound("d"), executed, bound("p"), executed), use("p"), p, use("p")},
		"a DEALLOCATE, and made anew":     {p, ask(parsed("d", "deallocate p")), ask(bound("d"), executed, parsed("p", "select 'z'"), bound("p"), executed), use("p")},
		"a DEALLOCATE that is skipped":    {p, ask(parsed("d", "deallocate p")), ask(bound("nowhere"), bound("d"), executed), use("p"), ask(bound("d"), executed, bound("nowhere")), use("p")},
		"a DEALLOCATE that is executed":   {p, ask(parsed("d", "deallocate p")), ask(parsed("e", "execute d")), use("e"), use("p"), use("e"), p, query("execute d"), query("execute d"), p, query("select 1; execute e"), use("p")},
		"a DEALLOCATE of what does so":    {ask(parsed("d", "deallocate p")), ask(parsed("p", "execute d")), use("p"), use("p")},
		"described behind what it names":  {ask(parsed("p", "select 'x' as x")), ask(parsed("", "execute p"), described(""), bound(""), executed), ask(parsed("e", "execute p"), described("e")), ask(described("e"))},
		"a PREPARE of itself":             {ask(parsed("p", "prepare p as select 1")), use("p"), query("execute p"), gone, use("p")},
		"a PREPARE of what is taken":      {ask(parsed("m", "prepare p as select 1")), p, use("m"), use("p"), gone, use("m"), query("execute p"), ask(bound("p"), executed)},
		"with arguments":                  {ask(parsed("e", "execute p ('7')")), ask(parsed("p", "select $1::int + 1")), use("e"), ask(bindTexts("", "e", []string{"1"}), executed)},
		"explained":                       {ask(parsed("e", "explain (costs off) execute p")), ask(described("e")), p, use("e"), ask(described("e"))},
		"that fills a table":              {ask(parsed("e", "create temp table filled as execute p")), ask(described("e")), ask(parsed("p", "select 'x' as x")), begin, use("e"), query("table filled"), rollback},
		"without rows":                    {e, ask(parsed("p", "insert into notes values (-1, 1)")), use("e"), ask(parsed("e2", "execute p")), use("e2"), ask(described("e2")), query("execute e2")},
		"that ends the transaction":       {e, ask(parsed("p", "rollback")), begin, use("e"), begin, query("select 1/0"), use("e"), query("select 1")},
		"by two of it":                    {e, e2, p, use("e2"), use("e"), ask(described("e2")), ask(described("e")), query("execute e2"), query("select 1; execute e2")},
		"by two of SQL":                   {e, e2, bySQL, use("e2"), use("e"), ask(described("e2")), ask(described("e")), query("execute e2")},
		"a FETCH":                         {fetch, ask(parsed("e", "execute f")), begin, declare, use("e"), use("f"), query("execute f"), query("execute e"), ask(described("e")), ask(described("f")), use("e"), rollback, use("e")},
		"a FETCH of a cursor":             {begin, declare, fetch, ask(parsed("e", "execute f")), rollback, begin, declare, use("e"), query("execute f"), rollback},
		"a FETCH of a cursor that is not": {begin, declare, fetch, ask(parsed("e", "execute f")), rollback, use("f"), begin, declare, use("e"), query("execute f"), rollback, use("e")},
		"a FETCH that comes":              {begin, declare, ask(parsed("e", "execute f")), rollback, fetch, begin, declare, use("e"), query("execute f"), rollback},
		"a FETCH by SQL":                  {query("prepare f as fetch 2 from c"), ask(parsed("e", "execute f")), begin, declare, use("e"), query("execute f"), rollback},
	} {
		for _, forgets := range []bool{true, false} {
			t.Run(what, func(t *testing.T) {
				play, between := m.inTurn(t, nil), true
				for _, one := range steps {
					if forgets && between { // the server knows nothing of the client's
						do(t, other, "deallocate all", simple)
					}
					play([]step{one})
					between = one.story == rollback.story || between && one.story != begin.story
				}
			})
		}
	}
}

func TestAStatementThatExecutesItselfEnds(t *testing.T) {
	h := run(t, config(database(pg.Start(t).URL(), one)))
	c := newFrontend(t, h)
	c.send(parsed("e", "execute e") + parsed("a", "execute b") + parsed("b", "execute a") + synced)
	c.expect("111Z")
	for _, name := range []string{"e", "a", "b"} {
		c.send(bound(name) + executed + synced)
		c.expectFor(name, "2EZ")
	}
}

func TestWhatAPreparedExecuteSetsGoesWithItsClient(t *testing.T) {
	h := run(t, config(database(pg.Start(t).URL(), one)))
	c, other := newFrontend(t, h), h.connect(t)
	for _, step := range []struct{ send, want string }{
		{frame('Q', "prepare sets as select set_config('app.kept', $1, false)\x00"), "CZ"},
		{parsed("e", "execute sets ('yes')") + parsed("shows", "select coalesce(current_setting('app.kept', true), 'no')") + synced, "11Z"},
		{bound("e") + executed + synced, "2DCZ"},
	} {
		c.send(step.send)
		c.expectFor(step.send, step.want)
	}
	if got := value(t, other, "select coalesce(nullif(current_setting('app.kept', true), ''), 'no')"); got != "no" {
		t.Errorf("another client has %s", got)
	}
	c.send(bound("shows") + executed + synced)
	if c.expect("2DCZ"); c.row != "yes" {
		t.Errorf("its client has %s", c.row)
	}
}
