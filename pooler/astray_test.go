package pooler

import (
	"bytes"
	"context"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"mainstay.dev/mainstay/pooler/internal/pgwire"
	"mainstay.dev/mainstay/pooler/pgtest"
)

// query sends a simple query and returns the SQLSTATE of its error, "" if there is none.
func (f *frontend) query(sql string) string {
	f.t.Helper()
	return f.outcome(frame('Q', sql+"\x00"))
}

// outcome sends a cycle and returns the SQLSTATE of its error; "FATAL" if that ends the session.
func (f *frontend) outcome(cycle string) (code string) {
	f.t.Helper()
	f.send(cycle)
	var why []byte
	for {
		typ, body, err := f.in.Next()
		switch {
		case err != nil:
			f.t.Logf("%q ends with %s, %q: %v", cycle, code, why, err)
			return "FATAL"
		case typ == pgwire.ErrorResponse:
			code, why = string(pgwire.Field(body, 'C')), bytes.Clone(pgwire.Field(body, 'M'))
		case typ == pgwire.DataRow && len(body) > 6:
			f.row = string(body[6:])
		case typ == pgwire.ReadyForQuery:
			return code
		}
	}
}

// cancelWhen sends a cancel request when the server carries out what has this in it.
func (f *frontend) cancelWhen(s *pgtest.Server, h *house, does string) {
	await(f.t, "it is under way", func() bool {
		n, err := s.Value(context.Background(), "select count(*) from pg_stat_activity where pid <> pg_backend_pid() and state = 'active' and query like '%"+does+"%'")
		return err == nil && n == "1"
	})
	h.cancelFor(startCancel(f))
}

// sleeps is as long as beginReplay.
var sleeps = "SELECT pg_sleep(2)" + strings.Repeat(" ", len(beginReplay)-len("SELECT pg_sleep(2)"))

// A client that cancels while its server is led to its settings is told so, keeps its session, and nothing is carried out for it:
// least of all with what another has left there, if what keeps it from that has been canceled.
func TestACancelThatMeetsAChangeOfSettingsEndsTheCycleAlone(t *testing.T) {
	s := pg.Start(t)
	if err := s.Exec(t.Context(), "drop table if exists spoilt; create table spoilt (p text); create or replace view slo as select 1 from pg_sleep(2)"); err != nil {
		t.Fatal(err)
	}
	insert := "insert into spoilt values (current_setting('app.mine', true))"
	for what, text := range map[string][2]string{"what leads back": {"RESET ALL", "TABLE slo"}, "the BEGIN": {beginReplay + "\x00", sleeps + "\x00"}} {
		h := run(t, config(database(throughAnother(t, s.URL(), text[0], text[1]), one)))
		other := newFrontend(t, h)
		for _, send := range []string{frame('Q', insert+"\x00"), frame('Q', "rollback; "+insert+"\x00"), parsed("", insert) + bound("") + executed + synced, parsed("", insert) + bound("") + executed + frame('H', "") + synced} {
			c := newFrontend(t, h)
			other.query("set app.mine = 'theirs'")
			done := make(chan string, 1)
			go func() { done <- c.outcome(send) }()
			c.cancelWhen(s, h, strings.TrimRight(text[1], " \x00"))
			if got := <-done; got != "57014" {
				t.Errorf("%s, %q: %q", what, send, got)
			}
			if n, err := s.Value(t.Context(), "select count(*) || coalesce(min(p), '') from spoilt"); err != nil || n != "0" {
				t.Errorf("%s, %q: it was carried out: %s, %v", what, send, n, err)
			}
			if got := c.query("select 1"); got != "" {
				t.Errorf("%s, %q: its next query: %s", what, send, got)
			}
			c.conn.Close()
		}
	}
}

