// Package redistest runs real Redis servers for tests: alone, with Sentinel, or as
// a Cluster; with TLS and users; each on its own ports and in its own folder, and
// nothing left behind.
//
// It needs the programs redis-server and redis-cli. Where they are missing, tests
// are skipped, or fail if the environment has CI=true. Any test may import it.
package redistest

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/redis/rueidis"
)

// startWithin bounds the time a server or a group of them may take to be ready. A
// Sentinel that a busy machine does not run for two seconds trusts nothing that it
// sees for thirty.
const startWithin = 2 * time.Minute

// A Server is one Redis process. Its methods belong to one goroutine at a time.
type Server struct {
	Addr string      // 127.0.0.1:port
	TLS  *tls.Config // what a client needs to trust it; nil without TLS
	CA   string      // the same as a file, PEM; "" without TLS

	t    testing.TB
	dir  string
	args []string
	mu   sync.Mutex
	cmd  *exec.Cmd
	done chan struct{}
}

// Start runs one Redis that forgets everything when it ends. args are further
// arguments of redis-server, such as "--requirepass", "secret".
func Start(t testing.TB, args ...string) *Server {
	t.Helper()
	s := prepare(t, args...)
	s.Restart()
	return s
}

// StartTLS runs one Redis that speaks TLS only.
func StartTLS(t testing.TB, args ...string) *Server {
	t.Helper()
	s := prepare(t)
	config, err := writeCertificates(s.dir)
	if err != nil {
		t.Fatalf("make certificates: %v", err)
	}
	s.TLS, s.CA = config, filepath.Join(s.dir, "server.crt")
	_, port, _ := net.SplitHostPort(s.Addr)
	s.args = append([]string{
		"--port", "0", "--tls-port", port, "--tls-auth-clients", "no",
		"--tls-cert-file", filepath.Join(s.dir, "server.crt"), "--tls-key-file", filepath.Join(s.dir, "server.key"),
		"--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", s.dir,
	}, args...)
	s.Restart()
	return s
}

func prepare(t testing.TB, args ...string) *Server {
	t.Helper()
	if _, err := exec.LookPath("redis-server"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("redis-server is missing, and CI may not do without")
		}
		t.Skip("redis-server is not installed: nothing here can be shown without it")
	}
	s := &Server{t: t, dir: t.TempDir(), Addr: FreeAddr(t)}
	_, port, _ := net.SplitHostPort(s.Addr)
	s.args = append([]string{"--port", port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", s.dir}, args...)
	t.Cleanup(s.Kill)
	return s
}

// FreeAddr returns an address that nobody listens on at this moment.
func FreeAddr(t testing.TB) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

// Restart starts the server, which must not be running, on the same address, and
// returns when it answers.
func (s *Server) Restart() {
	s.t.Helper()
	log, err := os.Create(filepath.Join(s.dir, "log"))
	if err != nil {
		s.t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command("redis-server", s.args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = s.dir, log, log
	if err := cmd.Start(); err != nil {
		s.t.Fatalf("start redis-server: %v", err)
	}
	done := make(chan struct{})
	go func() { _ = cmd.Wait(); close(done) }()
	s.mu.Lock()
	s.cmd, s.done = cmd, done
	s.mu.Unlock()
	Await(s.t, "redis-server on "+s.Addr, func() error {
		c, err := net.DialTimeout("tcp", s.Addr, time.Second)
		if err != nil {
			text, _ := os.ReadFile(filepath.Join(s.dir, "log"))
			return fmt.Errorf("%w\n%s", err, text)
		}
		return c.Close()
	})
}

// Kill ends the server as a crash would and returns when it is gone.
func (s *Server) Kill() {
	s.mu.Lock()
	cmd, done := s.cmd, s.done
	s.cmd = nil
	s.mu.Unlock()
	if cmd == nil {
		return
	}
	_ = cmd.Process.Kill()
	<-done
}

// Freeze stops the server from doing anything; its connections stay open.
func (s *Server) Freeze() { s.signal(syscall.SIGSTOP) }

// Thaw lets a frozen server go on.
func (s *Server) Thaw() { s.signal(syscall.SIGCONT) }

func (s *Server) signal(sig syscall.Signal) {
	if err := s.cmd.Process.Signal(sig); err != nil {
		s.t.Fatal(err)
	}
}

// Client returns a client for the server, closed when the test ends.
func (s *Server) Client() rueidis.Client {
	s.t.Helper()
	return Connect(s.t, rueidis.ClientOption{InitAddress: []string{s.Addr}, TLSConfig: s.TLS})
}

// Connect returns a client as limits want it, closed when the test ends.
func Connect(t testing.TB, o rueidis.ClientOption) rueidis.Client {
	t.Helper()
	o.DisableCache, o.DisableRetry = true, true
	c, err := rueidis.NewClient(o)
	if err != nil {
		t.Fatalf("connect to Redis: %v", err)
	}
	t.Cleanup(c.Close)
	return c
}

// Await calls ready until it returns nil; it ends the test if that takes too long.
func Await(t testing.TB, what string, ready func() error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), startWithin)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := ready()
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("%s is not ready after %s: %v", what, startWithin, err)
		}
	}
}

