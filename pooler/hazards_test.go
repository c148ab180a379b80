package pooler

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"mainstay.dev/mainstay/pooler/internal/pgwire"
	"mainstay.dev/mainstay/pooler/pgtest"
)

// What other poolers have got wrong, made deterministic where it can be.

// A gate holds what is to go to the server, once it knows what it is.
type gate struct {
	net.Conn
	pass func(first []byte) error // called with the first bytes; its error is the write's
	once sync.Once
	err  error
}

func (g *gate) Write(p []byte) (int, error) {
	g.once.Do(func() { g.err = g.pass(p) })
	if g.err != nil {
		g.Conn.Close()
		return 0, g.err
	}
	return g.Conn.Write(p)
}

// isCancel reports whether a connection begins with a cancel request.
func isCancel(first []byte) bool {
	start, err := pgwire.ParseStartup(first[4:])
	return err == nil && start.Kind == pgwire.StartCancel
}

// gated makes connections to the server pass a gate.
func gated(pass func(first []byte) error) func(*Deps) {
	return func(d *Deps) {
		d.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
			conn, err := (&net.Dialer{}).DialContext(ctx, network, addr)
			if err != nil {
				return nil, err
			}
			return &gate{Conn: conn, pass: pass}, nil
		}
	}
}

// underWay reports whether the server carries a query out: one that has a server may not
// have reached it.
func underWay(t *testing.T, sql string) func() bool {
	return func() bool {
		n, err := pg.Start(t).Value(context.Background(), "select count(*) from pg_stat_activity where query = '"+sql+"' and state = 'active'")
		return err == nil && n == "1"
	}
}

func TestACancelThatIsOnItsWayKeepsItsServerFromTheNextClient(t *testing.T) {
	release, held := make(chan struct{}), make(chan struct{}, 1)
	h := run(t, config(database(strings.Replace(pg.Start(t).URL(), "?", "?sslmode=disable&", 1), one)), gated(func(first []byte) error {
		if isCancel(first) {
			held <- struct{}{}
			<-release
		}
		return nil
	}))
	first, next := newFrontend(t, h), newFrontend(t, h)
	first.send(frame('Q', "select pg_sleep(1)\x00"))
	await(t, "it runs", underWay(t, "select pg_sleep(1)"))
	hasty := dialRaw(t, h.addr)
	if _, err := hasty.Write(pgwire.AppendCancel(nil, first.pid, first.key)); err != nil {
		t.Fatal(err)
	}
	<-held
	first.expect("TDCZ") // it was too late
	next.send(frame('Q', "select pg_sleep(0.2), 'untouched'\x00"))
	await(t, "the next client waits", func() bool { return h.Stats().Databases[0].Waiting == 1 })
	time.Sleep(50 * time.Millisecond) // nothing may happen in it
	if st := h.Stats().Databases[0]; st.Waiting != 1 {
		t.Errorf("%+v", st)
	}
	close(release)
	next.expect("TDCZ")
}

func TestAServerWhoseCancelIsNotConfirmedIsReplaced(t *testing.T) {
	h := run(t, config(database(strings.Replace(pg.Start(t).URL(), "?", "?sslmode=disable&", 1), one)), gated(func(first []byte) error {
		if isCancel(first) {
			return errors.New("lost on its way")
		}
		return nil
	}))
	conn := h.connect(t)
	pid := value(t, conn, "select pg_backend_pid()::text")
	if again := value(t, conn, "select pg_backend_pid()::text"); again != pid {
		t.Fatalf("%s, then %s", pid, again)
	}
	f := newFrontend(t, h)
	f.send(frame('Q', "select pg_sleep(1)\x00"))
	await(t, "it runs", underWay(t, "select pg_sleep(1)"))
	hasty := dialRaw(t, h.addr)
	if _, err := hasty.Write(pgwire.AppendCancel(nil, f.pid, f.key)); err != nil {
		t.Fatal(err)
	}
	f.expect("TDCZ")
	if now := value(t, conn, "select pg_backend_pid()::text"); now == pid {
		t.Error("the server is used again, and the cancel may still come")
	}
}

