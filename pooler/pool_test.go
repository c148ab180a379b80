package pooler

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"mainstay.dev/mainstay/pooler/pgtest"
)

func TestAWaitInVainSaysWhoHasTheServer(t *testing.T) {
	h := run(t, config(database(pg.Start(t).URL(), one, func(d *Database) { d.Pool.AcquireTimeout = 3 * time.Second })), func(d *Deps) {
		d.Grants = []Grant{{User: "blue", Secret: "a-generated-secret", Color: "blue"}}
	})
	holder, err := pgx.Connect(t.Context(), h.url("blue", "a-generated-secret", "application_name=nightly report"))
	if err != nil {
		t.Fatal(err)
	}
	defer holder.Close(context.Background())
	do(t, holder, "begin")
	_, err = pgx.Connect(t.Context(), h.url("ann", "", "application_name=other"))
	e := refusedWith(t, err, "53300")
	for _, want := range []string{`pool "app"`, "gave no server connection within ", "1 of 1 are open", "1 in use, 1 waiting", `user "blue"`, `application "nightly report"`, "color blue"} {
		if !strings.Contains(e.Message, want) {
			t.Errorf("%q is not in: %s", want, e.Message)
		}
	}
	if !strings.Contains(e.Hint, "pooler.databases.app.pool.max") {
		t.Errorf("hint: %s", e.Hint)
	}
	do(t, holder, "commit")
	value(t, h.connect(t), "select 'free'")
	if h.ledger.codes()[string(QueueTimeout)] != 1 {
		t.Errorf("codes: %v", h.ledger.codes())
	}
}

func TestTheQueueIsFirstComeFirstServed(t *testing.T) {
	h := run(t, config(database(pg.Start(t).URL(), one)))
	holder := h.connect(t)
	conns := make([]*pgx.Conn, 10)
	for i := range conns {
		conns[i] = h.connect(t)
	}
	do(t, holder, "begin")
	var mu sync.Mutex
	var order []int
	var all sync.WaitGroup
	for i, conn := range conns {
		all.Go(func() {
			tx, err := conn.Begin(t.Context())
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock() // the only server is ours
			order = append(order, i)
			mu.Unlock()
			if err := tx.Commit(t.Context()); err != nil {
				t.Error(err)
			}
		})
		await(t, "it waits", func() bool { return h.Stats().Databases[0].Waiting == i+1 })
	}
	do(t, holder, "commit")
	all.Wait()
	if !slices.IsSorted(order) || len(order) != 10 {
		t.Errorf("served in the order %v", order)
	}
	waited := 0
	for _, x := range h.ledger.all() {
		if x.Waited > 0 && x.Waited <= x.Took {
			waited++
		}
	}
	if waited < 10 {
		t.Errorf("%d exchanges have a time in the queue", waited)
	}
}

func TestAClientThatHangsUpInTheQueueLeavesIt(t *testing.T) {
	h := run(t, config(database(pg.Start(t).URL(), one)))
	holder := h.connect(t)
	impatient, canceled := newFrontend(t, h), newFrontend(t, h)
	do(t, holder, "begin")
	impatient.send(frame('Q', "select 1\x00"))
	await(t, "it waits", func() bool { return h.Stats().Databases[0].Waiting == 1 })
	canceled.send(frame('Q', "select 1\x00"))
	await(t, "both wait", func() bool { return h.Stats().Databases[0].Waiting == 2 })
	impatient.conn.Close()
	await(t, "one has left", func() bool { return h.Stats().Databases[0].Waiting == 1 })
	h.cancelFor(startCancel(canceled))
	if got := lastWords(t, canceled.in); got != "57014" {
		t.Errorf("SQLSTATE %q", got)
	}
	do(t, holder, "commit")
}

