// Command pooler measures Mainstay's pooler beside PgBouncer and a direct connection,
// in turns, on one PostgreSQL that it starts itself:
//
//	go run ./bench/pooler               # all of it, some minutes
//	go run ./bench/pooler -t 3 -rounds 1 -only cpu
//
// CPU is what the process itself used, from /proc/PID/stat, over what pgbench says
// it did; the lowest of the rounds counts. The poolers run in sessions of their own,
// since the kernel's autogroup would have them share pgbench's weight otherwise. It
// needs pgbench, pgbouncer and PostgreSQL's server programs. Nobody imports it.
package main

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"mainstay.dev/mainstay/internal/setting"
	"mainstay.dev/mainstay/pooler"
	"mainstay.dev/mainstay/pooler/pgtest"
	"mainstay.dev/mainstay/telemetry/prom"
)

// secret is long enough for one iteration of SCRAM.
const secret = "0123456789abcdefghijklmnopqrstuv"

func main() {
	serve := flag.String("serve", "", "for its own use: be a pooler in front of this URL")
	auth := flag.String("auth", "trust", "for its own use: trust, scram or generated")
	b := bench{}
	flag.IntVar(&b.seconds, "t", 6, "seconds of each run")
	flag.IntVar(&b.rounds, "rounds", 2, "how often each is run")
	flag.IntVar(&b.idle, "idle", 5000, "idle clients to weigh")
	flag.StringVar(&b.only, "only", "", "cpu, idle or connect")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var err error
	if *serve != "" {
		err = bePooler(ctx, *serve, *auth)
	} else {
		err = b.run(ctx)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// bePooler is the process under test: the pooler with metrics on, as the binary
// has it.
func bePooler(ctx context.Context, url, auth string) error {
	var cfg pooler.Config
	cfg.SetDefaults()
	cfg.Listen, cfg.MaxClients = "127.0.0.1:0", 20_000
	var d pooler.Database
	d.SetDefaults()
	d.Upstream, d.Pool.Max = setting.Secret(url), 20
	cfg.Databases = map[string]pooler.Database{"bench": d}
	if auth != "trust" {
		cfg.Users = map[string]setting.Secret{"bench": secret}
	}
	if auth == "generated" {
		cfg.Generated = []string{"bench"}
	}
	ln, err := net.Listen("tcp", cfg.Listen)
	if err != nil {
		return err
	}
	p, err := pooler.New(cfg, pooler.Deps{Listener: ln, Sink: prom.New(nil, prom.Version("bench")), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	fmt.Println(ln.Addr().(*net.TCPAddr).Port)
	return p.Run(ctx)
}

type bench struct {
	seconds, rounds, idle int
	only                  string
	pg                    *pgtest.Server
	dir                   string
}

// A subject is what pgbench is pointed at.
type subject struct {
	name string
	port int
	pid  int  // 0: no pooler
	old  bool // cannot carry prepared statements
	end  func()
}

func (b *bench) run(ctx context.Context) (err error) {
	if b.dir, err = os.MkdirTemp("", "bench-pooler-*"); err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(b.dir) }()
	if err := os.Chmod(b.dir, 0o755); err != nil {
		return err
	}
	b.pg, err = pgtest.Open(ctx, pgtest.Options{
		User: "bench", Password: secret, Database: "bench", HBA: []string{"host bench bench 127.0.0.1/32 trust"},
		Settings: map[string]string{"max_connections": "1100"},
	})
	if err != nil {
		return err
	}
	defer func() { _ = b.pg.Stop() }()
	if out, err := b.pgbench(ctx, b.pg.Port(), "-i", "-q", "-s", "10"); err != nil {
		return fmt.Errorf("fill the tables: %w\n%s", err, out)
	}
	for _, part := range []struct {
		name string
		run  func(context.Context) error
	}{{"cpu", b.cpu}, {"idle", b.weigh}, {"connect", b.connect}} {
		if b.only != "" && b.only != part.name {
			continue
		}
		if err := part.run(ctx); err != nil {
			return fmt.Errorf("%s: %w", part.name, err)
		}
	}
	return nil
}

func (b *bench) pgbench(ctx context.Context, port int, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "pgbench", append(args, "-h", "127.0.0.1", "-p", strconv.Itoa(port), "-U", "bench", "bench")...)
	cmd.Env = append(os.Environ(), "PGPASSWORD="+secret, "PGSSLMODE=disable")
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// mainstay starts the pooler as a process of its own.
func (b *bench) mainstay(auth string) (*subject, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(self, "-serve", b.pg.URL(), "-auth", auth)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	var port int
	if _, err := fmt.Fscan(out, &port); err != nil {
		return nil, fmt.Errorf("read the pooler's port: %w", err)
	}
	return &subject{name: "Mainstay", port: port, pid: cmd.Process.Pid, end: func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait() // its end is all that matters
	}}, nil
}

// pgbouncer starts Debian's; it refuses to be root.
func (b *bench) pgbouncer(auth string) (*subject, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	port := ln.Addr().(*net.TCPAddr).Port
	ln.Close()
	method := map[string]string{"trust": "trust", "scram": "scram-sha-256"}[auth]
	ini, users := filepath.Join(b.dir, auth+".ini"), filepath.Join(b.dir, "users.txt")
	text := fmt.Sprintf("[databases]\nbench = host=127.0.0.1 port=%d user=bench password=%s\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = %d\nunix_socket_dir =\n"+
		"auth_type = %s\nauth_file = %s\npool_mode = transaction\ndefault_pool_size = 20\nmax_client_conn = 20000\nlog_connections = 0\nlog_disconnections = 0\nlogfile = /dev/null\n",
		b.pg.Port(), secret, port, method, users)
	if err := os.WriteFile(ini, []byte(text), 0o644); err != nil {
		return nil, err
	}
	if err := os.WriteFile(users, []byte(fmt.Sprintf("\"bench\" \"%s\"\n", secret)), 0o644); err != nil {
		return nil, err
	}
	args := []string{"-q", ini}
	if os.Geteuid() == 0 {
		args = append([]string{"-u", "nobody"}, args...)
	}
	cmd := exec.Command("pgbouncer", args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	s := &subject{name: "PgBouncer", port: port, pid: cmd.Process.Pid, old: bouncerVersion() < 21, end: func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // its end is all that matters
	}}
	for range 100 {
		if c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
			c.Close()
			return s, nil
		}
		time.Sleep(50 * time.Millisecond)
	}
	s.end()
	return nil, fmt.Errorf("pgbouncer does not listen on port %d", port)
}

// bouncerVersion is the minor version of PgBouncer 1.x, which knows prepared
// statements from 1.21 on.
func bouncerVersion() int {
	out, err := exec.Command("pgbouncer", "--version").Output()
	m := regexp.MustCompile(`1\.(\d+)`).FindSubmatch(out)
	if err != nil || m == nil {
		return 0
	}
	n, _ := strconv.Atoi(string(m[1])) // digits
	return n
}

func (b *bench) subjects(auth string, direct bool) (all []*subject, end func(), err error) {
	if direct {
		all = append(all, &subject{name: "direct", port: b.pg.Port(), end: func() {}})
	}
	end = func() {
		for _, s := range all {
			s.end()
		}
	}
	for _, start := range []func(string) (*subject, error){b.pgbouncer, b.mainstay} {
		s, err := start(auth)
		if err != nil {
			end()
			return nil, nil, err
		}
		all = append(all, s)
	}
	return all, end, nil
}

var tps = regexp.MustCompile(`tps = ([0-9.]+) \(without initial connection time\)`)
var tpsC = regexp.MustCompile(`tps = ([0-9.]+) \(including reconnection times\)`)
var latency = regexp.MustCompile(`latency average = ([0-9.]+) ms`)
var transactions = regexp.MustCompile(`number of transactions actually processed: ([0-9]+)`)

func number(re *regexp.Regexp, text string) float64 {
	m := re.FindStringSubmatch(text)
	if m == nil {
		return 0
	}
	n, _ := strconv.ParseFloat(m[1], 64) // digits
	return n
}

// spent is the CPU time of a process so far (proc(5), fields 14 and 15, in ticks of
// 10 ms).
func spent(pid int) time.Duration {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+2:]))
	user, _ := strconv.Atoi(fields[11])
	system, _ := strconv.Atoi(fields[12])
	return time.Duration(user+system) * 10 * time.Millisecond
}

