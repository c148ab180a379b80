package main

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// protocols are pgbench's ways to send a query.
var protocols = []string{"simple", "extended", "prepared"}

// paced is how many transactions a second are begun where not all that can be are: a
// quarter of what two cores carry.
const paced = 5000

// cpu measures what a transaction costs, and how long it takes, at full speed.
func (b *bench) cpu(ctx context.Context) error {
	return b.loaded(ctx, 0, costs, latencies)
}

// latency measures how long transactions take at a pace, where those that start late
// count from when they should have.
func (b *bench) latency(ctx context.Context) error {
	return b.loaded(ctx, paced, latencies, costs)
}

// loaded measures all subjects at a rate; 0 is full speed.
func (b *bench) loaded(ctx context.Context, rate float64, first, second view) error {
	all, end, err := b.start(service{auth: "trust"}, b.direct())
	if err != nil {
		return err
	}
	defer end()
	var cells []pairedCell
	for _, clients := range []int{50, 1000} {
		for _, p := range protocols {
			c := plain(p, clients)
			if c.plan.Rate = rate; rate > 0 {
				c.name += fmt.Sprintf(", %.0f/s", rate)
			}
			cells = append(cells, c)
		}
	}
	return b.paired(ctx, all, cells, first, second)
}

// tls measures what a transaction costs where clients encrypt.
func (b *bench) tls(ctx context.Context) error {
	return b.encrypted(ctx, service{auth: "trust", tls: b.dir}, "TLS")
}

// tlsUpstream measures what it costs where the pooler encrypts towards PostgreSQL.
func (b *bench) tlsUpstream(ctx context.Context) error {
	return b.encrypted(ctx, service{auth: "trust", upstreamTLS: true}, "TLS to PostgreSQL")
}

func (b *bench) encrypted(ctx context.Context, s service, where string) error {
	all, end, err := b.start(s)
	if err != nil {
		return err
	}
	defer end()
	var cells []pairedCell
	for _, p := range protocols {
		c := plain(p, 50)
		c.name = where + ", " + c.name
		c.plan.TLS = s.tls != ""
		cells = append(cells, c)
	}
	return b.paired(ctx, all, cells, costs)
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
				all, end = []*subject{b.direct(), m}, m.end
			}
		case "trust":
			all, end, err = b.start(s, b.direct())
		default:
			all, end, err = b.start(s)
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

// fewer is how many idle clients are weighed where they encrypt, which takes each a
// handshake.
const fewer = 2000

// weigh measures what an idle client costs, after a login and a query.
func (b *bench) weigh(ctx context.Context) error {
	fmt.Println("| | clients | bytes for each idle one |\n|---|---|---|")
	for _, c := range []struct {
		what    string
		service service
		clients int
	}{
		{"", service{auth: "trust"}, b.idle},
		{", TLS", service{auth: "trust", tls: b.dir}, min(b.idle, fewer)},
	} {
		all, end, err := b.start(c.service)
		if err != nil {
			return err
		}
		for _, s := range all {
			var each int
			if each, err = b.weighOne(ctx, s, c.clients); err != nil {
				break
			}
			fmt.Printf("| %s%s | %d | %d |\n", s.name, c.what, c.clients, each)
		}
		end()
		if err != nil {
			return err
		}
	}
	fmt.Println()
	return nil
}

// weighOne returns by how many bytes a subject grows for each client.
func (b *bench) weighOne(ctx context.Context, s *subject, clients int) (each int, err error) {
	var conns []*pgconn.PgConn
	defer func() {
		for _, c := range conns {
			_ = c.Close(ctx) // it has been weighed
		}
	}()
	ssl := s.ssl
	if ssl == "" {
		ssl = "disable"
	}
	before := resident(s.pid)
	for range clients {
		c, err := pgconn.Connect(ctx, fmt.Sprintf("postgres://bench:%s@127.0.0.1:%d/bench?sslmode=%s", secret, s.port, ssl))
		if err != nil {
			return 0, err
		}
		conns = append(conns, c)
		if _, err := c.Exec(ctx, "select 1").ReadAll(); err != nil {
			return 0, err
		}
	}
	time.Sleep(settle)
	return (resident(s.pid) - before) / clients, nil
}
