package main

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// poolSize is how many connections to PostgreSQL each pooler may have.
const poolSize = 20

// A subject is what is measured.
type subject struct {
	name string
	port int
	pid  int    // 0: no pooler
	peer bool   // others are compared with it
	old  bool   // cannot carry prepared statements
	ssl  string // pgbench's sslmode; "": disable
	end  func()
}

// mainstay starts the pooler as a process of its own.
func (b *bench) mainstay(s service) (*subject, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	s.profile = b.profile
	s.upstream = fmt.Sprintf("postgres://bench:%s@127.0.0.1:%d/bench?sslmode=%s", secret, b.pg.Port(), s.upstreamSSL())
	cmd := exec.Command(self, s.args()...)
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
	return &subject{name: "Mainstay", port: port, pid: cmd.Process.Pid, ssl: s.ssl(), end: func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait() // its end is all that matters
	}}, nil
}

// ssl is the sslmode of its clients.
func (s *service) ssl() string {
	if s.tls != "" {
		return "require"
	}
	return ""
}

// upstreamSSL is the sslmode towards PostgreSQL, for both poolers: PgBouncer's default
// has changed.
func (s *service) upstreamSSL() string {
	if s.upstreamTLS {
		return "require"
	}
	return "disable"
}

// A bouncer is a PgBouncer that is measured.
type bouncer struct {
	path    string
	version string
	minor   int // of 1.x
}

// preparing is the first PgBouncer 1.x that can carry prepared statements.
const preparing = 21

// findBouncer asks the program what it is.
func findBouncer(name string) (p bouncer, err error) {
	if p.path, err = exec.LookPath(name); err != nil {
		return p, err
	}
	if p.path, err = filepath.Abs(p.path); err != nil {
		return p, err
	}
	out, err := exec.Command(p.path, "--version").Output()
	if err != nil {
		return p, fmt.Errorf("%s --version: %w", p.path, err)
	}
	first, _, _ := strings.Cut(string(out), "\n")
	m := regexp.MustCompile(`^PgBouncer (1\.(\d+)\S*)`).FindStringSubmatch(first)
	if m == nil {
		return p, fmt.Errorf("%s --version says %q, where PgBouncer 1.x is needed", p.path, first)
	}
	p.version = m[1]
	p.minor, _ = strconv.Atoi(m[2]) // digits
	return p, nil
}

// pgbouncer starts one with what of s it can have; it refuses to be root.
func (b *bench) pgbouncer(is bouncer, s service) (*subject, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	port := ln.Addr().(*net.TCPAddr).Port
	ln.Close()
	ini, err := b.bouncerConfig(is, s, port)
	if err != nil {
		return nil, err
	}
	args := []string{"-q", ini}
	if os.Geteuid() == 0 {
		args = append([]string{"-u", "nobody"}, args...)
	}
	cmd := exec.Command(is.path, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &subject{name: "PgBouncer " + is.version, port: port, pid: cmd.Process.Pid, peer: true, old: is.minor < preparing, ssl: s.ssl()}
	p.end = func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // its end is all that matters
	}
	for range 100 {
		if c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
			c.Close()
			return p, nil
		}
		time.Sleep(50 * time.Millisecond)
	}
	p.end()
	return nil, fmt.Errorf("%s does not listen on port %d", is.path, port)
}

// bouncerConfig writes PgBouncer's files. All its clients share one pool, as
// Mainstay's do.
func (b *bench) bouncerConfig(is bouncer, s service, port int) (ini string, err error) {
	users, err := b.write("users.txt", fmt.Sprintf("\"bench\" \"%[1]s\"\n\"victim\" \"%[1]s\"\n\"flood\" \"%[1]s\"\n", secret))
	if err != nil {
		return "", err
	}
	method := map[string]string{"trust": "trust", "scram": "scram-sha-256"}[s.auth]
	lines := []string{
		"[databases]", fmt.Sprintf("bench = host=127.0.0.1 port=%d user=bench password=%s", b.pg.Port(), secret),
		"[pgbouncer]", "listen_addr = 127.0.0.1", fmt.Sprintf("listen_port = %d", port), "unix_socket_dir =",
		"auth_type = " + method, "auth_file = " + users, "pool_mode = transaction", fmt.Sprintf("default_pool_size = %d", poolSize),
		"max_client_conn = 20000", "log_connections = 0", "log_disconnections = 0", "logfile = /dev/null",
		"server_tls_sslmode = " + s.upstreamSSL(),
	}
	if is.minor >= preparing {
		lines = append(lines, "max_prepared_statements = 200") // the default since 1.24
	}
	if s.tls != "" {
		lines = append(lines, "client_tls_sslmode = require", "client_tls_cert_file = "+s.tls+"/server.crt", "client_tls_key_file = "+s.tls+"/server.key")
	}
	return b.write(s.auth+"-"+is.version+".ini", strings.Join(lines, "\n")+"\n")
}

// direct is PostgreSQL itself.
func (b *bench) direct() *subject {
	return &subject{name: "direct", port: b.pg.Port(), end: func() {}}
}

// start starts each PgBouncer and Mainstay, and lists them behind others, which end with
// them.
func (b *bench) start(s service, others ...*subject) (all []*subject, end func(), err error) {
	all = others
	end = func() {
		for _, s := range all {
			s.end()
		}
	}
	for _, is := range b.bouncers {
		one, err := b.pgbouncer(is, s)
		if err != nil {
			end()
			return nil, nil, err
		}
		all = append(all, one)
	}
	one, err := b.mainstay(s)
	if err != nil {
		end()
		return nil, nil, err
	}
	all = append(all, one)
	return all, end, nil
}
