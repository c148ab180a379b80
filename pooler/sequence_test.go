package pooler

import (
	"testing"

	"github.com/jackc/pgx/v5"
)

// tickets makes a table whose rows are numbered, and another.
func tickets(t *testing.T) string {
	t.Helper()
	s := pg.Start(t)
	if err := s.Exec(t.Context(), "drop table if exists tickets, coupons; create table tickets (id bigserial, n int); create table coupons (id bigserial, n int); create sequence if not exists bare"); err != nil {
		t.Fatal(err)
	}
	return s.URL()
}

func TestASequenceValueIsNeverAnothers(t *testing.T) {
	for what, ask := range map[string]string{"lastval": "select lastval()::text", "currval": "select currval('tickets_id_seq')::text"} {
		for _, mode := range everyMode {
			t.Run(what+" "+mode.String(), func(t *testing.T) {
				h := run(t, config(database(tickets(t), one)))
				mine, other := h.connect(t), h.connect(t)
				for range 2 {
					do(t, other, "insert into tickets (n) values (1)", mode)
					if v, err := tryValue(t, mine, ask, mode); sqlState(err) != "55000" {
						t.Errorf("got %s, %v", v, err)
					}
					// In one transaction it is right.
					tx, err := mine.Begin(t.Context())
					if err != nil {
						t.Fatal(err)
					}
					do(t, mine, "insert into tickets (n) values (2)", mode)
					max := value(t, mine, "select max(id)::text from tickets", mode)
					if got := value(t, mine, ask, mode); got != max {
						t.Errorf("got %s, want %s", got, max)
					}
					if err := tx.Rollback(t.Context()); err != nil {
						t.Fatal(err)
					}
					do(t, mine, "discard sequences", simple) // it is pinned
				}
			})
		}
	}
}

func TestWhoAsksForEarlierSequenceValuesKeepsItsServer(t *testing.T) {
	h := run(t, config(database(tickets(t), func(d *Database) { d.Pool.Max = 2 })))
	mine, other := h.connect(t), h.connect(t)
	do(t, mine, "insert into tickets (n) values (1)")
	first := value(t, mine, "select lastval()::text") // nobody has had its server since
	for range 3 {
		do(t, mine, "insert into tickets (n) values (1)")
		do(t, other, "insert into tickets (n) values (1), (2), (3)")
		do(t, other, "insert into coupons (n) values (1)")
		last := value(t, mine, "select lastval()::text")
		if got := value(t, mine, "select currval('tickets_id_seq')::text"); got != last || got == first {
			t.Errorf("currval %s, lastval %s", got, last)
		}
		if pinned(h) != "sequence value" {
			t.Errorf("pinned by %q", pinned(h))
		}
		first = last
	}
	do(t, mine, "discard sequences")
	await(t, "it is free", func() bool { return pinned(h) == "" && h.Stats().Databases[0].Active == 0 })
}

func TestWhoAsksInTheSameTransactionIsNotPinned(t *testing.T) {
	h := run(t, config(database(tickets(t), one)))
	mine, other := h.connect(t), h.connect(t)
	for range 3 {
		for _, sql := range []string{"insert into tickets (n) values (1); select lastval()", "begin; select nextval('bare'); select currval('bare'); commit"} {
			do(t, mine, sql, simple)
			do(t, other, sql, simple) // which waits for nothing
		}
	}
	if pinned(h) != "" {
		t.Errorf("pinned by %q", pinned(h))
	}
}

func TestWhatAPipelineAsksOfAMixedServerIsRefused(t *testing.T) {
	h := run(t, config(database(tickets(t), one)))
	mine, other := newFrontend(t, h), h.connect(t)
	do(t, other, "insert into tickets (n) values (1)")
	mine.send(parsed("", "insert into coupons (n) values (1)") + bound("") + executed + parsed("", "select currval('tickets_id_seq')") + bound("") + executed + synced)
	if got := lastWords(t, mine.in); got != "0A000" {
		t.Errorf("SQLSTATE %q", got)
	}
	again := newFrontend(t, h)
	again.send(parsed("", "insert into coupons (n) values (1)") + bound("") + executed + parsed("", "select currval('coupons_id_seq')") + bound("") + executed + synced)
	again.expect("12C12DCZ")
	again.send(parsed("", "insert into coupons (n) values (1)") + bound("") + executed + parsed("", "select currval('tickets_id_seq')") + bound("") + executed + synced)
	again.expect("12C12EZ")
}

// What may ask for a value unseen finds its own transaction's, whatever the server has forgotten of others' before; and nothing
// takes a snapshot before a LOCK has waited.
func TestWhatMayAskForAValueFindsItsOwn(t *testing.T) {
	s := pg.Start(t)
	if err := s.Exec(t.Context(), `create or replace function unseen(q text) returns text language plpgsql as $$ declare r text; begin execute q into r; return r; end $$;
		create sequence if not exists bare; drop table if exists waited; create table waited as select 1 as n`); err != nil {
		t.Fatal(err)
	}
	h := run(t, config(database(s.URL(), one)))
	direct, err := pgx.Connect(t.Context(), s.URL())
	if err != nil {
		t.Fatal(err)
	}
	defer direct.Close(t.Context())
	mine, other := newFrontend(t, h), h.connect(t)
	ask := func(sql, want string) { t.Helper(); mine.send(frame('Q', sql+"\x00")); mine.expectFor(sql, want) }
	const last = "select unseen('select last'||'val()')"
	mine.send(parsed("p", last) + synced)
	mine.expect("1Z")
	for _, cycle := range []string{bound("p") + executed + synced, parsed("q", last) + bound("q") + executed + synced} {
		do(t, other, "select nextval('bare')")
		ask("begin", "CZ")
		ask("select nextval('bare')", "TDCZ")
		own := mine.row
		mine.send(cycle)
		if mine.expect(map[bool]string{true: "12DCZ", false: "2DCZ"}[cycle[0] == 'P']); mine.row != own {
			t.Errorf("%q, want %q", mine.row, own)
		}
		ask("commit", "CZ")
	}
	do(t, other, "select nextval('bare')")
	do(t, direct, "begin; update waited set n = 2", simple)
	ask("begin isolation level repeatable read", "CZ")
	mine.send(frame('Q', "lock table waited in exclusive mode; select unseen('select n from waited')\x00"))
	await(t, "it waits", func() bool {
		waits, err := s.Value(t.Context(), "select count(*)::text from pg_locks where not granted and relation = 'waited'::regclass")
		return err == nil && waits == "1"
	})
	do(t, direct, "commit", simple)
	if mine.expect("CTDCZ"); mine.row != "2" {
		t.Errorf("it sees %s", mine.row)
	}
	ask("rollback", "CZ")
	for _, begin := range []string{"begin isolation level serializable", "BEGIN READ ONLY, NOT DEFERRABLE", "begin read write"} {
		do(t, other, "select nextval('bare')")
		ask("begin read only", "CZ")
		ask(begin+"; select unseen('select 1')", "CTDCZ") // nothing comes before it
		ask("rollback", "CZ")
	}
}

// pinned is the first reason for which a client keeps its server.
func pinned(h *house) string {
	for _, c := range h.Clients() {
		if c.Pinned != "" {
			return c.Pinned
		}
	}
	return ""
}

func tryValue(t *testing.T, conn *pgx.Conn, sql string, args ...any) (v string, err error) {
	t.Helper()
	err = conn.QueryRow(t.Context(), sql, args...).Scan(&v)
	return v, err
}