// StartCluster runs a Cluster of n masters, n at least 3.
func StartCluster(t testing.TB, n int) []*Server {
	t.Helper()
	nodes := make([]*Server, n)
	create := []string{"--cluster", "create"}
	for i := range nodes {
		_, bus, _ := net.SplitHostPort(FreeAddr(t))
		nodes[i] = Start(t, "--cluster-enabled", "yes", "--cluster-port", bus)
		create = append(create, nodes[i].Addr)
	}
	if out, err := exec.Command("redis-cli", append(create, "--cluster-yes")...).CombinedOutput(); err != nil {
		t.Fatalf("make a Cluster: %v\n%s", err, out)
	}
	for _, node := range nodes {
		_, port, _ := net.SplitHostPort(node.Addr)
		Await(t, "the Cluster", func() error {
			out, err := exec.Command("redis-cli", "-p", port, "cluster", "info").CombinedOutput()
			if err == nil && !strings.Contains(string(out), "cluster_state:ok") {
				err = fmt.Errorf("its state is\n%s", out)
			}
			return err
		})
	}
	return nodes
}

// A Watched is a master and its replica under Sentinels.
type Watched struct {
	Master, Replica *Server
	Sentinels       []string // addresses
	Name            string   // of the set
}

// StartSentinel runs a master, a replica, and three Sentinels that know both.
func StartSentinel(t testing.TB) *Watched {
	t.Helper()
	w := &Watched{Master: Start(t), Name: "limits"}
	host, port, _ := net.SplitHostPort(w.Master.Addr)
	w.Replica = Start(t, "--replicaof", host+" "+port)
	for range 3 {
		s := prepare(t)
		_, own, _ := net.SplitHostPort(s.Addr)
		conf := filepath.Join(s.dir, "sentinel.conf")
		text := "port " + own + "\nbind 127.0.0.1\ndir " + s.dir + "\n" +
			"sentinel monitor limits " + host + " " + port + " 2\n" +
			"sentinel down-after-milliseconds limits 1000\nsentinel failover-timeout limits 5000\n"
		if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		s.args = []string{conf, "--sentinel"}
		s.Restart()
		w.Sentinels = append(w.Sentinels, s.Addr)
	}
	for _, addr := range w.Sentinels {
		_, port, _ := net.SplitHostPort(addr)
		Await(t, "Sentinel", func() error { return knowsAll(port) })
	}
	return w
}

// knowsAll says whether a Sentinel has found the replica and the other two.
func knowsAll(port string) error {
	out, err := exec.Command("redis-cli", "-p", port, "sentinel", "master", "limits").CombinedOutput()
	if err != nil {
		return err
	}
	fields := strings.Fields(string(out))
	for i := 0; i+1 < len(fields); i += 2 {
		n, _ := strconv.Atoi(fields[i+1])
		if fields[i] == "num-slaves" && n != 1 || fields[i] == "num-other-sentinels" && n != 2 {
			return fmt.Errorf("%s is %d", fields[i], n)
		}
	}
	return nil
}
