package deploy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"mainstay.dev/mainstay/internal/setting"
)

// Deploy replaces the live color by what r asks for: it starts the other color
// beside it, waits until that is healthy, warms and verifies it, moves the traffic
// step by step, and watches it. What becomes of the old color then says
// Config.Settle. One deploy works at a time; a second gets ErrBusy, or waits.
//
// Up to the switch any error, and the end of ctx, stops the new copy and leaves
// the old one serving, untouched; the record and the error say why. After the
// first step of the switch ctx no longer counts: Deploy goes on until the deploy
// has settled, was rolled back (ErrRolledBack) or is frozen (ErrFrozen).
//
// progress may be nil; it is called on the caller's goroutine and must not block.
func (d *Deployer) Deploy(ctx context.Context, r Request, progress func(Progress)) (Record, error) {
	if err := r.check(); err != nil {
		return Record{}, err
	}
	t, err := d.begin(ctx, r, progress)
	if err != nil {
		return Record{}, err
	}
	defer d.work.Done()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(t.life, func() { cancel(errStops) })()
	defer context.AfterFunc(t.calledOff, func() { cancel(context.Cause(t.calledOff)) })()

	err = d.raise(ctx, t)
	if err == nil {
		err = d.enterTraffic(ctx, t)
	}
	if err != nil {
		d.discard(ctx, t.next, brief(err))
		return d.finish(t, Failed, err), err
	}
	return d.carry(t)
}

var errStops = errors.New("mainstay stops")

// A transition is one deploy at work.
type transition struct {
	life      context.Context
	calledOff context.Context // done when somebody rolls back before the switch
	callOff   context.CancelCauseFunc
	next      *slot
	record    Record // guarded by Deployer.mu
	tell      func(Progress)
	orders    chan order    // from people, while it is watched
	alarms    chan string   // what befell the new color
	done      chan struct{} // closed when the record is final
	before    control       // what the old color did before the switch; guarded by Deployer.mu until it is set
}

func newTransition(life context.Context, next *slot, r Record, tell func(Progress)) *transition {
	if tell == nil {
		tell = func(Progress) {}
	}
	t := &transition{life: life, next: next, record: r, tell: tell, orders: make(chan order), alarms: make(chan string, 1), done: make(chan struct{})}
	t.calledOff, t.callOff = context.WithCancelCause(context.WithoutCancel(life))
	return t
}

// begin claims the right to deploy, and waits for it if r says so.
func (d *Deployer) begin(ctx context.Context, r Request, progress func(Progress)) (*transition, error) {
	for told := false; ; told = true {
		t, free, err := d.tryBegin(r, progress)
		if !r.Wait || !errors.Is(err, ErrBusy) {
			return t, err
		}
		if progress != nil && !told {
			progress(Progress{Time: time.Now(), Step: StepQueued, Text: "waits its turn: " + err.Error()})
		}
		select {
		case <-free:
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for the other deploy: %w", context.Cause(ctx))
		}
	}
}

