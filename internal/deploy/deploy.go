// Package deploy keeps the app running behind the edge and replaces it without a
// failed request: it starts a color, waits until it is healthy, switches the
// traffic, drains and stops the color before. How a copy is run is a [Driver]'s
// business; drivers are sub-packages.
//
// Only app and admin import it. It knows the edge by one method, [Edge].
package deploy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"

	"mainstay.dev/mainstay/internal/setting"
	"mainstay.dev/mainstay/internal/traffic"
	"mainstay.dev/mainstay/telemetry"
)

// Edge is all that deploy needs of the edge: Apply sends every request that
// begins after it returns where the plan says; the drain it returns waits for the
// requests that the plan before had taken and this one has no place for.
type Edge interface {
	Apply(traffic.Plan) (drain func(ctx context.Context) error, err error)
}

// Deps is what a Deployer works with. All fields but Log and Sink are required.
type Deps struct {
	Edge   Edge
	Driver Driver
	// Env returns the whole environment of a color but PORT. It is asked anew
	// for every copy that is started.
	Env  func(color string) ([]string, error)
	Dir  string // state folder, made if it is missing; one Mainstay at a time works in it
	Log  *slog.Logger
	Sink telemetry.Sink
}

// ErrBusy is returned by Deploy while another deploy is at work; its text names
// whose, and since when.
var ErrBusy = errors.New("another deploy is at work")

// ErrNotRunning is returned by Deploy before Run is ready and after it ended.
var ErrNotRunning = errors.New("the app is not up yet, or no longer; try again when mainstay is ready")

// Deployer supervises the app. Its methods may be called from several goroutines
// at once.
type Deployer struct {
	deps   Deps
	policy atomic.Pointer[Config]
	timing timing
	probe  func(ctx context.Context, address string, h Health) error

	routing sync.Mutex // held while the edge is told where to send requests
	saving  sync.Mutex // held while the state file is written

	mu         sync.Mutex
	life       context.Context // of Run; nil before and after
	live       *slot           // gets the traffic
	next       *slot           // is being brought up
	old        *slot           // is being taken down
	others     []savedCopy     // left over from an earlier life, or would not end
	underway   *Underway
	history    []Record // oldest first
	nextID     int
	nextRecord int

	work sync.WaitGroup // deploys, and the removal of others
}

// New validates and wires; it starts nothing and touches no file.
func New(cfg Config, d Deps) (*Deployer, error) {
	compiled, err := compile(cfg)
	if err != nil {
		return nil, err
	}
	if d.Log == nil {
		d.Log = slog.New(slog.DiscardHandler)
	}
	if d.Sink == nil {
		d.Sink = telemetry.Discard
	}
	dep := &Deployer{deps: d, timing: usual, probe: newProber().probe, nextID: 1, nextRecord: 1}
	dep.policy.Store(compiled)
	return dep, nil
}

// compile checks cfg and makes its folder absolute.
func compile(cfg Config) (*Config, error) {
	var ps setting.Problems
	cfg.Validate(&ps)
	if len(cfg.Run) == 0 {
		ps.Add("run", "there is nothing to run", "give app.run in the file, or a command: mainstay run -- npm start")
	}
	dir, err := filepath.Abs(cfg.Dir)
	if err != nil {
		ps.Add("dir", err.Error(), "write it as an absolute path")
	}
	cfg.Dir = dir
	if err := ps.Err(); err != nil {
		return nil, err
	}
	return &cfg, nil
}

// Prepare checks cfg and returns what puts it to work; nothing changes before.
// health, drain and grace count at once; run and dir are what the next deploy or
// the next start of Mainstay runs.
func (d *Deployer) Prepare(cfg Config) (commit func(), err error) {
	compiled, err := compile(cfg)
	if err != nil {
		return nil, err
	}
	return func() { d.policy.Store(compiled) }, nil
}

// Run brings the app up, calls ready once it serves, and supervises it until ctx
// is done; then it undoes a deploy at work, stops the app and returns. A copy
// that an earlier Mainstay left running is adopted instead of started. If the app
// cannot be brought up, Run returns why, and nothing runs.
//
// What comes up is the release that was live last; app.run and app.dir win if
// they have changed since that release was deployed.
func (d *Deployer) Run(ctx context.Context, ready func()) error {
	if err := os.MkdirAll(d.deps.Dir, 0o700); err != nil {
		return fmt.Errorf("make the state folder: %w", err)
	}
	unlock, err := lockFolder(d.deps.Dir)
	if err != nil {
		return err
	}
	defer unlock()
	was, err := d.recall()
	if err != nil {
		return err
	}
	live, err := d.bringUp(ctx, was)
	if ctx.Err() != nil && err != nil {
		return nil // called off, not failed
	}
	if err != nil {
		return err
	}
	d.mu.Lock()
	d.life = ctx
	d.mu.Unlock()
	if cfg := d.policy.Load(); live.adopted && !live.release.follows(cfg) {
		d.work.Go(func() { d.followFile(ctx) })
	}
	d.work.Go(func() { d.clearOthers(ctx) })
	d.supervise(live)
	ready()
	<-ctx.Done()

	d.mu.Lock()
	d.life = nil
	d.mu.Unlock()
	d.work.Wait()
	d.mu.Lock()
	live = d.live
	d.mu.Unlock()
	d.unsupervise(live)
	d.discard(ctx, live, "mainstay stops")
	return nil
}

