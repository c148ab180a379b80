package deploy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"
)

// An Order is what a person says about a deploy that is at work, frozen, or done.
type Order struct {
	Who string `json:"who,omitempty"`
	Why string `json:"why,omitempty"`
}

func (o Order) by() string {
	s := o.Who
	if s == "" {
		s = "somebody"
	}
	if o.Why != "" {
		s += " (" + o.Why + ")"
	}
	return s
}

func (o Order) check() error { return Request{Who: o.Who, Why: o.Why}.check() }

// order is an Order on its way to the deploy at work.
type order struct {
	phase Phase // what the deploy shall end as
	by    string
}

// Rollback goes back to the color before. A deploy at work is called off, or
// rolled back if it has traffic already; else, while the old color still runs,
// the traffic is given back to it by one plan, and the new one is taken down. The
// record is that of the deploy, or of the rollback.
func (d *Deployer) Rollback(ctx context.Context, o Order) (Record, error) {
	if r, handled, err := d.tell(ctx, RolledBack, o); handled {
		return r, err
	}
	return d.reverse(o)
}

// Promote ends the watch, or the freeze, and gives the new color everything.
func (d *Deployer) Promote(ctx context.Context, o Order) (Record, error) {
	if r, handled, err := d.tell(ctx, Settled, o); handled {
		return r, err
	}
	t, err := d.takeUp(o, true)
	if err != nil {
		return Record{}, err
	}
	defer d.work.Done()
	d.settled(t)
	return d.finish(t, Settled, nil), nil
}

// Freeze leaves the traffic of the deploy at work as it is until Promote or
// Rollback.
func (d *Deployer) Freeze(ctx context.Context, o Order) (Record, error) {
	if r, handled, err := d.tell(ctx, Frozen, o); handled {
		return r, err
	}
	return Record{}, fmt.Errorf("%w: no deploy is at work", ErrRefused)
}

// Settle stops the old color that stands by, or updates it if app.settle.old says
// so. A deploy that is watched is promoted first.
func (d *Deployer) Settle(ctx context.Context, o Order) error {
	_, handled, err := d.tell(ctx, Settled, o)
	if handled {
		d.mu.Lock()
		gone := d.old == nil
		d.mu.Unlock()
		if err != nil || gone {
			return err
		}
	}
	return d.settleOld(o.by())
}

// tell gives an order to the deploy at work, if there is one, and waits for it to
// end.
func (d *Deployer) tell(ctx context.Context, p Phase, o Order) (r Record, handled bool, err error) {
	if err := o.check(); err != nil {
		return r, true, err
	}
	d.mu.Lock()
	t := d.current
	if t == nil {
		d.mu.Unlock()
		return r, false, nil
	}
	phase := t.record.Phase
	if !phase.routed() && !phase.Final() {
		if p == RolledBack {
			t.callOff(fmt.Errorf("called off by %s", o.by()))
		}
		d.mu.Unlock()
		if p != RolledBack {
			return r, true, fmt.Errorf("%w: the deploy is %s and has no traffic yet; mainstay rollback calls it off", ErrRefused, phase)
		}
	} else {
		d.mu.Unlock()
		select {
		case t.orders <- order{p, o.by()}:
		case <-t.done: // it ended by itself
		case <-ctx.Done():
			return r, true, context.Cause(ctx)
		}
	}
	select {
	case <-t.done:
	case <-ctx.Done():
		return r, true, context.Cause(ctx)
	}
	d.mu.Lock()
	r = t.record.clone()
	d.mu.Unlock()
	if p == RolledBack && r.Phase == Failed {
		return r, true, nil // called off: nothing of it is left
	}
	if r.Phase != p {
		return r, true, fmt.Errorf("%w: the deploy ended as %s before that", ErrRefused, r.Phase)
	}
	return r, true, nil
}

// takeUp makes a transition of the frozen deploy, or, if that is not a must, of
// the color that stands by.
func (d *Deployer) takeUp(o Order, frozen bool) (*transition, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.claim(Underway{Who: o.Who, Since: time.Now(), Step: StepSwitched}); err != nil {
		return nil, err
	}
	if d.frozen != nil {
		r := d.frozen.clone()
		t := newTransition(d.life, d.live, r, nil)
		d.current = t
		return t, nil
	}
	var err error
	switch {
	case frozen:
		err = fmt.Errorf("%w: no deploy is at work or frozen; there is nothing to promote", ErrRefused)
	case d.old == nil:
		err = fmt.Errorf("%w: no old color stands by to go back to; deploy the release that you want: mainstay deploy -- COMMAND", ErrRefused)
	case !d.old.fit():
		err = fmt.Errorf("%w: the old color is not fit to serve (%s: %s); deploy the release that you want: mainstay deploy -- COMMAND", ErrRefused, d.old.state, d.old.reason)
	}
	if err != nil {
		d.release()
		d.work.Done()
		return nil, err
	}
	t := newTransition(d.life, d.live, Record{
		Number: d.nextRecord, Kind: KindRollback, Phase: Switching, Color: d.old.color, From: d.live.color, Target: d.old.id,
		Image: d.old.release.Image, Command: d.old.release.Command, Targets: d.old.release.Targets, Dir: d.old.release.folder(), Version: d.old.release.Version, Who: o.Who, Why: o.Why, Began: time.Now(),
	}, nil)
	d.nextRecord++
	d.current = t
	return t, nil
}

