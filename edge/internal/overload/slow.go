package overload

import (
	"context"
	"sync"
	"time"

	"mainstay.dev/mainstay/capacity"
	"mainstay.dev/mainstay/identity"
)

// Waits are the requests that are delayed because their callers have nearly used up
// a limit. Its methods may be called from many goroutines.
type Waits struct {
	mu  sync.Mutex
	all int
	by  map[string]int
}

// Wait delays a request of w, if no more than most wait and no more than each of the
// same caller; else it returns capacity.ErrFull at once. It returns the cause if ctx
// ends.
func (q *Waits) Wait(ctx context.Context, w *identity.Who, long time.Duration, most, each int) error {
	who := tenant(w)
	if !q.enter(who, most, each) {
		return capacity.ErrFull
	}
	defer q.leave(who)
	timer := time.NewTimer(long)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (q *Waits) enter(who string, most, each int) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.all >= most || q.by[who] >= each {
		return false
	}
	if q.by == nil {
		q.by = map[string]int{}
	}
	q.all++
	q.by[who]++
	return true
}

func (q *Waits) leave(who string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.all--
	if q.by[who]--; q.by[who] == 0 {
		delete(q.by, who)
	}
}

// Now is how many are delayed.
func (q *Waits) Now() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.all
}
