package deploy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"mainstay.dev/mainstay/internal/setting"
)

// Deploy replaces the live color by what r asks for: it starts the other color
// beside it, waits until that is healthy, switches the traffic, lets the old
// color finish its requests within drain, and stops it. One deploy works at a
// time; a second gets ErrBusy at once.
//
// Up to the switch any error, and the end of ctx, stops the new copy and leaves
// the old one serving, untouched; the record and the error say why. After the
// switch the deploy is done and ctx no longer counts: Deploy finishes taking the
// old color down.
//
// progress may be nil; it is called on the caller's goroutine and must not block.
func (d *Deployer) Deploy(ctx context.Context, r Request, progress func(Progress)) (Record, error) {
	if err := r.check(); err != nil {
		return Record{}, err
	}
	t, err := d.begin(r, progress)
	if err != nil {
		return Record{}, err
	}
	defer d.work.Done()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(t.life, func() { cancel(errors.New("mainstay stops")) })()

	old, drain, err := d.replace(ctx, t)
	if err != nil {
		return d.finish(t, StepFailed, err), err
	}
	d.retire(t, old, drain)
	return d.finish(t, StepDone, nil), nil
}

// A transition is one deploy at work.
type transition struct {
	life   context.Context
	next   *slot
	record Record
	tell   func(Progress)
}

// begin claims the right to deploy.
func (d *Deployer) begin(r Request, progress func(Progress)) (*transition, error) {
	rel := d.wanted(r)
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.life == nil || d.life.Err() != nil {
		return nil, ErrNotRunning
	}
	if u := d.underway; u != nil {
		who := u.Who
		if who == "" {
			who = "somebody"
		}
		return nil, fmt.Errorf("%w: %s began it at %s, it is %s", ErrBusy, who, u.Since.Format(time.DateTime), u.Step)
	}
	if progress == nil {
		progress = func(Progress) {}
	}
	next := &slot{color: green, release: rel, state: Down, since: rel.Began}
	if d.live.color == green {
		next.color = blue
	}
	t := &transition{life: d.life, next: next, tell: progress, record: Record{
		Number: d.nextRecord, Color: next.color, From: d.live.color, Command: rel.Command, Dir: rel.Dir,
		Version: rel.Version, Who: r.Who, Why: r.Why, Began: rel.Began,
	}}
	d.nextRecord++
	d.underway = &Underway{Who: r.Who, Since: rel.Began, Step: StepStarting}
	d.next = next
	d.work.Add(1)
	return t, nil
}

// replace brings the new color up and switches to it. On an error all is as it
// was before.
func (d *Deployer) replace(ctx context.Context, t *transition) (old *slot, drain func(context.Context) error, err error) {
	if err := d.save(); err != nil { // a deploy that cannot be written down would not survive a kill -9
		return nil, nil, fmt.Errorf("nothing was started: %w", err)
	}
	if err := d.start(ctx, t.next, func(st Step, text string) { d.progress(t, st, text) }); err != nil {
		return nil, nil, err
	}
	if err := ctx.Err(); err != nil {
		err = context.Cause(ctx)
		d.discard(ctx, t.next, err.Error())
		return nil, nil, err
	}
	old, drain, err = d.swap(t.next)
	if err != nil {
		d.discard(ctx, t.next, err.Error())
		return nil, nil, err
	}
	id, _ := d.instance(t.next)
	d.supervise(t.next)
	text := fmt.Sprintf("every new request goes to %s, none to %s", id, old.color)
	d.progress(t, StepSwitched, text)
	d.emit(slog.LevelInfo, "switched", t.next.color, text, slog.String("target", id), slog.String("from", old.color), slog.String("version", t.next.release.Version))
	return old, drain, nil
}

// swap makes next the live slot, first in the state file and then in the edge: a
// Mainstay that is killed between the two finds the color that it was about to
// route to, healthy.
func (d *Deployer) swap(next *slot) (old *slot, drain func(context.Context) error, err error) {
	d.mu.Lock()
	old = d.live
	d.live, d.next, d.old = next, nil, old
	d.mu.Unlock()
	if err = d.save(); err == nil {
		drain, err = d.route(next)
	}
	if err != nil {
		d.mu.Lock()
		d.live, d.next, d.old = old, next, nil
		d.mu.Unlock()
		d.saveOrSay()
		return nil, nil, fmt.Errorf("switch to %s: %w", next.color, err)
	}
	return old, drain, nil
}

// retire lets old finish its requests and stops it. Nothing here can fail the
// deploy: the traffic is on the new color.
func (d *Deployer) retire(t *transition, old *slot, drain func(context.Context) error) {
	d.unsupervise(old)
	limit := d.policy.Load().Drain
	if id, inst := d.instance(old); inst != nil {
		d.enter(old, Draining, "")
		d.progress(t, StepDraining, fmt.Sprintf("%s has %v to finish its requests", id, limit))
		ctx, cancel := context.WithTimeout(t.life, limit)
		if err := drain(ctx); err != nil {
			d.deps.Log.Warn("the old color had not finished all its requests when it was stopped", "target", id, "drain", limit, "err", err)
		}
		cancel()
		d.progress(t, StepStopping, fmt.Sprintf("%s is told to end", id))
	}
	d.discard(t.life, old, "replaced by "+t.next.color)
	d.mu.Lock()
	d.old = nil
	d.mu.Unlock()
	d.saveOrSay()
}