// resident is a process's memory in bytes.
func resident(pid int) int {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		return 0
	}
	pages, _ := strconv.Atoi(strings.Fields(string(text))[1])
	return pages * os.Getpagesize()
}

// A figure is the best of a cell's rounds.
type figure struct{ tps, latency, micros float64 }

func (b *bench) measure(ctx context.Context, s *subject, args ...string) (f figure, err error) {
	before := spent(s.pid)
	out, err := b.pgbench(ctx, s.port, append([]string{"-n", "-S", "-T", strconv.Itoa(b.seconds)}, args...)...)
	if err != nil {
		return f, fmt.Errorf("pgbench through %s: %w\n%s", s.name, err, out)
	}
	f.tps, f.latency = max(number(tps, out), number(tpsC, out)), number(latency, out)
	if n := number(transactions, out); n > 0 && s.pid != 0 {
		f.micros = float64((spent(s.pid) - before).Microseconds()) / n
	}
	return f, nil
}

// rows measures each cell for all subjects in turns and prints the best.
func (b *bench) rows(ctx context.Context, all []*subject, cells [][]string) error {
	fmt.Println("| | | tps | average ms | pooler µs/txn |\n|---|---|---|---|---|")
	for _, cell := range cells {
		best := make([]figure, len(all))
		for range b.rounds {
			for i, s := range all {
				if s.old && strings.Contains(cell[0], "prepared") {
					continue
				}
				f, err := b.measure(ctx, s, cell[1:]...)
				if err != nil {
					return err
				}
				if best[i].tps == 0 || f.micros > 0 && f.micros < best[i].micros {
					best[i].micros = f.micros
				}
				if f.tps > best[i].tps {
					best[i].tps, best[i].latency = f.tps, f.latency
				}
			}
		}
		for i, s := range all {
			fmt.Printf("| %s | %s | %.0f | %.2f | %.1f |\n", cell[0], s.name, best[i].tps, best[i].latency, best[i].micros)
		}
	}
	fmt.Println()
	return nil
}

func (b *bench) cpu(ctx context.Context) error {
	all, end, err := b.subjects("trust", true)
	if err != nil {
		return err
	}
	defer end()
	var cells [][]string
	for _, clients := range []string{"50", "1000"} {
		for _, mode := range []string{"simple", "extended", "prepared"} {
			cells = append(cells, []string{mode + ", " + clients + " clients", "-M", mode, "-c", clients, "-j", "2"})
		}
	}
	return b.rows(ctx, all, cells)
}

// connect measures a connection for each transaction.
func (b *bench) connect(ctx context.Context) error {
	for _, auth := range []string{"trust", "scram", "generated"} {
		var all []*subject
		end := func() {}
		var err error
		if auth == "generated" {
			var s *subject
			if s, err = b.mainstay(auth); err == nil {
				all, end = []*subject{s}, s.end
			}
		} else {
			all, end, err = b.subjects(auth, auth == "trust")
		}
		if err != nil {
			return err
		}
		err = b.rows(ctx, all, [][]string{{"connect each time, " + auth, "-C", "-c", "8", "-j", "8"}})
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
	all, end, err := b.subjects("trust", false)
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
