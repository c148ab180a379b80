package pooler

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"mainstay.dev/mainstay/pooler/internal/pgwire"
)

func TestACancelReachesItsQueryAndNoOther(t *testing.T) {
	h := run(t, config(database(pg.Start(t).URL(), func(d *Database) { d.Pool.Max = 2 })))
	victim, bystander := newFrontend(t, h), newFrontend(t, h)
	victim.send(frame('Q', "select pg_sleep(60)\x00"))
	bystander.send(frame('Q', "begin\x00"))
	bystander.expect("CZ")
	await(t, "the query runs", underWay(t, "select pg_sleep(60)")) // a server that it has not reached yet cancels nothing
	cancel := func(pid uint32, key []byte) {
		conn := dialRaw(t, h.addr)
		if _, err := conn.Write(pgwire.AppendCancel(nil, pid, key)); err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Errorf("a cancel request was answered: %v", err)
		}
	}
	cancel(victim.pid, []byte{1, 2, 3, 4}) // not the key
	cancel(4711, victim.key)               // not a session
	bystander.send(frame('Q', "select 'untouched'\x00"))
	bystander.expect("TDCZ")
	cancel(victim.pid, victim.key)
	victim.expect("TE")
	victim.expect("Z")
	cancel(victim.pid, victim.key) // it does nothing now, and has no server
	bystander.send(frame('Q', "commit\x00"))
	bystander.expect("CZ")
	victim.send(frame('Q', "select 'alive'\x00"))
	victim.expect("TDCZ")
	if n := h.ledger.codes()[string(Canceled)]; n != 1 {
		t.Errorf("%d canceled", n)
	}
}

func TestCancelsNeverHitTheNextClient(t *testing.T) {
	h := run(t, config(database(pg.Start(t).URL(), one)))
	stop := make(chan struct{})
	var hasty sync.WaitGroup
	for range 3 {
		hasty.Go(func() { // cancels around the moment at which its query ends
			for {
				select {
				case <-stop:
					return
				default:
				}
				ctx, cancel := context.WithTimeout(context.Background(), time.Duration(rand.IntN(3000))*time.Microsecond)
				conn, err := pgconn.Connect(t.Context(), h.url("hasty", ""))
				if err != nil {
					cancel()
					t.Error(err)
					return
				}
				_ = conn.Exec(ctx, "select pg_sleep(0.001)").Close() // however it ends
				_ = conn.CancelRequest(t.Context())
				conn.Close(t.Context())
				cancel()
			}
		})
	}
	conn := h.connect(t)
	for i := range 150 {
		if got := value(t, conn, "select count(*)::text from generate_series(1, 2000)"); got != "2000" {
			t.Errorf("%d: %s", i, got)
		}
	}
	close(stop)
	hasty.Wait()
}

func TestAClientThatHangsUpFreesItsServer(t *testing.T) {
	for what, send := range map[string]string{
		"in a transaction":         frame('Q', "begin; create table never (n int)\x00"),
		"while its query runs":     frame('Q', "select pg_sleep(600)\x00"),
		"in an open cycle":         frame('P', "x\x00select 1\x00\x00\x00") + frame('H', ""),
		"before a query amid it":   parsed("", "select pg_sleep(600)") + bound("") + executed + frame('Q', "select 1\x00"),
		"in the middle of a frame": frame('Q', "begin\x00") + "Q\x00\x00\xff\xffselect",
		"while rows come":          frame('Q', "select repeat('x', 1000) from generate_series(1, 10000000)\x00"),
		"in a COPY":                frame('Q', "begin; create temp table cc (n int); copy cc from stdin\x00") + frame('d', "1\n"),
	} {
		t.Run(what, func(t *testing.T) {
			h := run(t, config(database(pg.Start(t).URL(), one)))
			c := newFrontend(t, h)
			c.send(send)
			await(t, "it has the server", func() bool { return h.Stats().Databases[0].Active == 1 })
			c.conn.Close()
			await(t, "the server is free", func() bool { return h.Stats().Databases[0].Active == 0 })
			if got := value(t, h.connect(t), "select coalesce(to_regclass('never')::text, 'none')"); got != "none" {
				t.Errorf("a lost transaction was committed: %s", got)
			}
			await(t, "nothing runs on", func() bool {
				n, err := pg.Start(t).Value(context.Background(), "select count(*) from pg_stat_activity where query like '%pg_sleep(600)%' and pid <> pg_backend_pid() and state = 'active'")
				return err == nil && n == "0"
			})
		})
	}
}

func TestAClientThatStallsIsDisconnected(t *testing.T) {
	for what, send := range map[string]string{
		"reads nothing":           frame('Q', "select repeat('x', 1000) from generate_series(1, 1000000)\x00"),
		"leaves a message undone": frame('P', "x\x00select 1\x00\x00\x00") + frame('H', "") + "Q\x00\x00\x01\x00select",
	} {
		t.Run(what, func(t *testing.T) {
			h := run(t, config(database(pg.Start(t).URL(), one), func(c *Config) { c.StallTimeout = 300 * time.Millisecond }))
			patient := h.connect(t)
			do(t, patient, "select pg_sleep(0.6)") // slow is not stalled
			do(t, patient, "begin")
			c := newFrontend(t, h)
			c.send(send)
			await(t, "it waits", func() bool { return h.Stats().Databases[0].Waiting == 1 })
			time.Sleep(600 * time.Millisecond) // idle in a transaction: no stall either
			do(t, patient, "commit")
			await(t, "it is gone", func() bool { return h.ledger.codes()[string(ClientStalled)] == 1 })
			await(t, "the server is free", func() bool { return h.Stats().Databases[0].Active == 0 })
		})
	}
}

