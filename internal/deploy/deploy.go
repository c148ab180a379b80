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
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

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

// Deps is what a Deployer works with. All fields but Evidence,
// Burning, Log and Sink are required.
type Deps struct {
	Edge   Edge
	Driver Driver
	// Env returns the whole environment of a color but PORT. It is asked anew
	// for every copy that is started.
	Env func(color string) ([]string, error)
	// Evidence is what the watch judges by. If it is nil, or has nothing to
	// tell, only probes and crashes count.
	Evidence Evidence
	// Burning tells, a sentence each, what is wrong already and must be mended
	// before anything new is switched to. Nil: nothing ever is.
	Burning func(ctx context.Context) []string
	Dir     string // state folder, made if it is missing; one Mainstay at a time works in it
	Log     *slog.Logger
	Sink    telemetry.Sink
}

// ErrBusy is returned by Deploy while another deploy is at work; its text names
// whose, and since when.
var ErrBusy = errors.New("another deploy is at work")

// ErrNotRunning is returned by Deploy before Run is ready and after it ended.
var ErrNotRunning = errors.New("the app is not up yet, or no longer; try again when mainstay is ready")

// ErrRefused is returned by an order that makes no sense as things stand; its text
// says why, and the mend.
var ErrRefused = errors.New("not as things stand")

// ErrRolledBack is returned by Deploy when the switch was undone: the old color
// serves as before.
var ErrRolledBack = errors.New("the deploy was rolled back")

// ErrFrozen is returned by Deploy when the traffic was left as it is until a
// person decides.
var ErrFrozen = errors.New("the deploy is frozen")

// Deployer supervises the app. Its methods may be called from several goroutines
// at once.
type Deployer struct {
	deps   Deps
	policy atomic.Pointer[policy]
	timing timing
	probe  func(ctx context.Context, address string, h Health) error
	warmer warmer
	nudge  chan struct{} // wakes the one who settles the old color

	routing sync.Mutex   // held while the edge is told where to send requests; taken before mu
	applied traffic.Plan // what the edge was told last; guarded by routing
	saving  sync.Mutex   // held while the state file is written

	mu          sync.Mutex
	life        context.Context // of Run; nil before and after
	live        *slot           // the release that was deployed last; gets share
	old         *slot           // the color before; gets the rest of the traffic, or stands by
	next        *slot           // is being brought up
	leaving     []*slot         // are being taken down
	share       int             // percent, 1 to 100
	mirror      int             // how many requests next is shown
	maintenance bool
	diverted    bool          // old has what is live's, since live is not fit
	retireAt    time.Time     // when old is settled; zero: not by itself
	answers     answers       // see there
	others      []savedCopy   // left over from an earlier life, or would not end
	underway    *Underway     // whoever changes colors now
	freed       chan struct{} // closed when nobody does any more
	current     *transition   // the deploy at work
	frozen      *Record       // the deploy that waits for a decision
	history     []Record      // oldest first
	nextID      int
	nextRecord  int

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
	dep := &Deployer{deps: d, timing: usual, probe: newProber().probe, warmer: newWarmer(), nudge: make(chan struct{}, 1), share: 100, nextID: 1, nextRecord: 1}
	dep.policy.Store(compiled)
	return dep, nil
}

// policy is a Config that was found good, with what its paths name.
type policy struct {
	Config
	page string // of maintenance
}

const maxPage = 1 << 20

// compile checks cfg, makes its folder absolute and reads its page.
func compile(cfg Config) (*policy, error) {
	var ps setting.Problems
	cfg.Validate(&ps)
	switch {
	case len(cfg.Run) == 0 && len(cfg.Targets) == 0 && cfg.Image == "":
		ps.Add("run", "there is nothing to run", "give app.run in the file, or a command: mainstay run -- npm start")
	case cfg.Image != "" && len(cfg.Targets) > 0:
		ps.Add("targets", "cannot be given together with an image", "remove one of them")
	case len(cfg.Run) > 0 && len(cfg.Targets) > 0:
		ps.Add("targets", "cannot be given together with a command to run", "remove one of them")
	}
	dir, err := filepath.Abs(cfg.Dir)
	if err != nil {
		ps.Add("dir", err.Error(), "write it as an absolute path")
	}
	cfg.Dir = dir
	if cfg.Release.Dir != "" {
		if cfg.Release.Dir, err = filepath.Abs(cfg.Release.Dir); err != nil {
			ps.Add("release.dir", err.Error(), "write it as an absolute path")
		}
	}
	p := &policy{Config: cfg}
	if cfg.Maintenance.Page != "" {
		page, err := readPage(cfg.Maintenance.Page)
		if err != nil {
			ps.Add("maintenance.page", err.Error(), "name an HTML file")
		}
		p.page = page
	}
	if err := ps.Err(); err != nil {
		return nil, err
	}
	return p, nil
}

func readPage(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxPage+1))
	if err == nil && len(b) > maxPage {
		err = fmt.Errorf("%s is larger than 1 MiB", path)
	}
	return string(b), err
}

// Prepare checks cfg and returns what puts it to work; nothing changes before.
// run, targets and dir are what the next deploy or the next start of Mainstay
// runs; all else counts at once, also for a deploy at work.
func (d *Deployer) Prepare(cfg Config) (commit func(), err error) {
	compiled, err := compile(cfg)
	if err != nil {
		return nil, err
	}
	return func() {
		d.policy.Store(compiled)
		d.steerOrSay() // a page, a preview or a stickiness may have changed
	}, nil
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
	resumed, err := d.bringUp(ctx, was)
	if ctx.Err() != nil && err != nil {
		return nil // called off, not failed
	}
	if err != nil {
		return err
	}
	d.mu.Lock()
	d.life = ctx
	live, old := d.live, d.old
	d.mu.Unlock()
	d.supervise(live)
	if old != nil {
		d.supervise(old)
	}
	d.resume(ctx, resumed)
	d.work.Go(func() { d.clearOthers(ctx) })
	d.work.Go(func() { d.housekeep(ctx) })
	ready()
	<-ctx.Done()
	d.end(ctx)
	return nil
}

// Kill ends every copy at once, whatever is at work, and returns when they have
// ended or after a few seconds. It is for a Mainstay that is told twice to end: the
// process that calls it ends right after.
func (d *Deployer) Kill() {
	called, cancel := context.WithCancel(context.Background())
	cancel()
	d.mu.Lock()
	slots := append([]*slot{d.live, d.old, d.next}, d.leaving...)
	d.mu.Unlock()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		var stops sync.WaitGroup
		for _, s := range slots {
			if s == nil {
				continue
			}
			if _, inst := d.instance(s); inst != nil {
				stops.Go(func() { _ = inst.Stop(called, 0) }) // nobody is left to hear of it
			}
		}
		stops.Wait()
	}()
	select {
	case <-ended:
	case <-time.After(killWithin):
	}
}

const killWithin = 5 * time.Second

// end waits for what is at work and stops every copy.
func (d *Deployer) end(ctx context.Context) {
	d.mu.Lock()
	d.life = nil
	d.mu.Unlock()
	d.work.Wait()
	d.mu.Lock()
	live, old := d.live, d.old
	d.mu.Unlock()
	var stops sync.WaitGroup
	for _, s := range []*slot{live, old} {
		if s != nil {
			stops.Go(func() {
				d.unsupervise(s)
				d.discard(ctx, s, "mainstay stops")
			})
		}
	}
	stops.Wait()
	d.saveOrSay() // with the release that may be gone back to, which the next life brings back
}
