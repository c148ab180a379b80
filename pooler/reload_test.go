package pooler

import (
	"bytes"
	"context"
	"net"
	"sync"
	"sync/atomic"
	"testing"
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
