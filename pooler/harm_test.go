package pooler

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/url"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"mainstay.dev/mainstay/pooler/internal/pgwire"
	"mainstay.dev/mainstay/pooler/pgtest"
)

// The long forms: MAINSTAY_STORM=5000 go test -run 'TestVandals|TestLateCancels|TestKilled' -timeout 0 ./pooler
// (so many answers of the honest clients, each of which is checked).
const stormWanted = "MAINSTAY_STORM"

// crowd runs honest clients, each of which gives so many answers to check, while
// trouble is made until they have finished.
func crowd(t *testing.T, turns int, honest func(client, turn int) error, trouble func(*rand.Rand)) {
	t.Helper()
	var over atomic.Bool
	var good, bad sync.WaitGroup
	for i := range 3 {
		bad.Go(func() {
			random := rand.New(rand.NewPCG(uint64(i), 7))
			for !over.Load() {
				trouble(random)
			}
		})
	}
	for i := range 3 {
		good.Go(func() {
			for n := range turns {
				if err := honest(i, n); err != nil {
					t.Errorf("client %d, turn %d: %v", i, n, err)
					return
				}
			}
		})
	}
	good.Wait()
	over.Store(true)
	bad.Wait()
}

func TestVandalsLeaveNothingOnAnyServer(t *testing.T) {
	s := pg.Start(t)
	if err := s.Exec(t.Context(), "drop table if exists wreck; create table wreck (n int); drop role if exists vandal; create role vandal; grant vandal to postgres"); err != nil {
		t.Fatal(err)
	}
	h := run(t, config(database(s.URL(), func(d *Database) { d.Pool.Max = 3 })))
	conns := []*pgx.Conn{h.connect(t), h.connect(t), h.connect(t)}
	const look = `select current_user || coalesce(nullif(current_setting('request.jwt.claims', true), ''), ' nobody') || current_setting('work_mem') || $1::text`
	acts := []string{
		frame('Q', "begin; insert into wreck values (1); lock table wreck in access exclusive mode\x00"),
		frame('Q', "begin; set role vandal; set request.jwt.claims = 'stolen'; set work_mem = '1GB'\x00"),
		frame('Q', "set role vandal\x00") + frame('Q', "set request.jwt.claims = 'stolen'\x00") + frame('Q', "set work_mem = '1GB'\x00"),
		frame('Q', "create temp table mine (n int); select pg_advisory_lock_shared(99); prepare mine as select 1; listen mine\x00"),
		frame('Q', "begin; select pg_advisory_lock_shared(99); declare c cursor with hold for select 1; copy wreck from stdin\x00") + frame('d', "1\n"),
		frame('P', "v\x00select set_config('request.jwt.' || $1, 'stolen', false)\x00\x00\x00") + bindTexts("", "v", []string{"claims"}) + frame('E', "\x00\x00\x00\x00\x00") + frame('H', ""),
		frame('P', "v\x00insert into wreck values (2)\x00\x00\x00"),
		frame('Q', "select repeat('y', 1000) from generate_series(1, 2000)\x00"),
	}
	crowd(t, number(t, stormWanted, 150), func(client, turn int) error {
		var got string
		want := fmt.Sprintf("postgres nobody4MB%d/%d", client, turn)
		if err := conns[client].QueryRow(t.Context(), look, fmt.Sprint(client, "/", turn)).Scan(&got); err != nil {
			return err
		}
		if got != fmt.Sprintf("postgres nobody4MB%s", fmt.Sprint(client, "/", turn)) {
			return fmt.Errorf("got %q, want %q", got, want)
		}
		return nil
	}, func(random *rand.Rand) {
		conn, err := net.Dial("tcp", h.addr)
		if err != nil {
			return
		}
		defer conn.Close()
		act := startup("user", "vandal", "database", "app") + acts[random.IntN(len(acts))]
		if random.IntN(3) == 0 {
			act = act[:len(act)-random.IntN(len(act)/2)]
		}
		if _, err := conn.Write([]byte(act)); err != nil {
			return
		}
		_ = conn.SetReadDeadline(time.Now().Add(time.Duration(1+random.IntN(10)) * time.Millisecond)) // an error means that it is closed
		_, _ = conn.Read(make([]byte, 4096))
		if random.IntN(2) == 0 {
			_ = conn.(*net.TCPConn).SetLinger(0) // a reset instead of an end
		}
	})
	await(t, "the vandals are gone", func() bool { return h.Stats().Clients == 3 && h.Stats().Databases[0].Active == 0 })
	for what, sql := range map[string]string{
		"open transactions": "select count(*) from pg_stat_activity where state like 'idle in transaction%'",
		"locks":             "select count(*) from pg_locks where pid <> pg_backend_pid() and (locktype = 'advisory' or relation = 'wreck'::regclass)",
		"temporary tables":  "select count(*) from pg_class where relpersistence = 't' and relname = 'mine'",
		"committed rows":    "select count(*) from wreck",
	} {
		await(t, "no "+what, func() bool {
			n, err := s.Value(context.Background(), sql)
			return err == nil && n == "0"
		})
	}
}

