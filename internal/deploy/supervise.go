package deploy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"syscall"
	"time"
)

// timing is what tests need to be shorter.
type timing struct {
	startProbe time.Duration // between probes of a copy that is starting
	notice     time.Duration // until a starting copy's trouble is put into the log
	backoff    time.Duration // before the first restart after a crash; doubles each time
	backoffMax time.Duration
	steady     time.Duration // a copy that lived this long starts the backoff anew when it crashes
}

var usual = timing{
	startProbe: 200 * time.Millisecond,
	notice:     2 * time.Second,
	backoff:    time.Second,
	backoffMax: 30 * time.Second,
	steady:     time.Minute,
}

// supervise keeps a copy of s's release running until unsupervise is called.
func (d *Deployer) supervise(s *slot) {
	ctx, cancel := context.WithCancel(context.Background())
	s.halt, s.kept = cancel, make(chan struct{})
	go func() {
		defer close(s.kept)
		d.keep(ctx, s)
	}()
}

// unsupervise ends the supervision of s and waits for it; the copy runs on.
func (d *Deployer) unsupervise(s *slot) {
	if s.halt != nil {
		s.halt()
		<-s.kept
	}
}

func (d *Deployer) keep(ctx context.Context, s *slot) {
	crashes := 0
	if s.unborn && d.bringBack(ctx, s) {
		crashes = 0
	} else if _, inst := d.instance(s); inst == nil { // it ended while no mainstay was running
		crashes = 1
		if !d.revive(ctx, s, &crashes) {
			return
		}
	}
	for {
		lived, ended := d.tend(ctx, s)
		if !ended {
			return
		}
		if lived >= d.timing.steady {
			crashes = 0
		}
		crashes++
		if !d.revive(ctx, s, &crashes) {
			return
		}
	}
}

// bringBack starts the release that stood by when mainstay was stopped, so that a
// rollback is possible as before.
func (d *Deployer) bringBack(ctx context.Context, s *slot) bool {
	err := d.start(ctx, s, func(Step, string) {})
	if err == nil {
		_, err = d.steer()
	}
	switch {
	case ctx.Err() != nil:
		return false
	case err != nil:
		d.vacate(s, brief(err))
		d.emit(slog.LevelWarn, "standby_failed", s.color, "the release that stood by could not be started again: "+err.Error())
		return false
	}
	id, _ := d.instance(s)
	d.emit(slog.LevelInfo, "standby_started", s.color, id+" stands by again", slog.String("target", id))
	return true
}

// tend probes the copy in s until it ends, or until ctx is done.
func (d *Deployer) tend(ctx context.Context, s *slot) (lived time.Duration, ended bool) {
	id, inst := d.instance(s)
	began := time.Now()
	p := newPulse(d, s)
	for {
		h := d.policy.Load().Health
		t := time.NewTimer(h.Interval)
		select {
		case <-ctx.Done():
			t.Stop()
			return 0, false
		case <-inst.Exited():
			t.Stop()
			d.crashed(s, id, inst)
			return time.Since(began), true
		case <-t.C:
			p.beat(ctx, h)
		}
	}
}

// A pulse follows the probes of one copy.
type pulse struct {
	d    *Deployer
	s    *slot
	id   string
	inst Instance
	at   map[string]*streak // by address
	ill  bool               // at all of them
}

// A streak is how the last probes of one address went.
type streak struct {
	good, bad int
	ill       bool
}

func newPulse(d *Deployer, s *slot) *pulse {
	p := &pulse{d: d, s: s, at: map[string]*streak{}}
	p.id, p.inst = d.instance(s)
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, a := range addresses(p.inst) {
		p.at[a] = &streak{ill: s.out[a] != nil}
	}
	return p
}

// take counts a probe's outcome and reports whether the address is ill or well
// since now.
func (k *streak) take(err error, h Health) (turned bool) {
	if err == nil {
		k.good, k.bad = k.good+1, 0
		if k.ill && k.good >= h.HealthyAfter {
			k.ill = false
			return true
		}
		return false
	}
	k.good, k.bad = 0, k.bad+1
	if !k.ill && k.bad >= h.UnhealthyAfter {
		k.ill = true
		return true
	}
	return false
}

