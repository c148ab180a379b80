package pooler

import (
	"bytes"
	"context"
	"database/sql"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	_ "github.com/jackc/pgx/v5/stdlib"

	"mainstay.dev/mainstay/internal/setting"
)

// tool runs a client program against the pooler and returns what it printed.
func tool(t *testing.T, h *house, name string, args ...string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skipf("%s is not installed: apt-get install postgresql-client postgresql-contrib", name)
	}
	host, port, _ := strings.Cut(h.addr, ":")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = append(os.Environ(), "PGHOST="+host, "PGPORT="+port, "PGUSER=ann", "PGDATABASE=app", "PGSSLMODE=disable", "PGCONNECT_TIMEOUT=10")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return string(out)
}

func TestPsqlWorksInBothModes(t *testing.T) {
	for _, mode := range []string{modeTransaction, modeSession} {
		t.Run(mode, func(t *testing.T) {
			h := run(t, config(database(pg.Start(t).URL(), func(d *Database) { d.Mode = mode; d.Pool.Max = 1 })))
			out := tool(t, h, "psql", "-X", "-At", "-v", "ON_ERROR_STOP=1",
				"-c", "begin; create temp table psqlt (n int, s text); insert into psqlt select g, repeat('x', 1000) from generate_series(1, 5000) g; select count(*), sum(length(s)) from psqlt; commit",
				"-c", `\d pg_class`, "-c", "select 1; select 2; select 3", "-c", "select 'last'")
			for _, want := range []string{"5000|5000000", "relname", "1\n2\n3", "last"} {
				if !strings.Contains(out, want) {
					t.Errorf("psql did not print %q:\n%.2000s", want, out)
				}
			}
			out = tool(t, h, "psql", "-X", "-At", "-v", "VERBOSITY=verbose", "-c", `do $$ begin perform 1/0; exception when division_by_zero then raise notice 'noticed'; end $$`)
			if !strings.Contains(out, "NOTICE:  00000: noticed") {
				t.Errorf("no notice: %s", out)
			}
		})
	}
}

func TestPgbenchWorksInEveryProtocol(t *testing.T) {
	h := run(t, config(database(pg.Start(t).URL())))
	tool(t, h, "pgbench", "-i", "-q", "-s", "1")
	for _, protocol := range []string{"simple", "extended", "prepared"} {
		t.Run(protocol, func(t *testing.T) {
			for _, script := range [][]string{{"-S"}, {"-N"}, {"-C", "-S"}} {
				if protocol == "prepared" && script[0] == "-N" {
					// pgbench prepares with a blocking call, in a thread whose other
					// clients hold transactions: fewer servers than clients lock it up.
					script = append(script, "-j", "20")
				}
				args := append([]string{"-n", "-M", protocol, "-c", "20", "-t", "50"}, script...)
				out := tool(t, h, "pgbench", args...)
				if !strings.Contains(out, "actually processed: 1000/1000") {
					t.Errorf("pgbench %q:\n%s", args, out)
				}
			}
		})
	}
	// A client that leaves is told first and its server given back then.
	await(t, "every server is back", func() bool { return h.Stats().Databases[0].Active == 0 })
	st := h.Stats().Databases[0]
	if st.Waiting != 0 || st.Idle == 0 || st.Idle > 10 {
		t.Errorf("the pool afterwards: %+v", st)
	}
	for code, n := range h.ledger.codes() {
		if code != string(OK) {
			t.Errorf("%d exchanges ended as %s", n, code)
		}
	}
}

func TestPgxWorksInEveryMode(t *testing.T) {
	h := run(t, config(database(pg.Start(t).URL(), func(d *Database) { d.Pool.Max = 3 })))
	for _, mode := range []pgx.QueryExecMode{
		pgx.QueryExecModeCacheStatement, pgx.QueryExecModeCacheDescribe, pgx.QueryExecModeDescribeExec,
		pgx.QueryExecModeExec, pgx.QueryExecModeSimpleProtocol,
	} {
		t.Run(mode.String(), func(t *testing.T) {
			cfg, err := pgxpool.ParseConfig(h.url("ann", ""))
			if err != nil {
				t.Fatal(err)
			}
			cfg.MaxConns, cfg.ConnConfig.DefaultQueryExecMode = 8, mode
			pool, err := pgxpool.NewWithConfig(t.Context(), cfg)
			if err != nil {
				t.Fatal(err)
			}
			defer pool.Close()
			var all sync.WaitGroup
			for worker := range 8 {
				all.Go(func() {
					for i := range 30 {
						if err := sumAndEcho(t.Context(), pool, worker*1000+i); err != nil {
							t.Error(err)
							return
						}
					}
				})
			}
			all.Wait()
		})
	}
}

