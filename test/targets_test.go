package test

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

// outside runs copies of the testapp that are not Mainstay's.
func outside(t *testing.T, version string, n int) (addresses []string, procs []*os.Process) {
	t.Helper()
	for _, port := range ports(t, n) {
		cmd := exec.Command(testapp())
		cmd.Env = append(os.Environ(), fmt.Sprintf("PORT=%d", port), "VERSION="+version)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
		at := fmt.Sprintf("127.0.0.1:%d", port)
		eventually(t, at+" answers", func() (bool, string) {
			c, err := net.Dial("tcp", at)
			if err != nil {
				return false, err.Error()
			}
			_ = c.Close()
			return true, ""
		})
		addresses, procs = append(addresses, at), append(procs, cmd.Process)
	}
	return addresses, procs
}

// served asks ten times and returns what answered how often; all must answer.
func served(t *testing.T, m *mainstay) map[string]int {
	t.Helper()
	got := map[string]int{}
	for range 10 {
		status, code, body := m.get("/version")
		if status != 200 {
			t.Errorf("%d %s %s", status, code, body)
		}
		got[body]++
	}
	return got
}

func TestCopiesThatSomebodyElseRunsAreDeployedLikeAnyOther(t *testing.T) {
	t.Parallel()
	blue, pids := outside(t, "v1", 2)
	m := setup(t, "")
	text, err := os.ReadFile(m.file)
	if err != nil {
		t.Fatal(err)
	}
	text = []byte(strings.Replace(string(text), "app:\n", fmt.Sprintf("app:\n  targets: [%q, %q]\n", blue[0], blue[1]), 1))
	if err := os.WriteFile(m.file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	m.start()
	if !strings.Contains(m.out.String(), "run by somebody else") || strings.Contains(m.out.String(), "pid 0") || strings.Contains(m.out.String(), "output in") {
		t.Errorf("start-up block:\n%s", m.out.String())
	}
	if got := served(t, m); got["v1"] != 10 {
		t.Fatalf("served by %v", got)
	}

	t.Run("what cannot be is refused", func(t *testing.T) {
		for _, tc := range []struct {
			args []string
			want string
		}{
			{[]string{"--", testapp()}, "app.targets"},
			{[]string{"--targets", "nowhere"}, `"nowhere" is not an address`},
			{[]string{"--targets", blue[0]}, "belongs to blue-1"},
		} {
			if code, out := m.verb(append([]string{"deploy"}, tc.args...)...); code != 1 || !strings.Contains(out, tc.want) {
				t.Errorf("%v: %d\n%s", tc.args, code, out)
			}
		}
	})
	t.Run("one server of a color may die", func(t *testing.T) {
		if err := pids[0].Kill(); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the dead server is out", func() (bool, string) { return strings.Contains(m.log.String(), "address_unhealthy"), m.log.String() })
		if got := served(t, m); got["v1"] != 10 {
			t.Errorf("served by %v", got)
		}
	})
	green, _ := outside(t, "v2", 2)
	if code, out := m.verb("deploy", "--targets", strings.Join(green, ","), "--version", "v2"); code != 0 {
		t.Fatalf("deploy: %d\n%s", code, out)
	}
	if got := served(t, m); got["v2"] != 10 {
		t.Fatalf("served by %v", got)
	}
	t.Run("a release that is not fit everywhere is not deployed", func(t *testing.T) {
		p := ports(t, 1)
		next, _ := outside(t, "v3", 1)
		bad := m.edited(t, "start_within: 30s", "start_within: 1s")
		if code, out := m.verb("deploy", "--targets", fmt.Sprintf("%s,127.0.0.1:%d", next[0], p[0])); code != 1 || !strings.Contains(out, "was not healthy within 1s") || !strings.Contains(out, fmt.Sprint(p[0])) {
			t.Errorf("%d\n%s", code, out)
		}
		bad()
	})
	t.Run("a kill of mainstay loses nothing", func(t *testing.T) {
		m.killed().again()
		if got := served(t, m); got["v2"] != 10 {
			t.Errorf("served by %v", got)
		}
	})
	t.Run("the servers that stand by may get the next release", func(t *testing.T) {
		if code, out := m.verb("deploy", "--targets", blue[1], "--version", "v1 again"); code != 0 {
			t.Fatalf("deploy: %d\n%s", code, out)
		}
		if got := served(t, m); got["v1"] != 10 {
			t.Errorf("served by %v", got)
		}
	})
	t.Run("mainstay ends nobody", func(t *testing.T) {
		if err := m.cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		<-m.exited
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		for _, at := range append(green, blue[1]) {
			req, _ := http.NewRequestWithContext(ctx, "GET", "http://"+at+"/version", nil)
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Error(err)
				continue
			}
			resp.Body.Close()
		}
	})
}

// killed is a kill -9 of mainstay.
func (m *mainstay) killed() *mainstay {
	m.t.Helper()
	if err := m.cmd.Process.Kill(); err != nil {
		m.t.Fatal(err)
	}
	<-m.exited
	return m
}

// again starts mainstay after its end, with the same folder.
func (m *mainstay) again(command ...string) *mainstay {
	m.t.Helper()
	m.out.mu.Lock()
	m.out.buf.Reset()
	m.out.mu.Unlock()
	return m.start(command...)
}

// edited changes the file of a running mainstay; what it returns changes it back.
func (m *mainstay) edited(t *testing.T, from, to string) (back func()) {
	t.Helper()
	was, err := os.ReadFile(m.file)
	if err != nil {
		t.Fatal(err)
	}
	write := func(text string) {
		if err := os.WriteFile(m.file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if code, out := m.verb("reload"); code != 0 {
			t.Fatalf("reload: %s", out)
		}
	}
	write(strings.Replace(string(was), from, to, 1))
	return func() { write(string(was)) }
}
