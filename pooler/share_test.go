package pooler

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"mainstay.dev/mainstay/internal/setting"
	"mainstay.dev/mainstay/pooler/pgtest"
)

// as opens a connection as one user.
func (h *house) as(t testing.TB, user string, params ...string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), h.url(user, "", params...))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(context.Background()) })
	return conn
}

func TestAVictimIsServedBeforeAnAdversarysSecondLease(t *testing.T) {
	h := run(t, config(database(pg.Start(t).URL(), one)))
	holder := h.as(t, "holder")
	var adversary []*pgx.Conn
	for range 12 {
		adversary = append(adversary, h.as(t, "adversary"))
	}
	victim := h.as(t, "victim")
	do(t, holder, "begin")
	var served []string
	var mu sync.Mutex
	var all sync.WaitGroup
	queue := func(conn *pgx.Conn, who string) {
		before := h.Stats().Databases[0].Waiting
		all.Go(func() {
			tx, err := conn.Begin(context.Background())
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock() // the only server is ours
			served = append(served, who)
			mu.Unlock()
			if err := tx.Commit(context.Background()); err != nil {
				t.Error(err)
			}
		})
		await(t, who+" waits", func() bool { return h.Stats().Databases[0].Waiting == before+1 })
	}
	for _, conn := range adversary {
		queue(conn, "adversary")
	}
	queue(victim, "victim")
	do(t, holder, "commit")
	all.Wait()
	if len(served) != 13 || served[0] != "victim" && served[1] != "victim" {
		t.Errorf("served %v", served)
	}
}

func TestAUsersCapAndGuaranteeHold(t *testing.T) {
	h := run(t, config(database(pg.Start(t).URL(), func(d *Database) {
		d.Pool.Max, d.Pool.AcquireTimeout = 3, 1500*time.Millisecond
		d.Pool.Users = map[string]Share{"capped": {Max: 1, Weight: 1}, "vip": {Min: 1, Weight: 1}}
	})))
	value(t, h.connect(t), "select 'what the server is like is known now'")
	first, second := h.as(t, "capped"), h.as(t, "capped")
	do(t, first, "begin")
	_, err := second.Exec(t.Context(), "begin")
	if e := refusedWith(t, err, "53300"); !strings.Contains(e.Message, `user "capped" has all 1 that it may have`) || !strings.Contains(e.Message, "idle in transaction") {
		t.Error(e.Message)
	}
	greedy, more := h.as(t, "greedy"), h.as(t, "greedy")
	do(t, greedy, "begin")
	_, err = more.Exec(t.Context(), "begin")
	refusedWith(t, err, "53300") // the third is kept
	do(t, h.as(t, "vip"), "begin")
}

func TestTheReserveOpensForThoseWhoHaveWaitedAndClosesAgain(t *testing.T) {
	h := run(t, config(database(pg.Start(t).URL(), one, func(d *Database) { d.Pool.Reserve, d.Pool.ReserveAfter = 1, 50*time.Millisecond })))
	holder := h.connect(t)
	second := h.connect(t)
	do(t, holder, "begin")
	do(t, second, "begin") // there is one server, and the reserve
	if st := h.Stats().Databases[0]; st.Active != 2 || st.Reserve != 1 {
		t.Errorf("%+v", st)
	}
	do(t, second, "commit")
	await(t, "the reserve is closed", func() bool { st := h.Stats().Databases[0]; return st.Reserve == 0 && st.Active+st.Idle == 1 })
	do(t, holder, "commit")
}

// Where each user has servers of its own, each has a reserve, and the database's figure is their sum.
func TestTheReservesOfUsersAreSummed(t *testing.T) {
	s := pg.Start(t)
	if err := s.Exec(t.Context(), "drop role if exists reserve_a; drop role if exists reserve_b; create role reserve_a login password 'pw'; create role reserve_b login password 'pw'"); err != nil {
		t.Fatal(err)
	}
	h := run(t, config(database(s.URL(), func(d *Database) {
		d.Login, d.Pool.Max, d.Pool.Reserve, d.Pool.ReserveAfter = loginClient, 1, 1, 50*time.Millisecond
	}), func(c *Config) { c.AuthQuery.On = true }))
	for _, user := range []string{"reserve_a", "reserve_a", "reserve_b", "reserve_b"} {
		conn, err := pgx.Connect(t.Context(), h.url(user, "pw"))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close(t.Context())
		do(t, conn, "begin")
	}
	if st := h.Stats().Databases[0]; st.Active != 4 || st.Reserve != 2 {
		t.Errorf("%+v", st)
	}
}

