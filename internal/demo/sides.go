package demo

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"mainstay.dev/mainstay/claude/claudetest"
)

// A side is one of the two that are compared: the app bare, or behind Mainstay.
type side struct {
	key     string // in the JSON: before or after
	title   string
	base    string // where its users go
	program *program
	claude  *claudetest.Server
	// deploy puts a new copy of the app in the place of the old one, as this side's
	// users do.
	deploy func(ctx context.Context) error
}

// claudeFaults are what the fake Claude API fails with: those that can be known
// before the first byte of an answer.
func claudeFaults() []claudetest.Fault {
	return []claudetest.Fault{
		claudetest.Overloaded, claudetest.RateLimited, claudetest.Internal,
		claudetest.BadGateway, claudetest.GatewayTimeout, claudetest.Reset,
	}
}

// Claude's answers begin after this, give or take half of it.
const claudeLatency = 150 * time.Millisecond

// openClaude starts a fake Claude API. Each side has one of its own, by the same
// seed: their first calls, and their second, and so on, meet the same fate.
func openClaude(o Options, port int) (*claudetest.Server, error) {
	fake := claudetest.New(claudetest.Options{
		Seed: o.Seed, FaultRate: o.FaultRate, Faults: claudeFaults(), Latency: claudeLatency,
	})
	return fake, fake.Open(address(port))
}

// bareSide is the app as its users run it today: started again by whatever keeps
// it alive, and deployed by SIGTERM, then start.
func (h *house) bareSide(port, claudePort int) (*side, error) {
	fake, err := openClaude(h.opts, claudePort)
	if err != nil {
		return nil, err
	}
	s := &side{key: "before", title: "unitehub, bare", base: "http://" + address(port), claude: fake}
	s.program = &program{
		name: "the bare app", path: h.opts.App, grace: 15 * time.Second,
		env: h.environment("before", fake.URL(), fmt.Sprintf("PORT=%d", port)),
		log: filepath.Join(h.dir, "unitehub-bare.log"),
	}
	s.deploy = func(ctx context.Context) error {
		s.program.stop()
		if err := s.program.start(); err != nil {
			return err
		}
		return s.awaitHealthy(ctx)
	}
	return s, nil
}

// mainstaySide is the same app, started and deployed by Mainstay.
func (h *house) mainstaySide(edge, pooler, claude, admin, claudePort int) (*side, error) {
	fake, err := openClaude(h.opts, claudePort)
	if err != nil {
		return nil, err
	}
	h.config = filepath.Join(h.dir, "mainstay.yaml")
	if err := os.WriteFile(h.config, fmt.Appendf(nil, configuration, filepath.Join(h.dir, "data"), edge, pooler, claude, fake.URL(), admin), 0o600); err != nil {
		return nil, err
	}
	s := &side{key: "after", title: "unitehub, behind Mainstay", base: "http://" + address(edge), claude: fake}
	s.program = &program{
		name: "Mainstay", path: h.opts.Mainstay, grace: 45 * time.Second,
		args: []string{"run", "-c", h.config, "--", h.opts.App},
		env:  h.environment("after", fake.URL()),
		log:  filepath.Join(h.dir, "mainstay.log"),
	}
	s.deploy = func(ctx context.Context) error {
		_, err := h.mainstay(ctx, "deploy", "-c", h.config, "--", h.opts.App)
		return err
	}
	return s, nil
}

// configuration is all that Mainstay is told beside its defaults: where to listen,
// because the demo must not collide with anything, and how to ask the app's health.
// Claude's upstream is the one that the bare app has; the database's comes from
// DATABASE_URL in the environment.
const configuration = `service: unitehub
environment: demo
data: %q
app:
  health: {path: /api/health}
edge: {listen: "127.0.0.1:%d"}
pooler: {listen: "127.0.0.1:%d"}
claude: {listen: "127.0.0.1:%d", upstream: %q}
admin: {listen: "127.0.0.1:%d"}
`

// mainstay calls a verb of the binary.
func (h *house) mainstay(ctx context.Context, args ...string) (string, error) {
	return call(ctx, plainEnvironment(), h.opts.Mainstay, args...)
}

// environment is what a side's app is started with; it is the same for both, but
// for their databases and fakes.
func (h *house) environment(database, claude string, more ...string) []string {
	env := append(plainEnvironment(),
		h.marker,
		"HOST=127.0.0.1",
		"DATABASE_URL="+h.db.url(database),
		"ANTHROPIC_BASE_URL="+claude,
		"ANTHROPIC_API_KEY=sk-ant-demo-not-a-real-key",
	)
	return append(env, more...)
}

// plainEnvironment is the demo's own, without what would lead the app or Mainstay
// somewhere else.
func plainEnvironment() []string {
	var env []string
	for _, pair := range os.Environ() {
		name, _, _ := strings.Cut(pair, "=")
		switch {
		case name == "PORT", name == "HOST", strings.HasSuffix(name, "DATABASE_URL"), strings.HasSuffix(name, "REDIS_URL"):
		case strings.HasPrefix(name, "PG"), strings.HasPrefix(name, "ANTHROPIC_"), strings.HasPrefix(name, "OTEL_"),
			strings.HasPrefix(name, "MAINSTAY_"), strings.HasPrefix(name, "CLAUDE_"):
		default:
			env = append(env, pair)
		}
	}
	return env
}

// start starts the side and waits until it serves. A program that ends before that
// is an error with its last words.
func (s *side) start(ctx context.Context) error {
	if err := s.program.start(); err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	ended := s.program.ended()
	go func() {
		select {
		case <-ended:
			cancel(fmt.Errorf("%s ended instead of serving: %s", s.program.name, s.program.lastWords()))
		case <-ctx.Done():
		}
	}()
	return s.awaitHealthy(ctx)
}

// awaitHealthy asks until the app says that it is well, for at most a minute.
func (s *side) awaitHealthy(ctx context.Context) error {
	late := errors.New("not within a minute")
	ctx, cancel := context.WithTimeoutCause(ctx, time.Minute, late)
	defer cancel()
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.base+"/api/health", nil)
		if err != nil {
			return err
		}
		if resp, err := transport.RoundTrip(req); err == nil {
			_ = resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			if err := context.Cause(ctx); !errors.Is(err, late) {
				return err
			}
			return fmt.Errorf("%s does not serve at %s: %w: %s", s.program.name, s.base, late, s.program.lastWords())
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// close stops all of the side.
func (s *side) close() {
	s.program.stop()
	s.claude.Close()
}
