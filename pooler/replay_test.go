package pooler

import (
	"context"
	"io"
	"net"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"mainstay.dev/mainstay/pooler/internal/pgwire"
)

// A keeper is a server that answers settings only once it has read what comes behind
// them: a pooler that waited for the answer would wait for ever.
type keeper struct {
	refuse  string // the SQLSTATE that settings are answered with; "": they are accepted
	mu      sync.Mutex
	replays int
}

func (k *keeper) start(t *testing.T) string {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			serving.Go(func() { k.serve(conn) })
		}
	})
	t.Cleanup(func() { ln.Close(); serving.Wait() })
	return "postgres://u:p@" + ln.Addr().String() + "/x?sslmode=disable"
}

func (k *keeper) serve(conn net.Conn) {
	defer conn.Close()
	if conn.SetDeadline(time.Now().Add(20*time.Second)) != nil {
		return
	}
	in := pgwire.NewReader(conn, 1<<16)
	if _, err := in.ReadStartup(); err != nil {
		return
	}
	_, _ = io.WriteString(conn, frame('R', "\x00\x00\x00\x00")+frame('S', "TimeZone\x00UTC\x00")+frame('K', "\x00\x00\x00\x01\x00\x00\x00\x02")+frame('Z', "I"))
	zone := func(body []byte) string {
		if strings.Contains(string(body), "set_config") {
			return frame('S', "TimeZone\x00Asia/Tokyo\x00")
		}
		return frame('S', "TimeZone\x00UTC\x00")
	}
	row, end := frame('T', "\x00\x00")+frame('D', "\x00\x00")+frame('C', "SELECT 1\x00"), frame('Z', "I")
	kept, ahead := "", ""
	for {
		typ, body, err := in.Next()
		if err != nil {
			return
		}
		answer := ""
		k.mu.Lock()
		switch {
		case typ == pgwire.Parse && string(body[1:]) == beginReplay+"\x00\x00\x00":
			ahead = frame('1', "") + frame('2', "") + frame('C', "BEGIN\x00")
		case typ == pgwire.Query && ahead != "":
			k.replays++
			kept = ahead + zone(body) + row + frame('C', "COMMIT\x00") + end
			if k.refuse != "" {
				kept = ahead + frame('E', "SERROR\x00VERROR\x00C"+k.refuse+"\x00Mno such role\x00\x00") + frame('Z', "E")
			}
			ahead = ""
		case typ == pgwire.Query || typ == pgwire.Sync:
			if typ == pgwire.Query && strings.Contains(string(body), "set_config") {
				kept = zone(body) // to greet a client
			}
			if kept != "" && k.refuse != "" {
				answer = kept + frame('E', "SERROR\x00VERROR\x00C25P02\x00Maborted\x00\x00") + frame('Z', "E")
			} else {
				answer = kept + row + end
			}
			kept = ""
		}
		k.mu.Unlock()
		if _, err := io.WriteString(conn, answer); err != nil {
			return
		}
	}
}

func parsed(name, sql string) string { return frame('P', name+"\x00"+sql+"\x00\x00\x00") }

func bound(name string) string { return frame('B', "\x00"+name+"\x00\x00\x00\x00\x00\x00\x00") }

var executed, synced = frame('E', "\x00\x00\x00\x00\x00"), frame('S', "")

