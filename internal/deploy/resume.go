package deploy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"
)

// recall reads what the life before wrote down.
func (d *Deployer) recall() (state, error) {
	was, err := loadState(d.deps.Dir, d.deps.Log)
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
	d.share, d.retireAt, d.answers, d.maintenance = was.Share, was.Retire, was.Answers, was.Closed
	return was, nil
}

// unfinished is a deploy that the life before was at when it was killed.
type unfinished struct {
	record Record
	before *Figures // of the old color; nil: not known
	lost   string   // why its color cannot go on; empty if it can
}

// bringUp makes a color serve: one that outlived the Mainstay before, or a new
// copy of the release that is wanted. It returns the deploy to go on with, if
// there was one in traffic.
func (d *Deployer) bringUp(ctx context.Context, was state) (*unfinished, error) {
	if was.Deploy != nil && !was.Deploy.Phase.routed() {
		d.conclude(*was.Deploy)
		was.Deploy = nil
	}
	live, why, err := d.adoptSlot(ctx, was.Live)
	if err != nil {
		return nil, err
	}
	old, _, err := d.adoptSlot(ctx, was.Old)
	if err != nil {
		return nil, err
	}
	if live != nil {
		live.unborn = false
	}
	d.mu.Lock()
	d.live, d.old = live, old
	if old == nil {
		d.share, d.retireAt = 100, time.Time{}
	}
	serves := live.fit() || old.fit()
	d.mu.Unlock()
	if serves {
		if _, err := d.steer(); err != nil {
			d.end(ctx)
			return nil, err
		}
		d.emitAdopted(live, old)
		return d.pick(was, live, why), nil
	}
	if err := d.startAnew(ctx, was, live, old); err != nil {
		return nil, err
	}
	if was.Deploy == nil {
		return nil, nil
	}
	if was.Deploy.Phase == Frozen {
		d.mu.Lock()
		d.frozen = was.Deploy
		d.mu.Unlock()
	} else { // what could be compared is gone
		was.Deploy.Phase, was.Deploy.Error = RolledBack, ErrRolledBack.Error()+": neither color ran any more when mainstay came back; the old release was started anew"
	}
	d.conclude(*was.Deploy)
	return nil, nil
}

// pick says how the deploy that was in traffic goes on.
func (d *Deployer) pick(was state, live *slot, why string) *unfinished {
	r := was.Deploy
	if r == nil {
		return nil
	}
	if r.Phase == Frozen {
		d.mu.Lock()
		d.frozen = r
		d.mu.Unlock()
		return nil
	}
	u := &unfinished{record: *r, before: was.Before}
	if !live.fit() {
		u.lost = why
	}
	return u
}

// startAnew brings up a new copy where none serves: of the old color's release if
// the live one was still on trial.
func (d *Deployer) startAnew(ctx context.Context, was state, live, old *slot) error {
	for _, s := range []*slot{live, old} { // a survivor that does not serve is in the way
		if s != nil {
			d.discard(ctx, s, "does not serve")
		}
	}
	cfg := d.policy.Load()
	from, standby := was.Live, (*slot)(nil)
	switch {
	case was.Deploy == nil || was.Old == nil: // the standby comes back by its supervision
		was.Share, standby = 100, old
	case was.Deploy.Phase == Frozen: // both come back, the old one by its supervision
		standby = old
	default:
		from, was.Share = was.Old, 100
		was.Answers = answers{cfg.Image, cfg.Run, cfg.Dir, cfg.Targets}
	}
	s := &slot{color: blue, state: Down}
	d.mu.Lock()
	d.live, d.old, d.share, d.answers = nil, standby, was.Share, was.Answers
	d.mu.Unlock()
	if from != nil {
		s.color, s.release, s.pinned = from.Color, from.Release, from.Pinned
	}
	if from == nil || !s.release.follows(cfg) && !was.Answers.match(cfg) {
		s.release, s.pinned = d.wanted(Request{Who: "mainstay"}), ""
	}
	d.mu.Lock()
	d.live = s
	d.mu.Unlock()
	if !s.release.Command.equal(cfg.Run) || s.release.Dir != cfg.Dir || !slices.Equal(s.release.Targets, cfg.Targets) {
		d.deps.Log.Info("starting what was deployed last, not app.run", "command", s.release.what(), "dir", s.release.folder(), "deployed_by", s.release.Who)
	}
	if err := d.start(ctx, s, func(Step, string) {}); err != nil {
		return err
	}
	if _, err := d.steer(); err != nil {
		d.discard(ctx, s, err.Error())
		return err
	}
	id, inst := d.instance(s)
	d.emit(slog.LevelInfo, "app_started", s.color, fmt.Sprintf("%s serves on %s", id, inst.Handle().Address), slog.String("target", id))
	return nil
}

