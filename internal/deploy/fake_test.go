package deploy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"mainstay.dev/mainstay/internal/traffic"
	"mainstay.dev/mainstay/telemetry"
)

var errSick = errors.New("GET /up answered 500 Internal Server Error")

// world is a fake machine: a driver whose copies live and die as the test says, an
// edge, a sink, and a journal of what was done in which order.
type world struct {
	mu      sync.Mutex
	began   time.Time
	journal []string
	events  []telemetry.Event
	plans   []traffic.Plan
	copies  map[string]*fakeCopy // by address
	starts  []time.Duration      // since the world began

	birth    func(s Spec, c *fakeCopy) error // what a new copy is like; nil: healthy at once
	drain    func(context.Context) error     // nil: at once
	applyErr error
	env      []string
}

func newWorld() *world {
	return &world{began: time.Now(), copies: map[string]*fakeCopy{}}
}

func (w *world) note(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.journal = append(w.journal, fmt.Sprintf(format, args...))
}

// let changes the world while it runs.
func (w *world) let(change func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	change()
}

// forget begins the journal of starts anew.
func (w *world) forget() {
	w.let(func() { w.began, w.starts = time.Now(), nil })
}

func (w *world) startTimes() []time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.starts)
}

func (w *world) applied() []traffic.Plan {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.plans)
}

func (w *world) journalled() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.journal)
}

func (w *world) named(name string) (found []telemetry.Event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, e := range w.events {
		if e.Name == name {
			found = append(found, e)
		}
	}
	return found
}

func (w *world) copy(id string) *fakeCopy {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range w.copies {
		if c.spec.ID == id {
			return c
		}
	}
	return nil
}

func (w *world) running() (ids []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range w.copies {
		if c.alive() {
			ids = append(ids, c.spec.ID)
		}
	}
	slices.Sort(ids)
	return slices.Compact(ids)
}

// The telemetry.Sink.
func (w *world) Record(*telemetry.Exchange) {}
func (w *world) Emit(e telemetry.Event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.events = append(w.events, e)
}

// The Edge.
func (w *world) Apply(p traffic.Plan) (func(context.Context) error, error) {
	if err := p.Problems().Err(); err != nil {
		return nil, err
	}
	w.mu.Lock()
	err, drain := w.applyErr, w.drain
	if err == nil {
		w.plans = append(w.plans, p)
	}
	w.mu.Unlock()
	if err != nil {
		return nil, err
	}
	w.note("apply %s", spoken(p))
	return func(ctx context.Context) error {
		w.note("drain")
		if drain == nil {
			return nil
		}
		return drain(ctx)
	}, nil
}

// spoken is a plan in a few words: "green-2", "green-2:10 blue-1:90", "green-2
// (blue-1)" with a backup, "hold".
func spoken(p traffic.Plan) string {
	var all, spare []string
	for _, t := range p.Targets {
		switch {
		case t.Weight == 100:
			all = append(all, t.ID)
		case t.Weight > 0:
			all = append(all, fmt.Sprintf("%s:%d", t.ID, t.Weight))
		case t.Backup:
			spare = append(spare, "("+t.ID+")")
		default:
			spare = append(spare, "["+t.ID+"]")
		}
	}
	if p.Mode != traffic.Serve {
		all = append([]string{string(p.Mode)}, all...)
	}
	return strings.Join(append(all, spare...), " ")
}

// The Driver.
func (w *world) Start(ctx context.Context, s Spec) (Instance, error) {
	w.note("start %s", s.ID)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.starts = append(w.starts, time.Since(w.began))
	c := &fakeCopy{w: w, spec: s, address: fmt.Sprintf("127.0.0.1:%d", 20000+len(w.starts)), exited: make(chan struct{})}
	if w.birth != nil {
		if err := w.birth(s, c); err != nil {
			return nil, err
		}
	}
	w.copies[c.address] = c
	for _, a := range c.also {
		w.copies[a] = c
	}
	return c, nil
}

func (w *world) Adopt(ctx context.Context, s Spec, h Handle) (Instance, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	c := w.copies[h.Address]
	var id string
	if err := json.Unmarshal(h.Private, &id); err != nil {
		return nil, err
	}
	if c == nil || !c.alive() || c.spec.ID != id {
		return nil, ErrGone
	}
	w.journal = append(w.journal, "adopt "+s.ID)
	return c, nil
}

// probe stands for prober.probe.
func (w *world) probe(ctx context.Context, address string, h Health) error {
	w.mu.Lock()
	c := w.copies[address]
	w.mu.Unlock()
	if c == nil || !c.alive() {
		return errors.New("connection refused")
	}
	c.mu.Lock()
	err := c.sickAt[address]
	c.mu.Unlock()
	return errors.Join(err, c.health())
}

type fakeCopy struct {
	also    []string // more addresses
	sickAt  map[string]error
	w       *world
	spec    Spec
	address string
	lines   []string
	ports   []netip.AddrPort

	mu     sync.Mutex
	sick   error
	stuck  error // what Stop returns
	ending time.Duration
	exit   Exit
	exited chan struct{}
}

func (c *fakeCopy) alive() bool {
	select {
	case <-c.exited:
		return false
	default:
		return true
	}
}

