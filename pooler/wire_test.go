package pooler

import (
	"encoding/binary"
	"net"
	"strings"
	"testing"

	"mainstay.dev/mainstay/pooler/internal/pgwire"
)

func TestTheUnnamedStatementIsItsClientsOwn(t *testing.T) {
	h := run(t, config(database(pg.Start(t).URL(), one)))
	a, b := newFrontend(t, h), newFrontend(t, h)
	parse := func(sql string) string { return frame('P', "\x00"+sql+"\x00\x00\x00") }
	bindExecute := frame('B', "\x00\x00\x00\x00\x00\x00\x00\x00") + frame('E', "\x00\x00\x00\x00\x00") + frame('S', "")
	a.send(parse("select 'a'") + frame('S', ""))
	a.expect("1Z")
	b.send(bindExecute)
	b.expect("EZ") // there is none of its own
	b.send(parse("select 'b'") + frame('S', ""))
	b.expect("1Z")
	a.send(bindExecute)
	if a.expect("2DCZ"); !strings.Contains(a.row, "a") {
		t.Errorf("a got %q", a.row)
	}
	b.send(bindExecute)
	if b.expect("2DCZ"); !strings.Contains(b.row, "b") {
		t.Errorf("b got %q", b.row)
	}
	a.send(frame('Q', "select 1\x00"))
	a.expect("TDCZ")
	a.send(bindExecute)
	a.expect("EZ") // a simple query drops it
	a.send(parse("select 'a2'") + frame('S', ""))
	a.expect("1Z")
	a.send(parse("nonsense") + frame('S', ""))
	a.expect("EZ")
	a.send(bindExecute)
	a.expect("EZ")
}

func TestTheProtocolsOddCornersHold(t *testing.T) {
	h := run(t, config(database(pg.Start(t).URL(), one)))
	c := newFrontend(t, h)
	parse := func(name, sql string) string { return frame('P', name+"\x00"+sql+"\x00\x00\x00") }
	bind := func(name string) string { return frame('B', "\x00"+name+"\x00\x00\x00\x00\x00\x00\x00") }
	execute, sync, flush := frame('E', "\x00\x00\x00\x00\x00"), frame('S', ""), frame('H', "")
	for _, step := range []struct{ what, send, want string }{
		{"an empty query", frame('Q', "\x00"), "IZ"},
		{"several statements", frame('Q', "select 1; select 2; select 3\x00"), "TDCTDCTDCZ"},
		{"an error in the middle", frame('Q', "select 1; select 1/0; select 3\x00"), "TDCEZ"},
		{"nothing but a Sync", sync, "Z"},
		{"two Syncs", sync + sync, "ZZ"},
		{"a Flush before the Sync", parse("", "select 1") + bind("") + flush, "12"},
		{"and the rest", execute + sync, "DCZ"},
		{"an error before the Sync", parse("", "select nonsense") + flush, "E"},
		{"is skipped until it", parse("", "select 1") + bind("") + execute + sync, "Z"},
		{"a pipeline of cycles", parse("p", "select 1") + sync + bind("p") + execute + sync + bind("p") + execute + sync, "1Z2DCZ2DCZ"},
		{"a pipeline with an error", bind("p") + execute + bind("none") + execute + sync + bind("p") + execute + sync, "2DCEZ2DCZ"},
		{"close what is not there", frame('C', "Snone\x00") + frame('C', "Pnone\x00") + sync, "33Z"},
		{"close and prepare again", frame('C', "Sp\x00") + parse("p", "select 2") + bind("p") + execute + sync, "312DCZ"},
		{"describe", frame('D', "Sp\x00") + bind("p") + frame('D', "P\x00") + sync, "tT2TZ"},
		{"a function call", frame('F', "\x00\x00\x03\xb8\x00\x00\x00\x01\x00\x00\x00\x04\x00\x00\x00\x05\x00\x00"), "EZ"},
		{"a COPY that fails at once", frame('Q', "copy nowhere from stdin\x00") + frame('d', "1\n") + frame('c', ""), "EZ"},
		{"a late CopyData", frame('d', strings.Repeat("x", 50000)) + frame('f', "no\x00") + frame('H', "") + frame('Q', "select 1\x00"), "TDCZ"},
		{"a COPY in the extended protocol", frame('Q', "create temp table cx (n int)\x00"), "CZ"},
		{"in a transaction", frame('Q', "begin; truncate cx\x00"), "CCZ"},
		{"asks for data", parse("", "copy cx from stdin") + bind("") + execute + sync, "12G"},
		{"takes it", frame('d', "1\n") + frame('d', "2\n") + frame('c', "") + sync, "CZ"},
		{"and refuses it", parse("", "copy cx from stdin") + bind("") + execute + sync, "12G"},
		{"once", frame('d', "x\n") + frame('f', "enough\x00") + sync, "EZ"},
		{"and ends", frame('Q', "rollback\x00"), "CZ"},
		{"a COPY whose data comes at once", parse("", "copy cx from stdin") + bind("") + execute + frame('d', "1\n") + frame('c', "") + sync, "12GCZ"},
		{"behind a Sync that means nothing", parse("", "copy cx from stdin") + bind("") + execute + sync + frame('d', "1\n") + frame('c', "") + sync, "12GCZ"},
		{"that is refused", parse("", "copy nowhere from stdin") + bind("") + execute + frame('d', "1\n") + frame('c', "") + sync, "12EZ"},
		{"that is refused behind a Sync", parse("", "copy nowhere from stdin") + bind("") + execute + sync + frame('d', "1\n") + frame('c', "") + sync, "12EZZ"},
		{"that is refused later", parse("", "copy cx from stdin") + bind("") + execute + frame('d', "x\n") + frame('c', "") + sync, "12GEZ"},
		{"two in one query", frame('Q', "copy cx from stdin; copy cx from stdin\x00") + frame('d', "1\n") + frame('c', "") + frame('d', "2\n") + frame('c', ""), "GCGCZ"},
		{"everything arrived", frame('Q', "do $$ begin assert (select count(*) from cx) = 4; end $$\x00"), "CZ"},
		{"and is done with", frame('Q', "drop table cx\x00"), "CZ"},
		{"a large query", frame('Q', "select length('"+strings.Repeat("q", 1<<20)+"')\x00"), "TDCZ"},
		{"a large named statement", parse("big", "select length('"+strings.Repeat("q", 1<<19)+"')") + bind("big") + execute + sync, "12DCZ"},
		{"used again", bind("big") + execute + sync, "2DCZ"},
	} {
		c.send(step.send)
		c.expectFor(step.what, step.want)
	}
	await(t, "the server comes back", func() bool { return h.Stats().Databases[0].Active == 0 })
}

