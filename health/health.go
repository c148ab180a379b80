// Package health answers one question about an upstream: is it fit? A [Gate] learns
// it from the results of the work that passes it, and while the answer is no, work
// waits at the gate instead of running against the wall: one probe at a time finds
// out when the upstream is back, and the waiting work is then let in at a rate that
// grows step by step, so that the return of all at once does not end the recovery.
//
// Anyone may import it; it imports the standard library only.
package health

import (
	"container/list"
	"context"
	"sync"
	"time"
)

// A Rule says when a gate closes its doors and how it opens them again. It is a
// value; all fields must be set.
type Rule struct {
	// Row is how many failures one after the other, none of them answered by a
	// success, shut the gate.
	Row int
	// Share of the results within the last ten seconds that shuts the gate when it
	// is failures, from 0 to 1, if there are at least Least of them.
	Share float64
	Least int
	// Probe is the time between two probes while the gate is shut.
	Probe time.Duration
	// Ramp is how many units of work a second are let in after a probe went well,
	// and by how much that grows each second.
	Ramp float64
	// Ease is what a failure leaves of that rate, from 0 to 1, once a second at most.
	Ease float64
}

// Passive is the rule for an upstream that is judged by its results alone.
func Passive() Rule {
	return Rule{Row: 5, Share: 0.5, Least: 10, Probe: time.Second, Ramp: 2, Ease: 0.85}
}

// State is how a gate stands.
type State string

const (
	Open    State = "open"    // all may pass
	Shut    State = "shut"    // only probes may pass
	Ramping State = "ramping" // the upstream is back, and those who wait are let in bit by bit
)

// An Outcome is what a unit of work tells of the upstream.
type Outcome uint8

const (
	Unknown Outcome = iota // nothing: the caller's own error, a limit of its own, a hang-up
	Good
	Bad
)

// A Gate stands before one upstream. Its methods may be called from many goroutines.
type Gate struct {
	rule Rule

	mu      sync.Mutex
	state   State
	epoch   int       // of the state: results from before a change are of the past
	row     int       // failures since the last success
	seconds [10]tally // of the last ten seconds, while the gate is open
	next    time.Time // when the next one may pass, while it is not open
	since   time.Time // when the rate was base
	base    float64   // a second, while ramping
	eased   time.Time // when the rate was lowered last
	waiting list.List // of chan struct{}: the first one is woken
}

type tally struct {
	second    int64
	good, bad int
}

// NewGate returns an open gate.
func NewGate(rule Rule) *Gate { return &Gate{rule: rule, state: Open} }

// State returns how the gate stands.
func (g *Gate) State() State {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.state
}

// Waiting returns how many wait at the gate.
func (g *Gate) Waiting() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.waiting.Len()
}

// A Pass lets one unit of work through; what it came to is to be reported once. The
// zero Pass reports to nobody.
type Pass struct {
	gate  *Gate
	epoch int
}

// TryEnter is Enter for those who can't wait: false means that they would have to.
func (g *Gate) TryEnter() (Pass, bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.waiting.Len() > 0 || g.may(time.Now()) > 0 {
		return Pass{}, false
	}
	return g.let(), true
}

// Enter waits for the right to pass, first come first served, until ctx ends; it
// then returns the cause.
func (g *Gate) Enter(ctx context.Context) (Pass, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.waiting.Len() == 0 && g.may(time.Now()) <= 0 {
		return g.let(), nil
	}
	wake := make(chan struct{}, 1)
	place := g.waiting.PushBack(wake)
	defer g.wakeFirst()
	defer g.waiting.Remove(place)
	for {
		var timer *time.Timer
		var due <-chan time.Time
		if g.waiting.Front() == place {
			d := g.may(time.Now())
			if d <= 0 {
				return g.let(), nil
			}
			timer = time.NewTimer(d)
			due = timer.C
		}
		g.mu.Unlock()
		select {
		case <-due:
		case <-wake:
		case <-ctx.Done():
		}
		if timer != nil {
			timer.Stop()
		}
		g.mu.Lock()
		if ctx.Err() != nil {
			return Pass{}, context.Cause(ctx)
		}
	}
}

// may returns how long the first in the line has to wait.
func (g *Gate) may(now time.Time) time.Duration {
	if g.state == Ramping && g.waiting.Len() == 0 && now.Sub(g.next) > time.Second {
		g.change(Open) // a second without demand that had to wait
	}
	if g.state == Open {
		return 0
	}
	return g.next.Sub(now)
}

// let counts one that passes now.
func (g *Gate) let() Pass {
	now := time.Now()
	switch g.state {
	case Shut:
		g.next = now.Add(g.rule.Probe)
	case Ramping:
		g.next = now.Add(time.Duration(float64(time.Second) / g.rate(now)))
	}
	return Pass{gate: g, epoch: g.epoch}
}

func (g *Gate) rate(now time.Time) float64 {
	return g.base + g.rule.Ramp*now.Sub(g.since).Seconds()
}

func (g *Gate) wakeFirst() {
	if first := g.waiting.Front(); first != nil {
		select {
		case first.Value.(chan struct{}) <- struct{}{}:
		default: // it has been woken already
		}
	}
}

// Report tells what a unit of work came to.
func (p Pass) Report(o Outcome) {
	if p.gate == nil || o == Unknown {
		return
	}
	g := p.gate
	g.mu.Lock()
	defer g.mu.Unlock()
	if p.epoch != g.epoch {
		return
	}
	now := time.Now()
	if o == Good {
		g.row = 0
	} else {
		g.row++
	}
	switch g.state {
	case Open:
		g.count(now, o)
	case Shut:
		if o == Good {
			g.change(Ramping)
			g.base, g.since, g.next = g.rule.Ramp, now, now
			g.wakeFirst()
		}
	case Ramping:
		g.steer(now, o)
	}
}

// steer lowers the rate on a failure, and shuts the gate again when all fail.
func (g *Gate) steer(now time.Time, o Outcome) {
	switch {
	case o == Good:
	case g.row >= g.rule.Row:
		g.shut(now)
	case now.Sub(g.eased) >= time.Second:
		g.base, g.since, g.eased = max(g.rate(now)*g.rule.Ease, g.rule.Ramp), now, now
	}
}

// count notes a result while the gate is open.
func (g *Gate) count(now time.Time, o Outcome) {
	second := now.Unix()
	t := &g.seconds[second%int64(len(g.seconds))]
	if t.second != second {
		*t = tally{second: second}
	}
	if o == Good {
		t.good++
		return
	}
	t.bad++
	good, bad := 0, 0
	for _, t := range g.seconds {
		if second-t.second < int64(len(g.seconds)) {
			good, bad = good+t.good, bad+t.bad
		}
	}
	if g.row >= g.rule.Row || good+bad >= g.rule.Least && float64(bad) >= g.rule.Share*float64(good+bad) {
		g.shut(now)
	}
}

func (g *Gate) shut(now time.Time) {
	g.change(Shut)
	g.next = now.Add(g.rule.Probe)
}

// change begins another state.
func (g *Gate) change(to State) {
	g.state, g.row, g.seconds = to, 0, [10]tally{}
	g.epoch++
}
