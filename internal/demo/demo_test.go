package demo

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"mainstay.dev/mainstay/load"
	"mainstay.dev/mainstay/pooler/pgtest"
)

// folder holds the binaries that tests need; TestMain makes and removes it.
var folder string

func TestMain(m *testing.M) {
	var err error
	if folder, err = os.MkdirTemp("", "demo-binaries-"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	_ = os.RemoveAll(folder)
	os.Exit(code)
}

// binary builds a program, once, and returns its path.
func binary(t *testing.T, source string) string {
	t.Helper()
	path := filepath.Join(folder, filepath.Base(source))
	if _, err := os.Stat(path); err == nil {
		return path
	}
	cmd := exec.Command("go", "build", "-o", path, ".")
	cmd.Dir = filepath.Join("..", "..", source)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v: %s", source, err, out)
	}
	return path
}

// options are those of a demo small enough for a test.
func options(t *testing.T) Options {
	t.Helper()
	// With this seed no more than two calls in a row fail: a longer row, met by the last
	// caller alone, is an outage to it, which rightly takes longer than the load waits.
	return Options{
		Once: true, Mainstay: binary(t, "cmd/mainstay"), App: binary(t, "examples/unitehub"),
		Seed: 12, Rate: 40, Slices: 1, Slice: 3 * time.Second, FaultRate: 0.3, Out: &bytes.Buffer{},
	}
}

// run runs the demo in a temporary folder of its own and fails if it leaves a file
// or a process behind. It skips where there is no PostgreSQL.
func run(t *testing.T, ctx context.Context, o Options) error {
	t.Helper()
	folder, err := os.MkdirTemp("/tmp", "demo-test-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(folder)
	if err := os.Chmod(folder, 0o755); err != nil { // PostgreSQL may be another user
		t.Fatal(err)
	}
	t.Setenv("TMPDIR", folder)
	err = Run(ctx, o)
	skipWithoutPostgreSQL(t, err)
	if left, _ := os.ReadDir(folder); len(left) > 0 {
		t.Errorf("the demo left %v", left)
	}
	environs, _ := filepath.Glob("/proc/[0-9]*/environ")
	for _, path := range environs {
		if env, _ := os.ReadFile(path); bytes.Contains(env, []byte(folder)) && !strings.Contains(path, fmt.Sprintf("/%d/", os.Getpid())) {
			cmdline, _ := os.ReadFile(filepath.Join(filepath.Dir(path), "cmdline"))
			t.Errorf("the demo left %s: %s", path, bytes.ReplaceAll(cmdline, []byte{0}, []byte(" ")))
		}
	}
	return err
}

func skipWithoutPostgreSQL(t *testing.T, err error) {
	t.Helper()
	if errors.Is(err, pgtest.ErrUnavailable) && os.Getenv("CI") != "true" {
		t.Skip(err)
	}
}

func TestTheDemoMeasuresBothSidesAndLeavesNothing(t *testing.T) {
	o := options(t)
	o.JSON = filepath.Join(t.TempDir(), "build", "demo.json")
	var out bytes.Buffer
	o.Out = &out
	if err := run(t, t.Context(), o); err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
	text, err := os.ReadFile(o.JSON)
	if err != nil {
		t.Fatal(err)
	}
	var got report
	if err := json.Unmarshal(text, &got); err != nil {
		t.Fatal(err)
	}
	for name, f := range map[string]figures{"before": got.Before, "after": got.After} {
		if f.Requests < 120 || f.P50 <= 0 || f.P95 < f.P50 || f.P99 < f.P95 || f.RPS <= 0 {
			t.Errorf("%s: %+v", name, f)
		}
	}
	if got.Before.ClaudeErrorRate == 0 {
		t.Error("of Claude calls that fail in 3 of 10 cases the bare app got all answered")
	}
	if got.After.DeployFailed != 0 || got.After.ClaudeErrorRate >= got.Before.ClaudeErrorRate {
		t.Errorf("behind Mainstay: %+v\n%s", got.After, out.String())
	}
	if t.Failed() {
		t.Log(out.String())
	}
}

func TestAnInterruptedDemoSaysSoAndLeavesNothing(t *testing.T) {
	o := options(t)
	o.Slice = time.Minute
	ctx, interrupt := context.WithCancelCause(t.Context())
	o.Out = writer(func(line string) {
		if strings.Contains(line, "in turn; a deploy") {
			interrupt(errors.New("Ctrl-C"))
		}
	})
	if err := run(t, ctx, o); err == nil || err.Error() != "the demo was interrupted: Ctrl-C" {
		t.Errorf("got %v", err)
	}
}

func TestADemoThatIsNotForOnceServesUntilItIsInterrupted(t *testing.T) {
	o := options(t)
	o.Once, o.Slice = false, time.Second
	ctx, interrupt := context.WithCancel(t.Context())
	var out bytes.Buffer
	o.Out = writer(func(line string) {
		out.WriteString(line)
		if strings.HasPrefix(line, "  dashboard ") {
			interrupt()
		}
	})
	if err := run(t, ctx, o); err != nil {
		t.Errorf("%v\n%s", err, out.String())
	}
	if !strings.Contains(out.String(), "dashboard    http://127.0.0.1:") {
		t.Errorf("no link to the dashboard in:\n%s", out.String())
	}
}

type writer func(line string)

func (w writer) Write(p []byte) (int, error) {
	w(string(p))
	return len(p), nil
}

func TestWhatIsMissingIsNamedWithItsMend(t *testing.T) {
	err := Run(t.Context(), Options{Mainstay: "/nowhere/mainstay", Slices: -1, FaultRate: 2, Out: &bytes.Buffer{}})
	for _, want := range []string{
		"there is no program /nowhere/mainstay; build it: make build",
		"there is no program /nowhere/unitehub; build it: make build", "positive", "fault rate of 2",
	} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not say %q", err, want)
		}
	}
}