func (d *Deployer) tryBegin(r Request, progress func(Progress)) (t *transition, free <-chan struct{}, err error) {
	cfg := d.policy.Load()
	if err := r.refuse(cfg); err != nil {
		return nil, nil, err
	}
	if r, err = r.found(cfg); err != nil {
		return nil, nil, err
	}
	rel := d.wanted(r)
	steps := r.Steps
	if steps == nil {
		steps = cfg.Switch.Steps
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.claim(Underway{Who: r.Who, Since: rel.Began, Step: StepStarting}); err != nil {
		return nil, d.freed, err
	}
	if f := d.frozen; f != nil {
		d.release()
		d.work.Done()
		return nil, nil, fmt.Errorf("%w: deploy no. %d is frozen with %d%% of the traffic; decide with mainstay promote or mainstay rollback first", ErrRefused, f.Number, d.share)
	}
	next := &slot{color: green, release: rel, state: Down, since: rel.Began}
	if d.live.color == green {
		next.color = blue
	}
	t = newTransition(d.life, next, Record{
		Number: d.nextRecord, Kind: KindDeploy, Phase: Preparing, Color: next.color, From: d.live.color, Image: rel.Image, Command: rel.Command, Targets: rel.Targets, Dir: rel.folder(),
		Version: rel.Version, Who: r.Who, Why: r.Why, OneWay: r.OneWay, Force: r.Force, Began: rel.Began, Shares: cfg.shares(steps),
	}, progress)
	d.nextRecord++
	d.next, d.current = next, t
	return t, nil, nil
}

// claim takes the right to change colors. Deployer.mu is held; whoever got it
// calls release, and work.Done in the end.
func (d *Deployer) claim(u Underway) error {
	if d.life == nil || d.life.Err() != nil {
		return ErrNotRunning
	}
	if now := d.underway; now != nil {
		who := now.Who
		if who == "" {
			who = "somebody"
		}
		return fmt.Errorf("%w: %s began it at %s, it is %s", ErrBusy, who, now.Since.Format(time.DateTime), now.Step)
	}
	d.underway, d.freed = &u, make(chan struct{})
	d.work.Add(1)
	return nil
}

// release gives the right back. Deployer.mu is held.
func (d *Deployer) release() {
	d.underway, d.current = nil, nil
	close(d.freed)
}

// shares are the steps, but for what the control keeps to the end of the watch.
func (c *policy) shares(steps []setting.Percent) []int {
	list, err := shares(steps)
	if err != nil || c.Watch.For == 0 {
		return list
	}
	most := 100 - int(100*float64(c.Watch.Control)+0.5)
	for i := range list {
		list[i] = min(list[i], most)
	}
	return slices.Compact(list)
}

// enterPhase writes down where the deploy stands.
func (d *Deployer) enterPhase(t *transition, p Phase) error {
	d.mu.Lock()
	t.record.Phase = p
	d.mu.Unlock()
	return d.save()
}

// raise brings the new color up and has it judged, beside the one that serves and
// the one that stands by. On an error its copy may still run; nothing else has
// changed.
func (d *Deployer) raise(ctx context.Context, t *transition) error {
	if err := d.save(); err != nil { // a deploy that cannot be written down would not survive a kill -9
		return fmt.Errorf("nothing was started: %w", err)
	}
	if err := d.passGates(ctx, t); err != nil {
		return fmt.Errorf("nothing was started: %w", err)
	}
	if d.overlaps(t.next.release) { // it cannot be told apart from the release that stands by
		d.takeDownOld(t, "its servers get a new release")
	}
	if err := d.start(ctx, t.next, func(st Step, text string) { d.progress(t, st, text) }); err != nil {
		return err
	}
	d.steerOrSay() // the new color may be previewed
	if err := d.enterPhase(t, Warming); err != nil {
		return err
	}
	if err := d.warm(ctx, t); err != nil {
		return err
	}
	if err := d.enterPhase(t, Verifying); err != nil {
		return err
	}
	if err := d.verify(ctx, t); err != nil {
		return err
	}
	if err := d.passGates(ctx, t); err != nil {
		return err
	}
	return context.Cause(ctx)
}

// enterTraffic makes the new color the live slot, with its first share, first in
// the state file and then in the edge: a Mainstay that is killed between the two
// finds the color that it was about to route to, healthy. On an error all is as
// it was before.
func (d *Deployer) enterTraffic(ctx context.Context, t *transition) error {
	before := d.past(t.record.From)
	d.mu.Lock()
	t.before = before
	// From here on an order finds the deploy in traffic; before, it was called off.
	if err := errors.Join(context.Cause(ctx), context.Cause(t.calledOff)); err != nil {
		d.mu.Unlock()
		return err
	}
	old, next, standby, retire := d.live, t.next, d.old, d.retireAt
	d.live, d.next, d.old, d.share, d.retireAt = next, nil, old, t.record.Shares[0], time.Time{}
	if standby != nil {
		d.leaving = append(d.leaving, standby)
	}
	t.record.Phase = Switching
	d.mu.Unlock()
	err := d.save()
	var drain func(context.Context) error
	if err == nil {
		drain, err = d.steer()
	}
	if err != nil {
		d.mu.Lock()
		d.live, d.next, d.old, d.share, d.retireAt = old, next, standby, 100, retire
		d.left(standby)
		t.record.Phase = Verifying
		d.mu.Unlock()
		d.steerOrSay()
		d.saveOrSay()
		return fmt.Errorf("switch to %s: %w", next.color, err)
	}
	d.supervise(next)
	d.tellSwitch(t)
	if standby != nil { // only now: until the switch a rollback to it was possible
		d.work.Go(func() { d.takeDown(t.life, standby, drain, "makes room for a new release", func(Step, string) {}) })
	}
	return nil
}

// overlaps reports whether a release has a server in common with the one that
// stands by.
func (d *Deployer) overlaps(r release) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.old != nil && slices.ContainsFunc(r.Targets, func(a string) bool { return slices.Contains(d.old.release.Targets, a) })
}