func TestNonsenseEndsTheSessionAndNotTheServer(t *testing.T) {
	h := run(t, config(database(pg.Start(t).URL(), one)))
	for what, send := range map[string]string{
		"an unknown type":       frame('!', "x"),
		"a length of three":     "Q\x00\x00\x00\x03",
		"a length of 4 GB":      "Q\xff\xff\xff\xff",
		"a length of 2 GB":      "Q\x80\x00\x00\x00",
		"a Bind without names":  frame('B', "xxxx") + frame('S', ""),
		"a Parse without names": frame('P', "xxxx") + frame('S', ""),
		"an endless name":       frame('B', strings.Repeat("n", 100000)),
		"a second startup":      startup("user", "ann"),
		"a huge statement":      frame('P', "name\x00"+strings.Repeat("x", 2<<20)),
	} {
		c := newFrontend(t, h)
		c.send(send)
		if got := lastWords(t, c.in); got != "08P01" && got != "0A000" {
			t.Errorf("%s: SQLSTATE %q", what, got)
		}
		value(t, h.connect(t), "select 'alive'")
	}
}

type frontend struct {
	t    testing.TB
	conn net.Conn
	in   *pgwire.Reader
	row  string // the last row's first column
	pid  uint32
	key  []byte
}

func frame(typ byte, body string) string { return string(pgwire.Append(nil, typ, []byte(body))) }

func newFrontend(t testing.TB, h *house, params ...string) *frontend {
	t.Helper()
	f := &frontend{t: t, conn: dialRaw(t, h.addr)}
	f.in = pgwire.NewReader(f.conn, 1<<16)
	f.send(startup(append([]string{"user", "ann", "database", "app"}, params...)...))
	for {
		typ, body, err := f.in.Next()
		if err != nil {
			t.Fatal(err)
		}
		switch typ {
		case pgwire.BackendKeyData:
			f.pid, f.key = binary.BigEndian.Uint32(body), append([]byte(nil), body[4:]...)
		case pgwire.ReadyForQuery:
			return f
		}
	}
}

func (f *frontend) send(bytes string) {
	f.t.Helper()
	if _, err := f.conn.Write([]byte(bytes)); err != nil {
		f.t.Fatal(err)
	}
}

func (f *frontend) expect(want string) { f.t.Helper(); f.expectFor("", want) }

// next is the type of the next message.
func (f *frontend) next() string {
	f.t.Helper()
	typ, _, err := f.in.Next()
	if err != nil {
		f.t.Fatal(err)
	}
	return string(rune(typ))
}

func (f *frontend) expectFor(what, want string) {
	f.t.Helper()
	got := ""
	for len(got) < len(want) {
		typ, body, err := f.in.Next()
		if err != nil {
			f.t.Fatalf("%s: got %s, want %s, then %v", what, got, want, err)
		}
		if typ == pgwire.NoticeResponse || typ == pgwire.ParameterStatus {
			continue
		}
		if typ == pgwire.DataRow && len(body) > 6 {
			f.row = string(body[6:])
		}
		if typ == pgwire.ErrorResponse && !strings.HasPrefix(want[len(got):], "E") {
			f.t.Logf("%s: %s", what, pgwire.Field(body, 'M'))
		}
		got += string(rune(typ))
	}
	if got != want {
		f.t.Fatalf("%s: got %s, want %s", what, got, want)
	}
}

func startCancel(f *frontend) pgwire.Startup {
	return pgwire.Startup{Kind: pgwire.StartCancel, PID: f.pid, Key: f.key}
}
