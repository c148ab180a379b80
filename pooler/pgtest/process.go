package pgtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// newest is the major version that scripts/postgres-newest.sh installs.
const newest = 18

// findBinaries returns the folder that holds initdb and postgres: the first in PATH, or
// the newest version where there are several. For a version that is asked for it is the
// folder of scripts/postgres-newest.sh.
func findBinaries(version int) (string, error) {
	if version > 0 {
		return findNewest(version)
	}
	folders := filepath.SplitList(os.Getenv("PATH"))
	for _, pattern := range []string{
		"/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin",
		"/opt/homebrew/opt/postgresql@*/bin", "/usr/local/opt/postgresql@*/bin",
	} {
		found, _ := filepath.Glob(pattern) // the patterns are well formed
		for _, f := range slices.Backward(found) {
			folders = append(folders, f)
		}
	}
	for _, folder := range folders {
		if complete(folder) {
			return folder, nil
		}
	}
	return "", fmt.Errorf("%w: initdb and postgres are neither in PATH nor in /usr/lib/postgresql; install them: apt-get install postgresql", ErrUnavailable)
}

func findNewest(version int) (string, error) {
	if version > newest {
		return "", fmt.Errorf("%w: PostgreSQL %d is asked for, and %d is the newest that is known", ErrUnavailable, version, newest)
	}
	bases := []string{"/usr/local/lib"}
	if cache, err := os.UserCacheDir(); err == nil {
		bases = append(bases, cache)
	}
	for _, base := range bases {
		folder := filepath.Join(base, "mainstay", fmt.Sprintf("postgresql-%d", newest), "bin")
		if complete(folder) {
			return folder, nil
		}
	}
	return "", fmt.Errorf("%w: PostgreSQL %d is not installed; scripts/postgres-newest.sh does that", ErrUnavailable, version)
}

// complete reports whether a folder holds all that a server needs.
func complete(folder string) bool {
	return executable(filepath.Join(folder, "initdb")) && executable(filepath.Join(folder, "postgres"))
}

func executable(path string) bool {
	info, err := os.Stat(path)
	return err == nil && !info.IsDir() && info.Mode()&0o111 != 0
}

// owner is whom PostgreSQL runs as: PostgreSQL refuses root, so root lends it an
// unprivileged account. nil means the user we are.
func owner() (*syscall.Credential, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		account, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, err1 := strconv.ParseUint(account.Uid, 10, 32)
		gid, err2 := strconv.ParseUint(account.Gid, 10, 32)
		if err := errors.Join(err1, err2); err != nil {
			return nil, fmt.Errorf("read the ids of user %s: %w", name, err)
		}
		return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
	}
	return nil, fmt.Errorf("%w: this is root, which PostgreSQL refuses, and there is neither a user postgres nor nobody", ErrUnavailable)
}

// initialise makes the data folder, unless there is one from an earlier life.
func (s *Server) initialise(ctx context.Context) error {
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(s.dir, "data", "PG_VERSION")); err == nil {
		return nil
	}
	password := filepath.Join(s.dir, "password")
	if err := os.WriteFile(password, []byte(s.opts.Password+"\n"), 0o600); err != nil {
		return err
	}
	defer func() { _ = os.Remove(password) }()
	if s.opts.TLS {
		if err := writeCertificates(s.dir); err != nil {
			return err
		}
	}
	if err := s.giveAway(); err != nil {
		return err
	}
	cmd, err := s.command(ctx, "initdb", "-D", filepath.Join(s.dir, "data"), "-U", s.opts.User,
		"-A", s.opts.Auth, "--pwfile", password, "-E", "UTF8", "--locale=C", "--no-sync")
	if err != nil {
		return err
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("initdb: %w: %s", err, bytes.TrimSpace(out))
	}
	return s.writeHBA()
}

func (s *Server) writeHBA() error {
	if len(s.opts.HBA) == 0 {
		return nil
	}
	path := filepath.Join(s.dir, "data", "pg_hba.conf")
	old, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	lines := strings.Join(s.opts.HBA, "\n") + "\n" + string(old)
	return os.WriteFile(path, []byte(lines), 0o600)
}

// giveAway makes the folder and all in it the property of PostgreSQL's user.
func (s *Server) giveAway() error {
	who, err := owner()
	if err != nil || who == nil {
		return err
	}
	return filepath.WalkDir(s.dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, int(who.Uid), int(who.Gid))
	})
}

// command prepares one of PostgreSQL's programs to run as its owner, in a process
// group of its own so that a Ctrl-C in the terminal is ours to handle.
func (s *Server) command(ctx context.Context, program string, args ...string) (*exec.Cmd, error) {
	who, err := owner()
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, filepath.Join(s.bin, program), args...)
	cmd.Dir = s.dir
	cmd.Env = append(os.Environ(), "LC_ALL=C", "TZ=UTC")
	if lib := filepath.Join(filepath.Dir(s.bin), "lib"); s.opts.Version > 0 {
		cmd.Env = append(cmd.Env, "LD_LIBRARY_PATH="+lib) // it brings its own
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Credential: who}
	dieWithParent(cmd.SysProcAttr)
	return cmd, nil
}

