package pooler

import (
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
)

func TestACycleIsOneExchangeWithItsTrace(t *testing.T) {
	h := run(t, config(database(pg.Start(t).URL(), one)))
	conn := h.connect(t, "application_name=x")
	const comment = "/*action='%2Fcontacts',traceparent='00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01'*/"
	do(t, conn, "drop table if exists traced")
	do(t, conn, "create table traced (n int)")
	start := len(h.ledger.all())
	do(t, conn, "insert into traced select generate_series(1, 7) "+comment, pgx.QueryExecModeSimpleProtocol)
	do(t, conn, "select n from traced where n > $1 "+comment, pgx.QueryExecModeExec, 2)
	do(t, conn, "insert into traced values (length('"+strings.Repeat("x", 50_000)+"')) "+comment+";  ", pgx.QueryExecModeSimpleProtocol)
	do(t, conn, "select 1", pgx.QueryExecModeSimpleProtocol)
	if _, err := conn.Exec(t.Context(), "select 1/0", pgx.QueryExecModeSimpleProtocol); err == nil {
		t.Fatal("no error")
	}
	for i, want := range []struct {
		command, code, state string
		rows                 int64
		traced               bool
	}{
		{"INSERT", "ok", "", 7, true}, {"SELECT", "ok", "", 5, true}, {"INSERT", "ok", "", 1, true},
		{"SELECT", "ok", "", 1, false}, {"", "sql_error", "22012", 0, false},
	} {
		x := h.ledger.all()[start+i]
		traced := fmt.Sprintf("%x %x", x.Trace.TraceID, x.Trace.Parent) == "4bf92f3577b34da6a3ce929d0e0e4736 00f067aa0ba902b7"
		if x.DB.Command != want.command || x.Code != want.code || x.DB.SQLState != want.state || x.DB.Rows != want.rows || traced != want.traced || x.Trace.Sampled() != want.traced {
			t.Errorf("%d: %s %s %q %d rows, traced %v, sampled %v", i, x.DB.Command, x.Code, x.DB.SQLState, x.DB.Rows, traced, x.Trace.Sampled())
		}
		if x.BytesIn == 0 || x.BytesOut == 0 || x.FirstByte <= 0 || x.Took < x.FirstByte || x.Caller != "ann" || x.Route != "app" || x.DB.Queries != 1 {
			t.Errorf("%d: %+v", i, x)
		}
	}
}

func TestEachCycleOfASessionIsAnExchangeOfItsOwn(t *testing.T) {
	for _, mode := range []string{modeTransaction, modeSession} {
		t.Run(mode, func(t *testing.T) {
			h := run(t, config(database(pg.Start(t).URL(), one, func(d *Database) { d.Mode = mode })))
			c := newFrontend(t, h)
			three := frame('Q', "select generate_series(1, 3)\x00")
			c.send(three)
			c.expect("TDDDCZ")
			c.send(three + frame('Q', "select 1/0\x00") + three)
			c.expect("TDDDCZEZTDDDCZ")
			c.send(three)
			c.expect("TDDDCZ")
			c.send(frame('Q', "select pg_sleep(60)\x00"))
			await(t, "it runs", func() bool { return h.Stats().Databases[0].Active == 1 })
			c.conn.Close()
			await(t, "all are recorded", func() bool { return len(h.ledger.all()) == 6 })
			for i, want := range []string{"ok 3 1", "ok 3 1", "sql_error 0 1", "ok 3 1", "ok 3 1", "client_gone 0 0"} {
				x := h.ledger.all()[i]
				if got := fmt.Sprintf("%s %d %d", x.Code, x.DB.Rows, x.DB.Queries); got != want || x.FirstByte > x.Took || x.BytesIn == 0 {
					t.Errorf("%d: %s, want %s: %+v", i, got, want, x)
				}
			}
		})
	}
}

func TestLevelsTellHowThePoolStands(t *testing.T) {
	h := run(t, config(database(pg.Start(t).URL(), one)))
	conn := h.connect(t)
	do(t, conn, "begin")
	got := map[string]float64{}
	for _, l := range h.Levels() {
		key := l.Name
		for _, label := range l.Labels {
			key += " " + label.Value
		}
		if _, twice := got[key]; twice || l.Help == "" {
			t.Errorf("%s: twice, or without help", key)
		}
		got[key] = l.Value
	}
	for key, want := range map[string]float64{
		"mainstay_pooler_servers app active": 1, "mainstay_pooler_servers app idle": 0, "mainstay_pooler_clients": 1,
		"mainstay_pooler_waiting app": 0, "mainstay_pooler_servers_max app": 1, "mainstay_pooler_upstream_down app": 0,
	} {
		if got[key] != want {
			t.Errorf("%s is %v, want %v", key, got[key], want)
		}
	}
	do(t, conn, "commit")
}

// What is no trace context makes no trace.
func TestAMalformedTraceIsNone(t *testing.T) {
	h := run(t, config(database(pg.Start(t).URL(), one)))
	f := newFrontend(t, h)
	for _, comment := range []string{
		"ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
		"00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01", strings.Repeat("z", 55), "",
	} {
		f.send(frame('Q', "select 1 /*traceparent='"+comment+"'*/\x00"))
		f.expect("TDCZ")
		if all := h.ledger.all(); all[len(all)-1].Trace.Sampled() {
			t.Errorf("%q: %+v", comment, all[len(all)-1].Trace)
		}
	}
}

func TestRowsAreCountedHoweverTheyAreFetched(t *testing.T) {
	for _, mode := range []string{modeTransaction, modeSession} {
		t.Run(mode, func(t *testing.T) {
			h := run(t, config(database(pg.Start(t).URL(), one, func(d *Database) { d.Mode = mode })))
			f := newFrontend(t, h)
			ten, three := parsed("", "select generate_series(1, 10)")+bound(""), frame('E', "\x00\x00\x00\x00\x03")
			for i, c := range []struct {
				send, flushed, answer string
				rows                  int64
			}{
				{frame('Q', "begin\x00"), "", "CZ", 0},
				{ten + three + three + synced, "", "12DDDsDDDsZ", 6},
				{ten + three + executed + synced, "", "12DDDsDDDDDDDCZ", 10},
				{ten + three + frame('H', ""), "12DDDs", "Z", 3}, // then a Sync
				{ten + executed + frame('H', ""), "12DDDDDDDDDDC", "Z", 10},
				{ten + three + parsed("", "select 1/0") + bound("") + synced, "", "12DDDs1EZ", 3},
			} {
				if f.send(c.send); c.flushed != "" {
					f.expect(c.flushed)
					f.send(synced)
				}
				f.expect(c.answer)
				await(t, "it is recorded", func() bool { return len(h.ledger.all()) > i })
				if x := h.ledger.all()[i]; x.DB.Rows != c.rows {
					t.Errorf("%d: %d rows, want %d", i, x.DB.Rows, c.rows)
				}
			}
		})
	}
}