func TestThePoolKeepsItsBounds(t *testing.T) {
	s := pg.Start(t)
	h := run(t, config(database(s.URL(), func(d *Database) {
		d.Pool.Min, d.Pool.Max, d.Pool.IdleTimeout = 2, 5, 300*time.Millisecond
	})))
	await(t, "the minimum is open", func() bool { return h.Stats().Databases[0].Idle == 2 })
	var conns []*pgx.Conn
	for range 5 {
		conns = append(conns, h.connect(t))
		do(t, conns[len(conns)-1], "begin")
	}
	if st := h.Stats().Databases[0]; st.Active != 5 {
		t.Errorf("%+v", st)
	}
	for _, c := range conns {
		do(t, c, "commit")
	}
	await(t, "it shrinks to the minimum", func() bool { return h.Stats().Databases[0].Idle == 2 })
	if n, err := s.Value(t.Context(), "select count(*) from pg_stat_activity where usename = 'postgres' and pid <> pg_backend_pid() and backend_type = 'client backend'"); err != nil || n != "2" {
		t.Errorf("PostgreSQL has %s connections, %v", n, err)
	}
}

func TestAnOldServerIsReplacedBetweenTwoUses(t *testing.T) {
	h := run(t, config(database(pg.Start(t).URL(), one, func(d *Database) { d.Pool.Lifetime = 200 * time.Millisecond })))
	conn := h.connect(t)
	do(t, conn, "begin")
	pid := value(t, conn, "select pg_backend_pid()::text")
	await(t, "it is too old", func() bool { return h.Stats().Databases[0].LongestUse > 300*time.Millisecond })
	if now := value(t, conn, "select pg_backend_pid()::text"); now != pid {
		t.Error("replaced in the middle of a transaction")
	}
	do(t, conn, "commit")
	if now := value(t, conn, "select pg_backend_pid()::text"); now == pid {
		t.Error("not replaced")
	}
}

func TestAServerThatDiedWhileIdleIsNeverHandedOut(t *testing.T) {
	s := pg.Start(t)
	h := run(t, config(database(s.URL(), func(d *Database) { d.Pool.Max = 4 })))
	conn := h.connect(t)
	for i := range 30 {
		pid := value(t, conn, "select pg_backend_pid()::text")
		if err := s.Exec(t.Context(), "select pg_terminate_backend("+pid+", 5000)"); err != nil {
			t.Fatal(err)
		}
		if now := value(t, conn, "select pg_backend_pid()::text"); now == pid {
			t.Fatalf("%d: handed out again", i)
		}
	}
}

func TestAServerThatDiesInUseEndsItsClientAlone(t *testing.T) {
	s := pg.Start(t)
	h := run(t, config(database(s.URL(), func(d *Database) { d.Pool.Max = 4 })))
	victim, other := h.connect(t), h.connect(t)
	do(t, victim, "begin")
	pid := value(t, victim, "select pg_backend_pid()::text")
	do(t, other, "begin")
	if err := s.Exec(t.Context(), "select pg_terminate_backend("+pid+", 5000)"); err != nil {
		t.Fatal(err)
	}
	_, err := victim.Exec(t.Context(), "select 1")
	refusedWith(t, err, "57P01") // PostgreSQL's own words
	do(t, other, "commit")
	value(t, h.connect(t), "select 'alive'")
	await(t, "it is recorded", func() bool { return h.ledger.codes()[string(Lost)] == 1 })
}