// A process is a postmaster that runs.
type process struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended; cmd.ProcessState tells how
}

// startOnFreePort starts the server, again on another port if somebody was faster
// to take the one that was free.
func (s *Server) startOnFreePort(ctx context.Context) (err error) {
	for range 5 {
		if s.port, err = freePort(); err != nil {
			return err
		}
		if err = s.start(ctx); err == nil || !strings.Contains(err.Error(), "Address already in use") {
			return err
		}
	}
	return err
}

func freePort() (int, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer ln.Close()
	return ln.Addr().(*net.TCPAddr).Port, nil
}

// start starts the server on its port and waits until it answers.
func (s *Server) start(ctx context.Context) error {
	log, err := os.OpenFile(s.LogFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close() // the child keeps its own
	cmd, err := s.command(context.WithoutCancel(ctx), "postgres", s.arguments()...)
	if err != nil {
		return err
	}
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start postgres: %w", err)
	}
	p := &process{cmd: cmd, done: make(chan struct{})}
	go func() {
		_ = cmd.Wait() // how it ended is told by its state and its log
		close(p.done)
	}()
	s.process = p
	if err := s.awaitReady(ctx, p); err != nil {
		return errors.Join(err, s.end(kill))
	}
	return nil
}

// arguments are the postmaster's: quick, small, and careless about a power cut, but
// a commit that was acknowledged outlives a kill of the processes.
func (s *Server) arguments() []string {
	settings := map[string]string{
		"fsync": "off", "full_page_writes": "off",
		"shared_buffers": "32MB", "max_connections": "100", "logging_collector": "off",
		"listen_addresses": "127.0.0.1", "unix_socket_directories": s.dir,
	}
	if s.opts.TLS {
		settings["ssl"] = "on"
		settings["ssl_cert_file"] = filepath.Join(s.dir, "server.crt")
		settings["ssl_key_file"] = filepath.Join(s.dir, "server.key")
	}
	maps.Copy(settings, s.opts.Settings)
	args := []string{"-D", filepath.Join(s.dir, "data"), "-p", strconv.Itoa(s.port)}
	for k, v := range settings {
		args = append(args, "-c", k+"="+v)
	}
	return args
}

// awaitReady asks until the server answers a query, ends, or ctx or 60 s are over.
func (s *Server) awaitReady(ctx context.Context, p *process) error {
	ctx, cancel := context.WithTimeout(ctx, 60*time.Second)
	defer cancel()
	for {
		conn, err := pgconn.Connect(ctx, s.URLFor(s.opts.User, s.opts.Password, "postgres"))
		if err == nil {
			return conn.Close(ctx)
		}
		if refused, ok := errors.AsType[*pgconn.PgError](err); ok && refused.Code != "57P03" { // 57P03: still starting
			return fmt.Errorf("log in to the new server: %w", err)
		}
		select {
		case <-p.done:
			return fmt.Errorf("postgres ended while starting (%s): %s", p.cmd.ProcessState, s.lastWords())
		case <-ctx.Done():
			return fmt.Errorf("postgres did not answer: %w: %s", err, s.lastWords())
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// lastWords is the end of the server's log, where the reason stands.
func (s *Server) lastWords() string {
	text, err := os.ReadFile(s.LogFile())
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(string(text[max(0, len(text)-1000):]))
}

// How a server can be ended.
const (
	fast = syscall.SIGINT
	kill = syscall.SIGKILL
)

// end signals the postmaster and waits until it is gone; a fast shutdown that
// takes more than 30 s becomes a kill.
func (s *Server) end(how syscall.Signal) error {
	p := s.process
	if p == nil {
		return nil
	}
	s.process = nil
	pid := p.cmd.Process.Pid
	if how == fast {
		if err := p.cmd.Process.Signal(fast); err != nil && !errors.Is(err, os.ErrProcessDone) {
			return err
		}
		select {
		case <-p.done:
			return nil
		case <-time.After(30 * time.Second):
		}
	}
	// Backends are in sessions of their own: a signal to the group would miss them.
	backends := children(pid)
	if err := p.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	for _, backend := range backends {
		_ = syscall.Kill(backend, kill) // it may have ended by itself
	}
	<-p.done
	if how == fast {
		return errors.New("postgres did not shut down within 30s and was killed")
	}
	return nil
}

// children lists a process's own, where there is a /proc.
func children(pid int) (pids []int) {
	stats, _ := filepath.Glob("/proc/[0-9]*/stat") // the pattern is well formed
	for _, path := range stats {
		text, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		// "12 (a name) S 11 …": the name may hold anything, so count from its end.
		_, after, _ := strings.Cut(string(text[bytes.LastIndexByte(text, ')')+1:]), " ")
		fields := strings.Fields(after)
		if len(fields) < 2 || fields[1] != strconv.Itoa(pid) {
			continue
		}
		if child, err := strconv.Atoi(filepath.Base(filepath.Dir(path))); err == nil {
			pids = append(pids, child)
		}
	}
	return pids
}
