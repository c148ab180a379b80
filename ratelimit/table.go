package ratelimit

import (
	"strings"
	"sync"
	"unsafe"
)

// A table is one shard of a bounded map. When it is full, it makes room with a
// clock hand that spares what is used again and again: a flood of keys that come
// once pushes out keys that came once.
//
// It is guarded by its own mutex, which callers hold across look-up and use.
type table[T any] struct {
	sync.Mutex
	buckets []*cell[T]
	ring    []*cell[T] // all cells, in the order the hand visits them
	hand    int
	bytes   int64 // of all cells
	limit   int64 // of bytes
	evicted uint64
}

// A cell is one entry of a table.
type cell[T any] struct {
	hash  uint64
	key   string
	kind  uint64
	next  *cell[T]
	until int64 // from then on the value is as good as none
	extra int64 // bytes that the value holds elsewhere
	slot  int32
	seen  uint8 // how often it was used lately, at most maxSeen
	held  bool  // a decision under way needs it
	value T
}

const (
	maxSeen    = 3
	minBuckets = 16
	// maxSteps bounds the hand's way for one insertion.
	maxSteps = 64
	// sweep is how many cells each insertion looks at to find dead ones early.
	sweep = 2
	// allocSlack is what an allocation of ours costs beyond its own size: size
	// classes, the slots in buckets and ring with their growth.
	allocSlack = 48
)

// find returns the cell of a counter, or nil.
func (t *table[T]) find(hash uint64, key string, kind uint64) *cell[T] {
	if len(t.buckets) == 0 {
		return nil
	}
	for c := t.buckets[hash>>8&uint64(len(t.buckets)-1)]; c != nil; c = c.next {
		if c.hash == hash && c.kind == kind && c.key == key {
			if c.seen < maxSeen {
				c.seen++
			}
			return c
		}
	}
	return nil
}

// insert adds a cell for a counter that is not there. Others may have to go.
func (t *table[T]) insert(hash uint64, key string, kind uint64, now int64) *cell[T] {
	for range min(sweep, len(t.ring)) {
		if c := t.step(); c.until <= now && !c.held {
			t.remove(c)
		}
	}
	c := &cell[T]{hash: hash, key: strings.Clone(key), kind: kind, slot: int32(len(t.ring)), held: true}
	t.bytes += c.size()
	t.ring = append(t.ring, c)
	t.link(c)
	t.makeRoom(now)
	return c
}

func (c *cell[T]) size() int64 {
	return int64(unsafe.Sizeof(*c)) + int64(len(c.key)) + c.extra + allocSlack
}

// grow notes that the value of c now holds extra bytes elsewhere.
func (t *table[T]) grow(c *cell[T], extra, now int64) {
	if extra == c.extra {
		return
	}
	t.bytes += extra - c.extra
	c.extra = extra
	t.makeRoom(now)
}

func (t *table[T]) makeRoom(now int64) {
	for t.bytes > t.limit {
		victim := t.victim(now)
		if victim == nil {
			return // all that is left is in use at this moment
		}
		t.remove(victim)
		t.evicted++
	}
}

// victim is a dead cell, else the first that was not used since the hand last came
// by, else the least used of those it passed.
func (t *table[T]) victim(now int64) *cell[T] {
	var least *cell[T]
	for range min(maxSteps, len(t.ring)) {
		c := t.step()
		switch {
		case c.held:
			continue
		case c.until <= now || c.seen == 0:
			return c
		case least == nil || c.seen < least.seen:
			least = c
		}
		c.seen--
	}
	return least
}

func (t *table[T]) step() *cell[T] {
	if t.hand >= len(t.ring) {
		t.hand = 0
	}
	c := t.ring[t.hand]
	t.hand++
	return c
}

func (t *table[T]) remove(c *cell[T]) {
	at := &t.buckets[c.hash>>8&uint64(len(t.buckets)-1)]
	for *at != c {
		at = &(*at).next
	}
	*at = c.next
	last := t.ring[len(t.ring)-1]
	t.ring[c.slot], last.slot = last, c.slot
	t.ring[len(t.ring)-1] = nil
	t.ring = t.ring[:len(t.ring)-1]
	t.bytes -= c.size()
}

func (t *table[T]) link(c *cell[T]) {
	if len(t.ring) > len(t.buckets) {
		t.buckets = make([]*cell[T], max(2*len(t.buckets), minBuckets))
		for _, c := range t.ring {
			t.chain(c)
		}
		return
	}
	t.chain(c)
}

func (t *table[T]) chain(c *cell[T]) {
	head := &t.buckets[c.hash>>8&uint64(len(t.buckets)-1)]
	c.next, *head = *head, c
}