func TestLateCancelsReachNobody(t *testing.T) {
	h := run(t, config(database(pg.Start(t).URL(), func(d *Database) { d.Pool.Max = 2 })))
	conns := []*pgx.Conn{h.connect(t), h.connect(t), h.connect(t)}
	crowd(t, number(t, stormWanted, 200), func(client, turn int) error {
		var got string
		want := fmt.Sprint(client, "/", turn)
		if err := conns[client].QueryRow(t.Context(), "select $1::text from generate_series(1, 500) limit 1 offset 400", want).Scan(&got); err != nil || got != want {
			return fmt.Errorf("got %q, want %q: %w", got, want, err)
		}
		return nil
	}, func(random *rand.Rand) {
		conn, err := pgconn.Connect(t.Context(), h.url("hasty", ""))
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close(context.Background())
		for range 4 {
			var late sync.WaitGroup
			if random.IntN(2) == 0 { // around the end of the query, from another goroutine
				late.Go(func() { _ = conn.CancelRequest(t.Context()) })
			}
			_, err := conn.Exec(t.Context(), "select 1").ReadAll()
			if random.IntN(2) == 0 { // when it has ended for sure
				_ = conn.CancelRequest(t.Context())
			}
			late.Wait()
			if canceled, ok := errors.AsType[*pgconn.PgError](err); err != nil && (!ok || canceled.Code != "57014") {
				t.Errorf("the hasty one: %v", err)
			}
			if err != nil {
				return // one that is canceled while it waits for a server is disconnected
			}
		}
	})
}

func TestKilledBackendsAreSeenByTheirClientsAlone(t *testing.T) {
	s := pgtest.Start(t, pgtest.Options{Settings: map[string]string{"max_connections": "30"}})
	h := run(t, config(database(s.URL(), func(d *Database) { d.Pool.Max = 3; d.Pool.OutageWait = 20 * time.Second })))
	var lost atomic.Int64
	ask := func(client, turn int) error {
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		conn, err := pgx.Connect(ctx, h.url("ann", ""))
		if err != nil {
			return clear57(err, &lost)
		}
		defer conn.Close(ctx)
		for n := range 5 {
			var got string
			want := fmt.Sprint(client, "/", turn, "/", n)
			if err := conn.QueryRow(ctx, "select $1::text from pg_sleep(0.001)", want).Scan(&got); err != nil {
				return clear57(err, &lost)
			}
			if got != want {
				return fmt.Errorf("got %q, want %q", got, want)
			}
		}
		return nil
	}
	admin, err := pgx.Connect(t.Context(), s.URL())
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close(context.Background())
	var one sync.Mutex
	crowd(t, number(t, stormWanted, 60), ask, func(*rand.Rand) {
		one.Lock()
		defer one.Unlock()
		_, err := admin.Exec(t.Context(), "select pg_terminate_backend(pid) from pg_stat_activity where pid <> pg_backend_pid() and backend_type = 'client backend' order by random() limit 1")
		if err != nil {
			t.Error(err)
		}
		_, _ = admin.Exec(t.Context(), "select pg_sleep(0.01)")
	})
	t.Logf("%d clients were told", lost.Load())
	if err := s.Kill(); err != nil { // SIGKILL: every backend and the postmaster
		t.Fatal(err)
	}
	if err := s.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	lost.Store(0)
	for n := range 5 {
		if err := ask(0, n); err != nil {
			t.Error(err)
		}
	}
	if lost.Load() > 0 {
		t.Errorf("%d clients of a server that is back were told that it is gone", lost.Load())
	}
}