func TestATransactionThatRestsForTooLongIsEnded(t *testing.T) {
	for _, mode := range []string{modeTransaction, modeSession} {
		t.Run(mode, func(t *testing.T) {
			h := run(t, config(database(pg.Start(t).URL(), one, func(d *Database) { d.Mode, d.IdleTransaction = mode, time.Second })))
			idle := newFrontend(t, h)
			idle.send(frame('Q', "begin\x00"))
			idle.expect("CZ")
			idle.send(frame('Q', "select pg_sleep(1.5)\x00")) // work is no rest
			idle.expect("TDCZ")
			if got := lastWords(t, idle.in); got != "25P03" {
				t.Errorf("SQLSTATE %q", got)
			}
			value(t, h.connect(t), "select 'the server is free'")
			await(t, "it is recorded", func() bool { return h.ledger.codes()[string(IdleInTx)] == 1 })
		})
	}
}

func TestAQueryThatTakesTooLongIsCanceledAndToldWhy(t *testing.T) {
	for _, mode := range []string{modeTransaction, modeSession} {
		t.Run(mode, func(t *testing.T) {
			h := run(t, config(database(pg.Start(t).URL(), one, func(d *Database) { d.Mode, d.QueryTimeout = mode, time.Second })))
			var notices []string
			cfg, err := pgx.ParseConfig(h.url("ann", ""))
			if err != nil {
				t.Fatal(err)
			}
			cfg.OnNotice = func(_ *pgconn.PgConn, n *pgconn.Notice) { notices = append(notices, n.Message) }
			conn, err := pgx.ConnectConfig(t.Context(), cfg)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close(context.Background())
			_, err = conn.Exec(t.Context(), "select pg_sleep(600)")
			refusedWith(t, err, "57014")
			if len(notices) != 1 || !strings.Contains(notices[0], "query_timeout, which is 1s") {
				t.Errorf("notices: %q", notices)
			}
			do(t, conn, "begin") // the session lives on
			do(t, conn, "commit")
		})
	}
}

func TestTheStatementTimeoutIsPostgreSQLsOwn(t *testing.T) {
	h := run(t, config(database(pg.Start(t).URL(), one, func(d *Database) { d.StatementTimeout = 4321 * time.Millisecond })))
	conn := h.connect(t)
	if got := value(t, conn, "show statement_timeout"); got != "4321ms" {
		t.Error(got)
	}
	do(t, conn, "begin; set local statement_timeout = 0; commit", pgx.QueryExecModeSimpleProtocol)
	if got := value(t, h.connect(t), "show statement_timeout"); got != "4321ms" {
		t.Errorf("afterwards: %s", got)
	}
}

func TestClientsAreCountedByUserAndDatabase(t *testing.T) {
	cfg := config(database(pg.Start(t).URL(), func(d *Database) { d.MaxClients = 3 }), func(c *Config) { c.UserClients = 2 })
	h := run(t, cfg)
	a1, _ := h.as(t, "a"), h.as(t, "a")
	_, err := pgx.Connect(t.Context(), h.url("a", ""))
	if e := refusedWith(t, err, "53300"); !strings.Contains(e.Message, `2 clients of user "a"`) {
		t.Error(e.Message)
	}
	h.as(t, "b")
	_, err = pgx.Connect(t.Context(), h.url("c", ""))
	if e := refusedWith(t, err, "53300"); !strings.Contains(e.Message, `3 clients of database "app"`) || !strings.Contains(e.Hint, "databases.app.max_clients") {
		t.Error(e.Message, e.Hint)
	}
	a1.Close(t.Context())
	await(t, "there is room", func() bool {
		conn, err := pgx.Connect(t.Context(), h.url("c", ""))
		if err == nil {
			conn.Close(t.Context())
		}
		return err == nil
	})
}