// left notes that s is not being taken down any more. Deployer.mu is held.
func (d *Deployer) left(s *slot) {
	d.leaving = slices.DeleteFunc(slices.Clone(d.leaving), func(l *slot) bool { return l == s })
}

// shift gives the new color another share.
func (d *Deployer) shift(t *transition, share int) {
	d.mu.Lock()
	same := d.share == share
	d.share = share
	d.mu.Unlock()
	if same {
		return
	}
	d.saveOrSay()
	d.steerOrSay()
	d.tellSwitch(t)
}

func (d *Deployer) tellSwitch(t *transition) {
	id, _ := d.instance(t.next)
	d.mu.Lock()
	share, from := d.share, t.record.From
	d.mu.Unlock()
	text := fmt.Sprintf("%d%% of the new requests go to %s, the rest to %s", share, id, from)
	if share == 100 {
		text = fmt.Sprintf("every new request goes to %s, none to %s", id, from)
	}
	d.progress(t, StepSwitched, text)
	d.emit(slog.LevelInfo, "switched", t.next.color, text, slog.String("target", id), slog.String("from", from),
		slog.Int("share", share), slog.String("version", t.next.release.Version))
}

// carry takes a deploy that is in traffic to its end.
func (d *Deployer) carry(t *transition) (Record, error) {
	v := d.advance(t)
	switch v.phase {
	case RolledBack:
		d.goBack(t)
		return d.finish(t, RolledBack, fmt.Errorf("%w: %s", ErrRolledBack, v.why)), fmt.Errorf("%w: %s", ErrRolledBack, v.why)
	case Frozen:
		err := fmt.Errorf("%w: %s; decide with mainstay promote or mainstay rollback", ErrFrozen, v.why)
		return d.finish(t, Frozen, err), err
	}
	d.settled(t)
	return d.finish(t, Settled, nil), nil
}

// advance goes through the steps and the watch, and says how that ended.
func (d *Deployer) advance(t *transition) verdict {
	d.mu.Lock()
	at, list := d.share, t.record.Shares
	d.mu.Unlock()
	for i, share := range list {
		if share < at {
			continue
		}
		d.shift(t, share)
		cfg := d.policy.Load()
		span, phase := cfg.Switch.Every, Switching
		if i == len(list)-1 {
			if span, phase = cfg.Watch.For, Watching; span == 0 {
				break
			}
		}
		if err := d.enterPhase(t, phase); err != nil {
			d.deps.Log.Error("the phase of the deploy could not be written; it goes on", "phase", phase, "err", err)
		}
		if v := d.observe(t, span); v.phase != "" {
			return v
		}
	}
	select {
	case why := <-t.alarms:
		return d.worse(t, why)
	default:
		return verdict{phase: Settled}
	}
}

// settled gives the new color everything, and the old one its future.
func (d *Deployer) settled(t *transition) {
	d.shift(t, 100)
	cfg := d.policy.Load().Settle
	d.mu.Lock()
	t.record.Phase = Settled
	d.answers, d.retireAt = answers{}, time.Time{}
	d.frozen = nil
	at := cfg.Old != settleKeep && d.old != nil
	if at {
		d.retireAt = time.Now().Add(cfg.After)
	}
	d.mu.Unlock()
	d.saveOrSay()
	if cfg.Old == settleStop && cfg.After == 0 {
		d.takeDownOld(t, "replaced by "+t.next.color)
	} else if at {
		d.wake()
	}
}

// goBack gives the old color all the traffic and takes the new one down.
func (d *Deployer) goBack(t *transition) {
	d.mu.Lock()
	bad := d.live
	d.live, d.old, d.share, d.frozen, d.retireAt = d.old, nil, 100, nil, time.Time{}
	d.leaving = append(d.leaving, bad)
	t.record.Phase = RolledBack
	cfg := d.policy.Load()
	d.answers = answers{cfg.Image, cfg.Run, cfg.Dir, cfg.Targets}
	id := d.live.id
	d.mu.Unlock()
	d.saveOrSay()
	drain, err := d.steer()
	if err != nil {
		d.deps.Log.Error("the edge did not take the plan of the rollback", "err", err)
	}
	text := fmt.Sprintf("every new request goes to %s again, none to %s", id, bad.color)
	d.progress(t, StepSwitched, text)
	d.emit(slog.LevelWarn, "rolled_back", d.live.color, text, slog.String("target", id), slog.String("from", bad.color))
	d.takeDown(t.life, bad, drain, "rolled back", func(st Step, text string) { d.progress(t, st, text) })
}