func TestAGoodbyeBeforeTheAnswerLetsTheWorkFinish(t *testing.T) {
	s := pg.Start(t)
	if err := s.Exec(t.Context(), "drop table if exists parting; create table parting (n int)"); err != nil {
		t.Fatal(err)
	}
	h := run(t, config(database(s.URL(), one)))
	c := newFrontend(t, h)
	c.send(frame('Q', "insert into parting select 1 from pg_sleep(0.5)\x00") + frame('X', ""))
	await(t, "the row is there", func() bool {
		n, err := s.Value(context.Background(), "select count(*) from parting")
		return err == nil && n == "1"
	})
}

func TestAStormOfAbortsLeavesNothingBehind(t *testing.T) {
	s := pg.Start(t)
	if err := s.Exec(t.Context(), "drop table if exists ledger; create table ledger (client int, n int)"); err != nil {
		t.Fatal(err)
	}
	h := run(t, config(database(s.URL(), func(d *Database) { d.Pool.Max = 4 })))
	var stop atomic.Bool
	var vandals, honest sync.WaitGroup
	for v := range 8 {
		vandals.Go(func() {
			random := rand.New(rand.NewPCG(uint64(v), 42))
			for !stop.Load() {
				vandalise(h.addr, random)
			}
		})
	}
	for i := range 4 {
		honest.Go(func() {
			conn, err := pgx.Connect(t.Context(), h.url("ann", ""))
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close(t.Context())
			for n := range 100 {
				if err := honestly(t.Context(), conn, i, n); err != nil {
					t.Errorf("client %d, %d: %v", i, n, err)
					return
				}
			}
		})
	}
	honest.Wait()
	stop.Store(true)
	vandals.Wait()
	await(t, "no client and no lease is left", func() bool {
		st := h.Stats()
		return st.Clients == 0 && st.Databases[0].Active == 0 && st.Databases[0].Waiting == 0
	})
	n, err := s.Value(t.Context(), "select count(*) || '/' || count(*) filter (where client < 0) from ledger")
	if err != nil || n != "400/0" {
		t.Errorf("rows/of vandals: %s, %v", n, err)
	}
	if n := h.ledger.codes()[string(Internal)]; n > 0 {
		t.Errorf("%d exchanges ended with internal errors", n)
	}
}

func vandalise(addr string, random *rand.Rand) {
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		return
	}
	defer conn.Close()
	parse := frame('P', "v\x00insert into ledger values (-1, $1)\x00\x00\x00") + frame('B', "\x00v\x00\x00\x00\x00\x01\x00\x00\x00\x017\x00\x00")
	acts := []string{
		frame('Q', "begin; insert into ledger values (-1, 0)\x00"),
		frame('Q', "begin\x00") + frame('Q', "insert into ledger values (-1, 0)\x00") + frame('Q', "select repeat('x', 100000)\x00"),
		frame('Q', "begin\x00") + parse + frame('E', "\x00\x00\x00\x00\x00") + frame('H', ""),
		frame('Q', "begin; copy ledger from stdin\x00") + frame('d', "-1\t1\n") + frame('d', "-1\t2\n"),
		frame('Q', "select repeat('y', 1000) from generate_series(1, 3000)\x00"),
		parse[:len(parse)-3],
		frame('Q', "set search_path = pg_catalog; select pg_sleep(0.02)\x00"),
	}
	act := startup("user", "vandal", "database", "app") + acts[random.IntN(len(acts))]
	if _, err := conn.Write([]byte(act[:len(act)-random.IntN(len(act))])); err != nil {
		return
	}
	_ = conn.SetReadDeadline(time.Now().Add(time.Duration(random.IntN(15)) * time.Millisecond))
	_, _ = io.CopyN(io.Discard, conn, int64(random.IntN(5000)))
	if random.IntN(2) == 0 {
		_ = conn.(*net.TCPConn).SetLinger(0) // a reset instead of an end
	}
}

func honestly(ctx context.Context, conn *pgx.Conn, client, n int) error {
	var echo string
	if err := conn.QueryRow(ctx, "select $1::text || current_schema()", fmt.Sprint(client, n)).Scan(&echo); err != nil || echo != fmt.Sprint(client, n)+"public" {
		return fmt.Errorf("echo %q: %w", echo, err)
	}
	tx, err := conn.Begin(ctx)
	if err != nil {
		return err
	}
	if _, err := tx.Exec(ctx, "insert into ledger values ($1, $2)", client, n); err != nil {
		return err
	}
	var mine int
	if err := tx.QueryRow(ctx, "select count(*) from ledger where client = $1 and n = $2", client, n).Scan(&mine); err != nil || mine != 1 {
		return fmt.Errorf("%d rows of mine: %w", mine, err)
	}
	return tx.Commit(ctx)
}