// reverse gives the traffic back to the color that stands by.
func (d *Deployer) reverse(o Order) (Record, error) {
	t, err := d.takeUp(o, false)
	if err != nil {
		return Record{}, err
	}
	defer d.work.Done()
	d.mu.Lock()
	back := d.old.fit()
	d.mu.Unlock()
	if !back { // only a frozen deploy comes as far as here without one
		err = fmt.Errorf("%w: the old color is not fit to serve; mainstay promote, or deploy the release that you want after it", ErrRefused)
		return d.finish(t, Frozen, err), err
	}
	rollback := t.record.Kind == KindRollback
	d.goBack(t)
	if rollback {
		return d.finish(t, Settled, nil), nil
	}
	return d.finish(t, RolledBack, fmt.Errorf("%w by %s", ErrRolledBack, o.by())), nil
}

// Maintenance switches maintenance mode on or off; while it is on nobody is
// served, and deploys go on behind it. It outlives a restart.
func (d *Deployer) Maintenance(on bool, o Order) error {
	if err := o.check(); err != nil {
		return err
	}
	d.mu.Lock()
	if d.life == nil {
		d.mu.Unlock()
		return ErrNotRunning
	}
	was := d.maintenance
	d.maintenance = on
	d.mu.Unlock()
	if was == on {
		return nil
	}
	if _, err := d.steer(); err != nil {
		d.mu.Lock()
		d.maintenance = was
		d.mu.Unlock()
		return err
	}
	name, text := "maintenance_on", "maintenance mode was switched on by "+o.by()
	if !on {
		name, text = "maintenance_off", "maintenance mode was switched off by "+o.by()
	}
	d.emit(slog.LevelWarn, name, "", text, slog.String("who", o.Who), slog.String("why", o.Why))
	if err := d.save(); err != nil {
		return fmt.Errorf("it is in force, but would not outlive a restart: %w", err)
	}
	return nil
}

// settleOld takes the color that stands by down, and replaces it by the live
// release if the file says so.
func (d *Deployer) settleOld(who string) error {
	d.mu.Lock()
	var err error
	switch {
	case d.frozen != nil:
		err = fmt.Errorf("%w: the deploy is frozen; mainstay promote or mainstay rollback decides", ErrRefused)
	case d.old == nil:
		err = fmt.Errorf("%w: no old color stands by", ErrRefused)
	default:
		err = d.claim(Underway{Who: who, Since: time.Now(), Step: StepStopping})
	}
	if err != nil {
		d.mu.Unlock()
		return err
	}
	t := newTransition(d.life, d.old, Record{Kind: "settle", Phase: Settled, Color: d.old.color}, nil)
	d.current = t
	color, release := d.old.color, d.live.release
	d.mu.Unlock()
	defer d.work.Done()
	d.takeDownOld(t, "settled by "+who)
	if d.policy.Load().Settle.Old == settleUpdate {
		d.standBy(t.life, &slot{color: color, release: release, state: Down, since: time.Now()})
	}
	d.mu.Lock()
	d.release()
	d.mu.Unlock()
	close(t.done)
	d.emit(slog.LevelInfo, "settled", color, "the old color was settled by "+who)
	return nil
}

// standBy starts a second copy of the live release in s.
func (d *Deployer) standBy(ctx context.Context, s *slot) {
	d.mu.Lock()
	d.next = s
	d.mu.Unlock()
	err := d.start(ctx, s, func(Step, string) {})
	d.mu.Lock()
	d.next = nil
	if err == nil {
		d.old = s
	}
	d.mu.Unlock()
	if err != nil {
		d.emit(slog.LevelWarn, "update_failed", s.color, "a second copy of the release could not be brought up: "+err.Error())
		return
	}
	d.supervise(s)
	d.steerOrSay()
	d.saveOrSay()
}

// wake makes housekeep look again.
func (d *Deployer) wake() {
	select {
	case d.nudge <- struct{}{}:
	default:
	}
}

// housekeep settles the old color when its time has come.
func (d *Deployer) housekeep(ctx context.Context) {
	for {
		d.mu.Lock()
		at, free := d.retireAt, d.freed
		if d.underway == nil {
			free = nil
		}
		d.mu.Unlock()
		var due <-chan time.Time
		var timer *time.Timer
		if !at.IsZero() && free == nil {
			timer = time.NewTimer(time.Until(at))
			due = timer.C
		}
		select {
		case <-ctx.Done():
		case <-d.nudge:
		case <-free:
		case <-due:
			if err := d.settleOld("app.settle"); err != nil && !errors.Is(err, ErrBusy) && !errors.Is(err, ErrNotRunning) {
				d.deps.Log.Warn("the old color could not be settled", "err", err)
			}
		}
		if timer != nil {
			timer.Stop()
		}
		if ctx.Err() != nil {
			return
		}
	}
}