// takeDownOld takes the color down that runs beside the live one, if there is one.
func (d *Deployer) takeDownOld(t *transition, why string) {
	d.mu.Lock()
	s := d.old
	d.old, d.retireAt = nil, time.Time{}
	if s != nil {
		d.share, d.leaving = 100, append(d.leaving, s)
	}
	d.mu.Unlock()
	if s == nil {
		return
	}
	drain, err := d.steer()
	if err != nil {
		d.deps.Log.Error("the edge did not let go of the old color", "err", err)
	}
	d.takeDown(t.life, s, drain, why, func(st Step, text string) { d.progress(t, st, text) })
}

// takeDown lets s, which the edge has let go, finish its requests and stops it.
// Nothing here can fail the deploy: the traffic is elsewhere.
func (d *Deployer) takeDown(life context.Context, s *slot, drain func(context.Context) error, why string, tell func(Step, string)) {
	d.unsupervise(s)
	limit := d.policy.Load().Drain
	if id, inst := d.instance(s); inst != nil {
		d.enter(s, Draining, "")
		if drain != nil {
			tell(StepDraining, fmt.Sprintf("%s has %v to finish its requests", id, limit))
			ctx, cancel := context.WithTimeout(life, limit)
			if err := drain(ctx); err != nil {
				d.deps.Log.Warn("a color had not finished all its requests when it was stopped", "target", id, "drain", limit, "err", err)
			}
			cancel()
		}
		text := id + " is told to end"
		if len(s.release.Targets) > 0 {
			text = id + " is in use no longer; whoever runs it may end it"
		}
		tell(StepStopping, text)
	}
	d.discard(life, s, why)
	d.mu.Lock()
	d.left(s)
	d.mu.Unlock()
	d.saveOrSay()
}

// finish writes the deploy down and lets the next one in.
func (d *Deployer) finish(t *transition, outcome Phase, err error) Record {
	d.mu.Lock()
	t.record.Phase, t.record.TookMS = outcome, time.Since(t.record.Began).Milliseconds()
	if err != nil {
		t.record.Error = err.Error()
	}
	if d.next == t.next {
		d.next = nil
	}
	d.mu.Unlock()
	d.steerOrSay() // a preview of it is over
	d.told(t, outcome)
	text := fmt.Sprintf("%s serves in place of %s", t.record.Color, t.record.From)
	level := slog.LevelInfo
	switch outcome {
	case Failed:
		text, level = fmt.Sprintf("%s was not deployed, %s serves on: %v", t.next.color, t.record.From, err), slog.LevelWarn
	case RolledBack, Frozen:
		text, level = err.Error(), slog.LevelWarn
	}
	last := d.note(t, Step(outcome), text)
	d.mu.Lock()
	record := t.record.clone()
	if outcome == Frozen {
		d.frozen = &record
	}
	d.history = append(slices.DeleteFunc(slices.Clone(d.history), func(r Record) bool { return r.Number == record.Number }), record)
	if over := len(d.history) - maxHistory; over > 0 {
		d.history = slices.Delete(d.history, 0, over)
	}
	history := slices.Clone(d.history)
	d.mu.Unlock()
	if err := writeFile(d.deps.Dir, historyFile, history); err != nil {
		d.deps.Log.Error("the history of deploys could not be written", "err", err)
	}
	if outcome == Settled {
		d.work.Go(d.pruneReleases)
	}
	d.emit(level, "deploy_"+eventName[outcome], t.next.color, text, slog.Int("number", record.Number), slog.String("who", record.Who),
		slog.String("why", record.Why), slog.Int64("took_ms", record.TookMS))
	d.mu.Lock()
	d.release()
	d.mu.Unlock()
	d.saveOrSay() // that no deploy is at work any more
	close(t.done)
	t.tell(last) // only now, so that who hears it may deploy again at once
	return record
}

var eventName = map[Phase]string{Settled: "done", Failed: "failed", RolledBack: "rolled_back", Frozen: "frozen"}

// progress tells the status, the record and the one who asked.
func (d *Deployer) progress(t *transition, st Step, text string) { t.tell(d.note(t, st, text)) }

func (d *Deployer) note(t *transition, st Step, text string) Progress {
	d.mu.Lock()
	defer d.mu.Unlock()
	p := Progress{Time: time.Now(), Phase: t.record.Phase, Step: st, Color: t.next.color, Target: t.next.id, Text: text}
	d.underway.Step, d.underway.Text = st, text
	if t.record.Target == "" {
		t.record.Target = p.Target
	}
	t.record.add(p)
	return p
}
