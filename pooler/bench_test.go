package pooler

import (
	"fmt"
	"io"
	"net"
	"testing"

	"mainstay.dev/mainstay/pooler/internal/pgwire"
	"mainstay.dev/mainstay/pooler/pgtest"
	"mainstay.dev/mainstay/telemetry"
)

// A speaker sends the same bytes again and again, and allocates nothing itself.
type speaker struct {
	conn net.Conn
	send []byte
	read []byte
}

// speak logs in at addr, runs prepare once, and returns a speaker for send.
func speak(tb testing.TB, addr, user, password string, prepare, send string) *speaker {
	tb.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		tb.Fatal(err)
	}
	return speakOn(tb, conn, user, password, prepare, send)
}

// speakOn is speak on a connection that is there, which is closed at the test's end.
func speakOn(tb testing.TB, conn net.Conn, user, password string, prepare, send string) *speaker {
	tb.Helper()
	tb.Cleanup(func() { conn.Close() })
	if _, err := io.WriteString(conn, startup("user", user, "database", "app")); err != nil {
		tb.Fatal(err)
	}
	s := &speaker{conn: conn, read: make([]byte, 1<<16)}
	if password != "" {
		in := pgwire.NewReader(conn, 1<<14)
		if typ, body, err := in.Next(); err != nil || typ != pgwire.Authentication || body[3] != 3 {
			tb.Fatalf("%c %v %v: want a request for a cleartext password", typ, body, err)
		}
		if _, err := conn.Write(pgwire.Append(nil, pgwire.Password, []byte(password), []byte{0})); err != nil {
			tb.Fatal(err)
		}
	}
	s.await(tb)
	if prepare != "" {
		s.send = []byte(prepare)
		s.round(tb)
	}
	s.send = []byte(send)
	return s
}

func (s *speaker) round(tb testing.TB) {
	if _, err := s.conn.Write(s.send); err != nil {
		tb.Fatal(err)
	}
	s.await(tb)
}

// await reads to the end of the answer: a ReadyForQuery is the last six bytes.
func (s *speaker) await(tb testing.TB) {
	n := 0
	for {
		k, err := s.conn.Read(s.read[n:])
		if err != nil {
			tb.Fatal(err)
		}
		n += k
		if n >= 6 && s.read[n-6] == pgwire.ReadyForQuery && s.read[n-2] == 5 {
			return
		}
	}
}

// protocols are one SELECT in each of the protocol's ways.
var protocols = []struct{ name, prepare, send string }{
	{"simple", "", frame('Q', "select abalance from accounts where aid = 4711\x00")},
	{"extended", "", frame('P', "\x00select abalance from accounts where aid = $1\x00\x00\x00") + bind("", "4711")},
	{
		"prepared", frame('P', "s1\x00select abalance from accounts where aid = $1\x00\x00\x00") + frame('S', ""),
		bind("s1", "4711"),
	},
	{"traced", "", frame('Q', "select abalance from accounts where aid = 4711 /*traceparent='00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01'*/\x00")},
}

func bind(statement, value string) string {
	return frame('B', "\x00"+statement+"\x00\x00\x00\x00\x01\x00\x00\x00"+string(rune(len(value)))+value+"\x00\x00") +
		frame('D', "P\x00") + frame('E', "\x00\x00\x00\x00\x00") + frame('S', "")
}

// plainServer lets its superuser in with a cleartext password, so that a benchmark's
// own client needs no SCRAM.
var plainServer = pgtest.Shared{Options: pgtest.Options{Database: "app", Auth: "password", Settings: map[string]string{"max_connections": "60"}}}

func accounts(tb testing.TB) *pgtest.Server {
	s := plainServer.Start(tb)
	if err := s.Exec(tb.Context(), "create table if not exists accounts (aid int primary key, abalance int); insert into accounts select g, 0 from generate_series(1, 10000) g on conflict do nothing; analyze accounts"); err != nil {
		tb.Fatal(err)
	}
	return s
}

// fakeServer is a PostgreSQL that answers every query with the same bytes, so that
// only the pooler's own work is left.
func fakeServer(tb testing.TB) string {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { ln.Close() })
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			go answerAlways(conn)
		}
	}()
	return "postgres://u:p@" + ln.Addr().String() + "/app?sslmode=disable"
}

// The answers of fakeServer, by protocol.
var (
	simpleAnswer   = []byte(frame('T', "\x00\x01abalance\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x17\x00\x04\xff\xff\xff\xff\x00\x00") + frame('D', "\x00\x01\x00\x00\x00\x010") + frame('C', "SELECT 1\x00") + frame('Z', "I"))
	extendedAnswer = []byte(frame('1', "") + frame('2', "") + string(simpleAnswer))
	preparedAnswer = []byte(frame('2', "") + string(simpleAnswer))
	parseAnswer    = []byte(frame('1', "") + frame('Z', "I"))
)