// 100,000 in miniature: far more connections than there may be, at once.
func TestAFloodOfConnectionsIsRefusedAndHarmsNobody(t *testing.T) {
	h := run(t, config(database(pg.Start(t).URL()), func(c *Config) { c.MaxClients = 8 }))
	var inside []*pgx.Conn
	for range 8 {
		inside = append(inside, h.connect(t))
	}
	var refused, other atomic.Int64
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 150 {
				conn, err := pgx.Connect(context.Background(), h.url("ann", ""))
				switch e, ok := errors.AsType[*pgconn.PgError](err); {
				case err == nil:
					conn.Close(context.Background())
					other.Add(1)
				case ok && e.Code == "53300":
					refused.Add(1)
				default: // the message was lost with the connection
				}
			}
		})
	}
	for i := range 200 {
		if got := value(t, inside[i%8], fmt.Sprintf("select '%d'", i)); got != fmt.Sprint(i) {
			t.Fatalf("got %s", got)
		}
	}
	all.Wait()
	if other.Load() > 0 || refused.Load() < 600 {
		t.Errorf("%d told 53300, %d let in, of 1200", refused.Load(), other.Load())
	}
}

func TestPauseWaitsForTransactionsAndResumeServesThoseWhoWaited(t *testing.T) {
	s := pg.Start(t)
	h := run(t, config(database(s.URL(), func(d *Database) { d.Pool.Max = 3 })))
	busy, other := h.connect(t), h.connect(t)
	do(t, busy, "begin")
	paused := make(chan error, 1)
	go func() { paused <- h.Pause(context.Background(), "app") }()
	await(t, "it is paused", func() bool { return h.Stats().Databases[0].Paused != nil })
	answer := make(chan error, 1)
	go func() {
		_, err := other.Exec(context.Background(), "select 1")
		answer <- err
	}()
	await(t, "the other waits", func() bool { return h.Stats().Databases[0].Waiting == 1 })
	value(t, busy, "select 'goes on'")
	do(t, busy, "commit")
	if err := <-paused; err != nil {
		t.Fatal(err)
	}
	if st := h.Stats().Databases[0]; st.Active+st.Idle+st.Connecting != 0 {
		t.Errorf("connections are left: %+v", st)
	}
	if err := h.Resume("app"); err != nil {
		t.Fatal(err)
	}
	if err := <-answer; err != nil {
		t.Error(err)
	}
	if err := h.Resume("nowhere"); !errors.Is(err, ErrUnknown) {
		t.Error(err)
	}
}

func TestAPauseThatTakesTooLongSaysWhatIsLeft(t *testing.T) {
	h := run(t, config(database(pg.Start(t).URL(), func(d *Database) { d.Pool.AcquireTimeout = time.Second })))
	busy, other := h.connect(t), h.connect(t)
	do(t, busy, "begin")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := h.Pause(ctx, ""); err == nil || !strings.Contains(err.Error(), `1 connections of database "app" are still in use`) {
		t.Error(err)
	}
	_, err := other.Exec(t.Context(), "select 1")
	if e := refusedWith(t, err, "53300"); !strings.Contains(e.Message, "paused since") || !strings.Contains(e.Hint, "mainstay db resume app") {
		t.Error(e.Message, e.Hint)
	}
	do(t, busy, "commit")
	if err := h.Resume(""); err != nil {
		t.Error(err)
	}
}

func TestReconnectReplacesEveryConnectionBetweenTransactions(t *testing.T) {
	h := run(t, config(database(pg.Start(t).URL(), func(d *Database) { d.Pool.Max = 2 })))
	busy, other := h.connect(t), h.connect(t)
	do(t, busy, "begin")
	inUse := value(t, busy, "select pg_backend_pid()::text")
	idle := value(t, other, "select pg_backend_pid()::text")
	if err := h.Reconnect("app"); err != nil {
		t.Fatal(err)
	}
	if got := value(t, other, "select pg_backend_pid()::text"); got == idle {
		t.Error("an idle connection was used again")
	}
	if got := value(t, busy, "select pg_backend_pid()::text"); got != inUse {
		t.Error("replaced in the middle of a transaction")
	}
	do(t, busy, "commit")
	for range 4 {
		if got := value(t, busy, "select pg_backend_pid()::text"); got == inUse || got == idle {
			t.Error("an old connection was used again")
		}
	}
}