func TestPostgreSQLMayBeKilledAndComeBack(t *testing.T) {
	s := pgtest.Start(t, pgtest.Options{Database: "app"})
	h := run(t, config(database(s.URL(), func(d *Database) { d.Pool.Max, d.Pool.Min, d.Pool.OutageWait = 4, 2, 0 })))
	idle, busy := h.connect(t), h.connect(t)
	do(t, busy, "begin")
	sleeping := make(chan error, 1)
	go func() {
		_, err := idle.Exec(context.Background(), "select pg_sleep(600)")
		sleeping <- err
	}()
	await(t, "both are busy", func() bool { return h.Stats().Databases[0].Active == 2 })
	if err := s.Kill(); err != nil {
		t.Fatal(err)
	}
	if e, ok := errors.AsType[*pgconn.PgError](<-sleeping); !ok || e.Code != "08006" && e.Code != "57P01" { // the latter is PostgreSQL's own
		t.Errorf("the query that ran: %v", e)
	}
	_, err := busy.Exec(t.Context(), "select 1")
	if e, ok := errors.AsType[*pgconn.PgError](err); !ok || e.Code != "08006" && e.Code != "57P01" { // PostgreSQL's own word, if it still had one
		t.Errorf("the transaction that was open: %v", err)
	}
	// While it is down: a clear refusal, at once.
	await(t, "the outage is known", func() bool { return h.Stats().Databases[0].Outage != "" })
	for range 3 {
		conn, err := pgx.Connect(t.Context(), h.url("ann", ""))
		if err == nil { // what the server is like is known, so the login itself may succeed
			_, err = conn.Exec(t.Context(), "select 1")
			conn.Close(t.Context())
		}
		e := refusedWith(t, err, "08001")
		if !strings.Contains(e.Message, `database "app" cannot be reached`) || strings.Contains(e.Message+e.Hint, s.Password()) {
			t.Errorf("message %q, hint %q", e.Message, e.Hint)
		}
	}
	if err := s.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	await(t, "it serves again", func() bool {
		conn, err := pgx.Connect(t.Context(), h.url("ann", ""))
		if err != nil {
			return false
		}
		defer conn.Close(t.Context())
		_, err = conn.Exec(t.Context(), "select 1")
		return err == nil
	})
	var names []string
	h.ledger.mu.Lock()
	defer h.ledger.mu.Unlock()
	for _, e := range h.ledger.events {
		names = append(names, e.Name)
	}
	if !slices.Contains(names, "upstream_unreachable") || !slices.Contains(names, "upstream_back") {
		t.Errorf("events: %v", names)
	}
}

func TestAReadThatIsUnderWayAtARestartIsCarriedOutAfterIt(t *testing.T) {
	s := pgtest.Start(t, pgtest.Options{Database: "app"})
	if err := s.Exec(t.Context(), "create table once (n int)"); err != nil {
		t.Fatal(err)
	}
	h := run(t, config(database(s.URL(), func(d *Database) { d.Pool.Max, d.Pool.OutageWait = 10, time.Minute })))
	warm := h.connect(t)
	if _, err := warm.Prepare(t.Context(), "named", "select $1::text, pg_sleep(1)"); err != nil {
		t.Fatal(err)
	}
	unaffected := map[string]func() error{
		"simple": func() error {
			conn := h.connect(t)
			_, err := conn.Exec(context.Background(), "select 'simple', pg_sleep(1)", pgx.QueryExecModeSimpleProtocol)
			return err
		},
		"unnamed": func() error {
			conn := h.connect(t)
			var got, void string
			return conn.QueryRow(context.Background(), "select $1::text, pg_sleep(1)::text", pgx.QueryExecModeExec, "unnamed").Scan(&got, &void)
		},
		"named": func() error {
			rows, err := warm.Query(context.Background(), "named", "named")
			if err == nil {
				rows.Close()
				err = rows.Err()
			}
			return err
		},
	}
	told := map[string]string{
		"writes":                "insert into once select 1 from pg_sleep(1)",
		"reads, and then more":  "select 1; select pg_sleep(1)",
		"calls what it may not": "select pg_catalog.pg_sleep(1)",
	}
	failed := make(chan error, len(told)+len(unaffected)+1)
	var all sync.WaitGroup
	for what, ask := range unaffected {
		all.Go(func() {
			if err := ask(); err != nil {
				failed <- fmt.Errorf("%s: %w", what, err)
			}
		})
	}
	for what, sql := range told {
		conn := h.connect(t)
		all.Go(func() {
			if _, err := conn.Exec(context.Background(), sql, pgx.QueryExecModeSimpleProtocol); sqlState(err) != "57P01" {
				failed <- fmt.Errorf("%s: got %w, not 57P01", what, err)
			}
		})
	}
	block := h.connect(t)
	do(t, block, "begin")
	all.Go(func() {
		if _, err := block.Exec(context.Background(), "select pg_sleep(1)", pgx.QueryExecModeSimpleProtocol); sqlState(err) != "57P01" {
			failed <- fmt.Errorf("in a transaction: got %w, not 57P01", err)
		}
	})
	await(t, "all are under way", func() bool {
		n, err := s.Value(context.Background(), "select count(*) from pg_stat_activity where query like '%pg_sleep(1)%' and state = 'active' and pid <> pg_backend_pid()")
		return err == nil && n == "7"
	})
	if err := s.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	all.Wait()
	close(failed)
	for err := range failed {
		t.Error(err)
	}
	if n := h.ledger.codes()[string(OK)]; n < 3 {
		t.Errorf("%v", h.ledger.codes())
	}
}

