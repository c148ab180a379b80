package pooler

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"mainstay.dev/mainstay/pooler/internal/hub"
	"mainstay.dev/mainstay/pooler/internal/pgwire"
)

// The long form: MAINSTAY_SESSIONS=100000 go test -run TestRandomSessions -timeout 0 ./pooler
// Other sessions than those that have been looked at: MAINSTAY_SEED=$RANDOM. One session again, alone: MAINSTAY_SESSIONS=1 MAINSTAY_SEED=4711 (the number that
// a difference was reported with). With MAINSTAY_STRICT=1 the known differences, which are counted, are reported too.
const (
	sessionsWanted = "MAINSTAY_SESSIONS"
	firstSeed      = "MAINSTAY_SEED"
	strictly       = "MAINSTAY_STRICT"
)

// number reads a number from the environment.
func number(t testing.TB, name string, otherwise int) int {
	t.Helper()
	text, ok := os.LookupEnv(name)
	if !ok {
		return otherwise
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatalf("%s=%s is no number", name, text)
	}
	return n
}

// Not written by the author, since the pooler is known to differ (docs/pooler.md, "Not
// seen"): currval and lastval.
func TestRandomSessionsAreAnsweredAsByPostgreSQL(t *testing.T) {
	h, m := newMatch(t, func(d *Database) { d.Pool.Max = 2; d.Pool.Statements = 5 })
	first, sessions := number(t, firstSeed, 1), number(t, sessionsWanted, 300)
	t.Logf("%s=%d %s=%d", sessionsWanted, sessions, firstSeed, first)
	var next atomic.Int64
	var players sync.WaitGroup
	for range 6 {
		players.Go(func() {
			for {
				i := int(next.Add(1)) - 1
				if i >= sessions || m.differences.Load() >= 5 {
					return
				}
				if i > 0 && i%5000 == 0 {
					t.Logf("%d sessions", i)
				}
				m.play(first + i)
			}
		})
	}
	players.Wait()
	for _, e := range h.ledger.happened() {
		t.Logf("%s: %s %v", e.Name, e.Text, e.Attrs) // a connection that was lost explains a difference
	}
	m.cut.Range(func(kind, c any) bool {
		n, last := c.(*counted).times.Load(), c.(*counted).last.Load()
		t.Logf("%d differences: %s (the last with %s=%d)", n, kind, firstSeed, last)
		if n > 3 && int(n) > sessions/500 {
			t.Errorf("that is more than one in 500 for %s", kind)
		}
		return true
	})
	await(t, "no client and no lease is left", func() bool {
		st := h.Stats()
		return st.Clients == 0 && st.Databases[0].Active == 0 && st.Databases[0].Waiting == 0
	})
}

// A match compares the pooler's answers with PostgreSQL's.
type match struct {
	t                        *testing.T
	pooled, direct, password string
	differences              atomic.Int64
	cut                      sync.Map // how often each kind of known difference was met: *counted
}

type counted struct{ times, last atomic.Int64 }

