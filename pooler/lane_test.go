//go:build linux

package pooler

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"mainstay.dev/mainstay/telemetry"
)

// waysIn are connections to a pooler with TLS.
var waysIn = []struct {
	name   string
	server string // its sslmode, for a test of both sides
	dial   func(*testing.T, *house) net.Conn
}{
	{"plain", "disable", func(t *testing.T, h *house) net.Conn { return dialRaw(t, h.addr) }},
	{"TLS", "require", func(t *testing.T, h *house) net.Conn {
		t.Helper()
		conn, err := direct(t, h, "postgresql")
		if err != nil {
			t.Fatal(err)
		}
		return conn
	}},
}

// Without this nobody would notice if the event loops gave every session to a goroutine:
// all would work as before, at three times the price.
func TestAClientThatRestsHasNoGoroutine(t *testing.T) {
	const clients = 100
	for _, way := range waysIn {
		t.Run(way.name, func(t *testing.T) {
			h := run(t, config(database(fakeServer(t), one), withTLS(t)), func(d *Deps) { d.Sink = telemetry.Discard })
			speakOn(t, way.dial(t, h), "ann", "", "", protocols[0].send).round(t)
			before := runtime.NumGoroutine()
			for range clients {
				for _, p := range protocols {
					s := speakOn(t, way.dial(t, h), "ann", "", p.prepare, p.send)
					for range 3 {
						s.round(t)
					}
				}
			}
			await(t, "goroutines that came with them are gone", func() bool { return runtime.NumGoroutine() < before+clients/2 })
			if n := h.Stats().Clients; n != clients*len(protocols)+1 {
				t.Errorf("%d clients", n)
			}
		})
	}
}

// Neither has one whose server wants TLS.
func TestAClientThatRestsHasNoGoroutineWhereTheServerEncrypts(t *testing.T) {
	const clients = 100
	for _, way := range waysIn {
		t.Run(way.name, func(t *testing.T) {
			upstream := strings.Replace(pg.Start(t).URL(), "sslmode=disable", "sslmode=require", 1)
			h := run(t, config(database(upstream, one), withTLS(t)), func(d *Deps) { d.Sink = telemetry.Discard })
			query := frame('Q', "select 1 from pg_stat_ssl where pid = pg_backend_pid() and ssl\x00")
			for range clients {
				s := speakOn(t, way.dial(t, h), "ann", "", "", query)
				for range 3 {
					s.round(t)
				}
			}
			await(t, "all rest", func() bool { return h.goroutines() == 0 })
			if got := value(t, h.connect(t), "select ssl::text from pg_stat_ssl where pid = pg_backend_pid()"); got != "true" {
				t.Errorf("encrypted: %s", got)
			}
		})
	}
}

// A client that does not read what it asked for is a goroutine's, with all that the
// event loops had for it; when it has read all, it is theirs again.
func TestAClientThatReadsLateMissesNothing(t *testing.T) {
	const rows, width = 15_000, 1000
	for _, way := range waysIn {
		t.Run(way.name, func(t *testing.T) {
			h := run(t, config(database(strings.Replace(pg.Start(t).URL(), "sslmode=disable", "sslmode="+way.server, 1), one), withTLS(t)))
			conn := way.dial(t, h)
			if err := conn.SetDeadline(time.Now().Add(5 * time.Minute)); err != nil { // for slow machines
				t.Fatal(err)
			}
			s := speakOn(t, conn, "ann", "", "", frame('Q', "select 1\x00"))
			for range 3 {
				s.round(t)
				query := frame('Q', fmt.Sprintf("select repeat(chr(97 + i %% 26), %d) from generate_series(1, %d) i\x00", width, rows))
				if _, err := io.WriteString(s.conn, query); err != nil {
					t.Fatal(err)
				}
				await(t, "the kernel's buffers are full", func() bool { return h.goroutines() == 1 })
				answer := make([]byte, 0, rows*(width+20))
				for chunk := make([]byte, 1<<16); !bytes.HasSuffix(answer, []byte(frame('Z', "I"))); {
					n, err := s.conn.Read(chunk)
					if err != nil {
						t.Fatal(err)
					}
					answer = append(answer, chunk[:n]...)
				}
				for i := 1; i <= rows; i++ {
					row := bytes.Repeat([]byte{byte('a' + i%26)}, width)
					at := bytes.IndexByte(answer, 'D')
					if i == 1 {
						answer = answer[bytes.Index(answer, []byte("D\x00\x00")):]
						at = 0
					}
					if at != 0 || !bytes.Equal(answer[11:11+width], row) {
						t.Fatalf("row %d is not what was asked for", i)
					}
					answer = answer[11+width:]
				}
				await(t, "it rests", func() bool { return h.goroutines() == 0 })
			}
		})
	}
}

// goroutines counts the sessions that have one.
func (h *house) goroutines() (n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, s := range h.sessions {
		s.lane.Lock()
		if s.at == aside {
			n++
		}
		s.lane.Unlock()
	}
	return n
}

// A faultySink panics at the next exchange, when it is told to.
type faultySink struct {
	telemetry.Sink
	panics atomic.Bool
}