// sumAndEcho runs a few statements of different shapes and checks their answers.
func sumAndEcho(ctx context.Context, pool *pgxpool.Pool, n int) error {
	var sum int
	if err := pool.QueryRow(ctx, "select $1::int + $2::int", n, 1).Scan(&sum); err != nil || sum != n+1 {
		return fmt.Errorf("sum %d, %w", sum, err)
	}
	tx, err := pool.Begin(ctx)
	if err != nil {
		return err
	}
	defer tx.Rollback(ctx)
	for i := range 3 {
		var echo string
		want := fmt.Sprintf("%d-%d", n, i)
		if err := tx.QueryRow(ctx, "select $1::text", want).Scan(&echo); err != nil || echo != want {
			return fmt.Errorf("echo %q, want %q, %w", echo, want, err)
		}
	}
	batch := &pgx.Batch{}
	for i := range 5 {
		batch.Queue("select $1::int * 2", i)
	}
	results := tx.SendBatch(ctx, batch)
	for i := range 5 {
		var twice int
		if err := results.QueryRow().Scan(&twice); err != nil || twice != 2*i {
			return fmt.Errorf("batch %d: %d, %w", i, twice, err)
		}
	}
	if err := results.Close(); err != nil {
		return err
	}
	return tx.Commit(ctx)
}

func TestDatabaseSQLWorks(t *testing.T) {
	h := run(t, config(database(pg.Start(t).URL(), func(d *Database) { d.Pool.Max = 2 })))
	db, err := sql.Open("pgx", h.url("ann", ""))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	stmt, err := db.PrepareContext(t.Context(), "select $1::int + 1")
	if err != nil {
		t.Fatal(err)
	}
	defer stmt.Close()
	var all sync.WaitGroup
	for i := range 20 {
		all.Go(func() {
			var n int
			if err := stmt.QueryRowContext(t.Context(), i).Scan(&n); err != nil || n != i+1 {
				t.Errorf("%d: %d, %v", i, n, err)
			}
		})
	}
	all.Wait()
}

func TestCopyGoesBothWays(t *testing.T) {
	for _, mode := range []string{modeTransaction, modeSession} {
		t.Run(mode, func(t *testing.T) {
			h := run(t, config(database(pg.Start(t).URL(), func(d *Database) { d.Mode = mode; d.Pool.Max = 1 })))
			conn := h.connect(t)
			do(t, conn, "drop table if exists copied; create table copied (n int, s text)")
			rows := make([][]any, 20000)
			for i := range rows {
				rows[i] = []any{i, strings.Repeat("y", rand.IntN(200))}
			}
			n, err := conn.CopyFrom(t.Context(), pgx.Identifier{"copied"}, []string{"n", "s"}, pgx.CopyFromRows(rows))
			if err != nil || n != 20000 {
				t.Fatalf("copied %d, %v", n, err)
			}
			var out bytes.Buffer
			tag, err := conn.PgConn().CopyTo(t.Context(), &out, "copy copied to stdout")
			if err != nil || tag.RowsAffected() != 20000 || bytes.Count(out.Bytes(), []byte("\n")) != 20000 {
				t.Fatalf("%v, %v, %d lines", tag, err, bytes.Count(out.Bytes(), []byte("\n")))
			}
			// A COPY that the server refuses in the middle, while the client still sends.
			bad := io.MultiReader(strings.NewReader("1\tx\nnot a number\ty\n"), strings.NewReader(strings.Repeat("3\tz\n", 100000)))
			if _, err := conn.PgConn().CopyFrom(t.Context(), bad, "copy copied from stdin"); err == nil {
				t.Fatal("bad data was accepted")
			}
			if got := value(t, conn, "select count(*)::text from copied"); got != "20000" {
				t.Fatalf("%s rows", got)
			}
			// And one that the client gives up.
			if _, err := conn.PgConn().CopyFrom(t.Context(), io.MultiReader(strings.NewReader("1\tx\n"), brokenReader{}), "copy copied from stdin"); err == nil {
				t.Fatal("a broken source was accepted")
			}
			if got := value(t, conn, "select count(*)::text from copied"); got != "20000" {
				t.Fatalf("%s rows", got)
			}
		})
	}
}

