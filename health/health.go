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
	// Slow is the longest time between two probes when so little work comes that a
	// probe each Probe would be more than the work itself.
	Slow time.Duration
	// Ramp is how many units of work a second are let in after a probe went well,
	// and by how much that grows each second; or a tenth of what went well a second
	// before the gate shut, if that is more.
	Ramp float64
	// Ease is what a failure leaves of that rate, from 0 to 1, once a second at most.
	// For Calm after it the rate grows by an eighth only: the ceiling is near.
	Ease float64
	Calm time.Duration
}

// Passive is the rule for an upstream that is judged by its results alone.
func Passive() Rule {
	return Rule{
		Row: 5, Share: 0.5, Least: 10, Probe: time.Second, Slow: 45 * time.Second,
		Ramp: 2, Ease: 0.85, Calm: 10 * time.Second,
	}
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
	row     int       // failures of different work since the last success
	bad     int       // failures since the last success
	seconds [10]tally // of the last ten seconds, while the gate is open
	last    time.Time // when one was let in last, while it is not open
	next    time.Time // when the next one may pass, while it is ramping
	since   time.Time // when the rate was base
	base    float64   // a second, while ramping
	step    float64   // by which it grows each second
	eased   time.Time // when the rate was lowered last
	byAge   list.List // of *place: who waits, those whose work began first in front
	byEntry list.List // of *place: the same, those who have waited longest since their last try in front

	came, tried int           // work and tries of it since the last success
	slow        int           // probes since then that no work had come for
	arrived     time.Time     // when the last new work came
	gap         time.Duration // between one piece of new work and the next, on average
}

// A place is one in the line.
type place struct {
	turn Turn
	wake chan struct{}
	half time.Time // half way to the end of its patience; zero: it has none
}

// A Turn says whose turn it would be.
type Turn struct {
	// Since is when the work began: what began first goes first; zero: now.
	Since time.Time
	// Again: the work has passed this gate before.
	Again bool
}

type tally struct {
	second    int64
	good, bad int
}

// NewGate returns an open gate.
func NewGate(rule Rule) *Gate { return &Gate{rule: rule, state: Open, gap: longGap} }

// longGap is the longest gap between two pieces of work that says anything.
const longGap = 10 * time.Minute

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
	return g.byAge.Len()
}

// A Pass lets one unit of work through; what it came to is to be reported once. The
// zero Pass reports to nobody.
type Pass struct {
	gate  *Gate
	epoch int
	again bool
}

// TryEnter is Enter for those who can't wait: false means that they would have to.
func (g *Gate) TryEnter() (Pass, bool) { return g.TryJoin(Turn{}) }

// Enter waits for the right to pass, first come first served, until ctx ends; it
// then returns the cause.
func (g *Gate) Enter(ctx context.Context) (Pass, error) { return g.Join(ctx, Turn{}) }

// TryJoin is TryEnter for work of which more is known.
func (g *Gate) TryJoin(t Turn) (Pass, bool) {
	now := time.Now()
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.byAge.Len() > 0 && g.keeps(t) || g.may(now, t, time.Time{}) > 0 {
		return Pass{}, false
	}
	g.come(now, t)
	return g.let(now, t), true
}

// Join is Enter for work of which more is known: it has its place in the line by when
// it began, so that what failed once does not wait all over again. While nothing
// succeeds, work that has passed before waits even where the gate is open to others.
func (g *Gate) Join(ctx context.Context, t Turn) (Pass, error) {
	now := time.Now()
	g.mu.Lock()
	defer g.mu.Unlock()
	g.come(now, t)
	if (g.byAge.Len() == 0 || !g.keeps(t)) && g.may(now, t, time.Time{}) <= 0 {
		return g.let(now, t), nil
	}
	p := &place{turn: t, wake: make(chan struct{}, 1)}
	if end, ok := ctx.Deadline(); ok {
		p.half = now.Add(end.Sub(now) / 2)
	}
	defer g.wakeFirst()
	defer g.line(p, now)()
	g.wakeFirst() // that work has come may be what the first one waits for
	for {
		d := longGap // the wake comes before
		if g.first() == p {
			now = time.Now()
			if d = g.may(now, t, p.half); d <= 0 {
				return g.let(now, t), nil
			}
		}
		g.mu.Unlock()
		p.await(ctx, d)
		g.mu.Lock()
		if ctx.Err() != nil {
			return Pass{}, context.Cause(ctx)
		}
	}
}

// await waits for d, for a wake or for the end of ctx.
func (p *place) await(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-p.wake:
	case <-ctx.Done():
	}
}

