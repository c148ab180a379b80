package pooler

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

func TestAClientThatTerminatesTheIDItWasGivenEndsThatSession(t *testing.T) {
	s := pg.Start(t)
	for _, mode := range []string{modeTransaction, modeSession} {
		for _, how := range []pgx.QueryExecMode{pgx.QueryExecModeSimpleProtocol, pgx.QueryExecModeCacheStatement} {
			h := run(t, config(database(s.URL(), func(d *Database) { d.Mode = mode; d.Pool.Max = 4 })))
			client, busy, other := h.connect(t), h.connect(t), h.connect(t)
			ended := make(chan error, 1)
			go func() {
				_, err := busy.Exec(context.WithoutCancel(t.Context()), "select pg_sleep(60)")
				ended <- err
			}()
			await(t, "the query runs", func() bool { return h.Stats().Databases[0].Active > 0 })
			for _, victim := range []*pgx.Conn{client, busy} {
				if _, err := other.Exec(t.Context(), "select pg_terminate_backend($1)", how, int32(victim.PgConn().PID())); err != nil {
					t.Fatal(err)
				}
			}
			if err := client.Ping(t.Context()); sqlState(err) != "57P01" || !client.IsClosed() {
				t.Errorf("%s, %v: an idle one: %v", mode, how, err)
			}
			if err := <-ended; sqlState(err) != "57P01" {
				t.Errorf("%s, %v: a busy one: %v", mode, how, err)
			}
			if err := other.Ping(t.Context()); err != nil {
				t.Errorf("who asked: %v", err)
			}
		}
	}
}

func TestAClientThatCancelsTheIDItWasGivenCancelsItsQuery(t *testing.T) {
	h := run(t, config(database(pg.Start(t).URL(), func(d *Database) { d.Pool.Max = 2 })))
	busy, other := h.connect(t), h.connect(t)
	ended := make(chan error, 1)
	go func() {
		_, err := busy.Exec(context.WithoutCancel(t.Context()), "select pg_sleep(60)")
		ended <- err
	}()
	await(t, "the query runs", func() bool {
		return value(t, other, "select count(*)::text from pg_stat_activity where state = 'active' and query = 'select pg_sleep(60)'", pgx.QueryExecModeSimpleProtocol) == "1"
	})
	do(t, other, fmt.Sprintf("select pg_cancel_backend(%d)", busy.PgConn().PID()))
	if err := <-ended; sqlState(err) != "57014" {
		t.Errorf("got %v", err)
	}
	if err := busy.Ping(t.Context()); err != nil {
		t.Errorf("the session: %v", err)
	}
}

func TestNobodyEndsTheSessionOfAnotherUserByItsID(t *testing.T) {
	h := run(t, config(database(pg.Start(t).URL(), func(d *Database) { d.Pool.Max = 2 })))
	victim, other := h.connect(t), func() *pgx.Conn {
		c, err := pgx.Connect(t.Context(), h.url("somebody", ""))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close(context.WithoutCancel(t.Context())) })
		return c
	}()
	do(t, other, fmt.Sprintf("select pg_terminate_backend(%d)", victim.PgConn().PID()))
	if err := victim.Ping(t.Context()); err != nil {
		t.Error(err)
	}
	if id := victim.PgConn().PID(); id <= 1<<22 || id >= 1<<31 {
		t.Errorf("%d may be the id of a process", id)
	}
}

func TestANotificationThatComesWhileThePoolerAsksIsDelivered(t *testing.T) {
	h := run(t, config(database(pg.Start(t).URL(), func(d *Database) { d.Pool.Max = 2 })))
	listener, other := h.connect(t), h.connect(t)
	do(t, listener, "listen busy")
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	const n = 200
	told := make(chan error, 1)
	go func() {
		for range n {
			if _, err := other.Exec(ctx, "notify busy"); err != nil {
				told <- err
				return
			}
		}
		told <- nil
	}()
	for range 50 { // each makes the pooler ask what is left
		do(t, listener, "set application_name = 'x'")
	}
	for i := range n {
		if _, err := listener.WaitForNotification(ctx); err != nil {
			t.Fatalf("the notification %d: %v", i, err)
		}
	}
	if err := <-told; err != nil {
		t.Error(err)
	}
}
