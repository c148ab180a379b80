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
	if _, inst := d.instance(s); inst == nil { // it ended while no mainstay was running
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

// tend probes the copy in s until it ends, or until ctx is done.
func (d *Deployer) tend(ctx context.Context, s *slot) (lived time.Duration, ended bool) {
	id, inst := d.instance(s)
	began := time.Now()
	p := pulse{d: d, s: s, id: id, inst: inst}
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
	good int
	bad  int
	ill  bool
}

func (p *pulse) beat(ctx context.Context, h Health) {
	err := p.d.probe(ctx, p.inst.Handle().Address, h)
	select {
	case <-p.inst.Exited():
		return // what the probe saw is the crash, which is told as one
	default:
	}
	if ctx.Err() != nil {
		return
	}
	if err == nil {
		p.good, p.bad = p.good+1, 0
		if p.ill && p.good >= h.HealthyAfter {
			p.ill = false
			p.d.enter(p.s, Healthy, "")
			p.d.steerOrSay()
			p.d.emit(slog.LevelInfo, "app_healthy", p.s.color, p.id+" is healthy again", slog.String("target", p.id))
		}
		return
	}
	p.good, p.bad = 0, p.bad+1
	why := err.Error()
	if errors.Is(err, syscall.ECONNREFUSED) && p.bad >= h.UnhealthyAfter {
		why, _ = explain(p.inst, err)
	}
	switch {
	case p.ill:
		p.d.enter(p.s, Unhealthy, why)
	case p.bad >= h.UnhealthyAfter:
		p.ill = true
		p.d.enter(p.s, Unhealthy, why)
		p.d.emit(slog.LevelWarn, "app_unhealthy", p.s.color,
			fmt.Sprintf("%s failed %d probes in a row: %s", p.id, p.bad, why), slog.String("target", p.id), slog.String("reason", why))
		p.d.steerOrSay()
		p.d.alarm(p.s, fmt.Sprintf("%s failed %d probes in a row: %s", p.id, p.bad, why))
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
