package deploy

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"
)

const (
	blue  = "blue"
	green = "green"
)

// A slot is a color with a release in it. Its fields are guarded by Deployer.mu,
// but for color and release, which never change.
type slot struct {
	color   string
	release release

	unborn   bool   // no copy of it has run in this life yet: it comes back as a standby
	pinned   string // the image that release.Image meant when the first copy was started
	id       string // of the copy that runs or ran last
	inst     Instance
	out      map[string]error // its addresses that are not fit, while others are, and why
	state    State
	reason   string
	since    time.Time
	began    time.Time
	adopted  bool
	restarts int
	lastExit string

	// halt ends the supervision, kept is closed when it has ended; both are
	// nil until it begins.
	halt context.CancelFunc
	kept chan struct{}
}

// enter notes that s is in a new state, and why.
func (d *Deployer) enter(s *slot, st State, reason string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if s.state != st {
		s.state, s.since = st, time.Now()
	}
	s.reason = reason
}

// instance returns the copy that runs in s, or nil.
func (d *Deployer) instance(s *slot) (id string, inst Instance) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return s.id, s.inst
}

// claimID names the next copy in s. Names never repeat in the life of the state
// folder, so a log file, a metric and a record speak of one copy.
func (d *Deployer) claimID(s *slot) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	s.id = fmt.Sprintf("%s-%d", s.color, d.nextID)
	d.nextID++
	return s.id
}

// occupy puts a copy that has been started or adopted into s.
func (d *Deployer) occupy(s *slot, id string, inst Instance, adopted bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := time.Now()
	s.id, s.inst, s.adopted, s.out = id, inst, adopted, nil
	s.state, s.reason, s.since, s.began = Starting, "", now, now
}

// vacate notes that no copy runs in s.
func (d *Deployer) vacate(s *slot, why string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	s.inst, s.state, s.reason, s.since = nil, Down, why, time.Now()
}

// start starts a copy of s's release and waits until it is healthy. On an error
// nothing of the copy is left.
func (d *Deployer) start(ctx context.Context, s *slot, tell func(Step, string)) error {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	env, err := d.deps.Env(s.color)
	if err != nil {
		return fmt.Errorf("make the environment of %s: %w", s.color, err)
	}
	image, err := d.pin(ctx, s, tell)
	if err != nil {
		return err
	}
	id := d.claimID(s)
	tell(StepStarting, fmt.Sprintf("starting %s: %s", id, s.release.what()))
	what := s.release.spec(id, s.color)
	what.Image, what.Env = image, append(slices.Clip(env), s.release.Env...)
	inst, err := d.deps.Driver.Start(ctx, what)
	if err != nil {
		return err
	}
	d.occupy(s, id, inst, false)
	d.saveOrSay()
	d.mu.Lock()
	all := d.next == s // what has served before may have lost a server meanwhile
	d.mu.Unlock()
	return d.bringHealthy(ctx, s, all, tell)
}

// bringHealthy waits until the copy in s is healthy, and gets rid of it if it will
// not. all tells that it must be so at all of its addresses.
func (d *Deployer) bringHealthy(ctx context.Context, s *slot, all bool, tell func(Step, string)) error {
	id, inst := d.instance(s)
	out, err := d.awaitHealthy(ctx, id, inst, all, func(st Step, text string) {
		d.enter(s, Starting, text)
		tell(st, text)
	})
	if err != nil {
		d.discard(ctx, s, brief(err))
		return err
	}
	d.enter(s, Healthy, "")
	d.mu.Lock()
	s.out = maps.Clone(out)
	took := time.Since(s.began).Round(time.Millisecond)
	d.mu.Unlock()
	tell(StepHealthy, fmt.Sprintf("%s is healthy after %v", id, took))
	return nil
}

// discard stops the copy in s, whatever has become of ctx.
func (d *Deployer) discard(ctx context.Context, s *slot, why string) {
	id, inst := d.instance(s)
	if inst == nil {
		return
	}
	d.enter(s, Stopping, why)
	if err := inst.Stop(context.WithoutCancel(ctx), d.policy.Load().Grace); err != nil {
		d.abandon(s, id, inst, err)
	}
	d.vacate(s, why)
	d.saveOrSay()
}

// addresses are where a copy serves.
func addresses(inst Instance) []string {
	h := inst.Handle()
	return append([]string{h.Address}, h.Also...)
}

// pin finds out once which image the release means: a restart after a crash runs
// the same, though its tag may have moved on.
func (d *Deployer) pin(ctx context.Context, s *slot, tell func(Step, string)) (string, error) {
	d.mu.Lock()
	pinned := s.pinned
	d.mu.Unlock()
	r, ok := d.deps.Driver.(Resolver)
	if !ok || s.release.Image == "" || pinned != "" {
		return pinned, nil
	}
	tell(StepStarting, "getting "+s.release.Image)
	pinned, err := r.Resolve(ctx, s.release.Image)
	if err != nil {
		return "", fmt.Errorf("get the image of %s: %w", s.color, err)
	}
	d.mu.Lock()
	s.pinned = pinned
	d.mu.Unlock()
	return pinned, nil
}