// The request is over then: it does not come to what the client sends later.
func TestACancelThatEndedACycleElsewhereEndsNoOther(t *testing.T) {
	s := pg.Start(t)
	if err := s.Exec(t.Context(), "drop table if exists passing; create table passing (n int); create or replace view slo as select 1 from pg_sleep(1)"); err != nil {
		t.Fatal(err)
	}
	h := run(t, config(database(throughAnother(t, s.URL(), "RESET ALL", "TABLE slo"), one)))
	c, other := newFrontend(t, h), newFrontend(t, h)
	c.query("prepare p as select * from passing")
	other.query("select 1")
	if err := s.Exec(t.Context(), "drop table passing"); err != nil {
		t.Fatal(err)
	}
	c.query("select 1") // p is lost, for which it keeps what it knows of its cycles
	other.query("set app.mine = 'theirs'")
	done := make(chan string, 1)
	go func() { done <- c.query("select 1") }()
	c.cancelWhen(s, h, "TABLE slo")
	if got := <-done; got != "57014" {
		t.Errorf("%q", got)
	}
	other.query("set app.mine = 'theirs'")
	if got := c.query("select pg_sleep(0.5)"); got != "" {
		t.Errorf("the next: %q", got)
	}
}

// The time limit of another that meets what changes settings is not told as the client's own.
func TestTheTimeLimitOfAnotherIsNotTheClients(t *testing.T) {
	s := pg.Start(t)
	h := run(t, config(database(throughAnother(t, s.URL(), beginReplay+"\x00", sleeps+"\x00"), one)))
	for _, send := range []string{frame('Q', "select 'here'\x00"), frame('Q', "rollback; select 'here'\x00"), parsed("", "select 'here'") + bound("") + executed + frame('H', "") + synced} {
		c, other := newFrontend(t, h), newFrontend(t, h)
		other.query("set statement_timeout = '200ms'")
		if got := c.outcome(send); got != "" || c.row != "here" {
			t.Errorf("%q: %q, %q", send, got, c.row)
		}
		c.conn.Close()
		other.conn.Close()
	}
}

// What a cycle has taken for found again is lost again when the cycle goes to another server.
func TestWhatIsLostStaysSoForACycleThatGoesElsewhere(t *testing.T) {
	s := pg.Start(t)
	h := run(t, config(database(throughAnother(t, s.URL(), "RESET ALL", "RESET ODD"), one)))
	for _, send := range []string{frame('Q', "deallocate p\x00"), frame('Q', "deallocate p; select 1\x00"), parsed("", "deallocate p") + bound("") + executed + synced} {
		if err := s.Exec(t.Context(), "drop table if exists passing; create table passing (n int)"); err != nil {
			t.Fatal(err)
		}
		c, other := newFrontend(t, h), newFrontend(t, h)
		c.query("prepare p as select * from passing")
		other.query("set app.mine = 'x'")
		if err := s.Exec(t.Context(), "drop table passing"); err != nil {
			t.Fatal(err)
		}
		c.query("select 1")
		other.query("set app.mine = 'x'")
		if got := c.outcome(send); got != "" {
			t.Errorf("%q: %s", send, got)
		}
		if got := c.query("execute p"); got != "26000" {
			t.Errorf("%q, and then: %s", send, got)
		}
		c.conn.Close()
		other.conn.Close()
	}
}

// Who drops all that SQL prepared drops what is lost, too.
func TestWhatIsLostIsDroppedWithAllOthers(t *testing.T) {
	s := pg.Start(t)
	h := run(t, config(database(s.URL(), one)))
	for _, sql := range []string{"deallocate all", "discard all"} {
		for _, send := range []string{frame('Q', sql+"\x00"), parsed("", sql) + bound("") + executed + synced} {
			if err := s.Exec(t.Context(), "drop table if exists passing; create table passing (n int)"); err != nil {
				t.Fatal(err)
			}
			c, other := newFrontend(t, h), newFrontend(t, h)
			c.query("prepare p as select * from passing")
			other.query("set app.mine = 'x'")
			if err := s.Exec(t.Context(), "drop table passing"); err != nil {
				t.Fatal(err)
			}
			if got := c.query("execute p"); got != "42P01" {
				t.Fatalf("it is not lost: %q", got)
			}
			c.outcome(send)
			if got := c.query("execute p"); got != "26000" {
				t.Errorf("behind %q: %q", send, got)
			}
			other.query("create table passing (n int)")
			if got := c.query("execute p"); got != "26000" {
				t.Errorf("behind %q, with its table: %q", send, got)
			}
			c.conn.Close()
			other.conn.Close()
		}
	}
}