func (f *faultySink) Record(x *telemetry.Exchange) {
	if f.panics.Swap(false) {
		panic("a bug of ours")
	}
	f.Sink.Record(x)
}

// A bug that one session meets on the event loops, or in a goroutine of its own, must neither end
// the others nor take a server with it.
func TestAPanicEndsOneSessionAlone(t *testing.T) {
	for where, exchange := range map[string]func(context.Context, *pgconn.PgConn) error{
		"(*session).Step(": func(ctx context.Context, conn *pgconn.PgConn) error {
			_, err := conn.Exec(ctx, "select 1").ReadAll()
			return err
		},
		"(*session).goOn(": func(ctx context.Context, conn *pgconn.PgConn) error {
			_, err := conn.CopyFrom(ctx, strings.NewReader("1\n"), "copy panics from stdin")
			return err
		},
	} {
		t.Run(strings.Trim(where, "("), func(t *testing.T) {
			sink := &faultySink{Sink: telemetry.Discard}
			var log bytes.Buffer
			h := run(t, config(database(pg.Start(t).URL(), one)), func(d *Deps) {
				d.Sink, d.Log = sink, slog.New(slog.NewTextHandler(&log, nil))
			})
			other := h.connect(t)
			if got := value(t, other, "select 'a'"); got != "a" {
				t.Errorf("%q", got)
			}
			do(t, other, "create table if not exists panics (i int)")
			met := h.connect(t)
			do(t, met, "select 1")
			sink.panics.Store(true)
			err := exchange(t.Context(), met.PgConn())
			if pgErr := (*pgconn.PgError)(nil); !errors.As(err, &pgErr) || pgErr.Severity != "FATAL" || !strings.Contains(pgErr.Message, "internal error of Mainstay") {
				t.Errorf("the client is told: %v", err)
			}
			if got := value(t, other, "select 'b'"); got != "b" {
				t.Errorf("%q", got)
			}
			await(t, "it is gone", func() bool { return h.Stats().Clients == 1 })
			if err := h.stop(); err != nil {
				t.Error(err)
			}
			if n := strings.Count(log.String(), "panic in a session"); n != 1 || !strings.Contains(log.String(), where) {
				t.Errorf("told of %d times: %s", n, log.String())
			}
		})
	}
}

// A bug that is met when the session has parted with its server, which is not another's yet, must not keep the server's place in the pool.
func TestAPanicBetweenTwoClientsKeepsNoPlaceInThePool(t *testing.T) {
	var log bytes.Buffer
	h := run(t, config(database(pg.Start(t).URL(), one)), func(d *Deps) { d.Log = slog.New(slog.NewTextHandler(&log, nil)) })
	met := h.connect(t)
	do(t, met, "select 1")
	await(t, "it rests", func() bool { return h.goroutines() == 0 })
	h.mu.Lock()
	for _, s := range h.sessions {
		s.lane.Lock()
		s.login = nil // never so: the question of what SET has left fails on it
		s.lane.Unlock()
	}
	h.mu.Unlock()
	do(t, met, "set work_mem = '5MB'")                           // it is met behind the answer
	if got := value(t, h.connect(t), "select 'b'"); got != "b" { // the pool has one place
		t.Errorf("%q", got)
	}
	await(t, "it is gone", func() bool { return h.Stats().Clients <= 1 })
	if err := h.stop(); err != nil {
		t.Error(err)
	}
	if !strings.Contains(log.String(), "(*session).foretell(") {
		t.Errorf("the log does not say where: %s", log.String())
	}
}

// A bug may be met with the session's lock, which those who list the sessions wait for, and by whoever reads the client beside.
func TestAPanicLeavesTheSessionsLockToOthers(t *testing.T) {
	for what, c := range map[string]struct {
		breaks func(s *session)
		send   string
	}{
		"on the event loops": {func(s *session) { s.told = nil }, query("set application_name = 'x'").bytes},
		"in a goroutine":     {func(s *session) { s.told = nil }, query("listen x; set application_name = 'x'").bytes},
		"in the uplink":      {func(s *session) { s.login = nil }, parsed("", "select 1") + bound("") + executed + query("reset work_mem").bytes},
	} {
		t.Run(what, func(t *testing.T) {
			var log bytes.Buffer
			h := run(t, config(database(pg.Start(t).URL(), one)), func(d *Deps) { d.Log = slog.New(slog.NewTextHandler(&log, nil)) })
			met := newFrontend(t, h)
			met.query("select 1")
			await(t, "it rests", func() bool { return h.goroutines() == 0 })
			h.mu.Lock()
			for _, s := range h.sessions {
				s.lane.Lock()
				c.breaks(s)
				s.lane.Unlock()
			}
			h.mu.Unlock()
			met.send(c.send)
			if got := value(t, h.connect(t), "select 'b'"); got != "b" { // the pool has one place
				t.Errorf("%q", got)
			}
			await(t, "it is gone", func() bool { return h.Stats().Clients <= 1 })
			if err := h.stop(); err != nil {
				t.Error(err)
			}

			if n := strings.Count(log.String(), "panic in a session"); n != 1 {
				t.Errorf("told of %d times: %s", n, log.String())
			}
		})
	}
}
