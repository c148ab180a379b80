package test

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"mainstay.dev/mainstay/claude/claudetest"
	"mainstay.dev/mainstay/pooler/pgtest"
)

// upstreams starts a real PostgreSQL and the fake API, and returns the variables
// that an app would have.
func upstreams(t *testing.T) (*pgtest.Server, *claudetest.Server, []string) {
	t.Helper()
	pg := pgtest.Start(t, pgtest.Options{})
	api := claudetest.New(claudetest.Options{Seed: 1, Keep: 100})
	url := api.Start(t)
	return pg, api, []string{"DATABASE_URL=" + pg.URL(), "ANTHROPIC_BASE_URL=" + url, "ANTHROPIC_API_KEY=sk-ant-test"}
}

func testapp() string { return filepath.Join(bin, "testapp") }

func TestTheThreePlanesServeAnAppThatWasNotChanged(t *testing.T) {
	pg, api, env := upstreams(t)
	m := setup(t, "", env...).start(testapp())

	if status, _, body := m.get("/query"); status != 200 || body != pg.User() {
		t.Errorf("query: %d %q", status, body)
	}
	if status, _, body := m.get("/ask"); status != 200 || body == "" {
		t.Errorf("ask: %d %q", status, body)
	}
	_, _, url := m.get("/env?name=DATABASE_URL")
	if strings.Contains(url, pg.Password()) || !regexp.MustCompile(`^postgresql://blue:[A-Z0-9]{26}@127\.0\.0\.1:\d+/postgres\?sslmode=disable$`).MatchString(url) {
		t.Errorf("DATABASE_URL %q", url)
	}
	if _, _, base := m.get("/env?name=ANTHROPIC_BASE_URL"); !regexp.MustCompile(`^http://127\.0\.0\.1:\d+/@blue$`).MatchString(base) {
		t.Errorf("ANTHROPIC_BASE_URL %q", base)
	}
	if _, _, attrs := m.get("/env?name=OTEL_RESOURCE_ATTRIBUTES"); attrs != "deployment.environment.name=test,mainstay.color=blue" {
		t.Errorf("OTEL_RESOURCE_ATTRIBUTES %q", attrs)
	}
	if got := api.Counts(); got.Requests == 0 {
		t.Errorf("the API saw nothing: %+v", got)
	}
	// Every plane knows the color that asked.
	eventually(t, "exchanges by color in the metrics", func() (bool, string) {
		seen := map[string]bool{}
		for name, v := range m.metrics() {
			for _, plane := range []string{"edge_requests", "pooler_queries", "claude_calls"} {
				if v > 0 && strings.HasPrefix(name, "mainstay_"+plane+"_total{") && strings.Contains(name, `color="blue"`) {
					seen[plane] = true
				}
			}
		}
		return len(seen) == 3, fmt.Sprint(seen)
	})
	out := m.out.String()
	for _, want := range []string{"shop · test", "edge", "pooler", "claude", "dashboard: mainstay dashboard -c", "Ctrl-C"} {
		if !strings.Contains(out, want) {
			t.Errorf("the start-up block lacks %q:\n%s", want, out)
		}
	}
	if code, text := m.verb("status"); code != 0 || !strings.Contains(text, "ready") || !strings.Contains(text, "live") {
		t.Errorf("status: %d\n%s", code, text)
	}
	if code, text := m.verb("status", "--json"); code != 0 || !strings.Contains(text, `"ready": true`) {
		t.Errorf("status --json: %d\n%s", code, text)
	}
	if code, text := m.verb("dashboard"); code != 0 || !regexp.MustCompile(`^http://127\.0\.0\.1:\d+/login\?`).MatchString(text) {
		t.Errorf("dashboard: %d\n%s", code, text)
	}
	for name, text := range map[string]string{"log": m.log.String(), "out": m.out.String()} {
		for _, secret := range []string{pg.Password(), "sk-ant-test"} {
			if strings.Contains(text, secret) {
				t.Errorf("a secret stands in the %s", name)
			}
		}
	}
}

