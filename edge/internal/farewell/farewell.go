// Package farewell ends what has no end of its own, tunnels and event streams,
// when their copy of the app is taken down or the edge stops: each in its own
// manner, spread over time. The edge alone uses it.
package farewell

import (
	"math/rand/v2"
	"sync"
	"time"
)

// A Stream can be ended without a loss. Its methods may be called from any
// goroutine, more than once, and also after it has ended.
type Stream interface {
	// Soon asks it to end when next something has been passed on whole. One that
	// knows no such moment does nothing.
	Soon()
	// Farewell ends it as soon as nothing is under way.
	Farewell()
	// Last is Farewell for one that is cut in a moment otherwise.
	Last()
}

// A Policy says how a stream is ended.
type Policy struct {
	Ride bool          // not before Last
	Soon bool          // as soon as it can, instead of at a random moment within Over
	Over time.Duration // the longest that it is waited for
}

// List is the open streams of a copy of the app, or of the edge. The zero List is
// ready. It may be used from any goroutine.
type List struct {
	mu     sync.Mutex
	open   map[*entry]struct{}
	ending bool
	within time.Duration // while ending
}

type entry struct {
	stream Stream
	policy Policy
	timer  *time.Timer
}

// Add puts s on the list; part takes it off when it has ended.
func (l *List) Add(s Stream, p Policy) (part func()) {
	e := &entry{stream: s, policy: p}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open == nil {
		l.open = map[*entry]struct{}{}
	}
	l.open[e] = struct{}{}
	if l.ending {
		e.begin(l.within)
	}
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.open, e)
		if e.timer != nil {
			e.timer.Stop()
		}
	}
}

// End begins to end all that do not ride, and those that are still to come, over
// their time or within, whichever is less.
func (l *List) End(within time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ending && within >= l.within {
		return
	}
	l.ending, l.within = true, within
	for e := range l.open {
		e.begin(within)
	}
}

func (e *entry) begin(within time.Duration) {
	if e.policy.Ride {
		return
	}
	if e.timer != nil {
		e.timer.Stop()
	}
	over := min(e.policy.Over, within)
	wait := rand.N(over + 1)
	if e.policy.Soon {
		e.stream.Soon()
	}
	e.timer = time.AfterFunc(wait, e.stream.Farewell)
}

// Last begins to end all that are left, and returns how many there are. It waits
// for none: a client that takes nothing must not keep the others waiting.
func (l *List) Last() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	for e := range l.open {
		if e.timer != nil {
			e.timer.Stop()
		}
		e.timer = time.AfterFunc(0, e.stream.Last)
	}
	return len(l.open)
}
