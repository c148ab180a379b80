package main

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// poolSize is how many connections to PostgreSQL each pooler may have.
const poolSize = 20

// A subject is what pgbench is pointed at.
type subject struct {
	name string
	port int
	pid  int    // 0: no pooler
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
	s.upstream = fmt.Sprintf("postgres://bench:%s@127.0.0.1:%d/bench?sslmode=disable", secret, b.pg.Port())
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

// pgbouncer starts Debian's with what of s it can have; it refuses to be root.
func (b *bench) pgbouncer(s service) (*subject, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	port := ln.Addr().(*net.TCPAddr).Port
	ln.Close()
	ini, err := b.bouncerConfig(s, port)
	if err != nil {
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
	p := &subject{name: "PgBouncer", port: port, pid: cmd.Process.Pid, old: bouncerVersion() < 21, ssl: s.ssl(), end: func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // its end is all that matters
	}}
	for range 100 {
		if c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
			c.Close()
			return p, nil
		}
		time.Sleep(50 * time.Millisecond)
	}
	p.end()
	return nil, fmt.Errorf("pgbouncer does not listen on port %d", port)
}

// bouncerConfig writes PgBouncer's files. All its clients share one pool, as
// Mainstay's do.
func (b *bench) bouncerConfig(s service, port int) (ini string, err error) {
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
	}
	if s.tls != "" {
		lines = append(lines, "client_tls_sslmode = require", "client_tls_cert_file = "+s.tls+"/server.crt", "client_tls_key_file = "+s.tls+"/server.key")
	}
	return b.write(s.auth+".ini", strings.Join(lines, "\n")+"\n")
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

// direct is PostgreSQL itself.
func (b *bench) direct() *subject {
	return &subject{name: "direct", port: b.pg.Port(), end: func() {}}
}

// both starts PgBouncer and Mainstay, and lists them behind others.
func (b *bench) both(s service, others ...*subject) (all []*subject, end func(), err error) {
	all = others
	end = func() {
		for _, s := range all {
			s.end()
		}
	}
	for _, start := range []func(service) (*subject, error){b.pgbouncer, b.mainstay} {
		one, err := start(s)
		if err != nil {
			end()
			return nil, nil, err
		}
		all = append(all, one)
	}
	return all, end, nil
}