func TestAReadThatSomebodyEndsOnPurposeIsNotCarriedOutAgain(t *testing.T) {
	s := pg.Start(t)
	h := run(t, config(database(s.URL(), one)))
	conn := h.connect(t)
	ended := make(chan error, 1)
	go func() {
		_, err := conn.Exec(context.Background(), "select pg_sleep(600), 'run away'", pgx.QueryExecModeSimpleProtocol)
		ended <- err
	}()
	await(t, "it runs, and is ended", func() bool {
		n, err := s.Value(context.Background(), "select count(*) filter (where pg_terminate_backend(pid)) from pg_stat_activity where query like '%run away%' and state = 'active' and pid <> pg_backend_pid()")
		return err == nil && n == "1"
	})
	refusedWith(t, <-ended, "57P01")
}

func TestARestartIsWaitedOut(t *testing.T) {
	s := pgtest.Start(t, pgtest.Options{Database: "app"})
	h := run(t, config(database(s.URL(), func(d *Database) { d.Pool.Max, d.Pool.OutageWait = 4, 30*time.Second })))
	var stop atomic.Bool
	var all sync.WaitGroup
	var good atomic.Int64
	for i := range 6 {
		all.Go(func() {
			for n := 0; !stop.Load(); n++ {
				// A connection for each query, as the app behind it does: none is
				// in use when the server goes, but for a few queries in flight.
				conn, err := pgx.Connect(context.Background(), h.url("ann", ""))
				if err != nil {
					t.Errorf("%d: login %d: %v", i, n, err)
					return
				}
				_, err = conn.Exec(context.Background(), "select 1")
				conn.Close(context.Background())
				if e, ok := errors.AsType[*pgconn.PgError](err); ok && (e.Code == "57P01" || e.Code == "08006") {
					continue // it was under way
				}
				if err != nil {
					t.Errorf("%d: query %d: %v", i, n, err)
					return
				}
				good.Add(1)
			}
		})
	}
	for range 2 {
		before := good.Load()
		await(t, "queries flow", func() bool { return good.Load() > before+50 })
		if err := s.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	before := good.Load()
	await(t, "queries flow again", func() bool { return good.Load() > before+50 })
	stop.Store(true)
	all.Wait()
}

func TestAnUnreachableServerIsAClearRefusal(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	dead := ln.Addr().String()
	ln.Close()
	h := run(t, config(database("postgres://u:secret-pw@"+dead+"/x", func(d *Database) { d.Pool.OutageWait = 0 })))
	_, err = pgx.Connect(t.Context(), h.url("ann", ""))
	e := refusedWith(t, err, "08001")
	if !strings.Contains(e.Message, dead) || strings.Contains(e.Message, "secret-pw") {
		t.Error(e.Message)
	}
}

func TestASilentServerIsGivenUp(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close() // accepts in the kernel, and never answers
	h := run(t, config(database("postgres://u:p@"+ln.Addr().String()+"/x?sslmode=disable", func(d *Database) {
		d.Pool.OutageWait, d.Pool.ConnectTimeout = 0, 200*time.Millisecond
	})))
	_, err = pgx.Connect(t.Context(), h.url("ann", ""))
	refusedWith(t, err, "08001")
}
