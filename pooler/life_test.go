package pooler

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"mainstay.dev/mainstay/internal/setting"
)

func TestStoppingLetsTransactionsFinishAndTellsTheIdle(t *testing.T) {
	for _, mode := range []string{modeTransaction, modeSession} {
		t.Run(mode, func(t *testing.T) {
			h := run(t, config(database(pg.Start(t).URL(), func(d *Database) { d.Mode = mode })))
			idle, busy := newFrontend(t, h), h.connect(t)
			idle.send(frame('Q', "select 1\x00"))
			idle.expect("TDCZ")
			do(t, busy, "begin")
			done := make(chan error, 1)
			go func() { done <- h.stop() }()
			if got := lastWords(t, idle.in); got != "57P01" {
				t.Errorf("the idle client is told %q", got)
			}
			value(t, busy, "select 'still working'")
			do(t, busy, "commit")
			if err := <-done; err != nil {
				t.Fatal(err)
			}
			if _, err := pgx.Connect(t.Context(), h.url("ann", "")); err == nil {
				t.Error("still accepts")
			}
		})
	}
}

func TestStoppingHasALimit(t *testing.T) {
	for _, mode := range []string{modeTransaction, modeSession} {
		t.Run(mode, func(t *testing.T) {
			h := run(t, config(database(pg.Start(t).URL(), func(d *Database) { d.Mode, d.Pool.Max = mode, 3 }), func(c *Config) { c.Drain = 100 * time.Millisecond }))
			resting, running, copying, queued := newFrontend(t, h), newFrontend(t, h), newFrontend(t, h), newFrontend(t, h)
			resting.send(frame('Q', "begin\x00"))
			resting.expect("CZ")
			running.send(frame('Q', "select pg_sleep(600)\x00"))
			copying.send(frame('Q', "begin; create temp table cs (n int); copy cs from stdin\x00"))
			copying.expect("CCG")
			queued.send(frame('Q', "select 1\x00"))
			await(t, "all is set", func() bool { st := h.Stats().Databases[0]; return st.Active == 3 && st.Waiting == 1 })
			if err := h.stop(); err != nil {
				t.Fatal(err)
			}
			for i, f := range []*frontend{resting, running, copying, queued} {
				if got := lastWords(t, f.in); got != "57P01" {
					t.Errorf("client %d is told %q", i, got)
				}
			}
		})
	}
}

func TestSessionModeKeepsTheServerAndItsState(t *testing.T) {
	h := run(t, config(database(pg.Start(t).URL(), func(d *Database) { d.Mode = modeSession; d.Pool.Max = 2 })))
	a, b := h.connect(t), h.connect(t)
	pid := value(t, a, "select pg_backend_pid()::text")
	do(t, a, "set work_mem = '7MB'")
	do(t, a, "create temp table mine as select 1 as n")
	do(t, a, "listen news")
	value(t, b, "select pg_backend_pid()::text")
	for range 3 {
		if got := value(t, a, "select current_setting('work_mem') || ' ' || n::text || ' ' || pg_backend_pid()::text from mine"); got != "7MB 1 "+pid {
			t.Fatalf("got %s, want backend %s", got, pid)
		}
	}
	do(t, b, "notify news, 'hello'") // while a is idle
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	n, err := a.WaitForNotification(ctx)
	if err != nil || n.Payload != "hello" {
		t.Fatalf("%v, %v", n, err)
	}
	a.Close(t.Context())
	c := h.connect(t)
	await(t, "the server is free", func() bool { return h.Stats().Databases[0].Active <= 1 })
	if got := value(t, c, "select current_setting('work_mem') || ' ' || coalesce(to_regclass('pg_temp.mine')::text, 'none')"); got != "4MB none" {
		t.Errorf("the next client sees %s", got)
	}
	if st := h.Stats().Databases[0]; st.Active != 2 {
		t.Errorf("%+v", st)
	}
}

func TestAReloadTakesAllOrNothing(t *testing.T) {
	s := pg.Start(t)
	if err := s.Exec(t.Context(), "drop database if exists second"); err != nil {
		t.Fatal(err)
	}
	if err := s.Exec(t.Context(), "create database second"); err != nil {
		t.Fatal(err)
	}
	cfg := config(database(s.URL(), one))
	h := run(t, cfg)
	conn := h.connect(t)
	do(t, conn, "begin")
	// Wrong: nothing changes.
	bad := cfg
	bad.MaxClients, bad.Listen = 0, "127.0.0.1:1"
	if _, err := h.Prepare(bad); len(setting.Of(err)) != 1 {
		t.Fatalf("got %v", err)
	}
	bad.MaxClients = 1
	if _, err := h.Prepare(bad); err == nil || setting.Of(err)[0].Path != "listen" {
		t.Fatalf("got %v", err)
	}
	// More room in the same pool: a client that waits gets it.
	next := cfg
	next.Databases = map[string]Database{"app": database(s.URL(), func(d *Database) { d.Pool.Max = 3 })}
	commit, err := h.Prepare(next)
	if err != nil {
		t.Fatal(err)
	}
	commit()
	if got := value(t, h.connect(t), "select current_database()::text"); got != "app" {
		t.Error(got)
	}
	// Another server: open transactions stay on the old one, then move.
	other := cfg
	other.Databases = map[string]Database{"app": database(strings.Replace(s.URL(), "/app?", "/second?", 1), one)}
	other.Users = map[string]setting.Secret{"ann": "pw"}
	if commit, err = h.Prepare(other); err != nil {
		t.Fatal(err)
	}
	commit()
	if got := value(t, conn, "select current_database()::text"); got != "app" {
		t.Errorf("moved in the middle of a transaction, to %s", got)
	}
	do(t, conn, "commit")
	if got := value(t, conn, "select current_database()::text"); got != "second" {
		t.Errorf("still on %s", got)
	}
	_, err = pgx.Connect(t.Context(), h.url("ann", ""))
	refusedWith(t, err, "28P01")
	// And gone.
	none := cfg
	none.Databases = nil
	if commit, err = h.Prepare(none); err != nil {
		t.Fatal(err)
	}
	commit()
	_, err = conn.Exec(t.Context(), "select 1")
	refusedWith(t, err, "3D000")
	await(t, "the old pools are empty", func() bool {
		n, err := s.Value(context.Background(), "select count(*) from pg_stat_activity where backend_type = 'client backend' and pid <> pg_backend_pid()")
		return err == nil && n == "0"
	})
}
