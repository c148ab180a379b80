package ratelimit

import (
	"hash/maphash"
	"time"
)

// known is what a [Shield] remembers of a counter in the store: enough to refuse
// without asking, to go on alone, and to tell the store afterwards. Times are
// microseconds on the Shield's clock.
type known struct {
	used    int64 // units taken, when the store last answered
	nextAt  int64 // the first of them is free again
	resetAt int64 // all of them are
	at      int64 // when it said so, on its own clock …
	heardAt int64 // … and on ours

	denyUntil int64 // refuse until then …
	denyCost  int64 // … what costs this or more …
	denyMax   int64 // … under this limit or a tighter one
	freeAt    int64 // when the store would admit it

	outage uint64 // the last outage whose debts were told
	local  bool   // units were admitted without the store since it last heard of them
	added  int64  // so many
	addsTo int64  // all of them are free again
	limit  Limit  // of the check that was admitted
	// settling is closed when whoever is telling the store is done; nil: nobody is.
	settling chan struct{}
}

// memoirs is what a Shield knows of all counters, in bounded memory.
type memoirs struct {
	seed   maphash.Seed
	shards [shards]table[known]
}

func newMemoirs(bytes int64) *memoirs {
	m := &memoirs{seed: maphash.MakeSeed()}
	for i := range m.shards {
		m.shards[i].limit = bytes / shards
	}
	return m
}

// with calls do with what is known of a check, under the shard's lock. What is not
// known is made if create is set, else do is not called.
func (m *memoirs) with(c *Check, now int64, create bool, do func(*known)) {
	h := maphash.String(m.seed, c.Key) ^ c.kind()*0x9E3779B97F4A7C15
	t := &m.shards[h%shards]
	t.Lock()
	found := t.find(h, c.Key, c.kind())
	if found == nil && create {
		found = t.insert(h, c.Key, c.kind(), now)
		found.held = false
	}
	if found != nil {
		do(&found.value)
		found.until = max(found.value.resetAt, found.value.addsTo, found.value.denyUntil)
	}
	t.Unlock()
}

func (m *memoirs) forget(c *Check) {
	h := maphash.String(m.seed, c.Key) ^ c.kind()*0x9E3779B97F4A7C15
	t := &m.shards[h%shards]
	t.Lock()
	if found := t.find(h, c.Key, c.kind()); found != nil {
		t.remove(found)
	}
	t.Unlock()
}

// overtaken is how long an answer may be late because its goroutine was not run;
// after that the store's clock was turned, or it is another store.
const overtaken = int64(time.Second / time.Microsecond)

// learn takes over what the store said at a time of its clock, unless it has said
// something newer already.
func (k *known) learn(c *Check, r *Result, at, now int64, denyFor time.Duration) {
	if at < k.at && now-k.heardAt < overtaken {
		return
	}
	k.at, k.heardAt = at, now
	k.used = capacity(&c.Limit) - r.Remaining
	k.nextAt, k.resetAt = now+int64(r.Next/time.Microsecond), now+int64(r.Reset/time.Microsecond)
	k.denyUntil = 0
	if !r.Allowed && r.Retry != Never && c.Limit.Algorithm != Concurrency {
		k.freeAt = now + int64(r.Retry/time.Microsecond)
		k.denyUntil = min(k.freeAt, now+int64(denyFor/time.Microsecond))
		k.denyCost, k.denyMax = c.Cost, capacity(&c.Limit)
	}
}

// denies reports whether the store would refuse c.
func (k *known) denies(c *Check, now int64) bool {
	return now < k.denyUntil && c.Cost >= k.denyCost && capacity(&c.Limit) <= k.denyMax
}

// still is how many of the units that were taken when the store last answered are
// likely taken now: all until the first is free, and from then on evenly fewer.
func (k *known) still(now int64) int64 {
	switch {
	case now >= k.resetAt:
		return 0
	case now <= k.nextAt:
		return k.used
	}
	span := k.resetAt - k.nextAt
	return int64(float64(k.used)*float64(k.resetAt-now)/float64(span) + 0.999)
}

// result is what can be said of c without asking.
func (k *known) result(c *Check, now int64) Result {
	r := Result{
		Allowed: true, Remaining: max(capacity(&c.Limit)-k.still(now), 0),
		Next: micros(max(k.nextAt-now, 0)), Reset: micros(max(k.resetAt-now, 0)),
	}
	if k.denies(c, now) {
		r.Allowed, r.Retry = false, micros(k.freeAt-now)
		r.Next = min(r.Next, r.Retry)
	}
	return r
}
