// Package cache keeps values in memory within a bound by weight. It knows lifetimes,
// and that a value may be of use after its time; it does not know what a value is.
//
// What is kept is chosen by S3-FIFO (Yang et al., SOSP 2023): a new key is on trial
// in a small queue, a tenth of the room, and goes into the main one only if it is used
// again before its turn to leave comes, or comes back soon after it has left. So a scan
// of keys that are asked for once pushes nothing out that is in use. A value counts as
// used when it is found and when it is replaced.
//
// Nothing runs in the background: a value that is over is dropped when somebody asks
// for it, or when its place is needed.
package cache

import (
	"hash/maphash"
	"time"
)

// A State says of what use a value is.
type State uint8

// The states of a value.
const (
	Miss  State = iota // there is none, or its time is over
	Fresh              // it is as good as new
	Stale              // it is old, but may do where nothing better can be had
)

// Life is how long a value is of use.
type Life struct {
	Fresh time.Time // it is fresh before this moment
	Until time.Time // and stale before this one; not after Fresh: it is never stale
}

// At is the state of a value that has this life.
func (l Life) At(now time.Time) State {
	switch {
	case now.Before(l.Fresh):
		return Fresh
	case now.Before(l.Until):
		return Stale
	}
	return Miss
}

// An Item is a value that is to be kept.
type Item[V any] struct {
	Value  V
	Weight int64 // in the unit of the cache's bound; bytes, say, with what the key takes
	Life   Life
}

// A Ticket tells a value that was asked for before its key was invalidated from one
// that was asked for afterwards.
type Ticket uint64

// Stats is how a cache stands. Stored, Evicted and Refused count from the start.
type Stats struct {
	Entries int    `json:"entries"`
	Weight  int64  `json:"weight"`
	Max     int64  `json:"max"`
	Stored  uint64 `json:"stored"`  // values that were kept, replacements included
	Evicted uint64 `json:"evicted"` // values that left before they were over, for others
	Refused uint64 `json:"refused"` // values that were too heavy, over, or invalidated while they were fetched
}

// A Cache is safe for concurrent use. The values that it gives out are shared: nobody
// may change them.
type Cache[K comparable, V any] struct {
	seed    maphash.Seed
	max     int64
	largest int64
	shards  []shard[K, V] // a power of two
}

// maxShards is how many locks a large cache has.
const maxShards = 16

// New makes a cache for values that weigh max together, and largest each at most; a
// heavier one is refused. It panics if max is less than twice largest or largest is not
// positive, since such a cache keeps nothing.
func New[K comparable, V any](max, largest int64) *Cache[K, V] {
	if largest <= 0 || max < 2*largest {
		panic("cache: max must be at least twice largest, and largest positive")
	}
	n := int64(1)
	for n < maxShards && max/(2*n) >= 2*largest {
		n *= 2
	}
	c := &Cache[K, V]{seed: maphash.MakeSeed(), max: max / n * n, largest: largest, shards: make([]shard[K, V], n)}
	for i := range c.shards {
		c.shards[i].init(max / n)
	}
	return c
}

func (c *Cache[K, V]) shard(k K) (*shard[K, V], uint64) {
	h := maphash.Comparable(c.seed, k)
	return &c.shards[h&uint64(len(c.shards)-1)], h
}

// Get finds the value of k. Miss: there is none.
func (c *Cache[K, V]) Get(k K, now time.Time) (V, State) {
	s, _ := c.shard(k)
	return s.get(k, now)
}

// Ticket is to be taken before the value of k is fetched, and given to Set with it.
func (c *Cache[K, V]) Ticket(k K) Ticket {
	s, h := c.shard(k)
	return s.ticket(h)
}

// Set keeps the value of k in place of the one before, and reports whether it did: not
// if it is too heavy, over already, or k was invalidated since the ticket was taken.
// Then what was there before stays.
//
// Keys share the marks that tell invalidations, 256 in a shard: rarely, a value is
// refused for another key's.
func (c *Cache[K, V]) Set(k K, t Ticket, item Item[V], now time.Time) bool {
	s, h := c.shard(k)
	return s.set(k, h, t, &item, item.Weight > c.largest || item.Weight <= 0, now)
}

// Invalidate drops the value of k, and those that are being fetched for it.
func (c *Cache[K, V]) Invalidate(k K) {
	s, h := c.shard(k)
	s.invalidate(k, h)
}

// Clear invalidates all keys.
func (c *Cache[K, V]) Clear() {
	for i := range c.shards {
		c.shards[i].clear()
	}
}

// Stats may be called at any time; what shards say is not of one moment.
func (c *Cache[K, V]) Stats() Stats {
	st := Stats{Max: c.max}
	for i := range c.shards {
		c.shards[i].add(&st)
	}
	return st
}
