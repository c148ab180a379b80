package pooler

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sys/unix"

	"mainstay.dev/mainstay/internal/setting"
	"mainstay.dev/mainstay/pooler/internal/pgwire"
)

// narrow makes a socket take little at a time.
func narrow(_, _ string, raw syscall.RawConn) (err error) {
	failed := raw.Control(func(fd uintptr) {
		for _, o := range [][3]int{{unix.IPPROTO_TCP, unix.TCP_MAXSEG, 200}, {unix.SOL_SOCKET, unix.SO_RCVBUF, 1}, {unix.SOL_SOCKET, unix.SO_SNDBUF, 1}} {
			if err == nil {
				err = unix.SetsockoptInt(int(fd), o[0], o[1], o[2])
			}
		}
	})
	if failed != nil {
		return failed
	}
	return err
}

// deaf sends something and reads nothing.
func deaf(t *testing.T, addr, send string) net.Conn {
	t.Helper()
	conn, err := (&net.Dialer{Control: narrow}).Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	go func() { _, _ = conn.Write([]byte(send)) }()
	return conn
}

// othersAreServed logs in, and asks something, several times.
func othersAreServed(t *testing.T, url string) {
	t.Helper()
	for range 4 {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		conn, err := pgx.Connect(ctx, url)
		if err == nil {
			_, err = conn.Exec(ctx, "select 1")
			conn.Close(ctx)
		}
		cancel()
		if err != nil {
			t.Fatalf("others are not served: %v", err)
		}
	}
}

// A client that does not read what it is told at login keeps nobody up but itself.
func TestWhoDoesNotListenAtLoginKeepsNobodyUp(t *testing.T) {
	for _, auth := range []string{"", "right"} {
		t.Run("password "+auth, func(t *testing.T) {
			h := run(t, config(database(pg.Start(t).URL()), func(c *Config) {
				if c.LoginTimeout = 3 * time.Second; auth != "" {
					c.Users = map[string]setting.Secret{"ann": setting.Secret(auth)}
				}
			}))
			othersAreServed(t, h.url("ann", auth))
			for _, size := range []int{100, 5000, 9900} {
				send := startup("user", "ann", "database", "app", "_pq_."+strings.Repeat("x", size), "1")
				if auth != "" {
					first := "n,,n=,r=" + strings.Repeat("n", size)
					send += string(pgwire.Append(nil, pgwire.Password, []byte("SCRAM-SHA-256\x00"), binary.BigEndian.AppendUint32(nil, uint32(len(first))), []byte(first)))
				}
				for range 4 { // more than there are workers
					deaf(t, h.addr, send)
				}
				time.Sleep(50 * time.Millisecond)
				othersAreServed(t, h.url("ann", auth))
			}
			if auth != "" {
				await(t, "those who do not log in are sent away", func() bool { return h.Stats().Clients == 0 })
			}
		})
	}
}