func answerAlways(conn net.Conn) {
	defer conn.Close()
	in := pgwire.NewReader(conn, 1<<16)
	if _, err := in.ReadStartup(); err != nil {
		return
	}
	hello := frame('R', "\x00\x00\x00\x00") + frame('K', "\x00\x00\x00\x01\x00\x00\x00\x02") + frame('Z', "I")
	if _, err := io.WriteString(conn, hello); err != nil {
		return
	}
	parsed, bound := false, false
	for {
		typ, _, err := in.Next()
		if err != nil {
			return
		}
		var answer []byte
		switch typ {
		case pgwire.Parse:
			parsed = true
			continue
		case pgwire.Bind:
			bound = true
			continue
		case pgwire.Query:
			answer = simpleAnswer
		case pgwire.Sync:
			switch {
			case parsed && bound:
				answer = extendedAnswer
			case parsed:
				answer = parseAnswer
			default:
				answer = preparedAnswer
			}
		default:
			continue
		}
		parsed, bound = false, false
		if _, err := conn.Write(answer); err != nil {
			return
		}
	}
}

// needsPools skips a test that counts allocations: under the race detector pools lose
// what they were given, by chance.
func needsPools(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector empties pools")
	}
}

func TestAQueryAllocatesNothing(t *testing.T) {
	needsPools(t)
	upstream := fakeServer(t)
	for _, p := range protocols {
		t.Run(p.name, func(t *testing.T) {
			h := run(t, config(database(upstream, one)), func(d *Deps) { d.Sink = telemetry.Discard })
			s := speak(t, h.addr, "ann", "", p.prepare, p.send)
			for range 100 {
				s.round(t)
			}
			if n := testing.AllocsPerRun(2000, func() { s.round(t) }); n != 0 {
				t.Errorf("%v allocations per query", n)
			}
		})
	}
}

func TestAQueryThatQueuesAllocatesNothing(t *testing.T) {
	needsPools(t)
	h := run(t, config(database(fakeServer(t), one)), func(d *Deps) { d.Sink = telemetry.Discard })
	stop := make(chan struct{})
	ended := make(chan struct{})
	rival := speak(t, h.addr, "bob", "", "", protocols[0].send)
	go func() {
		defer close(ended)
		for {
			select {
			case <-stop:
				return
			default:
				rival.round(t)
			}
		}
	}()
	s := speak(t, h.addr, "ann", "", "", protocols[0].send)
	for range 100 {
		s.round(t)
	}
	n := testing.AllocsPerRun(2000, func() { s.round(t) })
	close(stop)
	<-ended
	if n != 0 {
		t.Errorf("%v allocations per query", n)
	}
}

// BenchmarkExchange is one SELECT, from the client's send to its last byte: of a
// real PostgreSQL directly, of the same through the pooler, and through the pooler
// of a server that does nothing.
func BenchmarkExchange(b *testing.B) {
	for _, p := range protocols {
		b.Run(p.name+"/direct", func(b *testing.B) {
			s := accounts(b)
			bench(b, speak(b, s.Addr(), s.User(), s.Password(), p.prepare, p.send))
		})
		b.Run(p.name+"/pooler", func(b *testing.B) {
			h := run(b, config(database(accounts(b).URL(), one)), func(d *Deps) { d.Sink = telemetry.Discard })
			bench(b, speak(b, h.addr, "ann", "", p.prepare, p.send))
		})
		b.Run(p.name+"/pooler_alone", func(b *testing.B) {
			h := run(b, config(database(fakeServer(b), one)), func(d *Deps) { d.Sink = telemetry.Discard })
			bench(b, speak(b, h.addr, "ann", "", p.prepare, p.send))
		})
	}
}

func bench(b *testing.B, s *speaker) {
	for range 20 {
		s.round(b)
	}
	b.ReportAllocs()
	b.ResetTimer()
	for b.Loop() {
		s.round(b)
	}
}

// BenchmarkRows is a result of many rows: bytes per second through the pooler.
func BenchmarkRows(b *testing.B) {
	const rows, width = 10_000, 100
	send := frame('Q', fmt.Sprintf("select repeat('x', %d) from generate_series(1, %d)\x00", width, rows))
	s := accounts(b)
	h := run(b, config(database(s.URL(), one)), func(d *Deps) { d.Sink = telemetry.Discard })
	for _, c := range []struct {
		name string
		s    *speaker
	}{{"direct", speak(b, s.Addr(), s.User(), s.Password(), "", send)}, {"pooler", speak(b, h.addr, "ann", "", "", send)}} {
		b.Run(c.name, func(b *testing.B) {
			b.SetBytes(rows * (width + 11))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := c.s.conn.Write(c.s.send); err != nil {
					b.Fatal(err)
				}
				drainAnswer(b, c.s)
			}
		})
	}
}

// drainAnswer reads an answer that is longer than the speaker's buffer.
func drainAnswer(b *testing.B, s *speaker) {
	tail := [6]byte{}
	for {
		n, err := s.conn.Read(s.read)
		if err != nil {
			b.Fatal(err)
		}
		if n >= 6 {
			copy(tail[:], s.read[n-6:n])
		} else {
			copy(tail[:], tail[n:])
			copy(tail[6-n:], s.read[:n])
		}
		if tail[0] == pgwire.ReadyForQuery && tail[4] == 5 && tail[5] == pgwire.Idle {
			return
		}
	}
}
