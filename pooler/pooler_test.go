package pooler

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"mainstay.dev/mainstay/internal/setting"
	"mainstay.dev/mainstay/pooler/pgtest"
	"mainstay.dev/mainstay/telemetry"
)

var pg = pgtest.Shared{Options: pgtest.Options{Database: "app", TLS: true, Settings: map[string]string{"max_connections": "60", "timezone": "UTC"}}}

func TestMain(m *testing.M) {
	code := m.Run()
	if err := errors.Join(pg.Stop(), methods.Stop(), plainServer.Stop(), newest.Stop()); err != nil {
		fmt.Fprintln(os.Stderr, "stop postgres:", err)
	}
	os.Exit(code)
}

// A ledger is a sink that keeps everything.
type ledger struct {
	mu        sync.Mutex
	exchanges []*telemetry.Exchange
	events    []telemetry.Event
}

func (l *ledger) Record(x *telemetry.Exchange) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.exchanges = append(l.exchanges, x.Clone())
}

func (l *ledger) Emit(e telemetry.Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.events = append(l.events, e)
}

// all returns what was recorded so far.
func (l *ledger) all() []*telemetry.Exchange {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]*telemetry.Exchange(nil), l.exchanges...)
}

// happened returns the events so far.
func (l *ledger) happened() []telemetry.Event {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.events)
}

// codes counts the exchanges by their code.
func (l *ledger) codes() map[string]int {
	n := map[string]int{}
	for _, x := range l.all() {
		n[x.Code]++
	}
	return n
}

// A house is a pooler that runs for one test.
type house struct {
	*Server
	addr   string
	ledger *ledger
	cfg    Config
	stop   func() error // ends Run and returns what it returned
}

// database returns a database with defaults that leads to upstream.
func database(upstream string, change ...func(*Database)) Database {
	var d Database
	d.SetDefaults()
	d.Upstream = setting.Secret(upstream)
	d.Pool.Min = 0
	for _, c := range change {
		c(&d)
	}
	return d
}

// config returns a configuration with one database, named app.
func config(d Database, change ...func(*Config)) Config {
	var cfg Config
	cfg.SetDefaults()
	cfg.Listen = "127.0.0.1:0"
	cfg.Drain = 10 * time.Second
	cfg.Databases = map[string]Database{"app": d}
	for _, c := range change {
		c(&cfg)
	}
	return cfg
}

// run starts a pooler and stops it, and checks that nothing is left, at the test's
// end.
func run(t testing.TB, cfg Config, change ...func(*Deps)) *house {
	t.Helper()
	before := runtime.NumGoroutine()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h := &house{addr: ln.Addr().String(), ledger: &ledger{}, cfg: cfg}
	deps := Deps{Listener: ln, Log: slog.New(slog.NewTextHandler(t.Output(), nil)), Sink: h.ledger}
	for _, c := range change {
		c(&deps)
	}
	if h.Server, err = New(cfg, deps); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- h.Run(ctx) }()
	h.stop = sync.OnceValue(func() error {
		cancel()
		return <-ended
	})
	t.Cleanup(func() {
		if err := h.stop(); err != nil {
			t.Errorf("run: %v", err)
		}
		noMoreGoroutines(t, before)
	})
	return h
}

// noMoreGoroutines waits until there are no more goroutines than before.
func noMoreGoroutines(t testing.TB, before int) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for runtime.NumGoroutine() > before {
		if time.Now().After(deadline) {
			buf := make([]byte, 1<<20)
			t.Fatalf("%d goroutines, %d before:\n%s", runtime.NumGoroutine(), before, buf[:runtime.Stack(buf, true)])
		}
		time.Sleep(time.Millisecond)
	}
}

// await waits until a condition holds that another process or goroutine brings about.
func await(t testing.TB, what string, holds func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !holds() {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain: %s", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// url leads to the pooler.
func (h *house) url(user, password string, params ...string) string {
	u := url.URL{Scheme: "postgres", Host: h.addr, Path: "/app", User: url.UserPassword(user, password)}
	q := url.Values{"sslmode": {"disable"}}
	for _, p := range params {
		k, v, _ := strings.Cut(p, "=")
		q.Set(k, v)
	}
	u.RawQuery = strings.ReplaceAll(q.Encode(), "+", "%20") // libpq and pgx take + for itself
	return u.String()
}

// connect opens a pgx connection and closes it at the test's end.
func (h *house) connect(t testing.TB, params ...string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), h.url("ann", "", params...))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(context.Background()) })
	return conn
}

// value runs a query that returns one text.
func value(t testing.TB, conn *pgx.Conn, sql string, args ...any) string {
	t.Helper()
	var s string
	if err := conn.QueryRow(t.Context(), sql, args...).Scan(&s); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return s
}

// do runs a statement.
func do(t testing.TB, conn *pgx.Conn, sql string, args ...any) {
	t.Helper()
	if _, err := conn.Exec(t.Context(), sql, args...); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

func TestAQueryIsAnsweredAndRecorded(t *testing.T) {
	h := run(t, config(database(pg.Start(t).URL())))
	conn := h.connect(t)
	if got := value(t, conn, "select $1::text || ' world'", "hello"); got != "hello world" {
		t.Fatalf("got %q", got)
	}
	do(t, conn, "create table if not exists t1 (n int)")
	for _, x := range h.ledger.all() {
		t.Logf("%+v", x)
	}
}

// methods is a server whose users log in by different methods.
var methods = pgtest.Shared{Options: pgtest.Options{
	HBA: []string{
		"host all u_scram all scram-sha-256", "host all u_md5 all md5", "host all u_plain all password", "host all u_trust all trust",
	},
	Settings: map[string]string{"max_connections": "20"},
}}

func pgStartWithMethods(t *testing.T) *pgtest.Server {
	t.Helper()
	s := methods.Start(t)
	for user, encryption := range map[string]string{"u_scram": "scram-sha-256", "u_md5": "md5", "u_plain": "scram-sha-256", "u_trust": "md5"} {
		if err := s.Exec(t.Context(), fmt.Sprintf("drop role if exists %[1]s; set password_encryption = '%[2]s'; create role %[1]s login password 'pw of %[1]s'", user, encryption)); err != nil {
			t.Fatal(err)
		}
	}
	return s
}
