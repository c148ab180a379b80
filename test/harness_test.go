package test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// bin is the folder with the binaries under test, built with the race detector.
var bin string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "mainstay-test-*")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		bin = dir
		for _, pkg := range []string{"./cmd/mainstay", "./test/testapp"} {
			cmd := exec.Command("go", "build", "-race", "-o", dir+"/", pkg)
			cmd.Dir = ".."
			if out, err := cmd.CombinedOutput(); err != nil {
				fmt.Fprintf(os.Stderr, "build %s: %v\n%s", pkg, err, out)
				return 1
			}
		}
		return m.Run()
	}())
}

// output collects what a process writes, for waiting on and for failures.
type output struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

// mainstay is one running `mainstay run`.
type mainstay struct {
	t        *testing.T
	dir      string // data folder
	file     string
	env      []string
	cmd      *exec.Cmd
	out, log output
	stderr   *os.File // where the log goes; nil: to log
	exited   chan struct{}
	edge     string // http://…
}

// given are the ports that a test has got: no other gets them, too.
var given sync.Map

// ports finds free ones, below those that Mainstay gives to apps and those that the
// kernel gives to outgoing connections: one of these could take a port between two
// lives of a mainstay. Another process may take one before it is used; the size of
// the range makes that rare, and start tells it.
func ports(t *testing.T, n int) (ps []int) {
	t.Helper()
	var lns []net.Listener
	for len(ps) < n {
		port := 10_000 + rand.IntN(10_000)
		if _, taken := given.LoadOrStore(port, true); taken {
			continue
		}
		ln, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			continue // somebody has it
		}
		lns = append(lns, ln)
		ps = append(ps, port)
	}
	for _, ln := range lns {
		ln.Close()
	}
	return ps
}

// setup writes a configuration with free ports. more is put below it.
func setup(t *testing.T, more string, env ...string) *mainstay {
	t.Helper()
	dir := t.TempDir()
	p := ports(t, 4)
	m := &mainstay{t: t, dir: filepath.Join(dir, "data"), file: filepath.Join(dir, "mainstay.yaml"), edge: fmt.Sprintf("http://127.0.0.1:%d", p[0])}
	text := fmt.Sprintf(`service: shop
environment: test
data: %s
app:
  health: {path: /api/health, interval: 100ms, healthy_after: 1, start_within: 30s}
  drain: 10s
edge: {listen: "127.0.0.1:%d", drain: 5s}
admin: {listen: "127.0.0.1:%d"}
`, m.dir, p[0], p[1])
	if !strings.Contains(more, "pooler:") {
		text += fmt.Sprintf("pooler: {listen: \"127.0.0.1:%d\"}\n", p[2])
	}
	if !strings.Contains(more, "claude:") && slices.ContainsFunc(env, func(s string) bool { return strings.HasPrefix(s, "ANTHROPIC_BASE_URL=") }) {
		for _, kv := range env {
			if v, ok := strings.CutPrefix(kv, "ANTHROPIC_BASE_URL="); ok {
				text += fmt.Sprintf("claude: {listen: \"127.0.0.1:%d\", upstream: %q}\n", p[3], v)
			}
		}
	}
	if err := os.WriteFile(m.file, []byte(text+more), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, kv := range os.Environ() {
		switch name, _, _ := strings.Cut(kv, "="); name {
		case "DATABASE_URL", "ANTHROPIC_BASE_URL", "ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "PORT":
		default:
			m.env = append(m.env, kv)
		}
	}
	m.env = append(m.env, env...)
	return m
}

// start runs the app behind it and waits until it serves.
func (m *mainstay) start(command ...string) *mainstay {
	m.t.Helper()
	m.launch(command...)
	deadline := time.Now().Add(60 * time.Second)
	for !strings.Contains(m.out.String(), "Ctrl-C drains") {
		select {
		case <-m.exited:
			m.t.Fatalf("mainstay ended: %v\n%s", m.cmd.ProcessState, m.log.String())
		case <-time.After(20 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			m.t.Fatalf("mainstay did not serve\n%s", m.log.String())
		}
	}
	return m
}

func (m *mainstay) launch(command ...string) {
	m.t.Helper()
	args := []string{"run", "-c", m.file}
	if len(command) > 0 {
		args = append(append(args, "--"), command...)
	}
	m.cmd = exec.Command(filepath.Join(bin, "mainstay"), args...)
	m.cmd.Env = m.env
	m.cmd.Stdout, m.cmd.Stderr = &m.out, &m.log
	if m.stderr != nil {
		m.cmd.Stderr = m.stderr
	}
	if err := m.cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
	exited := make(chan struct{})
	m.exited = exited
	cmd := m.cmd
	go func() { _ = cmd.Wait(); close(exited) }()
	m.t.Cleanup(func() {
		m.stop(cmd, exited)
		if m.t.Failed() {
			m.t.Logf("log of mainstay:\n%s", tail(m.log.String(), 60))
		}
		if strings.Contains(m.log.String(), "DATA RACE") {
			m.t.Errorf("the race detector found something:\n%s", m.log.String())
		}
	})
}

func tail(s string, n int) string {
	lines := strings.Split(strings.TrimRight(s, "\n"), "\n")
	if len(lines) > n {
		lines = lines[len(lines)-n:]
	}
	return strings.Join(lines, "\n")
}

func (m *mainstay) stop(cmd *exec.Cmd, exited chan struct{}) {
	select {
	case <-exited:
		return
	default:
	}
	_ = cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-exited:
	case <-time.After(40 * time.Second):
		m.t.Error("mainstay did not stop")
		_ = cmd.Process.Signal(syscall.SIGQUIT)
		<-exited
	}
}

// verb runs another verb and returns its exit code and all that it wrote.
func (m *mainstay) verb(args ...string) (int, string) {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 90*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(bin, "mainstay"), append([]string{args[0], "-c", m.file}, args[1:]...)...)
	cmd.Env = m.env
	out, err := cmd.CombinedOutput()
	if err != nil && cmd.ProcessState == nil {
		m.t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), string(out)
}