// newMatch makes a pooler, and a database behind it that has its like beside it.
func newMatch(t *testing.T, change ...func(*Database)) (*house, *match) {
	s := plainServer.Start(t)
	for _, sql := range []string{
		"drop database if exists pooled with (force)", "drop database if exists direct with (force)", "drop role if exists lesser",
		"create database pooled", "create database direct", "create role lesser",
	} {
		if err := s.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	h := run(t, config(database(s.URLFor("postgres", s.Password(), "pooled"), change...)))
	m := &match{t: t, pooled: h.addr, direct: s.Addr(), password: s.Password()}
	m.prepare()
	return h, m
}

// prepare makes the same tables in both databases.
func (m *match) prepare() {
	for _, p := range m.sides(nil) {
		if p.err != nil {
			m.t.Fatal(p.err)
		}
		p.say(query(`create schema other; create table fixture as select generate_series(1, 20) as n; create table notes (session int, n int);
			create table things as select 'public'::text as n; create table other.things as select 'other'::text as n; grant select on fixture to lesser;
			create function remember(name text, value text) returns text language plpgsql as $f$ begin perform set_config(name, value, false); return value; end $f$;
			create function become(who text) returns text language sql as $f$ select set_config('role', who, false) $f$;
			create function hold_on(key int) returns bool language sql as $f$ select pg_try_advisory_lock(key) $f$;
			create function scratch() returns void language plpgsql as $f$ begin create temp table scratched as select 1 as n; end $f$;
			create function local_word() returns text language sql set my.word = 'inside' as $f$ select current_setting('my.word') $f$;
			do $do$ begin for i in 0..63 loop execute format('create function make%1$s() returns void language plpgsql as $f$ begin
				create or replace function made%1$s() returns text language sql as $g$ select set_config(''my.word'', ''made'', false) $g$; end $f$', i); end loop; end $do$;
			create procedure proceed() language plpgsql as $f$ begin set my.other = 'proceeded'; commit; set extra_float_digits = 0; end $f$;
			create table watched (n int); create function note() returns trigger language plpgsql as $f$ begin set my.word = 'by a trigger'; return null; end $f$;
			create trigger note before insert on watched for each row execute function note();
			create view seen_by as select remember('my.other', 'by a view')`))
		if got := p.hear(1); strings.Contains(got, "error") {
			m.t.Fatal(got)
		}
		p.conn.Close()
	}
}

// sides logs in to both.
func (m *match) sides(params []string) [2]*player {
	return [2]*player{
		logIn(m.pooled, "", append([]string{"user", "postgres", "database", "app"}, params...)),
		logIn(m.direct, m.password, append([]string{"user", "postgres", "database", "direct"}, params...)),
	}
}

// enter is sides for one test, which fails where one does not let it in.
func (m *match) enter(t *testing.T, params []string) [2]*player {
	t.Helper()
	both := m.sides(params)
	for _, p := range both {
		if p.err != nil {
			t.Fatal(p.err)
		}
		t.Cleanup(func() { p.conn.Close() })
	}
	return both
}

// same lets both sides say the same, step by step, and compares what they hear. It returns the errors among that; between, if
// not nil, is called behind each step that ends outside of a transaction.
func (m *match) same(t *testing.T, when string, both [2]*player, steps []step, between func()) (faults int) {
	t.Helper()
	for i, one := range steps {
		for _, p := range both {
			p.say(one)
		}
		pooled, direct := both[0].hear(one.ready), both[1].hear(one.ready)
		if pooled != direct {
			t.Fatalf("%s %d. %q\nPOOLED\n%s\nDIRECT\n%s", when, i, one.story, pooled, direct)
		}
		faults += strings.Count(pooled, "ERROR")
		if between != nil && strings.LastIndex(pooled, "ready I") > max(strings.LastIndex(pooled, "ready T"), strings.LastIndex(pooled, "ready E")) {
			between()
		}
	}
	return faults
}

// play runs one session on both sides, step by step, until the answers differ.
func (m *match) play(seed int) {
	a := &author{Rand: rand.New(rand.NewPCG(uint64(seed), 1)), session: seed % 100_000_000}
	params := a.startup()
	both := m.sides(params)
	for _, p := range both {
		if p.err == nil {
			defer p.conn.Close()
		}
	}
	if (both[0].err == nil) != (both[1].err == nil) {
		m.report(seed, fmt.Sprintf("logs in with %q", params), fmt.Sprint(both[0].err), fmt.Sprint(both[1].err))
		return
	}
	if both[0].err != nil {
		return
	}
	said := fmt.Sprintf("logs in with %q\n", params)
	for i, step := range a.script() {
		said += fmt.Sprintf("%d. %s", i, step.story)
		for _, p := range both {
			p.say(step)
		}
		pooled, direct := both[0].hear(step.ready), both[1].hear(step.ready)
		if pooled != direct {
			kind := knownDifference(step, said, pooled, direct)
			if kind != "" && os.Getenv(strictly) == "" {
				c, _ := m.cut.LoadOrStore(kind, new(counted))
				c.(*counted).times.Add(1)
				c.(*counted).last.Store(int64(seed))
				return
			}
			m.report(seed, said, pooled, direct)
			return
		}
	}
	if a.IntN(3) > 0 {
		for _, p := range both {
			_, _ = p.conn.Write([]byte(frame('X', "")))
		}
	}
}

// knownDifference names a difference that stays; "" for all others. The unnamed statement is refused (26000) where it cannot be known
// what it was prepared under. Whether a CALL has columns is not known before it is prepared, which an
// aborted transaction refuses; seen once in 100,000 sessions. The pooler prepares a statement where
// the client uses it, if the server does not know it: where search_path does not lead to its tables any more, and its client had
// changed it in the same cycle of an open transaction before it prepared the statement, that is refused (42P01). PostgreSQL
// looks at the values of the parameters first.
func knownDifference(s step, said, pooled, direct string) string {
	lines := strings.Split(direct, "\n")
	for i, line := range strings.Split(pooled, "\n") {
		if i >= len(lines) {
			return ""
		}
		if line == lines[i] {
			continue
		}
		const failed = "error or notice ERROR "
		if strings.HasPrefix(line, failed+"42P01") && strings.Contains(said, "search_path") && strings.Contains(s.story, "bind") &&
			(strings.HasPrefix(lines[i], "t ") || strings.HasPrefix(lines[i], "parameters") || strings.HasPrefix(lines[i], failed+"22P02") || strings.HasPrefix(lines[i], failed+"25P02")) {
			return "used where search_path does not lead to its table"
		}
		if strings.HasPrefix(line, failed+"25P02") && strings.HasPrefix(lines[i], "parameters") && strings.Contains(s.story, "describe statement") && strings.Contains(said, "call proceed") {
			return "a CALL, described in an aborted transaction where its server does not know it"
		}
		if strings.HasPrefix(line, failed+"25001") && strings.Contains(s.story, "set transaction isolation level") && strings.Contains(s.story, "execute p") {
			return "a text that sets the isolation level before it executes what its server does not know"
		}
		if strings.HasPrefix(line, failed+"26000") && !strings.HasPrefix(lines[i], failed+"26000") && usesUnnamed.MatchString(s.story) && behindAChange.MatchString(said) {
			return "the unnamed statement, of a cycle that failed behind a change of settings"
		}
		return ""
	}
	return ""
}

var (
	usesUnnamed   = regexp.MustCompile(`bind "\w*" "" |describe statement  `)
	behindAChange = regexp.MustCompile(`(?s)(set |set_config|reset |do |call |become|remember|discard |create |drop |insert into watched).*parse "" `)
)

func (m *match) report(seed int, said, pooled, direct string) {
	m.differences.Add(1)
	m.t.Errorf("%s=1 %s=%d\n%s\nPOOLED\n%s\nDIRECT\n%s", sessionsWanted, firstSeed, seed, said, pooled, direct)
}

// A player speaks the protocol on one side.
type player struct {
	conn     net.Conn
	in       *pgwire.Reader
	pid      uint32
	reported map[string]string // by ParameterStatus
	err      error
}

// logIn logs in with a password in the clear, if one is asked for.
func logIn(addr, password string, params []string) *player {
	p := &player{reported: map[string]string{}}
	if p.conn, p.err = net.Dial("tcp", addr); p.err != nil {
		return p
	}
	if p.err = p.conn.SetDeadline(time.Now().Add(10 * time.Minute)); p.err != nil { // far beyond what any machine needs
		return p
	}
	p.in = pgwire.NewReader(p.conn, 1<<16)
	_, _ = p.conn.Write([]byte(startup(params...))) // an error is seen by the reader
	for {
		typ, body, err := p.in.Next()
		switch {
		case err != nil:
			p.err = err
			return p
		case typ == pgwire.Authentication && binary.BigEndian.Uint32(body) == 3:
			_, _ = p.conn.Write([]byte(frame('p', password+"\x00")))
		case typ == pgwire.ErrorResponse:
			p.err = errors.New(string(pgwire.Field(body, 'C')))
		case typ == pgwire.ParameterStatus:
			p.note(body)
		case typ == pgwire.BackendKeyData:
			p.pid = binary.BigEndian.Uint32(body)
		case typ == pgwire.ReadyForQuery:
			return p
		}
	}
}

func (p *player) note(body []byte) {
	if name, value, _, ok := pgwire.Strings(body); ok {
		p.reported[string(name)] = string(value)
	}
}

func (p *player) say(s step) { _, _ = p.conn.Write([]byte(s.bytes)) } // an error is seen by the reader

// hear reads the answer up to its nth ReadyForQuery, or up to what [marker] is answered with, as text that is the same on both
// sides.
func (p *player) hear(ready int) string {
	var out strings.Builder
	closes := 0
	for done := false; !done; {
		typ, body, err := p.in.Next()
		if err != nil {
			fmt.Fprintf(&out, "then %v\n", err)
			return out.String()
		}
		if typ == pgwire.CloseComplete {
			closes++
		} else if typ != pgwire.ReadyForQuery {
			closes = 0
		}
		switch typ {
		case pgwire.ParameterStatus:
			p.note(body)
		case pgwire.ErrorResponse, pgwire.NoticeResponse:
			if string(pgwire.Field(body, 'C')) == "22P06" {
				continue // a warning about backslashes, again when a statement is prepared again
			}
			fmt.Fprintf(&out, "error or notice %s %s at %s: %s\n", pgwire.Field(body, 'V'), pgwire.Field(body, 'C'), pgwire.Field(body, 'P'), statementNames.ReplaceAll(pgwire.Field(body, 'M'), []byte("prepared statement")))
		case pgwire.Notification:
			pid, channel, payload, _ := hub.Notification(body)
			fmt.Fprintf(&out, "heard %s %s %v\n", channel, payload, pid == p.pid)
		case 'T':
			fmt.Fprintf(&out, "columns %s\n", columns(body))
		case pgwire.ParameterDesc:
			fmt.Fprintf(&out, "parameters")
			for _, oid := range pgwire.ParameterTypes(body) {
				fmt.Fprintf(&out, " %d", shared(oid))
			}
			fmt.Fprintln(&out)
		case pgwire.ReadyForQuery:
			ready--
			done, closes = ready == 0 || ready < 0 && closes == markers, 0
			fmt.Fprintf(&out, "ready %s\n", body)
		default:
			if len(body) > 200 {
				body = append(body[:180:180], fmt.Sprintf("… %d bytes", len(body))...)
			}
			fmt.Fprintf(&out, "%c %q\n", typ, body)
		}
	}
	for _, name := range []string{"TimeZone", "DateStyle", "application_name", "standard_conforming_strings", "is_superuser", "session_authorization", "client_encoding"} {
		fmt.Fprintf(&out, "%s=%s ", name, p.reported[name])
	}
	return out.String()
}

// statementNames are what a message may call a prepared statement: the pooler's name for
// it differs from the client's. Known, and harmless: the SQLSTATE is the same.
// So is the type of the message that does not fit, where the pooler adds one of its own.
var statementNames = regexp.MustCompile(`(unnamed )?prepared statement( "[^"]*")?|unexpected message type 0x..`)

// shared is the oid of a type that both databases have; 0: of one of their own.
func shared(oid uint32) uint32 {
	if oid >= 16384 {
		return 0
	}
	return oid
}

// columns is a RowDescription without the tables' oids, which differ.
func columns(body []byte) (list []string) {
	for rest := body[2:]; ; {
		name, after, ok := bytes.Cut(rest, []byte{0})
		if !ok || len(after) < 18 {
			return list
		}
		list = append(list, fmt.Sprintf("%s type %d format %d", name, shared(binary.BigEndian.Uint32(after[6:])), binary.BigEndian.Uint16(after[16:])))
		rest = after[18:]
	}
}
