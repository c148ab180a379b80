package pooler

import (
	"bytes"
	"context"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// A lookup is a connection on which users are looked up, once it has said so; then it
// waits with its goodbye until it is told to go on.
type lookup struct {
	net.Conn
	asks   bool
	halted *atomic.Bool
	waits  chan<- struct{}
	told   <-chan struct{}
}

func (c *lookup) Write(b []byte) (int, error) {
	c.asks = c.asks || bytes.Contains(b, []byte("mainstay auth_query"))
	if c.asks && c.halted.Load() {
		c.waits <- struct{}{}
		<-c.told
	}
	return c.Conn.Write(b)
}

func TestAReloadHoldsNobodyUpWhileTheDirectoryIsClosed(t *testing.T) {
	s := pg.Start(t)
	if err := s.Exec(t.Context(), "drop role if exists reloaded; create role reloaded login password 'pencil'"); err != nil {
		t.Fatal(err)
	}
	var halted atomic.Bool
	waits, told := make(chan struct{}, 1), make(chan struct{})
	h := run(t, config(database(s.URL()), func(c *Config) { c.AuthQuery.On = true }), func(d *Deps) {
		d.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
			conn, err := (&net.Dialer{}).DialContext(ctx, network, address)
			if err != nil {
				return nil, err
			}
			return &lookup{Conn: conn, halted: &halted, waits: waits, told: told}, nil
		}
	})
	release := sync.OnceFunc(func() { close(told) })
	t.Cleanup(release)
	if err := enter(t, h, "reloaded", "pencil"); err != nil {
		t.Fatal(err)
	}
	commit, err := h.Prepare(h.cfg)
	if err != nil {
		t.Fatal(err)
	}
	halted.Store(true)
	reloaded := make(chan struct{})
	go func() { commit(); close(reloaded) }()
	<-waits
	halted.Store(false)
	await(t, "the lock is free while a server is hung up on", func() bool {
		free := h.mu.TryLock()
		if free {
			h.mu.Unlock()
		}
		return free
	})
	if st := h.Stats(); len(st.Databases) != 1 {
		t.Errorf("%d databases", len(st.Databases))
	}
	if err := enter(t, h, "reloaded", "pencil"); err != nil {
		t.Error(err)
	}
	release()
	<-reloaded
}

// Clients keep what they have prepared when another pool takes their pool's place.
func TestPreparedNamesSurviveAReload(t *testing.T) {
	s := pg.Start(t)
	for _, use := range []struct{ send, want string }{{frame('Q', "execute s\x00"), "TDCZ"}, {bound("s") + executed + synced, "2DCZ"}} {
		h := run(t, config(database(s.URL(), one)))
		a, b := newFrontend(t, h), newFrontend(t, h)
		a.send(parsed("s", "select 'a'") + synced)
		a.expect("1Z")
		commit, err := h.Prepare(config(database(s.URL(), one, func(d *Database) { d.StatementTimeout = time.Minute })))
		if err != nil {
			t.Fatal(err)
		}
		commit()
		b.send(parsed("s", "select 'b'") + synced)
		b.expect("1Z")
		for f, want := range map[*frontend]string{a: "a", b: "b"} {
			f.send(use.send)
			f.expectFor(use.send, use.want)
			if f.row != want {
				t.Errorf("%q carried out what returns %s", use.send, f.row)
			}
		}
	}
}

// The pool of a user whose servers are all closed is forgotten; its clients are still there.
func TestPreparedNamesSurviveTheirUsersPool(t *testing.T) {
	s := pg.Start(t)
	if err := s.Exec(t.Context(), "drop role if exists self_kept; create role self_kept login password 'pencil'"); err != nil {
		t.Fatal(err)
	}
	h := run(t, config(database(s.URL(), func(d *Database) { d.Login = loginClient }), func(c *Config) { c.AuthQuery.On = true }))
	dial := func() *pgx.Conn {
		conn, err := pgx.Connect(t.Context(), h.url("self_kept", "pencil"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close(context.WithoutCancel(t.Context())) })
		return conn
	}
	a, b := dial(), dial()
	if _, err := a.Prepare(t.Context(), "s", "select 'a'"); err != nil {
		t.Fatal(err)
	}
	if err := h.Reconnect("app"); err != nil { // as idle_timeout does
		t.Fatal(err)
	}
	await(t, "the pool is forgotten", func() bool { return len(h.allPools()) == 1 })
	if _, err := b.Prepare(t.Context(), "s", "select 'b'"); err != nil {
		t.Fatal(err)
	}
	if got := value(t, a, "execute s", simple); got != "a" {
		t.Errorf("got %s", got)
	}
	if got := value(t, a, "s"); got != "a" {
		t.Errorf("got %s", got)
	}
}

// A Parse that is refused since its name is taken does not keep a simple query from carrying out what has the name.
func TestAnExecuteCarriesOutNothingElseOfItsStatementsName(t *testing.T) {
	h := run(t, config(database(pg.Start(t).URL(), one)))
	a := newFrontend(t, h)
	a.send(parsed("s", "select 'prepared'") + synced)
	a.expect("1Z")
	a.send(frame('Q', "select name from pg_prepared_statements\x00"))
	a.expect("TDCZ")
	name := a.row
	if err := h.Reconnect("app"); err != nil {
		t.Fatal(err)
	}
	a.send(frame('Q', "prepare "+name+" as select 'another'\x00"))
	a.expect("CZ")
	a.send(frame('Q', "execute s\x00"))
	a.expect("TDCZ")
	if a.row != "prepared" {
		t.Errorf("%s is carried out", a.row)
	}
}