// get asks the edge.
func (m *mainstay) get(path string, headers ...string) (status int, code, body string) {
	m.t.Helper()
	req, err := http.NewRequest("GET", m.edge+path, nil)
	if err != nil {
		m.t.Fatal(err)
	}
	for i := 0; i+1 < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	c := &http.Client{Timeout: 30 * time.Second}
	resp, err := c.Do(req)
	if err != nil {
		return 0, "", err.Error()
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return resp.StatusCode, "cut", string(b)
	}
	return resp.StatusCode, resp.Header.Get("Mainstay-Code"), string(b)
}

// eventually waits until ok, and fails with what it last saw.
func eventually(t *testing.T, what string, ok func() (bool, string)) {
	t.Helper()
	deadline := time.Now().Add(60 * time.Second)
	for {
		done, saw := ok()
		if done {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within a minute; last seen: %s", what, saw)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// metrics reads /metrics with the token.
func (m *mainstay) metrics() map[string]float64 {
	m.t.Helper()
	token, err := os.ReadFile(filepath.Join(m.dir, "admin.token"))
	if err != nil {
		m.t.Fatal(err)
	}
	var at struct{ Address string }
	b, err := os.ReadFile(filepath.Join(m.dir, "admin.json"))
	if err == nil {
		err = json.Unmarshal(b, &at)
	}
	if err != nil {
		m.t.Fatal(err)
	}
	req, _ := http.NewRequest("GET", "http://"+at.Address+"/metrics", nil)
	req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		m.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != 200 {
		m.t.Fatalf("%s %v\n%s", resp.Status, err, text)
	}
	values := map[string]float64{}
	for _, f := range metricLine.FindAllStringSubmatch(string(text), -1) {
		var v float64
		fmt.Sscan(f[2], &v)
		values[f[1]] = v
	}
	return values
}

var metricLine = regexp.MustCompile(`(?m)^([a-z_]+(?:\{[^\n]*\})?) (\S+)$`)

// alive tells whether a process exists and is no zombie.
func alive(pid int) bool {
	if err := syscall.Kill(pid, 0); errors.Is(err, syscall.ESRCH) {
		return false
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && !strings.Contains(string(b), ") Z ")
}

// edit changes the configuration file.
func (m *mainstay) edit(from, to string) {
	m.t.Helper()
	text, err := os.ReadFile(m.file)
	if err == nil {
		err = os.WriteFile(m.file, []byte(strings.Replace(string(text), from, to, 1)), 0o600)
	}
	if err != nil {
		m.t.Fatal(err)
	}
}