func (p *pulse) beat(ctx context.Context, h Health) {
	faults := p.d.ask(ctx, p.inst, h)
	select {
	case <-p.inst.Exited():
		return // what the probe saw is the crash, which is told as one
	default:
	}
	if ctx.Err() != nil {
		return
	}
	var turned []string
	out := map[string]error{}
	for _, a := range addresses(p.inst) {
		k := p.at[a]
		if k.take(faults[a], h) {
			turned = append(turned, a)
		}
		if err := faults[a]; k.ill && err != nil {
			out[a] = err
		} else if k.ill {
			out[a] = errRecovering
		}
	}
	all := len(out) == len(p.at)
	why := ""
	if err := first(out); err != nil {
		why = err.Error()
		if errors.Is(err, syscall.ECONNREFUSED) {
			why, _ = explain(p.inst, err)
		}
	}
	p.tell(turned, out, why, all)
}

var errRecovering = errors.New("its probes are good again, not yet often enough")

// tell makes known what a beat has found: out are the addresses that are not fit.
func (p *pulse) tell(turned []string, out map[string]error, why string, all bool) {
	p.d.mu.Lock()
	p.s.out = out
	p.d.mu.Unlock()
	was := p.ill
	p.ill = all
	switch {
	case all && why != errRecovering.Error():
		p.d.enter(p.s, Unhealthy, why)
	case was && !all:
		p.d.enter(p.s, Healthy, "")
	}
	if len(turned) > 0 {
		p.d.steerOrSay()
	}
	switch {
	case was && !all:
		p.d.emit(slog.LevelInfo, "app_healthy", p.s.color, p.id+" is healthy again", slog.String("target", p.id))
	case all && !was:
		text := fmt.Sprintf("%s failed %d probes in a row: %s", p.id, p.d.policy.Load().Health.UnhealthyAfter, why)
		p.d.emit(slog.LevelWarn, "app_unhealthy", p.s.color, text, slog.String("target", p.id), slog.String("reason", why))
		p.d.alarm(p.s, text)
	default:
		p.tellAddresses(turned, out)
	}
}

// tellAddresses tells of single servers of a copy that serves on.
func (p *pulse) tellAddresses(turned []string, out map[string]error) {
	for _, a := range turned {
		level, name, text := slog.LevelInfo, "address_healthy", fmt.Sprintf("%s of %s is healthy again and gets requests", a, p.id)
		if err := out[a]; err != nil {
			level, name, text = slog.LevelWarn, "address_unhealthy", fmt.Sprintf("%s gets no requests of %s any more: %v", a, p.id, err)
		}
		p.d.emit(level, name, p.s.color, text, slog.String("target", p.id), slog.String("address", a))
	}
}

// crashed tells that the copy in s ended by itself.
func (d *Deployer) crashed(s *slot, id string, inst Instance) {
	how := inst.Exit().String()
	d.vacate(s, id+" crashed: "+how)
	d.mu.Lock()
	s.lastExit = how
	d.mu.Unlock()
	d.steerOrSay() // first of all: requests go where they can be served
	d.alarm(s, id+" crashed: "+how)
	d.saveOrSay()
	d.emit(slog.LevelWarn, "app_crashed", s.color, id+" crashed: "+how,
		slog.String("target", id), slog.String("exit", how), slog.String("last_lines", strings.Join(inst.LastLines(), "\n")))
}

// revive starts copies until one is healthy, waiting longer after each that is
// not. False means that ctx was done first.
func (d *Deployer) revive(ctx context.Context, s *slot, crashes *int) bool {
	for {
		wait := d.timing.backoffMax
		if n := *crashes - 1; n < 16 {
			wait = min(wait, d.timing.backoff<<n)
		}
		d.mu.Lock()
		s.reason = fmt.Sprintf("%s; restart no. %d comes %v after that", s.reason, *crashes, wait)
		d.mu.Unlock()
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			t.Stop()
			return false
		case <-t.C:
		}
		err := d.start(ctx, s, func(Step, string) {})
		if err == nil {
			err = d.restarted(s, *crashes)
		}
		if err == nil {
			return true
		}
		if ctx.Err() != nil {
			return false
		}
		*crashes++
		d.vacate(s, brief(err))
		d.emit(slog.LevelWarn, "app_restart_failed", s.color, s.color+" could not be restarted: "+err.Error())
	}
}

// restarted lets the fresh copy in s have its part of the traffic.
func (d *Deployer) restarted(s *slot, after int) error {
	if _, err := d.steer(); err != nil {
		d.discard(context.Background(), s, err.Error())
		return err
	}
	d.mu.Lock()
	s.restarts++
	id, n := s.id, s.restarts
	d.mu.Unlock()
	d.emit(slog.LevelWarn, "app_restarted", s.color, fmt.Sprintf("%s serves in place of the copy that crashed", id),
		slog.String("target", id), slog.Int("attempt", after), slog.Int("restarts", n))
	return nil
}
