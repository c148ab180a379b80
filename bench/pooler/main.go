// Command pooler measures Mainstay's pooler beside PgBouncer and a direct connection,
// in turns, on one PostgreSQL that it starts itself:
//
//	go run ./bench/pooler               # all of it, half an hour
//	go run ./bench/pooler -t 1 -rounds 15 -only cpu
//
// Its parts, for -only: cpu, idle, connect, latency, spans, tls and victim
// (docs/performance.md says what each measures).
//
// CPU is what the process itself used, from /proc, over what pgbench says it did; the
// figures are medians of the rounds, and of what each round gave beside PgBouncer. The poolers run in sessions of their own,
// since the kernel's autogroup would have them share pgbench's weight otherwise. It
// needs pgbench, pgbouncer and PostgreSQL's server programs. Nobody imports it.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"mainstay.dev/mainstay/pooler/pgtest"
)

// secret is long enough for one iteration of SCRAM.
const secret = "0123456789abcdefghijklmnopqrstuv"

func main() {
	b, own := bench{}, service{}
	own.flags()
	flag.IntVar(&b.seconds, "t", 2, "seconds of each run")
	flag.IntVar(&b.rounds, "rounds", 7, "how often each is run, in turns")
	flag.IntVar(&b.idle, "idle", 5000, "idle clients to weigh")
	flag.StringVar(&b.only, "only", "", "one part: "+strings.Join(names(b.parts()), ", "))
	flag.StringVar(&own.profile, "profile", "", "a folder for processor profiles of Mainstay")
	flag.Parse()
	b.profile = own.profile
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var err error
	if own.upstream != "" {
		err = own.run(ctx)
	} else {
		err = b.run(ctx)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

type bench struct {
	seconds, rounds, idle int
	only                  string
	profile               string // a folder; "": none are made
	pg                    *pgtest.Server
	dir                   string // readable for whoever PgBouncer runs as
}

// A part is what -only names.
type part struct {
	name string
	run  func(context.Context) error
}

func (b *bench) parts() []part {
	return []part{
		{"cpu", b.cpu},
		{"idle", b.weigh},
		{"connect", b.connect},
		{"latency", b.latency},
		{"spans", b.spans},
		{"tls", b.tls},
		{"victim", b.victim},
	}
}

func names(parts []part) (all []string) {
	for _, p := range parts {
		all = append(all, p.name)
	}
	return all
}

func (b *bench) run(ctx context.Context) (err error) {
	chosen := b.parts()
	if b.only != "" {
		chosen = nil
		for _, p := range b.parts() {
			if p.name == b.only {
				chosen = []part{p}
			}
		}
		if chosen == nil {
			return fmt.Errorf("-only %q: there is no such part; write one of %s", b.only, strings.Join(names(b.parts()), ", "))
		}
	}
	if b.dir, err = os.MkdirTemp("", "bench-pooler-*"); err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(b.dir) }()
	if err := os.Chmod(b.dir, 0o755); err != nil {
		return err
	}
	b.pg, err = pgtest.Open(ctx, pgtest.Options{
		User: "bench", Password: secret, Database: "bench", HBA: []string{"host bench bench 127.0.0.1/32 trust"},
		TLS: true, Settings: map[string]string{"max_connections": "1100"},
	})
	if err != nil {
		return err
	}
	defer func() { _ = b.pg.Stop() }()
	if err := b.copyCertificate(); err != nil {
		return err
	}
	if out, err := b.pgbench(ctx, &subject{port: b.pg.Port()}, "-i", "-q", "-s", "10"); err != nil {
		return fmt.Errorf("fill the tables: %w\n%s", err, out)
	}
	for _, p := range chosen {
		if err := p.run(ctx); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
	}
	return nil
}

// copyCertificate lets the poolers show the server's certificate: PgBouncer may be
// somebody else than the server.
func (b *bench) copyCertificate() error {
	for _, name := range []string{"server.crt", "server.key"} {
		text, err := os.ReadFile(filepath.Join(filepath.Dir(b.pg.CAFile()), name))
		if err != nil {
			return err
		}
		if err := os.WriteFile(b.file(name), text, 0o644); err != nil { // the key of a test
			return err
		}
	}
	return nil
}

// file is the path of a file of the bench's own.
func (b *bench) file(name string) string { return filepath.Join(b.dir, name) }

// write makes a file of the bench's own.
func (b *bench) write(name, text string) (path string, err error) {
	path = b.file(name)
	return path, os.WriteFile(path, []byte(text), 0o644)
}
