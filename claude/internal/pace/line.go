package pace

import (
	"context"
	"time"
)

// A line is who waits for a lane: flows that share it by their weights (start-time
// fair queueing: P. Goyal, H. Vin, H. Cheng, SIGCOMM 1996), in each of which those go
// first whose deadline is the nearest.
type line struct {
	flows map[string]*flow
	now   float64 // virtual time: the start of what was served last
	n     int
}

type flow struct {
	name    string
	start   float64 // when its next call begins, in virtual time
	waiting []*waiter
}

// A waiter is a call in a line.
type waiter struct {
	of       *flow
	cost     float64 // of the flow's share
	deadline time.Time
	since    time.Time
	wake     chan struct{}
}

func (l *line) add(a Ask, cost float64, now time.Time) *waiter {
	f := l.flows[a.Flow]
	if f == nil {
		if l.flows == nil {
			l.flows = map[string]*flow{}
		}
		f = &flow{name: a.Flow, start: l.now}
		l.flows[a.Flow] = f
	}
	if len(f.waiting) == 0 {
		f.start = max(f.start, l.now)
	}
	weight := a.Weight
	if !(weight > 0) {
		weight = 1
	}
	w := &waiter{of: f, cost: cost / weight, deadline: a.Deadline, since: now, wake: make(chan struct{}, 1)}
	at := len(f.waiting)
	for at > 0 && w.before(f.waiting[at-1]) {
		at--
	}
	f.waiting = append(f.waiting, nil)
	copy(f.waiting[at+1:], f.waiting[at:])
	f.waiting[at] = w
	l.n++
	return w
}

func (w *waiter) before(v *waiter) bool {
	return !w.deadline.IsZero() && (v.deadline.IsZero() || w.deadline.Before(v.deadline))
}

// first is whose turn is next.
func (l *line) first() *waiter {
	var best *flow
	for _, f := range l.flows {
		if len(f.waiting) > 0 && (best == nil || f.start < best.start || f.start == best.start && f.name < best.name) {
			best = f
		}
	}
	if best == nil {
		return nil
	}
	return best.waiting[0]
}

// serve notes that w, which is first, goes.
func (l *line) serve(w *waiter) {
	l.now = w.of.start
	w.of.start += w.cost
}

// remove takes w out of the line.
func (l *line) remove(w *waiter) {
	f := w.of
	for i, v := range f.waiting {
		if v == w {
			f.waiting = append(f.waiting[:i], f.waiting[i+1:]...)
			l.n--
			break
		}
	}
	for name, f := range l.flows { // those without a lead over the others have nothing to remember
		if len(f.waiting) == 0 && (f.start <= l.now || l.n == 0) {
			delete(l.flows, name)
		}
	}
}

// oldest is since when the one has waited that has waited longest; zero: nobody waits.
func (l *line) oldest() (t time.Time) {
	for _, f := range l.flows {
		for _, w := range f.waiting {
			if t.IsZero() || w.since.Before(t) {
				t = w.since
			}
		}
	}
	return t
}

// await waits for d, for a wake or for the end of ctx.
func (w *waiter) await(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-w.wake:
	case <-ctx.Done():
	}
}
