// Command pooler measures Mainstay's pooler beside PgBouncer and a direct connection, on
// one PostgreSQL that it starts itself:
//
//	go run ./bench/pooler               # all of it, half an hour
//	go run ./bench/pooler -slice 150ms -rounds 60 -only cpu -newer /path/to/pgbouncer
//
// Its parts, for -only: cpu, idle, connect, latency, spans, tls, tlsup and victim
// (docs/performance.md says what each measures).
//
// Load comes from a process of its own, which keeps connections to all subjects open and
// loads one after the other for a slice; CPU is what the subject's process itself used
// meanwhile, from /proc. A ratio is the geometric mean of those of the slices, by rounds,
// with its interval of 95%. The parts connect and victim are by pgbench, in runs of some
// seconds. The poolers run in sessions of their own, since the kernel's autogroup would
// have them share the load's weight otherwise. It needs pgbench, pgbouncer and
// PostgreSQL's server programs. Nobody imports it.
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
	"time"

	"mainstay.dev/mainstay/bench/pooler/internal/turns"
	"mainstay.dev/mainstay/pooler/pgtest"
)

// secret is long enough for one iteration of SCRAM.
const secret = "0123456789abcdefghijklmnopqrstuv"

func main() {
	b, own := bench{}, service{}
	own.flags()
	b.flags()
	load := flag.Bool("load", false, "for its own use: load what the plan on stdin names")
	flag.StringVar(&own.profile, "profile", "", "a folder for processor profiles of Mainstay")
	flag.Parse()
	b.profile = own.profile
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var err error
	switch {
	case *load:
		err = turns.Serve(os.Stdin, os.Stdout)
	case own.upstream != "":
		err = own.run(ctx)
	default:
		err = b.run(ctx)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

type bench struct {
	slice, pause   time.Duration // how long a subject is loaded at once, and the time to the next
	rounds, idle   int
	only           string
	program, newer string
	bouncers       []bouncer
	profile        string // a folder; "": none are made
	pg             *pgtest.Server
	dir            string // readable for whoever PgBouncer runs as
}

func (b *bench) flags() {
	flag.DurationVar(&b.slice, "slice", 150*time.Millisecond, "how long a subject is loaded before it is the next one's turn")
	flag.DurationVar(&b.pause, "pause", 0, "what is left between slices to others who need the machine")
	flag.IntVar(&b.rounds, "rounds", 60, "how many slices of each subject count")
	flag.IntVar(&b.idle, "idle", 5000, "idle clients to weigh")
	flag.StringVar(&b.only, "only", "", "one part: "+strings.Join(names(b.parts()), ", "))
	flag.StringVar(&b.program, "pgbouncer", "pgbouncer", "the PgBouncer to compare with: a path, or a name in PATH")
	flag.StringVar(&b.newer, "newer", "", "a second PgBouncer beside it, of 1.21 or later, which can carry prepared statements")
}

// check tells what is wrong with the flags, and finds the programs.
func (b *bench) check() error {
	if flag.NArg() > 0 {
		return fmt.Errorf("%q is no flag; it takes none but flags (-h lists them)", flag.Arg(0))
	}
	if b.slice < 20*time.Millisecond || b.slice > 10*time.Second {
		return fmt.Errorf("-slice %v: write from 20ms, or the clock counts for much, to 10s", b.slice)
	}
	if b.pause < 0 {
		return fmt.Errorf("-pause %v: write 0s, or how long others may have the machine between slices, such as 150ms", b.pause)
	}
	if b.rounds < 5 {
		return fmt.Errorf("-rounds %d: write 5 or more, or there is no interval to tell; 60 is the default", b.rounds)
	}
	if b.idle < 1 {
		return fmt.Errorf("-idle %d: write how many clients are to rest, such as 5000", b.idle)
	}
	first, err := findBouncer(b.program)
	if err != nil {
		return fmt.Errorf("-pgbouncer: %w", err)
	}
	b.bouncers = []bouncer{first}
	if b.newer == "" {
		return nil
	}
	second, err := findBouncer(b.newer)
	if err != nil {
		return fmt.Errorf("-newer: %w", err)
	}
	if second.minor < preparing || second.version == first.version {
		return fmt.Errorf("-newer %s is PgBouncer %s: write one of 1.%d or later that is not the other, %s", b.newer, second.version, preparing, first.version)
	}
	b.bouncers = append(b.bouncers, second)
	return nil
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
		{"tlsup", b.tlsUpstream},
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
	if err := b.check(); err != nil {
		return err
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
		TLS: true, Settings: map[string]string{"max_connections": "1200"},
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
	b.heading()
	for _, p := range chosen {
		if err := p.run(ctx); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
	}
	return nil
}

// heading says what is measured, and how.
func (b *bench) heading() {
	for _, is := range b.bouncers {
		fmt.Printf("PgBouncer %s is %s. ", is.version, is.path)
	}
	fmt.Printf("%d slices of %v each, in turns, %v between them.\n\n", b.rounds, b.slice, b.pause)
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