func TestSettingsTravelInTheSameRoundTrip(t *testing.T) {
	k := &keeper{}
	h := run(t, config(database(k.start(t), one)))
	plain := newFrontend(t, h)
	set := newFrontend(t, h, "app.tenant", "7")
	for range 3 {
		plain.send(frame('Q', "select 2\x00"))
		plain.expect("TDCZ")
		set.send(frame('Q', "select 1\x00"))
		set.expect("TDCZ")
		set.send(parsed("", "select 1") + bound("") + executed + synced)
		set.expect("TDCZ")
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.replays != 6 {
		t.Errorf("%d replays in 6 changes of the client", k.replays)
	}
}

func TestSettingsThatAreRefusedEndTheSessionWithTheReason(t *testing.T) {
	k := &keeper{}
	h := run(t, config(database(k.start(t), one)))
	c, plain := newFrontend(t, h, "app.tenant", "7"), newFrontend(t, h)
	plain.send(frame('Q', "select 2\x00"))
	plain.expect("TDCZ")
	k.mu.Lock()
	k.refuse = "22023"
	k.mu.Unlock()
	c.send(frame('Q', "delete from everything\x00"))
	typ, body, err := c.in.Next()
	if err != nil || typ != pgwire.ErrorResponse || string(pgwire.Field(body, 'S')) != "FATAL" || string(pgwire.Field(body, 'C')) != "22023" || !strings.Contains(string(pgwire.Field(body, 'M')), "no such role") {
		t.Errorf("%q %q %v", typ, body, err)
	}
	await(t, "its server is closed", func() bool { st := h.Stats().Databases[0]; return st.Active == 0 && st.Idle == 0 })
}

func TestNothingRunsUnderSomebodyElsesSettings(t *testing.T) {
	s := pg.Start(t)
	for what, send := range map[string]string{
		"a query":                  frame('Q', "insert into spoilt values (1)\x00"),
		"an extended one":          parsed("", "insert into spoilt values (1)") + bound("") + executed + synced,
		"a prepared one":           bound("insert") + executed + synced,
		"behind a rollback":        frame('Q', "rollback; insert into spoilt values (1)\x00"),
		"behind a commit":          frame('Q', "/* */ Commit; insert into spoilt values (1)\x00"),
		"behind a parsed end":      parsed("", "end") + bound("") + executed + parsed("", "insert into spoilt values (1)") + bound("") + executed + synced,
		"behind a prepared end":    bound("end") + executed + synced + frame('Q', "insert into spoilt values (1)\x00"),
		"behind a pipelined abort": frame('Q', "select 1\x00") + frame('Q', "abort\x00") + frame('Q', "insert into spoilt values (1)\x00"),
		"behind a Flush":           parsed("", "rollback") + frame('H', "") + bound("") + executed + synced + frame('Q', "insert into spoilt values (1)\x00"),
	} {
		t.Run(what, func(t *testing.T) {
			if err := s.Exec(t.Context(), "drop table if exists spoilt; create table spoilt (n int); drop role if exists fleeting; create role fleeting; grant insert on spoilt to fleeting"); err != nil {
				t.Fatal(err)
			}
			h := run(t, config(database(s.URL(), one)))
			c, other := newFrontend(t, h), h.connect(t)
			c.send(parsed("insert", "insert into spoilt values (1)") + parsed("end", "rollback") + synced)
			c.expect("11Z")
			c.send(frame('Q', "set role fleeting\x00"))
			c.expect("CZ")
			value(t, other, "select 'has the server'", pgx.QueryExecModeSimpleProtocol)
			if err := s.Exec(t.Context(), "drop owned by fleeting; drop role fleeting"); err != nil {
				t.Fatal(err)
			}
			c.send(send)
			if got := lastWords(t, c.in); got != "22023" {
				t.Errorf("SQLSTATE %q", got)
			}
			if n := value(t, other, "select count(*)::text from spoilt", pgx.QueryExecModeSimpleProtocol); n != "0" {
				t.Errorf("%s rows were inserted", n)
			}
		})
	}
}

// What a client has set is not read in the encoding that another has left there, whether the server is wiped or not.
func TestTheEncodingOfAnotherGarblesNothing(t *testing.T) {
	s := pg.Start(t)
	if err := s.Exec(t.Context(), `create or replace function public.puts_together(q text) returns void language plpgsql as $$ begin execute q; end $$`); err != nil {
		t.Fatal(err)
	}
	h := run(t, config(database(s.URL(), one)))
	own, other := newFrontend(t, h), h.connect(t)
	own.send(frame('Q', "set app.town = 'Zoë'\x00") + frame('Q', "set client_encoding = 'latin1'\x00"))
	own.expect("CZCZ")
	do(t, other, "select 1")
	own.send(frame('Q', "select current_setting('app.town')\x00"))
	if own.expect("TDCZ"); own.row != "Zo\xeb" {
		t.Errorf("behind a change of its own encoding a client has %q", own.row)
	}
	for what, sql := range map[string]string{"led back": "set client_encoding = 'latin1'", "wiped": "set client_encoding = 'latin1'; select public.puts_together('select 1')"} {
		h := run(t, config(database(s.URL(), one)))
		a, b, c := h.connect(t), h.connect(t), newFrontend(t, h, "client_encoding", "LATIN1")
		do(t, b, "set app.town = 'Zoë'", pgx.QueryExecModeSimpleProtocol)
		c.send(frame('Q', "set app.town = 'Zo\xeb'\x00"))
		c.expect("CZ")
		for range 2 {
			if _, err := a.PgConn().Exec(t.Context(), sql).ReadAll(); err != nil {
				t.Fatal(err)
			}
			if got := value(t, b, "select current_setting('app.town')", pgx.QueryExecModeSimpleProtocol); got != "Zoë" {
				t.Errorf("%s: a client that is to have UTF-8 has %q", what, got)
			}
			c.send(frame('Q', "select current_setting('app.town')\x00"))
			if c.expect("TDCZ"); c.row != "Zo\xeb" {
				t.Errorf("%s: a client that is to have Latin-1 has %q", what, c.row)
			}
		}
	}
}

// However strings are written on a server, what a client has set comes there as it was, and nobody's session ends for it.
func TestWhatIsCarriedIsNotWrittenAsOthersWriteStrings(t *testing.T) {
	s := pg.Start(t)
	encodings := map[string][]string{
		"UTF8": {"O'Brien", `C:\`, `\'`, `$_ms$'$_ms`, "Zoë's $"}, "SJIS": {"\x95\\", "\x83\\'", "\x94\\\\"}, "BIG5": {"\xa5\\'", "\xa4A"}, "GBK": {"\x95\\", "\x81\\'"},
		"UHC": {"\xb0\xa1\\", "\x81A'"}, "GB18030": {"\x95\\", "\x81\x30\x81\x31\\'"}, "JOHAB": {"\xd0\xb9\\'"}, "SHIFT_JIS_2004": {"\x95\\", "\x83\\'"},
	}
	for _, writes := range []string{"set backslash_quote = off", "set standard_conforming_strings = off", "set backslash_quote = off; set standard_conforming_strings = off", "set client_encoding = sjis", "select 1"} {
		h := run(t, config(database(s.URL(), one)))
		other := newFrontend(t, h)
		for encoding, values := range encodings {
			f := newFrontend(t, h)
			f.send(frame('Q', "set client_encoding = '"+encoding+"'\x00"))
			f.expectFor(encoding, "CZ")
			for _, v := range values {
				f.send(parsed("", "select set_config('app.name', $1, false)") + bindTexts("", "", []string{v}) + executed + synced)
				f.expectFor(encoding, "12DCZ")
				other.send(frame('Q', writes+"\x00"))
				for typ := other.next(); typ != "Z"; typ = other.next() {
					if typ == "E" {
						t.Fatal(writes)
					}
				}
				f.send(frame('Q', "select current_setting('app.name')\x00"))
				if f.expectFor(encoding, "TDCZ"); f.row != v {
					t.Errorf("%s, behind %s: %q came as %q", encoding, writes, v, f.row)
				}
			}
			f.conn.Close()
		}
	}
}

// throughAnother is the way to a server that reads another text in place of one, and all that it was sent, even when the
// connection has been closed.
func throughAnother(t *testing.T, to, text, other string) string {
	return through(t, to, func(sent string) string { return strings.ReplaceAll(sent, text, other) })
}

// through is throughAnother for what reads gives in place of what is sent at once.
func through(t *testing.T, to string, reads func(sent string) string) string {
	at, err := url.Parse(to)
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	host, serving := at.Host, sync.WaitGroup{}
	serve := func(from net.Conn) {
		defer from.Close()
		server, err := net.Dial("tcp", host)
		if err != nil {
			return
		}
		serving.Go(func() {
			defer server.Close()
			_, _ = io.Copy(from, server)
			from.Close()
			_, _ = io.Copy(io.Discard, server)
		})
		in := make([]byte, 256<<10)
		for {
			n, err := from.Read(in)
			if err != nil {
				_ = server.(*net.TCPConn).CloseWrite()
				return
			}
			if _, err := server.Write([]byte(reads(string(in[:n])))); err != nil {
				return
			}
		}
	}
	serving.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			serving.Go(func() { serve(conn) })
		}
	})
	t.Cleanup(func() { ln.Close(); serving.Wait() })
	at.Host = ln.Addr().String()
	return at.String()
}

// What one client has left and cannot be led back is no fault of the next: its cycle is carried out once, on another server.
func TestWhatAnotherHasLeftEndsNobodysSession(t *testing.T) {
	s := pg.Start(t)
	h := run(t, config(database(throughAnother(t, s.URL(), "RESET ALL", "RESET ODD"), one)))
	insert, filler := "insert into counted values (1)", strings.Repeat(" ", 20<<10)
	do := func(sql string) string { return parsed("", sql) + bound("") + executed }
	for what, c := range map[string]struct{ send, want string }{
		"a query":               {frame('Q', insert+"\x00"), "CZ"},
		"an extended one":       {do(insert) + synced, "12CZ"},
		"a named one":           {parsed("n", insert) + bound("n") + executed + synced, "12CZ"},
		"one that is described": {parsed("n", insert) + frame('D', "Sn\x00") + synced + bound("n") + executed + synced, "1tnZ2CZ"},
		"one of before":         {bound("before") + executed + synced, "2CZ"},
		"the unnamed of before": {bound("") + executed + synced, "2CZ"},
		"an end behind it":      {do(insert) + do("commit") + synced, "12C12CZ"},
		"an end before it":      {frame('Q', "rollback; "+insert+"\x00"), "CCZ"},
		"a transaction":         {frame('Q', "begin\x00") + frame('Q', insert+"\x00") + frame('Q', "commit\x00"), "CZCZCZ"},
		"three cycles":          {do("select") + synced + do(insert) + synced + frame('Q', "select\x00"), "12DCZ12CZTDCZ"},
		"an error":              {parsed("m", insert) + bound("m") + executed + do("select 1/0") + parsed("n", "select") + synced + frame('Q', insert+"\x00"), "12C1EZCZ"},
		"a statement dropped":   {frame('Q', "deallocate before\x00") + frame('Q', insert+"\x00"), "CZCZ"},
		"one prepared by SQL":   {frame('Q', "prepare p as "+insert+"\x00") + frame('Q', "execute p\x00"), "CZCZ"},
		"a long one":            {frame('Q', insert+filler[:12<<10]+"\x00"), "CZ"},
		"a longer one":          {do(insert+filler) + synced, "12CZ"},
		"a very long one":       {do(insert+strings.Repeat(filler, 5)) + synced, "12CZ"},
		"one with a Flush":      {do(insert) + frame('H', "") + synced, "12CZ"},
		"many behind it":        {do(insert) + synced + strings.Repeat(do("select"+filler[:1<<10])+synced, 30), "12CZ" + strings.Repeat("12DCZ", 30)},
		"COPY":                  {frame('Q', "copy counted from stdin\x00") + frame('d', "1\n") + frame('c', ""), "GCZ"},
	} {
		for _, chooses := range []string{"", "app.tenant", "DateStyle"} {
			if err := s.Exec(t.Context(), "drop table if exists counted; create table counted (n int)"); err != nil {
				t.Fatal(err)
			}
			var login []string
			if chooses != "" {
				login = []string{chooses, "ISO"}
			}
			f, other := newFrontend(t, h, login...), newFrontend(t, h)
			f.send(parsed("before", insert) + parsed("", insert) + synced)
			f.expectFor(what, "11Z")
			other.send(frame('Q', "set app.mine to 'x'\x00"))
			other.expectFor(what, "CZ")
			f.send(c.send)
			f.expectFor(what, c.want)
			if n, err := s.Value(t.Context(), "select count(*) from counted"); err != nil || n != "1" {
				t.Errorf("%s: %s rows, %v", what, n, err)
			}
			f.send(frame('Q', "select current_setting('app.mine', true)\x00"))
			if f.expectFor(what, "TDCZ"); f.row != "" {
				t.Errorf("%s: it sees %q", what, f.row)
			}
			newFrontend(t, h, "work_mem", "5MB").conn.Close() // nor does a login
			f.conn.Close()
			other.conn.Close()
		}
	}
}

// What ends the transaction of a statement that is made again does not end that of settings that were refused before it.
func TestAStatementMadeAgainLetsNothingRunUnderOthersSettings(t *testing.T) {
	s := pg.Start(t)
	if err := s.Exec(t.Context(), "drop table if exists spoilt; create table spoilt (n int); drop role if exists fleeting; create role fleeting; grant insert on spoilt to fleeting"); err != nil {
		t.Fatal(err)
	}
	h := run(t, config(database(throughAnother(t, s.URL(), "-", "-"), one)))
	c, other := newFrontend(t, h), h.connect(t)
	for _, sql := range []string{"set search_path = pg_catalog", "prepare p as select 1", "set search_path = public", "set role fleeting"} {
		c.send(frame('Q', sql+"\x00"))
		c.expectFor(sql, "CZ")
	}
	do(t, other, "set app.other = 'there'", pgx.QueryExecModeSimpleProtocol)
	pid := value(t, other, "select pg_backend_pid()::text", pgx.QueryExecModeSimpleProtocol)
	if err := s.Exec(t.Context(), "drop owned by fleeting; drop role fleeting"); err != nil {
		t.Fatal(err)
	}
	c.send(frame('Q', "insert into spoilt values (1)\x00"))
	if got := lastWords(t, c.in); got != "22023" {
		t.Errorf("SQLSTATE %q", got)
	}
	await(t, "its server has ended", func() bool {
		n, err := s.Value(context.Background(), "select count(*) from pg_stat_activity where pid = "+pid)
		return err == nil && n == "0"
	})
	if n := value(t, other, "select count(*)::text from spoilt", pgx.QueryExecModeSimpleProtocol); n != "0" {
		t.Errorf("%s rows were inserted", n)
	}
}

// Nor does the time limit of one end what leads to the settings of another, whichever of it is in force for longer than that.
func TestTheTimeLimitOfAnotherEndsNothing(t *testing.T) {
	s := pg.Start(t)
	for _, c := range []struct {
		slow, instead string // as long, so that the message is
		stays         bool   // the server is the same
	}{
		{beginReplay, "SELECT pg_catalog.pg_sleep(60)" + strings.Repeat(" ", len(beginReplay)-len("SELECT pg_catalog.pg_sleep(60)")), false},
		{"RESET statement_timeout", "SELECT pg_sleep(60)    ", false},
		{"RESET lock_timeout", "SELECT pg_sleep(1)", true}, // which is longer than the limit, that is not in force any more
	} {
		var met atomic.Bool
		h := run(t, config(database(through(t, s.URL(), func(sent string) string {
			if !strings.Contains(sent, "RESET statement_timeout") {
				return sent
			}
			met.Store(true)
			return strings.Replace(sent, c.slow, c.instead, 1)
		}), one)))
		a, b := h.connect(t), h.connect(t)
		do(t, b, "set work_mem = '5MB'", simple)
		pid := value(t, b, "select pg_backend_pid()::text", simple)
		do(t, a, "set lock_timeout = '1h'; set statement_timeout = '500ms'", simple)
		got, err := b.PgConn().Exec(t.Context(), "select pg_backend_pid(), current_setting('work_mem')").ReadAll()
		switch {
		case err != nil:
			t.Errorf("%s: %v", c.slow, err)
		case string(got[0].Rows[0][1]) != "5MB" || (string(got[0].Rows[0][0]) == pid) != c.stays || !met.Load():
			t.Errorf("%s: got %s", c.slow, got[0].Rows[0])
		}
	}
}
