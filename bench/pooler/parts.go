package main

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// protocols are pgbench's ways to send a query.
var protocols = []string{"simple", "extended", "prepared"}

// cpu measures what a transaction costs.
func (b *bench) cpu(ctx context.Context) error {
	all, end, err := b.both(service{auth: "trust"}, b.direct())
	if err != nil {
		return err
	}
	defer end()
	var cells []cell
	for _, clients := range []int{50, 1000} {
		for _, p := range protocols {
			cells = append(cells, mode(p, clients))
		}
	}
	return b.rows(ctx, all, cells)
}

// tls measures what a transaction costs where clients encrypt.
func (b *bench) tls(ctx context.Context) error {
	all, end, err := b.both(service{auth: "trust", tls: b.dir})
	if err != nil {
		return err
	}
	defer end()
	var cells []cell
	for _, p := range protocols {
		c := mode(p, 50)
		c.name = "TLS, " + c.name
		cells = append(cells, c)
	}
	return b.rows(ctx, all, cells)
}

// connect measures a connection for each transaction.
func (b *bench) connect(ctx context.Context) error {
	for _, auth := range []string{"trust", "scram", "generated"} {
		var all []*subject
		end := func() {}
		var err error
		s := service{auth: auth}
		switch auth {
		case "generated":
			var m *subject
			if m, err = b.mainstay(s); err == nil {
				all, end = []*subject{m}, m.end
			}
		case "trust":
			all, end, err = b.both(s, b.direct())
		default:
			all, end, err = b.both(s)
		}
		if err != nil {
			return err
		}
		err = b.rows(ctx, all, []cell{{"connect each time, " + auth, []string{"-S", "-C", "-c", "8", "-j", "8"}}})
		end()
		if err != nil {
			return err
		}
	}
	return nil
}

// settle is how long the poolers are left alone before they are weighed: Mainstay gives
// memory back when a crowd has come and rests.
const settle = 3 * time.Second

// weigh measures what an idle client costs, after a login and a query.
func (b *bench) weigh(ctx context.Context) error {
	all, end, err := b.both(service{auth: "trust"})
	if err != nil {
		return err
	}
	defer end()
	fmt.Printf("| | bytes for each of %d idle clients |\n|---|---|\n", b.idle)
	for _, s := range all {
		var conns []*pgconn.PgConn
		before := resident(s.pid)
		for range b.idle {
			c, err := pgconn.Connect(ctx, fmt.Sprintf("postgres://bench:%s@127.0.0.1:%d/bench?sslmode=disable", secret, s.port))
			if err != nil {
				return err
			}
			if _, err := c.Exec(ctx, "select 1").ReadAll(); err != nil {
				return err
			}
			conns = append(conns, c)
		}
		time.Sleep(settle)
		fmt.Printf("| %s | %d |\n", s.name, (resident(s.pid)-before)/b.idle)
		for _, c := range conns {
			_ = c.Close(ctx)
		}
	}
	fmt.Println()
	return nil
}