// Nor does one that does not read an answer in whose middle something is not for it: what is before that has to be
// written first. Of all lengths there is one that the client's socket takes but for the end.
func TestWhoDoesNotReadAnAnswerKeepsNobodyUp(t *testing.T) {
	ln, err := (&net.ListenConfig{Control: narrow}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h := run(t, config(database(pg.Start(t).URL(), func(d *Database) { d.Pool.Max = 60 })), func(d *Deps) {
		d.Listener.Close()
		d.Listener = ln
	})
	h.addr = ln.Addr().String()
	for size := 500; size < 20_000; size += 500 {
		prepare, parse := "", ""
		for i := range 3 {
			parse += string(pgwire.Append(nil, pgwire.Parse, fmt.Appendf(nil, "s%d\x00select repeat('%d', %d)\x00\x00\x00", i, i, size)))
		}
		for i := range 3 {
			prepare += string(pgwire.Append(nil, pgwire.Bind, fmt.Appendf(nil, "\x00s%d\x00\x00\x00\x00\x00\x00\x00", i))) +
				string(pgwire.Append(nil, pgwire.Execute, []byte("\x00\x00\x00\x00\x00")))
		}
		sync := string(pgwire.Append(nil, pgwire.Sync))
		conn := deaf(t, h.addr, startup("user", "ann", "database", "app"))
		in := pgwire.NewReader(conn, 1<<16)
		untilReady(t, in)
		if _, err := conn.Write([]byte(parse + sync)); err != nil {
			t.Fatal(err)
		}
		untilReady(t, in)
		if err := h.Reconnect("app"); err != nil { // the next server does not know the statements
			t.Fatal(err)
		}
		if _, err := conn.Write([]byte(prepare + sync)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Millisecond)
		othersAreServed(t, h.url("ann", ""))
		rows := 0
		for typ := byte(0); typ != pgwire.ReadyForQuery; { // all of it comes in the end, in order
			var body []byte
			if typ, body, err = in.Next(); err != nil {
				t.Fatalf("%d bytes, %d rows: %v", size, rows, err)
			}
			if typ == pgwire.DataRow {
				if want := strings.Repeat(fmt.Sprint(rows), size); string(body[6:]) != want {
					t.Fatalf("row %d of %d bytes is not what was asked for", rows, size)
				}
				rows++
			}
		}
		if rows != 3 {
			t.Fatalf("%d rows of %d bytes", rows, size)
		}
		conn.Close()
	}
}

func untilReady(t *testing.T, in *pgwire.Reader) {
	t.Helper()
	for {
		typ, body, err := in.Next()
		if err != nil || typ == pgwire.ErrorResponse {
			t.Fatalf("%c %q %v", typ, body, err)
		}
		if typ == pgwire.ReadyForQuery {
			return
		}
	}
}

// What a client's few bytes stand for may be long: not all of it is made ready at once.
func TestManyLongStatementsInOneCycleAreSentBitByBit(t *testing.T) {
	const times, size = 60, 200_000
	h := run(t, config(database(pg.Start(t).URL(), one)))
	conn := dialRaw(t, h.addr)
	in := pgwire.NewReader(conn, 1<<16)
	send := func(p []byte) {
		t.Helper()
		if _, err := conn.Write(p); err != nil {
			t.Fatal(err)
		}
		untilReady(t, in)
	}
	send([]byte(startup("user", "ann", "database", "app")))
	sync := pgwire.Append(nil, pgwire.Sync)
	long := pgwire.Append(nil, pgwire.Parse, []byte("long\x00select length($1::text)\x00\x00\x00"))
	parse := pgwire.Append(nil, pgwire.Parse, fmt.Appendf(nil, "s\x00execute long('%s')\x00\x00\x00", strings.Repeat("x", size)))
	send(slices.Concat(long, parse, sync))
	describe := pgwire.Append(nil, pgwire.Describe, []byte("Ss\x00"))
	before := memory()
	if _, err := conn.Write(slices.Concat(bytes.Repeat(describe, times), sync)); err != nil {
		t.Fatal(err)
	}
	columns := 0
	for typ := byte(0); typ != pgwire.ReadyForQuery; {
		var body []byte
		var err error
		if typ, body, err = in.Next(); err != nil || typ == pgwire.ErrorResponse {
			t.Fatalf("%c %q %v", typ, body, err)
		}
		if typ == pgwire.RowDescription {
			columns++
		}
	}
	if columns != times {
		t.Errorf("%d of %d are described", columns, times)
	}
	if more := memory() - before; more > 5*times*size { // each text is made anew; all at once it would be seven times as much
		t.Errorf("%d bytes were allocated for %d of %d", more, times, size)
	}
}

func memory() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.TotalAlloc
}

// A client that hangs up while its server waits for a lock, to be given what the client carries, gives the server back.
func TestAClientThatIsGoneDoesNotWaitForItsReplay(t *testing.T) {
	s := pg.Start(t)
	lock, free := lockable(t, s, "public.awaited")
	if err := s.Exec(t.Context(), "drop table if exists public.done; create table public.done (n int)"); err != nil {
		t.Fatal(err)
	}
	dmy, mdy := frame('Q', "set datestyle = 'ISO, DMY'\x00"), frame('Q', "set datestyle = 'ISO, MDY'\x00")
	prepare, goodbye := frame('Q', "prepare p as select n from public.awaited\x00"), frame('X', "")
	long := frame('Q', "/*"+strings.Repeat(" ", 100_000)+"*/ select 1\x00")
	for what, c := range map[string]struct {
		before, then string
		stays        bool // until what it has asked for is done
	}{
		"in front of a query":              {prepare, frame('Q', "select 1\x00"), false},
		"in front of several":              {prepare, frame('Q', "select 1\x00") + frame('Q', "select 2\x00"), false},
		"in front of an end":               {prepare, frame('Q', "rollback\x00"), false},
		"in front of a long text":          {prepare, long, false},
		"a statement":                      {dmy + parsed("s", "select (date '01/02/2020')::text from public.awaited") + synced + mdy, bound("s") + executed + synced, false},
		"not before what it has asked for": {prepare, frame('Q', "insert into public.done values (1)\x00") + goodbye, true},
	} {
		t.Run(what, func(t *testing.T) {
			h := run(t, config(database(s.URL(), one)))
			a := newFrontend(t, h)
			a.send(c.before)
			for range strings.Count(c.before, "Q\x00\x00\x00") + strings.Count(c.before, synced) {
				for a.next() != "Z" {
				}
			}
			if err := h.Reconnect("app"); err != nil {
				t.Fatal(err)
			}
			lock()
			t.Cleanup(free)
			a.send(c.then)
			await(t, "the server waits for the table", func() bool {
				waits, err := s.Value(t.Context(), "select count(*)::text from pg_locks where not granted")
				return err == nil && waits == "1"
			})
			a.conn.Close()
			if c.stays {
				time.Sleep(3 * sweepEvery)
				free()
				await(t, "it is done", func() bool {
					n, err := s.Value(t.Context(), "select count(*)::text from public.done")
					return err == nil && n == "1"
				})
			}
			await(t, "the server is free", func() bool {
				waits, err := s.Value(t.Context(), "select count(*)::text from pg_locks where not granted")
				return err == nil && waits == "0" && h.Stats().Databases[0].Active == 0
			})
		})
	}
}