// clear57 takes an error that says that the server has gone for none, and counts it.
func clear57(err error, lost *atomic.Int64) error {
	if told, ok := errors.AsType[*pgconn.PgError](err); ok {
		switch told.Code {
		case "57P01", "57P02", "57P03", "08006", "08001":
			lost.Add(1)
			return nil
		}
	}
	return fmt.Errorf("not a clear word: %w", err)
}

func TestAServerThatSpeaksNonsenseHarmsItsClientAlone(t *testing.T) {
	for what, answer := range map[string]string{
		"an unknown type": "\x01\x00\x00\x00\x04", "a length of three": "T\x00\x00\x00\x03", "a length of 4 GB": "T\xff\xff\xff\xff", "2 GB": "C\x80\x00\x00\x00",
		"a Z of two bytes": frame('Z', "II"), "ParseComplete for nothing": frame('1', ""), "CopyBoth": frame('W', "\x00\x00\x00"),
		"an end": "",
	} {
		t.Run(what, func(t *testing.T) {
			fake, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			var serving sync.WaitGroup
			serving.Go(func() {
				for {
					conn, err := fake.Accept()
					if err != nil {
						return
					}
					serving.Go(func() { speakNonsense(conn, answer) })
				}
			})
			h := run(t, config(database("postgres://u:p@"+fake.Addr().String()+"/x?sslmode=disable", one)))
			t.Cleanup(func() { _ = h.stop(); fake.Close(); serving.Wait() })
			for range 2 { // the next one is served too
				c := newFrontend(t, h)
				c.send(frame('Q', "nonsense\x00"))
				if got := lastWords(t, c.in); got == "" {
					t.Error("the client was not told")
				}
			}
		})
	}
}

// speakNonsense lets anybody in, and answers queries with nothing but an end, and the
// query for nonsense with the answer.
func speakNonsense(conn net.Conn, answer string) {
	defer conn.Close()
	if conn.SetDeadline(time.Now().Add(20*time.Second)) != nil {
		return
	}
	if _, err := conn.Read(make([]byte, 4096)); err != nil { // the startup
		return
	}
	_, _ = conn.Write([]byte(frame('R', "\x00\x00\x00\x00") + frame('S', "server_version\x0015.0\x00") + frame('K', "\x00\x00\x00\x01\x00\x00\x00\x02") + frame('Z', "I")))
	in := pgwire.NewReader(conn, 1<<16)
	for {
		typ, body, err := in.Next()
		switch {
		case err != nil:
			return
		case typ == pgwire.Query && string(body) == "nonsense\x00":
			_, _ = conn.Write([]byte(answer))
			return
		case typ == pgwire.Query || typ == pgwire.Sync:
			_, _ = conn.Write([]byte(frame('C', "SELECT 0\x00") + frame('Z', "I")))
		}
	}
}

// What a function of a superuser's has set for one client, and what a library has taken for itself since, is led back for another.
func TestWhatMayNotBeSetIsLedBackForOthers(t *testing.T) {
	s := pg.Start(t)
	if err := s.Exec(t.Context(), `drop role if exists unprivileged; create role unprivileged login password 'pw';
		create or replace function public.quiet() returns void language plpgsql security definer as $$ begin set session_replication_role = replica; end $$;
		create or replace function public.mild() returns int language plpgsql as $$ begin return 1; end $$`); err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(s.URL())
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.UserPassword("unprivileged", "pw")
	for _, c := range []struct {
		do         []string
		look, want string
	}{
		{[]string{"select public.quiet()"}, "show session_replication_role", "origin"},
		{[]string{"set plpgsql.foo = 'x'", "select public.mild()"}, "select coalesce(current_setting('plpgsql.foo', true), '')", ""},
	} {
		h := run(t, config(database(u.String(), one))) // with a server that has no library yet
		a, b := h.connect(t), h.connect(t)
		pid := value(t, b, "select pg_backend_pid()::text", simple)
		for _, sql := range c.do {
			do(t, a, sql, simple)
		}
		for range 2 {
			if got := value(t, b, c.look, simple); got != c.want {
				t.Errorf("another client has %q", got)
			}
		}
		if got := value(t, b, "select pg_backend_pid()::text", simple); got != pid {
			t.Errorf("%s: its server was lost", c.do)
		}
	}
}
