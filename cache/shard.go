package cache

import (
	"sync"
	"time"
)

// marks is how many counters of invalidations a shard has.
const marks = 256

// mostUses is up to how often a value's use is counted between two turns to leave.
const mostUses = 3

// entry is a value in one of the two queues.
type entry[K comparable, V any] struct {
	key        K
	hash       uint64
	item       Item[V]
	uses       uint8
	in         *queue[K, V]
	prev, next *entry[K, V]
}

// queue is a ring through root, whose next is the newest entry and whose prev is the
// one whose turn it is to leave.
type queue[K comparable, V any] struct {
	root   entry[K, V]
	weight int64
}

func (q *queue[K, V]) init() { q.root.prev, q.root.next, q.weight = &q.root, &q.root, 0 }

func (q *queue[K, V]) empty() bool { return q.root.prev == &q.root }

func (q *queue[K, V]) push(e *entry[K, V]) {
	e.in = q
	e.prev, e.next = &q.root, q.root.next
	e.prev.next, e.next.prev = e, e
	q.weight += e.item.Weight
}

func (q *queue[K, V]) remove(e *entry[K, V]) {
	e.prev.next, e.next.prev = e.next, e.prev
	e.prev, e.next, e.in = nil, nil, nil
	q.weight -= e.item.Weight
}

// shard is a part of the keys with a lock of its own.
type shard[K comparable, V any] struct {
	mu      sync.Mutex
	max     int64
	entries map[K]*entry[K, V]
	trial   queue[K, V]
	main    queue[K, V]
	gone    ghosts
	marks   [marks]Ticket

	stored, evicted, refused uint64
	_                        [64]byte // the next one's lock is on another cache line
}

func (s *shard[K, V]) init(max int64) {
	s.max, s.entries = max, map[K]*entry[K, V]{}
	s.trial.init()
	s.main.init()
}

// mark is chosen by other bits of the hash than the shard.
func mark(hash uint64) uint64 { return hash >> 32 % marks }

func (s *shard[K, V]) ticket(hash uint64) Ticket {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.marks[mark(hash)]
}

func (s *shard[K, V]) get(k K, now time.Time) (v V, state State) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.entries[k]
	if e == nil {
		return v, Miss
	}
	if state = e.item.Life.At(now); state == Miss {
		s.drop(e)
		return v, Miss
	}
	e.uses = min(e.uses+1, mostUses)
	return e.item.Value, state
}

func (s *shard[K, V]) set(k K, hash uint64, t Ticket, item *Item[V], unfit bool, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if unfit || s.marks[mark(hash)] != t || item.Life.At(now) == Miss {
		s.refused++
		return false
	}
	e := &entry[K, V]{key: k, hash: hash, item: *item}
	to := &s.trial
	if old := s.entries[k]; old != nil {
		to, e.uses = old.in, min(old.uses+1, mostUses)
		s.drop(old)
	} else if s.gone.take(hash) {
		to = &s.main
	}
	for s.trial.weight+s.main.weight+item.Weight > s.max {
		s.evict(now)
	}
	s.entries[k] = e
	to.push(e)
	s.stored++
	return true
}

// evict gives the entry whose turn it is to leave another turn if it was used, and
// else drops it.
func (s *shard[K, V]) evict(now time.Time) {
	q := &s.main
	if s.main.empty() || s.trial.weight > s.max/10 {
		q = &s.trial
	}
	e := q.root.prev
	over := e.item.Life.At(now) == Miss
	switch {
	case over:
		s.drop(e)
	case e.uses > 0:
		if e.uses--; q == &s.trial {
			e.uses = 0
		}
		q.remove(e)
		s.main.push(e)
	default:
		s.drop(e)
		s.evicted++
		if q == &s.trial {
			s.gone.add(e.hash, len(s.entries))
		}
	}
}

func (s *shard[K, V]) drop(e *entry[K, V]) {
	delete(s.entries, e.key)
	e.in.remove(e)
}

func (s *shard[K, V]) invalidate(k K, hash uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.marks[mark(hash)]++
	if e := s.entries[k]; e != nil {
		s.drop(e)
	}
}

func (s *shard[K, V]) clear() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.marks {
		s.marks[i]++
	}
	s.init(s.max)
	s.gone = ghosts{}
}

func (s *shard[K, V]) add(st *Stats) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st.Entries += len(s.entries)
	st.Weight += s.trial.weight + s.main.weight
	st.Stored += s.stored
	st.Evicted += s.evicted
	st.Refused += s.refused
}

// ghosts remember the keys that have left the trial last, by their hash, as many as
// there are entries.
type ghosts struct {
	seen  map[uint64]struct{}
	order []uint64
	first int // of order that counts
}

// fewest is how many are remembered at least.
const fewest = 64

func (g *ghosts) add(hash uint64, entries int) {
	if _, ok := g.seen[hash]; ok {
		return
	}
	if g.seen == nil {
		g.seen = map[uint64]struct{}{}
	}
	g.seen[hash] = struct{}{}
	g.order = append(g.order, hash)
	for len(g.order)-g.first > max(entries, fewest) {
		delete(g.seen, g.order[g.first])
		g.first++
	}
	if g.first > len(g.order)/2 {
		g.order = append(g.order[:0], g.order[g.first:]...)
		g.first = 0
	}
}

// take reports whether the key has left a short while ago.
func (g *ghosts) take(hash uint64) bool {
	_, ok := g.seen[hash]
	delete(g.seen, hash)
	return ok
}