func TestAPlaneWithoutAnUpstreamIsOffAndSaysSo(t *testing.T) {
	m := setup(t, "").start(testapp())
	out := m.out.String()
	if !strings.Contains(out, "off: no DATABASE_URL") || !strings.Contains(out, "off: no claude section") {
		t.Errorf("got\n%s", out)
	}
	if _, _, body := m.get("/env?name=ANTHROPIC_BASE_URL"); body != "" {
		t.Errorf("the app was given %q", body)
	}
}

func TestAnInterruptDrainsAndASecondOneKills(t *testing.T) {
	m := setup(t, "").start(testapp())
	_, _, pid := m.get("/pid")
	answer := make(chan string, 1)
	go func() {
		_, _, body := m.get("/slow?ms=2000")
		answer <- body
	}()
	inFlight(t, m, 1)
	_ = m.cmd.Process.Signal(syscall.SIGINT)
	if got := <-answer; got != "part part part part " {
		t.Errorf("the request in flight got %q", got)
	}
	<-m.exited
	if code := m.cmd.ProcessState.ExitCode(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	if n, _ := strconv.Atoi(pid); alive(n) {
		t.Error("the app outlived a graceful stop")
	}

	m = setup(t, "").start(testapp())
	_, _, pid = m.get("/pid")
	go func() { m.get("/slow?ms=20000") }()
	inFlight(t, m, 1)
	_ = m.cmd.Process.Signal(syscall.SIGINT)
	eventually(t, "draining", func() (bool, string) { return strings.Contains(m.log.String(), "draining"), "" })
	_ = m.cmd.Process.Signal(syscall.SIGINT)
	<-m.exited
	if code := m.cmd.ProcessState.ExitCode(); code != 130 {
		t.Errorf("exit code %d, want 130", code)
	}
	if n, _ := strconv.Atoi(pid); n > 0 {
		eventually(t, "the end of the app", func() (bool, string) { return !alive(n), pid })
	}
}

func inFlight(t *testing.T, m *mainstay, n float64) {
	t.Helper()
	eventually(t, "requests in flight", func() (bool, string) {
		v := m.metrics()["mainstay_edge_requests_in_flight"]
		return v >= n, fmt.Sprint(v)
	})
}

func TestAnAppOutlivesAKillOfMainstayAndIsAdopted(t *testing.T) {
	_, _, env := upstreams(t)
	m := setup(t, "", env...).start(testapp())
	_, _, before := m.get("/pid")
	pid, err := strconv.Atoi(before)
	if err != nil {
		t.Fatal(before)
	}
	t.Cleanup(func() { _ = syscall.Kill(-pid, syscall.SIGKILL) })
	_ = m.cmd.Process.Kill()
	<-m.exited
	if !alive(pid) {
		t.Fatal("the app died with Mainstay")
	}
	m.out.buf.Reset()
	m.start(testapp())
	if _, _, after := m.get("/pid"); after != before {
		t.Errorf("pid %s before, %s after: it was not adopted", before, after)
	}
	if !strings.Contains(m.out.String(), "adopted") {
		t.Errorf("the start-up block does not say so:\n%s", m.out.String())
	}
	// Its old credentials still open the pooler.
	eventually(t, "a query", func() (bool, string) {
		status, _, body := m.get("/query")
		return status == 200, body
	})
}

func TestAReloadAppliesAllOfTheFileOrNothing(t *testing.T) {
	m := setup(t, "").start(testapp())
	text, err := os.ReadFile(m.file)
	if err != nil {
		t.Fatal(err)
	}
	write := func(s string) {
		if err := os.WriteFile(m.file, []byte(s), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	upload := func() int {
		resp, err := m.post("/upload", strings.Repeat("x", 5000))
		if err != nil {
			t.Fatal(err)
		}
		return resp
	}
	smaller := strings.Replace(string(text), "drain: 5s}", "drain: 5s, max_body: 1KB}", 1)
	write(strings.Replace(smaller, "environment: test", "environment: other", 1))
	if code, out := m.verb("reload"); code == 0 || !strings.Contains(out, "environment: cannot change while running") {
		t.Errorf("a change that needs a restart: %d %s", code, out)
	}
	write(smaller + "\nnonsense: 1\n")
	if code, out := m.verb("reload"); code == 0 || !strings.Contains(out, "nonsense: unknown key") {
		t.Errorf("a wrong file: %d %s", code, out)
	}
	if got := upload(); got != 200 {
		t.Errorf("after refused reloads: %d", got)
	}
	write(smaller)
	if code, out := m.verb("reload"); code != 0 || out != "reloaded\n" {
		t.Errorf("reload: %d %s", code, out)
	}
	if got := upload(); got != 413 {
		t.Errorf("after the reload: %d, want 413", got)
	}
	write(string(text))
	_ = m.cmd.Process.Signal(syscall.SIGHUP)
	eventually(t, "the old limit after SIGHUP", func() (bool, string) { got := upload(); return got == 200, fmt.Sprint(got) })
}

func TestACrashOfTheAppIsClearAndMended(t *testing.T) {
	m := setup(t, "").start(testapp())
	_, _, before := m.get("/pid")
	pid, _ := strconv.Atoi(before)
	_ = syscall.Kill(pid, syscall.SIGKILL)
	eventually(t, "a new copy that answers", func() (bool, string) {
		status, code, body := m.get("/pid")
		switch {
		case status == 502 && (code == "target_unreachable" || code == "target_broke"), status == 503 && code == "no_target":
			return false, code
		case status == 200:
			return body != before, body
		}
		t.Fatalf("an unclear answer: %d %q %q", status, code, body)
		return false, ""
	})
	if log := m.log.String(); !strings.Contains(log, "app_crashed") && !strings.Contains(log, "crashed") {
		t.Error("the crash is not in the log")
	}
}

// Postgres and the API die and come back; Mainstay neither restarts nor leaks.
func TestKilledUpstreamsComeBackWithoutARestartOrALeak(t *testing.T) {
	pg, api, env := upstreams(t)
	m := setup(t, "", env...).start(testapp())
	warm := func() {
		for range 20 {
			m.get("/query")
			m.get("/ask")
		}
	}
	warm()
	goroutines := m.metrics()["go_goroutines"]
	for round := range 3 {
		if err := pg.Kill(); err != nil {
			t.Fatal(err)
		}
		at := strings.TrimPrefix(api.URL(), "http://")
		api.Close()
		if status, _, body := m.get("/query"); status == 200 {
			t.Errorf("round %d: a query of a dead PostgreSQL was answered: %q", round, body)
		}
		if status, _, _ := m.get("/version"); status != 200 {
			t.Errorf("round %d: what needs no database fails with it: %d", round, status)
		}
		if err := pg.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := api.Open(at); err != nil {
			t.Fatal(err)
		}
		for _, path := range []string{"/query", "/ask"} {
			eventually(t, path+" after the upstream came back", func() (bool, string) {
				status, code, body := m.get(path)
				return status == 200, fmt.Sprint(status, code, body)
			})
		}
	}
	warm()
	eventually(t, "as many goroutines as before", func() (bool, string) {
		now := m.metrics()["go_goroutines"]
		return now <= goroutines+5, fmt.Sprintf("%v, before %v", now, goroutines)
	})
	n, err := pg.Value(t.Context(), "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()")
	if err != nil {
		t.Fatal(err)
	}
	if got, _ := strconv.Atoi(n); got > 10 {
		t.Errorf("%d connections at PostgreSQL, more than the pool's max of 10", got)
	}
}

func TestAnAppThatIgnoresPORTIsNoticedAndTheMendIsNamed(t *testing.T) {
	p := ports(t, 1)[0]
	m := setup(t, "")
	m.launch("/bin/sh", "-c", fmt.Sprintf("PORT=%d exec %s", p, testapp()))
	eventually(t, "the warning", func() (bool, string) {
		log := m.log.String()
		return strings.Contains(log, strconv.Itoa(p)) && strings.Contains(log, "PORT"), tail(log, 10)
	})
	_ = m.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-m.exited:
	case <-time.After(30 * time.Second):
		t.Error("did not stop while it waited for the app")
	}
}
