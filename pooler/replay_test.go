package pooler

import (
	"io"
	"net"
	"strings"
	"sync"
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
	kept := ""
	for {
		typ, body, err := in.Next()
		if err != nil {
			return
		}
		answer := ""
		k.mu.Lock()
		switch {
		case typ == pgwire.Query && strings.HasPrefix(string(body), replay("")[:20]) && !strings.Contains(string(body), "pg_proc"):
			k.replays++
			kept = frame('C', "BEGIN\x00") + zone(body) + row + frame('C', "COMMIT\x00") + end
			if k.refuse != "" {
				kept = frame('C', "BEGIN\x00") + frame('E', "SERROR\x00VERROR\x00C"+k.refuse+"\x00Mno such role\x00\x00") + frame('Z', "E")
			}
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
