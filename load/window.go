package load

import (
	"sync"
	"time"
)

// A Window counts the requests that an event may have touched (a deploy, a fault):
// those of which any moment between due and done lies between Open and Close. Give
// its Add to [Plan.Observe]. The zero Window is closed and ready; it opens once,
// and may be used from many goroutines.
type Window struct {
	mu     sync.Mutex
	opened time.Time
	closed time.Time
	tally  *Tally
}

// Open begins the window.
func (w *Window) Open() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.opened.IsZero() {
		w.opened = time.Now()
	}
}

// Close ends the window. Requests that were due before and end later still count.
func (w *Window) Close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.opened.IsZero() && w.closed.IsZero() {
		w.closed = time.Now()
	}
}

// Add counts the outcome if it lies in the window.
func (w *Window) Add(o Outcome) {
	w.mu.Lock()
	touched := !w.opened.IsZero() && !o.Done.Before(w.opened) && (w.closed.IsZero() || !o.Due.After(w.closed))
	w.mu.Unlock()
	if touched {
		w.Tally().Add(o)
	}
}

// Tally is what the window has counted so far.
func (w *Window) Tally() *Tally {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.tally == nil {
		w.tally = NewTally()
	}
	return w.tally
}

// Length is how long the window was, or has been, open.
func (w *Window) Length() time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.opened.IsZero():
		return 0
	case w.closed.IsZero():
		return time.Since(w.opened)
	}
	return w.closed.Sub(w.opened)
}