func TestAKilledClientIsToldAndOthersAreNot(t *testing.T) {
	h := run(t, config(database(pg.Start(t).URL(), one)))
	running, resting, queued, other := h.as(t, "r", "application_name=loop"), h.as(t, "i"), h.as(t, "q"), h.as(t, "o")
	ends := map[string]chan error{"r": make(chan error, 1), "q": make(chan error, 1)}
	go func() { _, err := running.Exec(context.Background(), "select pg_sleep(600)"); ends["r"] <- err }()
	await(t, "it runs", func() bool { return h.Stats().Databases[0].Active == 1 })
	go func() { _, err := queued.Exec(context.Background(), "select 1"); ends["q"] <- err }()
	await(t, "another waits", func() bool { return h.Stats().Databases[0].Waiting == 1 })
	clients := h.Clients()
	if len(clients) != 4 || clients[0].User != "r" || clients[0].State != "running a query" || clients[0].Server == 0 || clients[0].Application != "loop" ||
		clients[1].User != "q" || clients[1].State != "waiting" || clients[2].State != "idle" {
		t.Errorf("%+v", clients)
	}
	if n, err := h.Kill(Kill{User: "q", Why: "maintenance"}); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	if e := refusedWith(t, <-ends["q"], "57P01"); !strings.HasSuffix(e.Message, "an administrator ended it: maintenance") {
		t.Error(e.Message)
	}
	if n, err := h.Kill(Kill{ID: clients[0].ID}); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	refusedWith(t, <-ends["r"], "57P01")
	if n, err := h.Kill(Kill{User: "i"}); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	_, err := resting.Exec(t.Context(), "select 1")
	refusedWith(t, err, "57P01")
	value(t, other, "select 'untouched'")
	if _, err := h.Kill(Kill{User: "nobody"}); !errors.Is(err, ErrUnknown) {
		t.Error(err)
	}
	if _, err := h.Kill(Kill{}); err == nil {
		t.Error("everybody was killed for nothing")
	}
}

// With a pause around it a restart hurts nobody at all; TestARestartIsWaitedOut
// shows one that comes unannounced.
func TestARestartWithinAPauseIsSeenByNobody(t *testing.T) {
	s := pgtest.Start(t, pgtest.Options{Database: "app"})
	h := run(t, config(database(s.URL(), func(d *Database) { d.Pool.Max, d.Pool.OutageWait = 4, 30*time.Second }), func(c *Config) {
		c.Users = map[string]setting.Secret{"ann": "pw"}
	}))
	var stop atomic.Bool
	var good atomic.Int64
	var all sync.WaitGroup
	for i := range 6 {
		all.Go(func() {
			conn, err := pgx.Connect(context.Background(), h.url("ann", "pw"))
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close(context.Background())
			for n := 0; !stop.Load(); n++ {
				tx, err := conn.Begin(context.Background())
				if err == nil {
					_, err = tx.Exec(context.Background(), "select $1::int", n)
				}
				if err == nil {
					err = tx.Commit(context.Background())
				}
				if err != nil {
					t.Errorf("client %d, transaction %d: %v", i, n, err)
					return
				}
				good.Add(1)
			}
		})
	}
	for range 2 {
		before := good.Load()
		await(t, "transactions flow", func() bool { return good.Load() > before+50 || t.Failed() })
		if err := h.Pause(t.Context(), "app"); err != nil {
			t.Fatal(err)
		}
		if err := s.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := h.Resume("app"); err != nil {
			t.Fatal(err)
		}
	}
	before := good.Load()
	await(t, "transactions flow again", func() bool { return good.Load() > before+50 || t.Failed() })
	stop.Store(true)
	all.Wait()
}