func TestAnAppThatCannotStartEndsTheDemoWithItsLastWords(t *testing.T) {
	o := options(t)
	bad := filepath.Join(t.TempDir(), "unitehub")
	script := "#!/bin/sh\ncase \"$1\" in migrate|seed) exit 0;; esac\necho the disk is on fire >&2\nexit 1\n"
	if err := os.WriteFile(bad, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	o.App = bad
	if err := run(t, t.Context(), o); err == nil || !strings.Contains(err.Error(), "the disk is on fire") {
		t.Errorf("got %v", err)
	}
}

// openBare starts PostgreSQL and the bare app alone.
func openBare(t *testing.T) *house {
	t.Helper()
	h := &house{opts: Options{App: binary(t, "examples/unitehub"), Seed: 3}, screen: newScreen(&bytes.Buffer{}), dir: t.TempDir(), marker: "MAINSTAY_DEMO=" + t.Name()}
	t.Cleanup(func() {
		if err := h.close(); err != nil {
			t.Error(err)
		}
	})
	_, err := h.openDatabase(t.Context())
	skipWithoutPostgreSQL(t, err)
	if err != nil {
		t.Fatal(err)
	}
	ports, err := freePorts(2)
	if err != nil {
		t.Fatal(err)
	}
	if h.bare, err = h.bareSide(ports[0], ports[1]); err != nil {
		t.Fatal(err)
	}
	if err := h.bare.start(t.Context()); err != nil {
		t.Fatal(err)
	}
	return h
}

func TestWhatIsKilledDuringTheLoadIsCountedAndComesBack(t *testing.T) {
	h := openBare(t)
	kills := []struct {
		name  string
		kill  func() error
		cause string
	}{
		{"PostgreSQL", h.db.server.Kill, "database"},
		{"the app", h.bare.program.kill, "refused"},
		{"Claude", func() error { h.bare.claude.Close(); return nil }, "claude"},
	}
	for _, c := range kills {
		// The load ends with the first failure of the expected cause.
		stop := make(chan struct{})
		seen := sync.OnceFunc(func() { close(stop) })
		plan := h.plan(h.bare, 60, 0, 1)
		plan.Stop = stop
		plan.Observe = func(o load.Outcome) {
			if o.Cause == c.cause {
				seen()
			}
		}
		if err := c.kill(); err != nil {
			t.Fatalf("kill %s: %v", c.name, err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		report, err := load.Run(ctx, plan)
		cancel()
		if s := report.Tally.Summary(nil); err != nil || s.Causes[c.cause] == 0 || s.Saturated != 0 {
			t.Errorf("%s killed: %v, %+v", c.name, err, s)
		}
	}
	if err := h.bare.claude.Open(strings.TrimPrefix(claudeAddress(h.bare), "http://")); err != nil {
		t.Fatal(err)
	}
	if err := h.bare.awaitHealthy(t.Context()); err != nil {
		t.Fatal(err)
	}
	resp, err := http.Post(h.bare.base+"/api/contacts/1/analyze", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Errorf("after all came back an analysis is answered %s", resp.Status)
	}
}

// kill ends the program's present life, as a crash would.
func (p *program) kill() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.running.cmd.Process.Kill()
}

// claudeAddress is where the side's app looks for Claude.
func claudeAddress(s *side) string {
	for _, pair := range s.program.env {
		if address, ok := strings.CutPrefix(pair, "ANTHROPIC_BASE_URL="); ok {
			return address
		}
	}
	return ""
}

func TestTheExampleAppsOwnTestsPass(t *testing.T) {
	server, err := pgtest.Open(t.Context(), pgtest.Options{})
	skipWithoutPostgreSQL(t, err)
	if err != nil {
		t.Fatal(err)
	}
	defer server.Stop()
	cmd := exec.Command("go", "test", "-count=1", "./...")
	cmd.Dir, cmd.Env = "../../examples/unitehub", append(os.Environ(), "CI=true", "DATABASE_URL="+server.URL())
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