func (c *fakeCopy) health() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.sick
}

func (c *fakeCopy) fallIll(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sick = err
}

func (c *fakeCopy) die(e Exit) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.alive() {
		c.exit = e
		close(c.exited)
	}
}

func (c *fakeCopy) Handle() Handle {
	id, _ := json.Marshal(c.spec.ID)
	return Handle{Address: c.address, Also: c.also, PID: 4711, Private: id}
}
func (c *fakeCopy) Exited() <-chan struct{} { return c.exited }
func (c *fakeCopy) Exit() Exit {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.exit
}
func (c *fakeCopy) Stop(ctx context.Context, grace time.Duration) error {
	if !c.alive() {
		return nil
	}
	c.w.note("stop %s", c.spec.ID)
	if c.stuck != nil {
		return c.stuck
	}
	time.Sleep(c.ending)
	c.die(Exit{Code: -1, Signal: "SIGTERM"})
	return nil
}
func (c *fakeCopy) Listening() ([]netip.AddrPort, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ports, nil
}

func (c *fakeCopy) listen(at string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ports = append(c.ports, netip.MustParseAddrPort(at))
}
func (c *fakeCopy) LastLines() []string { return append([]string{}, c.lines...) }

func configured() Config {
	var c Config
	c.SetDefaults()
	c.Run = Command{"app"}
	c.Dir = "/"
	c.Health.Path = "/up"
	c.Settle.Old = settleStop
	return c
}

// house is a Deployer that runs in a synctest bubble.
type house struct {
	*Deployer
	w    *world
	t    *testing.T
	stop context.CancelFunc
	ran  chan error
}

func build(t *testing.T, w *world, dir string, cfg Config) *Deployer {
	t.Helper()
	d, err := New(cfg, Deps{
		Edge: w, Driver: w, Dir: dir, Sink: w, Log: slog.New(slog.DiscardHandler),
		Env: func(color string) ([]string, error) { return append([]string{"COLOR=" + color}, w.env...), nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	d.probe = w.probe
	return d
}

// open runs a Deployer until it is ready.
func open(t *testing.T, w *world, dir string, cfg Config) *house {
	t.Helper()
	return openWith(t, w, dir, cfg, nil)
}

// openWith is open with evidence to judge by.
func openWith(t *testing.T, w *world, dir string, cfg Config, e Evidence) *house {
	t.Helper()
	h := &house{Deployer: build(t, w, dir, cfg), w: w, t: t, ran: make(chan error, 1)}
	h.deps.Evidence = e
	ctx, cancel := context.WithCancel(context.Background())
	h.stop = cancel
	ready := make(chan struct{})
	go func() { h.ran <- h.Run(ctx, func() { close(ready) }) }()
	select {
	case <-ready:
	case err := <-h.ran:
		t.Fatalf("Run ended before it was ready: %v", err)
	}
	return h
}

// close stops the Deployer as Ctrl-C does.
func (h *house) close() {
	h.t.Helper()
	h.stop()
	if err := <-h.ran; err != nil {
		h.t.Fatalf("Run: %v", err)
	}
}

// kill is a kill -9 of Mainstay for the files: the state is as it was at this
// moment, and the copies live on.
func (h *house) kill() {
	h.t.Helper()
	was, err := loadState(h.deps.Dir, slog.New(slog.DiscardHandler))
	if err != nil {
		h.t.Fatal(err)
	}
	past, err := loadHistory(h.deps.Dir)
	if err != nil {
		h.t.Fatal(err)
	}
	h.w.mu.Lock()
	alive := map[string]*fakeCopy{}
	for a, c := range h.w.copies {
		if c.alive() {
			twin := &fakeCopy{w: h.w, spec: c.spec, address: c.address, lines: c.lines, ending: c.ending, exited: make(chan struct{})}
			twin.sick = c.health()
			alive[a] = twin
		}
	}
	h.w.mu.Unlock()
	h.close()
	h.w.mu.Lock()
	h.w.copies, h.w.journal, h.w.plans, h.w.events = alive, nil, nil, nil
	h.w.mu.Unlock()
	for _, name := range []string{stateFile, twinFile} {
		if err := writeFile(h.deps.Dir, name, was); err != nil {
			h.t.Fatal(err)
		}
	}
	if err := writeFile(h.deps.Dir, historyFile, past); err != nil {
		h.t.Fatal(err)
	}
}

// bubble runs f with a fake clock and a folder.
func bubble(t *testing.T, f func(t *testing.T, w *world, dir string)) {
	t.Helper()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) { f(t, newWorld(), dir) })
}

// slow gives webhooks ten seconds of a fake network to be answered in.
func slow(h *house) *house {
	h.warmer = lagging(10 * time.Second)
	return h
}

// lagging answers every request with 200 after a while.
type lagging time.Duration

func (l lagging) Do(r *http.Request) (*http.Response, error) {
	select {
	case <-time.After(time.Duration(l)):
		return &http.Response{StatusCode: 200, Status: "200 OK", Body: http.NoBody, Header: http.Header{}}, nil
	case <-r.Context().Done():
		return nil, &url.Error{Op: "Post", Err: r.Context().Err()}
	}
}