type brokenReader struct{}

func (brokenReader) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

func TestLargeRowsAndParametersPass(t *testing.T) {
	h := run(t, config(database(pg.Start(t).URL(), func(d *Database) { d.Pool.Max = 1 })))
	conn := h.connect(t)
	for _, size := range []int{100, 9_000, 10_235, 10_240, 16_384, 100_000, 5_000_000} {
		big := strings.Repeat("b", size)
		if got := value(t, conn, "select $1::text", big); got != big {
			t.Errorf("a parameter of %d came back with %d", size, len(got))
		}
		if got := value(t, conn, "select repeat('r', $1::int)", size); len(got) != size {
			t.Errorf("a row of %d came with %d", size, len(got))
		}
		// The statement's own text, named (pgx prepares it) and simple.
		if size < 1_000_000 {
			if got := value(t, conn, "select 'x' /* "+big+" */"); got != "x" {
				t.Errorf("a statement of %d: %q", size, got)
			}
		}
		if got := value(t, conn, "select '"+big+"'", pgx.QueryExecModeSimpleProtocol); got != big {
			t.Errorf("a simple query of %d came back with %d", size, len(got))
		}
	}
}

func TestALongPipelineDoesNotBlock(t *testing.T) {
	h := run(t, config(database(pg.Start(t).URL(), func(d *Database) { d.Pool.Max = 1 })))
	conn := h.connect(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	pipeline := conn.PgConn().StartPipeline(ctx)
	const n = 3000
	for range n {
		pipeline.SendQueryParams("select repeat('p', 5000)", nil, nil, nil, nil)
	}
	if err := pipeline.Sync(); err != nil {
		t.Fatal(err)
	}
	for i := range n {
		results, err := pipeline.GetResults()
		if err != nil {
			t.Fatalf("%d: %v", i, err)
		}
		if _, err := results.(*pgconn.ResultReader).Close(); err != nil {
			t.Fatalf("%d: %v", i, err)
		}
	}
	if err := pipeline.Close(); err != nil {
		t.Fatal(err)
	}
	if got := value(t, conn, "select 'still'"); got != "still" {
		t.Fatal(got)
	}
}

func TestNodePostgresAndPostgresJSWork(t *testing.T) {
	const folder = "../test/clients/pg-node"
	for _, program := range []string{"node", "npm"} {
		if _, err := exec.LookPath(program); err != nil {
			if os.Getenv("CI") == "true" {
				t.Fatal(err)
			}
			t.Skipf("%s is not installed", program)
		}
	}
	if _, err := os.Stat(folder + "/node_modules"); err != nil {
		install := exec.Command("npm", "ci", "--no-audit", "--no-fund")
		install.Dir = folder
		if out, err := install.CombinedOutput(); err != nil {
			if os.Getenv("CI") == "true" {
				t.Fatalf("npm ci: %v\n%s", err, out)
			}
			t.Skipf("npm ci: %v\n%s", err, out)
		}
	}
	h := run(t, config(database(pg.Start(t).URL(), func(d *Database) { d.Pool.Max = 3 }), func(c *Config) {
		c.Users = map[string]setting.Secret{"ann": "a password"}
	}), func(d *Deps) { d.Grants = []Grant{{User: "green", Secret: "a-generated-secret", Color: "green"}} })
	for _, url := range []string{h.url("ann", "a password"), h.url("green", "a-generated-secret")} {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		cmd := exec.CommandContext(ctx, "node", "client.mjs")
		cmd.Dir, cmd.Env = folder, append(os.Environ(), "DATABASE_URL="+url)
		out, err := cmd.CombinedOutput()
		cancel()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		t.Logf("%s", out)
	}
	await(t, "every server is back", func() bool { return h.Stats().Databases[0].Active == 0 })
}
