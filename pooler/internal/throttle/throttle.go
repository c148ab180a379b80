// Package throttle slows down whoever guesses passwords: after a few wrong ones
// from the same place, each further attempt has to wait for its turn.
//
// Only the pooler imports it. A [Throttle] may be used by many logins at once.
package throttle

import (
	"sync"
	"time"
)

const (
	first    = 100 * time.Millisecond // between attempts, when they begin to be slowed down
	longest  = 2 * time.Second
	memory   = 10 * time.Minute // after the last wrong password
	maxKeys  = 8192
	patience = 5 * time.Second // longest wait that is worth a connection
)

// A Throttle remembers wrong passwords by key. The zero value is ready.
type Throttle struct {
	mu   sync.Mutex
	keys map[string]*record
}

type record struct {
	wrong int
	last  time.Time // when the last one was wrong
	next  time.Time // when the next may be tried
}

// Turn says how long an attempt under key has to wait, if more than free passwords
// were wrong lately; ok is false if it would be too long. Each call takes a turn.
func (t *Throttle) Turn(key string, free int, now time.Time) (wait time.Duration, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	r := t.keys[key]
	if r == nil || r.wrong <= free {
		return 0, true
	}
	if now.Sub(r.last) > memory {
		delete(t.keys, key)
		return 0, true
	}
	at := now
	if r.next.After(now) {
		at = r.next
	}
	if at.Sub(now) > patience {
		return 0, false
	}
	r.next = at.Add(min(first<<min(r.wrong-free-1, 10), longest))
	return at.Sub(now), true
}

// Free reports whether an attempt under key would not have to wait. It takes no turn.
func (t *Throttle) Free(key string, free int) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	r := t.keys[key]
	return r == nil || r.wrong <= free
}

// Wrong notes a wrong password.
func (t *Throttle) Wrong(key string, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.keys == nil {
		t.keys = map[string]*record{}
	}
	r := t.keys[key]
	if r == nil || now.Sub(r.last) > memory {
		t.makeRoom()
		r = &record{}
		t.keys[key] = r
	}
	r.wrong++
	r.last = now
}

// makeRoom forgets the oldest of a few, if there are too many.
func (t *Throttle) makeRoom() {
	if len(t.keys) < maxKeys {
		return
	}
	oldest, seen := "", 0
	for key, r := range t.keys {
		if seen == 0 || r.last.Before(t.keys[oldest].last) {
			oldest = key
		}
		if seen++; seen == 8 {
			break
		}
	}
	delete(t.keys, oldest)
}

// Right notes a right password: what was wrong before it was a mistake.
func (t *Throttle) Right(key string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.keys, key)
}
