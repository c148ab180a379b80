// Package retry is the arithmetic of trying again: how many tries a piece of work
// gets and how long to wait between them, with jitter, and with respect for a wait
// that the other side asks for. It knows no status codes and no protocols: what is
// worth another try is the caller's to judge.
//
// Anyone may import it; it imports the standard library only.
package retry

import (
	"context"
	"math"
	"math/rand/v2"
	"time"
)

// A Policy says how often work is tried again and how long the waits are. It is a
// value: copy it freely. The zero Policy never tries again.
type Policy struct {
	// Max is the number of retries after the first try; 0 or less: none.
	Max int
	// Base is the wait before the first retry. Each further wait is twice the one
	// before it.
	Base time.Duration
	// Cap bounds a wait of the policy's own, before jitter; 0: no bound.
	Cap time.Duration
	// Jitter spreads the waits, as a share of them from 0 to 1: a wait of the
	// policy's own by so much up or down, an asked wait only up, since coming
	// earlier than asked earns another refusal.
	Jitter float64
	// AskedCap bounds a wait that the other side asked for, before jitter; 0: no
	// bound.
	AskedCap time.Duration
	// Decorrelated draws each wait of a [Loop] from between Base and three times the
	// one before it, instead of doubling and spreading it; Cap is then needed. A wait
	// that was asked for has such a draw added to it, so that those who were sent away
	// together do not come back together. (The term and the bounds: M. Brooker,
	// "Exponential Backoff and Jitter", AWS Architecture Blog, 2015.)
	Decorrelated bool
}

// forever is the longest wait there is; it leaves room for jitter to be added.
const forever = math.MaxInt64 / 4

// Wait returns how long to wait before retry n, counted from 1. asked is the wait
// that the other side asked for; 0 or less: it asked for none.
func (p Policy) Wait(n int, asked time.Duration) time.Duration {
	return p.spread(n, asked, rand.Float64())
}

// spread is Wait with the random share u, in [0, 1), given.
func (p Policy) spread(n int, asked time.Duration, u float64) time.Duration {
	jitter := min(max(p.Jitter, 0), 1)
	if asked > 0 {
		return scale(bounded(asked, p.AskedCap), 1+jitter*u)
	}
	return scale(bounded(double(p.Base, n-1), p.Cap), 1-jitter+2*jitter*u)
}

// double returns d·2ⁿ, at most forever.
func double(d time.Duration, n int) time.Duration {
	for ; n > 0 && d < forever; n-- {
		d *= 2
	}
	return min(max(d, 0), forever)
}

func bounded(d, limit time.Duration) time.Duration {
	if limit > 0 {
		d = min(d, limit)
	}
	return min(d, forever)
}

func scale(d time.Duration, by float64) time.Duration {
	return time.Duration(float64(d) * by)
}

// A Loop counts the tries of one piece of work. It belongs to one goroutine.
type Loop struct {
	policy  Policy
	retries int
	last    time.Duration // the last decorrelated wait
}

// Begin starts a loop; its first try is free.
func (p Policy) Begin() Loop { return Loop{policy: p} }

// Next claims another try and returns how long to wait before it; false means that
// the tries are used up. asked is as for [Policy.Wait].
func (l *Loop) Next(asked time.Duration) (wait time.Duration, ok bool) {
	if l.retries >= l.policy.Max {
		return 0, false
	}
	l.retries++
	if l.policy.Decorrelated {
		return l.decorrelated(asked, rand.Float64()), true
	}
	return l.policy.Wait(l.retries, asked), true
}

// decorrelated is the next wait with the random share u, in [0, 1), given.
func (l *Loop) decorrelated(asked time.Duration, u float64) time.Duration {
	p := l.policy
	low := bounded(max(p.Base, 0), p.Cap)
	high := bounded(max(double(l.last, 1)+min(l.last, forever), low), p.Cap) // 3 times, without overflow
	if l.last == 0 {
		high = bounded(3*min(low, forever/3), p.Cap)
	}
	l.last = low + scale(high-low, u)
	if asked > 0 {
		return bounded(asked, p.AskedCap) + l.last
	}
	return l.last
}

// Spare takes the last try out of the count, if there was one: it failed for a reason
// that is not its own, such as an outage that is known of. The waits go on as they were.
func (l *Loop) Spare() { l.retries = max(0, l.retries-1) }

// Retries returns how many tries after the first were claimed.
func (l *Loop) Retries() int { return l.retries }

// Sleep waits for d, or until ctx is done; it then returns the cause.
func Sleep(ctx context.Context, d time.Duration) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if d <= 0 {
		return nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// A Judge says of an error whether the work is worth another try, and how long the
// other side asked to wait before it (0: it did not ask).
type Judge func(err error) (again bool, asked time.Duration)

// Do calls try until it succeeds, judge finds its error final, or p's tries are
// used up, and returns what the last try gave. When ctx ends during a wait, Do
// returns at once with the error of the last try, which says more than the end of
// ctx does; the caller knows of that end itself.
func Do[T any](ctx context.Context, p Policy, judge Judge, try func(context.Context) (T, error)) (T, error) {
	for loop := p.Begin(); ; {
		v, err := try(ctx)
		if err == nil || ctx.Err() != nil {
			return v, err
		}
		again, asked := judge(err)
		if !again {
			return v, err
		}
		wait, ok := loop.Next(asked)
		if !ok || Sleep(ctx, wait) != nil {
			return v, err
		}
	}
}
