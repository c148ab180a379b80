package pooler

import (
	"context"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
)

func TestStatementModeRefusesOpenTransactionsAndKeepsTheClient(t *testing.T) {
	s := pg.Start(t)
	if err := s.Exec(t.Context(), "drop table if exists single; create table single (n int)"); err != nil {
		t.Fatal(err)
	}
	h := run(t, config(database(s.URL(), one, func(d *Database) { d.Mode = modeStatement })))
	conn, other := h.connect(t), h.connect(t)
	for _, begin := range []string{"begin", "insert into single values (1); begin; insert into single values (2)", "start transaction read only"} {
		_, err := conn.Exec(t.Context(), begin, pgx.QueryExecModeSimpleProtocol)
		if e := refusedWith(t, err, "0A000"); !strings.Contains(e.Hint, "mode: transaction") {
			t.Error(e.Hint)
		}
		value(t, other, "select 'the server is free'")
	}
	_, err := conn.Exec(t.Context(), "begin", pgx.QueryExecModeCacheStatement)
	refusedWith(t, err, "0A000")
	do(t, conn, "begin; insert into single values (3); commit", pgx.QueryExecModeSimpleProtocol)
	if got := value(t, conn, "select count(*)::text from single"); got != "1" {
		t.Errorf("%s rows", got)
	}
	do(t, conn, "listen s; notify s", pgx.QueryExecModeSimpleProtocol)
	heardBy(t, conn)
	do(t, conn, "set work_mem = '7MB'")
	if got := value(t, other, "show work_mem") + value(t, conn, "show work_mem"); got != "4MB7MB" {
		t.Errorf("work_mem %s", got)
	}
	await(t, "the server is free", func() bool { return h.Stats().Databases[0].Active == 0 })
	if n := h.ledger.codes()[string(SQLError)]; n != 4 {
		t.Errorf("%d refused", n)
	}
}

func TestNothingRunsInATransactionThatStatementModeRefuses(t *testing.T) {
	s := pg.Start(t)
	if err := s.Exec(t.Context(), "drop table if exists single; create table single (n int)"); err != nil {
		t.Fatal(err)
	}
	h := run(t, config(database(s.URL(), one, func(d *Database) { d.Mode = modeStatement })))
	f := newFrontend(t, h)
	f.send(frame('Q', "select pg_sleep(0.3); begin\x00") + frame('Q', "insert into single values (1)\x00") + frame('Q', "rollback\x00"))
	f.expect("TDCCEZCZCZ") // the second was not part of it, and a rollback has nothing to do
	n, err := s.Value(context.Background(), "select count(*) from single")
	if err != nil || n != "1" {
		t.Errorf("%s rows, %v", n, err)
	}
}
