// Package pgtest runs a real PostgreSQL for tests and demonstrations: its own
// data folder, its own port, its own unprivileged user when the process is root,
// and nothing left behind.
//
// It needs the PostgreSQL server programs (initdb and postgres), found in PATH or
// where Debian, Red Hat and Homebrew put them. Anyone may import it, also programs
// that are no test: it does not import testing.
package pgtest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// ErrUnavailable is wrapped by errors of [Open] that mean that this machine cannot
// run a PostgreSQL at all: a test skips then.
var ErrUnavailable = errors.New("no PostgreSQL server can run here")

// Options say what the server shall be like. The zero value is a server with the
// superuser postgres, SCRAM-SHA-256 authentication and a generated password.
type Options struct {
	User     string            // superuser; default "postgres"
	Password string            // of the superuser; default: 26 random characters
	Database string            // what URL leads to, created if need be; default "postgres"
	Auth     string            // pg_hba method: scram-sha-256 (default), md5, password, trust
	HBA      []string          // pg_hba.conf lines that come before the default ones
	TLS      bool              // serve TLS with a certificate for localhost and 127.0.0.1; see CAFile
	Settings map[string]string // more postgresql.conf settings, on top of a fast and unsafe set
	Version  int               // at least this major version; 0: what the machine has
	Dir      string            // folder for data, socket and log; default: a temporary one, removed by Stop
}

func (o *Options) setDefaults() {
	if o.User == "" {
		o.User = "postgres"
	}
	if o.Password == "" {
		o.Password = rand.Text()
	}
	if o.Database == "" {
		o.Database = "postgres"
	}
	if o.Auth == "" {
		o.Auth = "scram-sha-256"
	}
}

// A Server is one running PostgreSQL. Its methods may be called from several
// goroutines, except that Stop, Kill and Restart exclude one another.
type Server struct {
	opts      Options
	dir       string
	temporary bool
	port      int
	bin       string

	mu      sync.Mutex // over process: one of Stop, Kill, Restart at a time
	process *process   // nil when not running
}

// Open makes a data folder, starts PostgreSQL in it and waits until it answers.
// ctx limits that only, not the server's life. An error wraps [ErrUnavailable] if
// the machine lacks the programs.
func Open(ctx context.Context, opts Options) (*Server, error) {
	opts.setDefaults()
	bin, err := findBinaries(opts.Version)
	if err != nil {
		return nil, err
	}
	s := &Server{opts: opts, dir: opts.Dir, bin: bin}
	if s.dir == "" {
		if s.dir, err = temporaryFolder(); err != nil {
			return nil, err
		}
		s.temporary = true
	}
	if err := s.open(ctx); err != nil {
		return nil, errors.Join(err, s.Stop())
	}
	return s, nil
}

func (s *Server) open(ctx context.Context) error {
	if err := s.initialise(ctx); err != nil {
		return err
	}
	if err := s.startOnFreePort(ctx); err != nil {
		return err
	}
	if s.opts.Database == "postgres" {
		return nil
	}
	quoted := `"` + s.opts.Database + `"`
	return s.execIn(ctx, "postgres", "create database "+quoted)
}

// temporaryFolder makes a folder whose path leaves room for a socket's name, which
// the kernel limits to 107 bytes.
func temporaryFolder() (string, error) {
	base := os.TempDir()
	if len(base) > 60 {
		base = "/tmp"
	}
	return os.MkdirTemp(base, "pgtest-")
}

// URL leads to the server over TCP as the superuser, without TLS.
func (s *Server) URL() string {
	return s.URLFor(s.opts.User, s.opts.Password, s.opts.Database)
}

// URLFor leads to the server over TCP as another user or to another database.
func (s *Server) URLFor(user, password, database string) string {
	u := url.URL{
		Scheme: "postgres", User: url.UserPassword(user, password), Host: s.Addr(),
		Path: "/" + database, RawQuery: "sslmode=disable",
	}
	return u.String()
}

// Addr is the server's host:port. It stays the same over restarts.
func (s *Server) Addr() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(s.port)) }

// Port is the server's TCP port, which its socket's name ends with.
func (s *Server) Port() int { return s.port }

// Socket is the folder that holds the server's Unix socket.
func (s *Server) Socket() string { return s.dir }

// User is the superuser's name.
func (s *Server) User() string { return s.opts.User }

// Password is the superuser's.
func (s *Server) Password() string { return s.opts.Password }

// LogFile holds what the server wrote.
func (s *Server) LogFile() string { return filepath.Join(s.dir, "log") }

// CAFile is the certificate that signed the server's, if Options.TLS was set.
func (s *Server) CAFile() string { return filepath.Join(s.dir, "ca.crt") }

// Exec runs SQL, several statements if need be, as the superuser on a connection
// of its own. It waits at most 30 s.
func (s *Server) Exec(ctx context.Context, sql string) error {
	return s.execIn(ctx, s.opts.Database, sql)
}

func (s *Server) execIn(ctx context.Context, database, sql string) error {
	_, err := s.query(ctx, database, sql)
	return err
}

// Value runs SQL as Exec does and returns the first column of its last result's
// first row as text; "" if that is null or there is no row.
func (s *Server) Value(ctx context.Context, sql string) (string, error) {
	results, err := s.query(ctx, s.opts.Database, sql)
	if err != nil || len(results) == 0 {
		return "", err
	}
	rows := results[len(results)-1].Rows
	if len(rows) == 0 || len(rows[0]) == 0 {
		return "", nil
	}
	return string(rows[0][0]), nil
}

func (s *Server) query(ctx context.Context, database, sql string) ([]*pgconn.Result, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	conn, err := pgconn.Connect(ctx, s.URLFor(s.opts.User, s.opts.Password, database))
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	results, err := conn.Exec(ctx, sql).ReadAll()
	if err != nil {
		return nil, fmt.Errorf("run %.60q: %w", sql, err)
	}
	return results, nil
}

// Stop shuts the server down (fast: sessions are ended, data is kept) and removes
// its folder if Open made it. It may be called twice.
func (s *Server) Stop() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	err := s.end(fast)
	if s.temporary {
		err = errors.Join(err, os.RemoveAll(s.dir))
	}
	return err
}

// Kill ends the server and all its processes with SIGKILL, as a crash of the
// machine would. [Server.Restart] brings it back.
func (s *Server) Kill() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.end(kill)
}

// Restart shuts the server down fast if it runs, starts it again on the same port
// and data, and waits until it answers.
func (s *Server) Restart(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.end(fast); err != nil {
		return err
	}
	for range 50 {
		// What a kill left of the last server's processes holds its memory for a moment.
		err := s.start(ctx)
		if err == nil || ctx.Err() != nil || !strings.Contains(err.Error(), "pre-existing shared memory block") {
			return err
		}
		time.Sleep(100 * time.Millisecond)
	}
	return s.start(ctx)
}