// line gives p its places; leave takes them away.
func (g *Gate) line(p *place, now time.Time) (leave func()) {
	if p.turn.Since.IsZero() {
		p.turn.Since = now
	}
	at := g.byAge.Back()
	for at != nil && p.turn.Since.Before(at.Value.(*place).turn.Since) {
		at = at.Prev()
	}
	if at == nil {
		at = g.byAge.PushFront(p)
	} else {
		at = g.byAge.InsertAfter(p, at)
	}
	entered := g.byEntry.PushBack(p)
	return func() { g.byAge.Remove(at); g.byEntry.Remove(entered) }
}

// first is whose turn is next: the oldest work's when the upstream is back. Until then
// they take turns, so that not one of them uses up all its tries, and a request that
// can never succeed does not keep the gate shut.
func (g *Gate) first() *place {
	line := &g.byEntry
	if g.state == Ramping {
		line = &g.byAge
	}
	if front := line.Front(); front != nil {
		return front.Value.(*place)
	}
	return nil
}

// come counts new work, and how often it comes.
func (g *Gate) come(now time.Time, t Turn) {
	if t.Again {
		return
	}
	g.came++
	const weight = 10 // of the past
	gap := longGap
	if !g.arrived.IsZero() {
		gap = min(now.Sub(g.arrived), longGap)
	}
	g.arrived = now
	g.gap += (gap - g.gap) / weight
}

// keeps reports whether t has to wait until something succeeds: all has, while the
// gate is not open, and what has failed before has from the second failure on that no
// success came between.
func (g *Gate) keeps(t Turn) bool { return g.state != Open || t.Again && g.bad > 1 }

// may returns how long the first in the line has to wait; half is half way to the end
// of its patience.
func (g *Gate) may(now time.Time, t Turn, half time.Time) time.Duration {
	if g.state == Ramping && g.byAge.Len() == 0 && now.Sub(g.next) > time.Second {
		g.change(Open) // a second without demand that had to wait
	}
	switch {
	case !g.keeps(t):
		return 0
	case g.state == Ramping:
		return g.next.Sub(now)
	}
	due := g.last.Add(g.rule.Probe)
	if g.tried >= g.came {
		late := g.last.Add(g.spare())
		if !half.IsZero() && half.Before(late) { // or it would end without another try
			late = half
		}
		if late.After(due) {
			due = late
		}
	}
	return due.Sub(now)
}

// spare is the time to the next probe that no new work has come for: while nothing
// succeeds, no more is tried than comes, as far as something does come.
func (g *Gate) spare() time.Duration {
	if g.gap <= g.rule.Slow {
		return min(max(3*g.gap, g.rule.Probe), g.rule.Slow)
	}
	return min(g.rule.Probe<<min(g.slow, 10), g.rule.Slow)
}

// let counts one that passes now.
func (g *Gate) let(now time.Time, t Turn) Pass {
	if g.tried++; g.tried > g.came && g.bad > 1 {
		g.slow++
	}
	g.last = now
	if g.state == Ramping {
		g.next = now.Add(time.Duration(float64(time.Second) / g.rate(now)))
	}
	return Pass{gate: g, epoch: g.epoch, again: t.Again}
}

// rate is how many a second are let in while ramping.
func (g *Gate) rate(now time.Time) float64 {
	grown, careful := now.Sub(g.since).Seconds(), 0.0
	if !g.eased.IsZero() {
		careful = min(grown, g.rule.Calm.Seconds())
	}
	return g.base + g.step*(careful/8+grown-careful)
}

func (g *Gate) wakeFirst() {
	if p := g.first(); p != nil {
		select {
		case p.wake <- struct{}{}:
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
		g.row, g.bad, g.slow = 0, 0, 0
		g.came, g.tried = 0, 0
		defer g.wakeFirst()
	} else if g.bad++; g.bad == 1 {
		g.came, g.tried = max(g.came, 1), max(g.tried, 1)
	}
	if o == Bad && (!p.again || g.state != Open) { // one request that always fails says nothing of others
		g.row++
	}
	switch g.state {
	case Open:
		if o == Good || !p.again {
			g.count(now, o)
		}
	case Shut:
		if o == Good {
			g.change(Ramping)
			g.base, g.since, g.next, g.eased = g.step, now, now, time.Time{}
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
	good := 0
	for _, t := range g.seconds {
		if now.Unix()-t.second < int64(len(g.seconds)) {
			good += t.good
		}
	}
	const tenth = 0.1
	if g.state == Open { // ramping, it is still the one from before
		g.step = max(g.rule.Ramp, tenth*float64(good)/float64(len(g.seconds)))
	}
	g.change(Shut)
	g.last = now
}

// change begins another state.
func (g *Gate) change(to State) {
	g.state, g.row, g.seconds = to, 0, [10]tally{}
	g.epoch++
}