// recall reads what the life before wrote down.
func (d *Deployer) recall() (state, error) {
	was, err := loadState(d.deps.Dir)
	if err != nil {
		return state{}, err
	}
	past, err := loadHistory(d.deps.Dir)
	if err != nil {
		d.deps.Log.Warn("deploys before this start are not listed", "err", err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.nextID, d.nextRecord, d.others, d.history = was.NextID, was.NextRecord, was.Others, past
	return was, nil
}

// bringUp makes a color live: the one that outlived the Mainstay before, or a new
// copy of the release that is wanted.
func (d *Deployer) bringUp(ctx context.Context, was state) (*slot, error) {
	s := &slot{color: blue, state: Down}
	if was.Live != nil {
		s.color, s.release = was.Live.Color, was.Live.Release
		d.setLive(s)
		adopted, err := d.adopt(ctx, s, was.Live.Copy)
		if err != nil {
			return nil, err
		}
		if adopted {
			return s, nil
		}
	}
	cfg := d.policy.Load()
	if was.Live == nil || !s.release.follows(cfg) {
		s = &slot{color: s.color, release: d.wanted(Request{Who: "mainstay"}), state: Down}
	}
	d.setLive(s)
	if !s.release.Command.equal(cfg.Run) || s.release.Dir != cfg.Dir {
		d.deps.Log.Info("starting what was deployed last, not app.run", "command", s.release.Command.String(), "dir", s.release.Dir, "deployed_by", s.release.Who)
	}
	if err := d.start(ctx, s, func(Step, string) {}); err != nil {
		return nil, err
	}
	if _, err := d.route(s); err != nil {
		d.discard(ctx, s, err.Error())
		return nil, err
	}
	id, inst := d.instance(s)
	d.emit(slog.LevelInfo, "app_started", s.color, fmt.Sprintf("%s serves on %s", id, inst.Handle().Address), slog.String("target", id))
	return s, nil
}

func (d *Deployer) setLive(s *slot) {
	d.mu.Lock()
	d.live = s
	d.mu.Unlock()
}

// adopt takes back the copy that was live when the Mainstay before was killed,
// and routes to it. False means that there is none that serves.
func (d *Deployer) adopt(ctx context.Context, s *slot, was *savedCopy) (bool, error) {
	if was == nil {
		return false, nil
	}
	inst, err := d.deps.Driver.Adopt(ctx, Spec{ID: was.ID, Color: s.color, Command: s.release.Command, Dir: s.release.Dir}, was.Handle)
	if errors.Is(err, ErrGone) {
		d.emit(slog.LevelWarn, "app_gone", s.color, was.ID+" ended while no mainstay was running", slog.String("target", was.ID))
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("adopt %s, which an earlier mainstay left running: %w", was.ID, err)
	}
	d.occupy(s, was.ID, inst, true)
	if err := d.settle(ctx, s, func(Step, string) {}); err != nil {
		if ctx.Err() != nil {
			return false, err
		}
		d.emit(slog.LevelWarn, "app_replaced", s.color, was.ID+" outlived the mainstay before, but does not serve: "+err.Error(), slog.String("target", was.ID))
		return false, nil
	}
	if _, err := d.route(s); err != nil {
		d.discard(ctx, s, err.Error())
		return false, err
	}
	d.emit(slog.LevelInfo, "app_adopted", s.color, fmt.Sprintf("%s served on while no mainstay was running; it is adopted", was.ID), slog.String("target", was.ID))
	return true, nil
}

// followFile deploys app.run over an adopted copy that runs something older: what
// the file says now was meant for this start.
func (d *Deployer) followFile(ctx context.Context) {
	_, err := d.Deploy(ctx, Request{Who: "mainstay", Why: "app.run or app.dir changed while the app ran on by itself"}, nil)
	if err != nil && ctx.Err() == nil {
		d.deps.Log.Warn("what app.run says now could not be deployed; what ran before serves on", "err", err)
	}
}

// clearOthers stops what earlier lives left behind: the unfinished color of a
// deploy that a kill -9 cut short, or an old one that was still draining.
func (d *Deployer) clearOthers(ctx context.Context) {
	d.mu.Lock()
	others := d.others
	d.mu.Unlock()
	for _, c := range others {
		inst, err := d.deps.Driver.Adopt(ctx, Spec{ID: c.ID, Color: c.Color}, c.Handle)
		if err == nil {
			d.deps.Log.Info("stopping a copy that an earlier mainstay left behind", "target", c.ID)
			err = inst.Stop(ctx, d.policy.Load().Grace)
		}
		if err != nil && !errors.Is(err, ErrGone) {
			d.deps.Log.Error("a copy of an earlier mainstay could not be stopped", "target", c.ID, "pid", c.Handle.PID, "err", err)
			continue
		}
		d.mu.Lock()
		d.others = slices.DeleteFunc(slices.Clone(d.others), func(o savedCopy) bool { return o.ID == c.ID })
		d.mu.Unlock()
	}
	if len(others) > 0 {
		d.saveOrSay()
	}
}