// What SQL prepared is made again even where only the transaction was canceled that was to undo the settings of then. It is no other client's.
func TestWhatIsMadeAgainBehindACancelIsNobodyElses(t *testing.T) {
	s := pg.Start(t)
	if err := s.Exec(t.Context(), "create or replace view slo as select 1 from pg_sleep(2)"); err != nil {
		t.Fatal(err)
	}
	for _, met := range [][2]string{{beginReplay + ";SAVEPOINT", sleeps + ";SAVEPOINT"}, {"SELECT;ROLLBACK", "TABLE slo      "}} {
		var slept atomic.Bool
		h := run(t, config(database(through(t, s.URL(), func(sent string) string {
			if strings.Contains(sent, met[0]) && slept.CompareAndSwap(false, true) {
				return strings.Replace(sent, met[0], met[1], 1)
			}
			return sent
		}), one)))
		c, other := newFrontend(t, h), newFrontend(t, h)
		for _, sql := range []string{"set search_path = pg_catalog", "prepare p as select 'mine'", "set search_path = public"} {
			c.query(sql)
		}
		other.query("set app.mine = 'x'")
		done := make(chan string, 1)
		go func() { done <- c.query("select 1") }()
		c.cancelWhen(s, h, strings.TrimSuffix(strings.TrimSpace(met[1]), ";SAVEPOINT"))
		if got := <-done; got != "57014" && got != "" { // it may be too late for that
			t.Errorf("%q: what is canceled: %q", met[0], got)
		}
		if got := other.query("execute p"); got != "26000" {
			t.Errorf("%q: another client's EXECUTE: %q, %q", met[0], got, other.row)
		}
		if got := other.query("prepare p as select 'other'"); got != "" {
			t.Errorf("%q: another client's PREPARE: %q", met[0], got)
		}
		if got := c.query("execute p"); got != "" || c.row != "mine" {
			t.Errorf("%q: its own: %q, %q", met[0], got, c.row)
		}
	}
}

// That the catalog is to be looked at is not forgotten with a server that is closed.
func TestTheCatalogIsLookedAtWhenACycleHasGoneElsewhere(t *testing.T) {
	s := pg.Start(t)
	const leaks = "public.leaks_elsewhere()"
	if err := s.Exec(t.Context(), "drop function if exists "+leaks); err != nil {
		t.Fatal(err)
	}
	h := run(t, config(database(throughAnother(t, s.URL(), "RESET ALL", "RESET ODD"), one)))
	c, other := newFrontend(t, h), newFrontend(t, h)
	c.query("select 1")
	other.query("set app.mine = 'x'")
	if err := s.Exec(t.Context(), "create function "+leaks+" returns void language plpgsql as $$ begin perform set_config('app.leaked', 'x', false); end $$"); err != nil {
		t.Fatal(err)
	}
	h.policy.Load().pools["app"].hidden.lookSoon(-time.Second) // the minute is over
	for _, sql := range []string{"select 1", "select " + leaks} {
		if got := c.query(sql); got != "" {
			t.Error(got)
		}
	}
	other.row = ""
	if other.query("select coalesce(current_setting('app.leaked', true), '')"); other.row != "" {
		t.Errorf("another client sees %q", other.row)
	}
}

// A laggard is a connection on which answers may come late.
type laggard struct {
	net.Conn
	late *atomic.Bool
}

func (c laggard) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if c.late.Load() {
		time.Sleep(500 * time.Millisecond)
	}
	return n, err
}

// However much its client has sent meanwhile, a cycle that goes elsewhere is carried out, and what follows it too.
func TestACycleThatGoesElsewhereHasRoomInFrontOfOthers(t *testing.T) {
	s := pg.Start(t)
	var late atomic.Bool
	h := run(t, config(database(throughAnother(t, s.URL(), "RESET ALL", "RESET ODD"), one)), func(d *Deps) {
		d.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
			conn, err := (&net.Dialer{}).DialContext(ctx, network, addr)
			return laggard{conn, &late}, err
		}
	})
	c, other := newFrontend(t, h), newFrontend(t, h)
	other.query("set app.mine = 'x'")
	late.Store(true)
	for range 2 {
		c.send(frame('Q', "select 1"+strings.Repeat(" ", 8<<10)+"\x00"))
		time.Sleep(300 * time.Millisecond) // the client is read besides
	}
	c.expect("TDCZTDCZ")
}