// adoptSlot takes back the copy that the Mainstay before left running in a color.
// The slot it returns is nil if there was no such color; without a copy that
// serves, why says what became of it.
func (d *Deployer) adoptSlot(ctx context.Context, was *savedSlot) (s *slot, why string, err error) {
	if was == nil {
		return nil, "", nil
	}
	s = &slot{color: was.Color, release: was.Release, pinned: was.Pinned, state: Down, since: time.Now()}
	if was.Copy == nil {
		s.unborn = true
		return s, "none of it ran", nil
	}
	c := was.Copy
	s.id = c.ID
	inst, err := d.deps.Driver.Adopt(ctx, s.release.spec(c.ID, s.color), c.Handle)
	if errors.Is(err, ErrGone) {
		why = c.ID + " ended while no mainstay was running"
		d.emit(slog.LevelWarn, "app_gone", s.color, why, slog.String("target", c.ID))
		return s, why, nil
	}
	if err != nil {
		return s, "", fmt.Errorf("adopt %s, which an earlier mainstay left running: %w", c.ID, err)
	}
	d.occupy(s, c.ID, inst, true)
	if err := d.bringHealthy(ctx, s, false, func(Step, string) {}); err != nil {
		if ctx.Err() != nil {
			return s, "", err
		}
		why = c.ID + " outlived the mainstay before, but does not serve: " + err.Error()
		d.emit(slog.LevelWarn, "app_replaced", s.color, why, slog.String("target", c.ID))
		return s, why, nil
	}
	return s, "", nil
}

func (d *Deployer) emitAdopted(slots ...*slot) {
	for _, s := range slots {
		if s.fit() {
			d.emit(slog.LevelInfo, "app_adopted", s.color, fmt.Sprintf("%s ran on while no mainstay was running; it is adopted", s.id), slog.String("target", s.id))
		}
	}
}

// conclude puts a deploy that a kill cut short into the history.
func (d *Deployer) conclude(r Record) {
	if !r.Phase.Final() {
		r.Error = fmt.Sprintf("mainstay was killed while the deploy was %s; the new color was stopped, the old one served on", r.Phase)
		r.Phase = Failed
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if slices.ContainsFunc(d.history, func(h Record) bool { return h.Number == r.Number }) {
		return
	}
	d.history = append(d.history, r)
	if err := writeFile(d.deps.Dir, historyFile, d.history); err != nil {
		d.deps.Log.Error("the history of deploys could not be written", "err", err)
	}
}

// resume goes on with the deploy that the life before was at; without one it
// deploys what the file says now, if that has changed over an adopted copy.
func (d *Deployer) resume(ctx context.Context, u *unfinished) {
	if u != nil {
		d.goOn(ctx, u)
		return
	}
	cfg := d.policy.Load()
	d.mu.Lock()
	follow := d.live.adopted && !d.live.release.follows(cfg) && !d.answers.match(cfg) && d.frozen == nil
	d.mu.Unlock()
	if follow {
		d.work.Go(func() { d.followFile(ctx) })
	}
}

// goOn carries a deploy in traffic to its end. Its watch begins anew; of what the
// colors did before, it knows what the old one did before the switch.
func (d *Deployer) goOn(ctx context.Context, u *unfinished) {
	d.mu.Lock()
	t := newTransition(ctx, d.live, u.record, nil)
	if u.before != nil {
		t.before = control{*u.before, true}
	}
	err := d.claim(Underway{Who: u.record.Who, Since: u.record.Began, Step: StepWatching})
	if err == nil {
		d.current = t
	}
	d.mu.Unlock()
	if err != nil {
		return // it ends already
	}
	if u.lost != "" {
		t.alarms <- u.lost
	}
	go func() {
		defer d.work.Done()
		if _, err := d.carry(t); err != nil {
			d.deps.Log.Warn("the deploy that a kill of mainstay cut short did not settle", "number", u.record.Number, "err", err)
		}
	}()
}

// followFile deploys app.run over an adopted copy that runs something older: what
// the file says now was meant for this start.
func (d *Deployer) followFile(ctx context.Context) {
	_, err := d.Deploy(ctx, Request{Who: "mainstay", Why: "app.run or app.dir changed while the app ran on by itself", Wait: true}, nil)
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
	if s, ok := d.deps.Driver.(Sweeper); ok { // a life killed between a start and its note left a copy that no state names
		if err := s.Sweep(ctx); err != nil {
			d.deps.Log.Warn("copies of earlier mainstays could not be removed", "err", err)
		}
	}
}