func TestWhatTheServerHasSaidIsNotHeldBack(t *testing.T) {
	h := run(t, config(database(pg.Start(t).URL(), func(d *Database) { d.Pool.Max = 2 })))
	holder, f := h.connect(t), newFrontend(t, h)
	do(t, holder, "select pg_advisory_lock(31)")
	parse := func(name, sql string) string { return frame('P', name+"\x00"+sql+"\x00\x00\x00") }
	execute := func(name string) string {
		return frame('B', "\x00"+name+"\x00\x00\x00\x00\x00\x00\x00") + frame('E', "\x00\x00\x00\x00\x00")
	}
	// Answers before a Flush come while what follows it waits for a lock.
	f.send(parse("", "select 'early'") + execute("") + frame('H', "") + parse("l", "select pg_advisory_xact_lock(31)") + execute("l") + frame('S', ""))
	f.expect("12DC")
	if f.row != "early" {
		t.Errorf("%q", f.row)
	}
	do(t, holder, "select pg_advisory_unlock(31)")
	f.expect("12DCZ")
	// Rows that fill the server's buffer come while a later row waits.
	do(t, holder, "select pg_advisory_lock(31)")
	f.send(frame('Q', "select case when n = 300 then pg_advisory_xact_lock(31)::text else repeat('x', 100) end from generate_series(1, 300) n\x00"))
	f.expect("T" + strings.Repeat("D", 100)) // 8 kB are about 80 rows
	do(t, holder, "select pg_advisory_unlock(31)")
	f.expect(strings.Repeat("D", 200) + "CZ")
	// A pipeline that was flushed and given up leaves nothing to the next client.
	f.send(parse("", "select 'never read', generate_series(1, 1000)") + execute("") + frame('H', ""))
	f.expect("12")
	f.conn.Close()
	await(t, "the server is free", func() bool { return h.Stats().Databases[0].Active == 0 })
	for range 3 {
		if got := value(t, holder, "select 'mine'"); got != "mine" {
			t.Error(got)
		}
	}
}

// The long form: MAINSTAY_STORM=1000 go test -run TestAServerOfWhichSingleBackends -timeout 0 ./pooler (so many rows of each client).
func TestAServerOfWhichSingleBackendsAreKilledLosesNoAcknowledgedRow(t *testing.T) {
	s := pgtest.Start(t, pgtest.Options{Settings: map[string]string{"max_connections": "30", "fsync": "off"}})
	if err := s.Exec(t.Context(), "create table kept (client int, turn int, primary key (client, turn))"); err != nil {
		t.Fatal(err)
	}
	h := run(t, config(database(s.URL(), func(d *Database) { d.Pool.Max = 3; d.Pool.OutageWait = 30 * time.Second })))
	var lost atomic.Int64
	var mu sync.Mutex
	acknowledged := map[string]bool{}
	conns := make([]*pgx.Conn, 3)
	var heard atomic.Int64 // answers
	insert := func(client, turn int) (err error) {
		defer heard.Add(1)
		ctx, cancel := context.WithTimeout(t.Context(), 40*time.Second)
		defer cancel()
		if conns[client] == nil || conns[client].IsClosed() {
			if conns[client], err = pgx.Connect(ctx, h.url("ann", "")); err != nil {
				return clear57(err, &lost)
			}
		}
		_, err = conns[client].Exec(ctx, "insert into kept select $1, $2 from pg_sleep(0.002)", client, turn)
		if errors.As(err, new(*pgconn.PgError)) || err == nil {
			if err == nil {
				mu.Lock()
				acknowledged[fmt.Sprint(client, "/", turn)] = true
				mu.Unlock()
				return nil
			}
			return clear57(err, &lost)
		}
		return err
	}
	var one sync.Mutex
	kills := 0
	crowd(t, number(t, stormWanted, 60), insert, func(random *rand.Rand) {
		one.Lock()
		defer one.Unlock()
		// Killed again and again before it has let anybody in, it would serve nobody.
		for before, i := heard.Load(), 0; heard.Load() == before && i < 1000; i++ {
			time.Sleep(5 * time.Millisecond)
		}
		if kills++; kills%4 == 0 { // the whole server
			if err := s.Kill(); err != nil {
				t.Error(err)
			}
			if err := s.Restart(t.Context()); err != nil {
				t.Error(err)
			}
			return
		}
		pids, err := s.Value(context.Background(), "select string_agg(pid::text, ' ') from pg_stat_activity where backend_type = 'client backend' and pid <> pg_backend_pid()")
		if list := strings.Fields(pids); err == nil && len(list) > 0 {
			pid, _ := strconv.Atoi(list[random.IntN(len(list))])
			_ = syscall.Kill(pid, syscall.SIGKILL) // it may have ended
		}
		await(t, "it serves again", func() bool { _, err := s.Value(context.Background(), "select 1"); return err == nil })
	})
	t.Logf("%d kills, %d rows acknowledged, %d clients told", kills, len(acknowledged), lost.Load())
	for _, conn := range conns {
		if conn != nil {
			conn.Close(context.Background())
		}
	}
	await(t, "it serves again", func() bool { _, err := s.Value(context.Background(), "select 1"); return err == nil })
	rows, err := s.Value(t.Context(), "select coalesce(string_agg(client || '/' || turn, ' '), '') from kept")
	if err != nil {
		t.Fatal(err)
	}
	there := map[string]bool{}
	for row := range strings.FieldsSeq(rows) {
		there[row] = true
	}
	for row := range acknowledged {
		if !there[row] {
			t.Errorf("row %s was acknowledged and is not there", row)
		}
	}
	if len(acknowledged) == 0 {
		t.Error("no row was acknowledged")
	}
}
