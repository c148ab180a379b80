package pooler

import (
	"errors"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

var everyMode = []pgx.QueryExecMode{
	pgx.QueryExecModeSimpleProtocol, pgx.QueryExecModeExec, pgx.QueryExecModeDescribeExec,
	pgx.QueryExecModeCacheDescribe, pgx.QueryExecModeCacheStatement,
}

func sqlState(err error) string {
	if e, ok := errors.AsType[*pgconn.PgError](err); ok {
		return e.Code
	}
	return ""
}

func TestSQLDeallocatesWhatTheProtocolPrepared(t *testing.T) {
	h := run(t, config(database(pg.Start(t).URL(), func(d *Database) { d.Pool.Max = 2 })))
	other := h.connect(t)
	if _, err := other.Prepare(t.Context(), "ps", "select 'one'"); err != nil {
		t.Fatal(err)
	}
	for _, mode := range everyMode {
		for _, sql := range []string{"deallocate ps", `DEALLOCATE PREPARE "ps" ;`} {
			client := h.connect(t)
			for _, text := range []string{"select 'one'", "select 'two'"} { // under a name that is free again
				if _, err := client.Prepare(t.Context(), "ps", text); err != nil {
					t.Fatalf("%v: %v", mode, err)
				}
				tx, err := client.Begin(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				if _, err := tx.Exec(t.Context(), "selec 1"); err == nil {
					t.Fatal("no error")
				}
				if _, err := tx.Exec(t.Context(), sql, pgx.QueryExecModeSimpleProtocol); sqlState(err) != "25P02" {
					t.Errorf("in a failed transaction: %v", err)
				}
				if err := tx.Rollback(t.Context()); err != nil {
					t.Fatal(err)
				}
				tag, err := client.Exec(t.Context(), sql, mode)
				if err != nil || tag.String() != "DEALLOCATE" {
					t.Fatalf("%v: %v, %v", mode, tag, err)
				}
				if _, err := client.Exec(t.Context(), sql, mode); sqlState(err) != "26000" {
					t.Errorf("%v: once more: %v", mode, err)
				}
			}
			if got := value(t, other, "ps"); got != "one" {
				t.Errorf("the other client's is %s", got)
			}
		}
	}
	for _, c := range h.Clients() {
		if c.Pinned != "" {
			t.Errorf("pinned by %s", c.Pinned)
		}
	}
}

func TestSQLExecutesWhatTheProtocolPrepared(t *testing.T) {
	h := run(t, config(database(pg.Start(t).URL(), one)))
	client, other := h.connect(t), h.connect(t)
	if _, err := client.Prepare(t.Context(), "Twice", "select ($1::int * 2)::text"); err != nil {
		t.Fatal(err)
	}
	for _, mode := range everyMode {
		do(t, other, "discard all") // the server knows nothing now
		for range 2 {
			if got := value(t, client, `execute "Twice"(21)`, mode); got != "42" {
				t.Errorf("%v: got %s", mode, got)
			}
		}
	}
	plan := value(t, client, `explain (costs off) execute "Twice"(21)`, pgx.QueryExecModeSimpleProtocol)
	if !strings.Contains(plan, "Result") {
		t.Errorf("the plan is %s", plan)
	}
	if _, err := client.Exec(t.Context(), "execute twice(21)", pgx.QueryExecModeSimpleProtocol); sqlState(err) != "26000" {
		t.Errorf("another name: %v", err)
	}
}

func TestAStatementThatNoLongerFitsIsAnErrorOfTheExecute(t *testing.T) {
	h := run(t, config(database(pg.Start(t).URL(), one)))
	client, other := h.connect(t), h.connect(t)
	do(t, client, "create table if not exists passing (n int)")
	if _, err := client.Prepare(t.Context(), "ps", "select n from passing"); err != nil {
		t.Fatal(err)
	}
	do(t, other, "drop table passing")
	do(t, other, "discard all")
	if _, err := client.Exec(t.Context(), "execute ps", pgx.QueryExecModeSimpleProtocol); sqlState(err) != "42P01" { // as with a connection of its own
		t.Errorf("got %v", err)
	}
	if got := value(t, client, "select 'goes on'"); got != "goes on" {
		t.Error(got)
	}
}

func TestANameIsFreeBehindADeallocateAllOfTheSameCycle(t *testing.T) {
	h := run(t, config(database(pg.Start(t).URL(), one)))
	c := newFrontend(t, h)
	parse := func(name, sql string) string { return frame('P', name+"\x00"+sql+"\x00\x00\x00") }
	execute := func(portal, name string) string {
		return frame('B', portal+"\x00"+name+"\x00\x00\x00\x00\x00\x00\x00") + frame('E', portal+"\x00\x00\x00\x00\x00")
	}
	sync := frame('S', "")
	for _, all := range []string{"deallocate all", "Discard ALL ;"} {
		c.send(parse("p", "select 'old'") + parse("all", all) + sync)
		c.expectFor(all, "11Z")
		c.send(execute("c", "all") + parse("p", "select 'new'") + execute("", "p") + sync)
		if c.expectFor(all, "2C12DCZ"); c.row != "new" {
			t.Errorf("%s: %s", all, c.row)
		}
		c.send(parse("all", all) + sync) // it has forgotten itself, too
		c.expectFor(all, "1Z")
		// An error before it: nothing is forgotten.
		c.send(execute("", "none") + execute("", "all") + parse("p", "select 'newer'") + sync)
		c.expectFor(all, "EZ")
		c.send(parse("p", "select 'newest'") + sync)
		c.expectFor(all, "EZ")
		c.send(execute("", "p") + sync)
		if c.expectFor(all, "2DCZ"); c.row != "new" {
			t.Errorf("%s: %s", all, c.row)
		}
		c.send(frame('Q', "deallocate all\x00") + parse("p", "select 'behind'") + execute("", "p") + sync + execute("", "all") + sync)
		if c.expectFor(all, "CZ12DCZEZ"); c.row != "behind" {
			t.Errorf("%s: %s", all, c.row)
		}
		c.send(frame('Q', "deallocate all\x00"))
		c.expectFor(all, "CZ")
	}
}

func TestDeallocateAllAndDiscardAllForgetEveryName(t *testing.T) {
	h := run(t, config(database(pg.Start(t).URL(), one)))
	for _, sql := range []string{"deallocate all", "DEALLOCATE PREPARE ALL", "discard all"} {
		for _, mode := range []pgx.QueryExecMode{pgx.QueryExecModeSimpleProtocol, pgx.QueryExecModeExec} {
			client := h.connect(t)
			for range 2 {
				if _, err := client.PgConn().Prepare(t.Context(), "ps", "select 'x'", nil); err != nil {
					t.Fatalf("%s: %v", sql, err)
				}
				if _, err := client.Exec(t.Context(), sql, mode); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
}

func TestATextOfSeveralStatementsUsesWhatTheProtocolPrepared(t *testing.T) {
	h := run(t, config(database(pg.Start(t).URL(), one)))
	c, other := newFrontend(t, h), h.connect(t)
	parse := func(name, sql string) string { return frame('P', name+"\x00"+sql+"\x00\x00\x00") + frame('S', "") }
	query := func(sql string) string { return frame('Q', sql+"\x00") }
	for _, knows := range []bool{true, false} {
		c.send(query("deallocate all") + parse("p", "select 'p'") + parse("q", "select 'q'"))
		c.expectFor("prepare", "CZ1Z1Z")
		if !knows {
			do(t, other, "discard all")
		}
		for _, step := range []struct{ sql, want, row string }{
			{"select 1; execute p; execute q", "TDCTDCTDCZ", "q"},
			{"begin; execute q; deallocate q; rollback; execute p", "CTDCCCTDCZ", "p"},
			{"execute p; execute q", "TDCEZ", "p"}, // it is gone: that is no matter of transactions
			{"deallocate p; prepare p as select 'new'; execute p", "CCTDCZ", "new"},
			{"execute p; deallocate p; deallocate p", "TDCCEZ", "new"},
			{"select 1; execute p", "TDCEZ", "1"},
		} {
			c.send(query(step.sql))
			if c.expectFor(step.sql, step.want); c.row != step.row {
				t.Errorf("%s: got %s", step.sql, c.row)
			}
		}
		c.send(parse("p", "select 'again'") + query("prepare p as select 'other'") + query("execute p") + query("deallocate p"))
		if c.expectFor("a name that is taken", "1ZEZTDCZCZ"); c.row != "again" {
			t.Errorf("got %s", c.row)
		}
	}
}
