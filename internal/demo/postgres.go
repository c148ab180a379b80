package demo

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"mainstay.dev/mainstay/pooler/pgtest"
)

// A database is the PostgreSQL of the demo. One that is killed is started again, as
// a service manager would.
type database struct {
	server *pgtest.Server
	cancel context.CancelFunc
	guard  sync.WaitGroup
}

// openDatabase starts PostgreSQL in a temporary folder, with a database of each name.
func openDatabase(ctx context.Context, names ...string) (*database, error) {
	server, err := pgtest.Open(ctx, pgtest.Options{})
	if err != nil {
		return nil, fmt.Errorf("start PostgreSQL: %w", err)
	}
	d := &database{server: server}
	for _, name := range names {
		if err := server.Exec(ctx, "CREATE DATABASE "+name); err != nil {
			return nil, errors.Join(fmt.Errorf("create database %s: %w", name, err), d.close())
		}
	}
	// The guard's life is the database's, which ends with close.
	guarded, cancel := context.WithCancel(context.WithoutCancel(ctx))
	d.cancel = cancel
	d.guard.Go(func() { d.keep(guarded) })
	return d, nil
}

// url leads to one of the databases, with a password that SCRAM checks.
func (d *database) url(name string) string {
	return d.server.URLFor(d.server.User(), d.server.Password(), name)
}

// version is the server's, such as "15.14".
func (d *database) version(ctx context.Context) (string, error) {
	v, err := d.server.Value(ctx, "SHOW server_version")
	v, _, _ = strings.Cut(v, " ")
	return v, err
}

// keep starts the server again whenever it is gone, until ctx ends.
func (d *database) keep(ctx context.Context) {
	for ctx.Err() == nil {
		if d.watch(ctx) {
			continue
		}
		// A failed restart is tried again: after a SIGKILL the kernel may still hold
		// the old server's memory for a moment.
		_ = d.server.Restart(ctx)
		select {
		case <-ctx.Done():
		case <-time.After(500 * time.Millisecond):
		}
	}
}

// watch holds one idle session until it breaks; false means that none can be had.
func (d *database) watch(ctx context.Context) bool {
	for deadline := time.Now().Add(time.Second); ; {
		dialing, cancel := context.WithTimeout(ctx, time.Second)
		conn, err := pgconn.Connect(dialing, d.server.URL())
		cancel()
		if err == nil {
			_ = conn.WaitForNotification(ctx) // there is none: it ends when the session does
			_ = conn.Close(ctx)
			return true
		}
		if ctx.Err() != nil || time.Now().After(deadline) {
			return false
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// close stops the server and removes its folder.
func (d *database) close() error {
	if d.cancel != nil {
		d.cancel()
	}
	d.guard.Wait()
	return d.server.Stop()
}