// finish writes the deploy down and lets the next one in.
func (d *Deployer) finish(t *transition, outcome Step, err error) Record {
	t.record.Outcome, t.record.TookMS = outcome, time.Since(t.record.Began).Milliseconds()
	text := fmt.Sprintf("%s serves in place of %s", t.next.color, t.record.From)
	if err != nil {
		t.record.Error = err.Error()
		text = fmt.Sprintf("%s was not deployed, %s serves on: %v", t.next.color, t.record.From, err)
	}
	last := d.note(t, outcome, text)
	d.mu.Lock()
	if d.next == t.next {
		d.next = nil
	}
	d.history = append(d.history, t.record)
	if over := len(d.history) - maxHistory; over > 0 {
		d.history = slices.Delete(slices.Clone(d.history), 0, over)
	}
	history := slices.Clone(d.history)
	d.mu.Unlock()
	if err := writeFile(d.deps.Dir, historyFile, history); err != nil {
		d.deps.Log.Error("the history of deploys could not be written", "err", err)
	}
	attrs := []slog.Attr{slog.Int("number", t.record.Number), slog.String("who", t.record.Who), slog.String("why", t.record.Why), slog.Int64("took_ms", t.record.TookMS)}
	if err != nil {
		d.emit(slog.LevelWarn, "deploy_failed", t.next.color, text, attrs...)
	} else {
		d.emit(slog.LevelInfo, "deploy_done", t.next.color, text, attrs...)
	}
	d.mu.Lock()
	d.underway = nil
	d.mu.Unlock()
	t.tell(last) // only now, so that who hears it may deploy again at once
	return t.record
}

// progress tells the status, the record and the one who asked.
func (d *Deployer) progress(t *transition, st Step, text string) { t.tell(d.note(t, st, text)) }

func (d *Deployer) note(t *transition, st Step, text string) Progress {
	d.mu.Lock()
	p := Progress{Time: time.Now(), Step: st, Color: t.next.color, Target: t.next.id, Text: text}
	d.underway.Step, d.underway.Text = st, text
	d.mu.Unlock()
	if t.record.Target == "" {
		t.record.Target = p.Target
	}
	if !slices.ContainsFunc(t.record.Steps, func(q Progress) bool { return q.Step == st }) {
		t.record.Steps = append(t.record.Steps, p)
	}
	return p
}

// wanted is the release that r asks for, completed by what runs now and by the
// file.
func (d *Deployer) wanted(r Request) release {
	cfg := d.policy.Load()
	rel := release{
		Command: r.Command, Dir: r.Dir, Env: r.Env, Version: r.Version, Who: r.Who, Began: time.Now(),
		ConfigRun: cfg.Run, ConfigDir: cfg.Dir,
	}
	d.mu.Lock()
	live := d.live
	d.mu.Unlock()
	base := release{Command: cfg.Run, Dir: cfg.Dir}
	if live != nil && live.release.follows(cfg) {
		base = live.release
	}
	if len(rel.Command) == 0 {
		rel.Command = base.Command
		if rel.Dir == "" {
			rel.Dir = base.Dir
		}
		if rel.Env == nil {
			rel.Env = base.Env
		}
		if rel.Version == "" {
			rel.Version = base.Version
		}
	}
	if rel.Dir == "" {
		rel.Dir = cfg.Dir
	}
	return rel
}

// follows reports whether the release was made from the file as it is now.
func (r release) follows(cfg *Config) bool {
	return r.ConfigRun.equal(cfg.Run) && r.ConfigDir == cfg.Dir
}

const maxWords = 1 << 10 // bytes of who, why and version each

// check reports every mistake in r.
func (r Request) check() error {
	var ps setting.Problems
	if len(r.Command) > 0 {
		r.Command.validate("command", &ps)
	}
	if r.Dir != "" && !filepath.IsAbs(r.Dir) {
		ps.Add("dir", "must be absolute", "")
	}
	for _, kv := range r.Env {
		key, _, ok := strings.Cut(kv, "=")
		switch {
		case !ok || key == "" || strings.ContainsRune(kv, 0):
			ps.Add("env", fmt.Sprintf("%q is not KEY=value", key), "")
		case key == "PORT":
			ps.Add("env", "must not set PORT", "mainstay gives each copy a port of its own")
		}
	}
	for name, v := range map[string]string{"version": r.Version, "who": r.Who, "why": r.Why} {
		if len(v) > maxWords {
			ps.Add(name, fmt.Sprintf("must not be longer than %d bytes", maxWords), "")
		}
	}
	return ps.Err()
}
