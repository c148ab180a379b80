package cache

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

var t0 = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// item is one of a weight that is fresh for a minute and stale for another.
func item(v int, weight int64) Item[int] {
	return Item[int]{Value: v, Weight: weight, Life: Life{t0.Add(time.Minute), t0.Add(2 * time.Minute)}}
}

func put(c *Cache[string, int], k string, it Item[int]) bool { return c.Set(k, c.Ticket(k), it, t0) }

func TestAValueIsFreshThenStaleThenGone(t *testing.T) {
	c := New[string, int](1000, 100)
	if _, state := c.Get("a", t0); state != Miss {
		t.Error("an empty cache has something")
	}
	if !put(c, "a", item(7, 10)) {
		t.Fatal("not kept")
	}
	for _, at := range []struct {
		after time.Duration
		want  State
	}{{0, Fresh}, {time.Minute - 1, Fresh}, {time.Minute, Stale}, {2*time.Minute - 1, Stale}, {2 * time.Minute, Miss}, {0, Miss}} {
		v, state := c.Get("a", t0.Add(at.after))
		if state != at.want || state != Miss && v != 7 {
			t.Errorf("after %v: %d, state %d, want %d", at.after, v, state, at.want)
		}
	}
	if st := c.Stats(); st.Entries != 0 || st.Weight != 0 || st.Stored != 1 || st.Evicted != 0 {
		t.Errorf("%+v", st)
	}
}

func TestWhatIsTooHeavyOrOverIsRefused(t *testing.T) {
	c := New[string, int](1000, 100)
	put(c, "a", item(1, 10))
	over := item(2, 10)
	over.Life.Fresh, over.Life.Until = t0, t0
	for name, it := range map[string]Item[int]{"heavy": item(2, 101), "weightless": item(2, 0), "over": over} {
		if put(c, "a", it) {
			t.Errorf("what is %s was kept", name)
		}
	}
	if v, _ := c.Get("a", t0); v != 1 || c.Stats().Refused != 3 {
		t.Errorf("%d, %+v", v, c.Stats())
	}
	for _, bad := range [][2]int64{{1, 1}, {0, 0}, {10, 0}, {10, -1}} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("a cache of %d for values of %d", bad[0], bad[1])
				}
			}()
			New[string, int](bad[0], bad[1])
		}()
	}
}

func TestWhatWasAskedForBeforeAnInvalidationIsNotKept(t *testing.T) {
	for name, invalidate := range map[string]func(*Cache[string, int]){
		"of the key": func(c *Cache[string, int]) { c.Invalidate("a") },
		"of all":     func(c *Cache[string, int]) { c.Clear() },
	} {
		c := New[string, int](1000, 100)
		put(c, "a", item(1, 10))
		early := c.Ticket("a")
		invalidate(c)
		if _, state := c.Get("a", t0); state != Miss {
			t.Errorf("%s: still there", name)
		}
		if c.Set("a", early, item(1, 10), t0) {
			t.Errorf("%s: an old value was kept", name)
		}
		if !c.Set("a", c.Ticket("a"), item(2, 10), t0) {
			t.Errorf("%s: a new value was refused", name)
		}
		if st := c.Stats(); st.Entries != 1 || st.Weight != 10 {
			t.Errorf("%s: %+v", name, st)
		}
	}
}

// What is in use stays while a hundred times as much passes that nobody asks for again.
func TestAScanPushesNothingOutThatIsInUse(t *testing.T) {
	c := New[string, int](20_000, 100)
	used := func(f func(k string)) {
		for i := range 100 {
			f(fmt.Sprint("used", i))
		}
	}
	used(func(k string) { put(c, k, item(1, 10)) })
	used(func(k string) { c.Get(k, t0) })
	for i := range 200_000 {
		put(c, fmt.Sprint("scan", i), item(0, 10))
		if i%1000 == 0 {
			used(func(k string) { c.Get(k, t0) })
		}
	}
	used(func(k string) {
		if _, state := c.Get(k, t0); state == Miss {
			t.Errorf("%s is gone", k)
		}
	})
}

func TestAKeyThatComesBackSoonSkipsTheTrial(t *testing.T) {
	c := New[string, int](300, 100) // too small for two shards, of which only one would be filled
	if len(c.shards) != 1 {
		t.Fatal("the keys are spread over shards by chance")
	}
	put(c, "back", item(1, 50))
	for i := range 10 {
		put(c, fmt.Sprint(i), item(0, 50))
	}
	if _, state := c.Get("back", t0); state != Miss {
		t.Fatal("it should have left")
	}
	put(c, "back", item(1, 50))
	for i := range 100 {
		put(c, fmt.Sprint("more", i), item(0, 50))
	}
	if _, state := c.Get("back", t0); state == Miss {
		t.Error("it left again")
	}
}

// fact is what the model knows of a key.
type fact struct {
	item   Item[int]
	ticket int // how many times the key was invalidated
}

// The model is a map that forgets nothing: the cache may say Miss where the model knows
// a value, and must never say anything else.
func TestRandomWorkAgainstAModel(t *testing.T) {
	for seed := range uint64(20) {
		r := rand.New(rand.NewPCG(seed, 1))
		c := New[int, int](5000, 500)
		model := map[int]fact{}
		type pending struct {
			key, invalidations int
			ticket             Ticket
		}
		var fetching []pending
		now, hits := t0, 0
		for step := range 20_000 {
			k := int(r.ExpFloat64() * 30)
			switch op := r.IntN(100); {
			case op < 50:
				v, state := c.Get(k, now)
				f, ok := model[k]
				if state != Miss && (!ok || v != f.item.Value || state != f.item.Life.At(now)) {
					t.Fatalf("seed %d, step %d: key %d is %d in state %d; the model has %+v", seed, step, k, v, state, f)
				}
				if state != Miss {
					hits++
				}
			case op < 70:
				fetching = append(fetching, pending{k, model[k].ticket, c.Ticket(k)})
			case op < 94 && len(fetching) > 0:
				i := r.IntN(len(fetching))
				p := fetching[i]
				fetching[i] = fetching[len(fetching)-1]
				fetching = fetching[:len(fetching)-1]
				fresh := now.Add(time.Duration(r.IntN(20)) * time.Second)
				it := Item[int]{Value: step, Weight: int64(r.IntN(600)), Life: Life{fresh, fresh.Add(time.Duration(r.IntN(20)-5) * time.Second)}}
				kept := c.Set(p.key, p.ticket, it, now)
				f := model[p.key]
				fit := it.Weight > 0 && it.Weight <= 500 && it.Life.At(now) != Miss
				if kept && (!fit || f.ticket != p.invalidations) {
					t.Fatalf("seed %d, step %d: kept %+v for key %d", seed, step, it, p.key)
				}
				if kept {
					model[p.key] = fact{it, f.ticket}
				}
			case op < 97:
				c.Invalidate(k)
				model[k] = fact{ticket: model[k].ticket + 1}
			default:
				now = now.Add(time.Duration(r.IntN(3000)) * time.Millisecond)
			}
			if step%100 == 0 {
				c.check(t)
			}
		}
		if st := c.Stats(); hits < 1000 || st.Evicted < 100 || st.Refused < 100 {
			t.Errorf("seed %d: the work was too easy: %d hits, %+v", seed, hits, st)
		}
	}
}

// check fails unless the books of every shard agree with what it holds.
func (c *Cache[K, V]) check(t *testing.T) {
	t.Helper()
	for i := range c.shards {
		s := &c.shards[i]
		n, all := 0, int64(0)
		for _, q := range []*queue[K, V]{&s.trial, &s.main} {
			weight := int64(0)
			for e := q.root.next; e != &q.root; e = e.next {
				if s.entries[e.key] != e || e.in != q || e.next.prev != e {
					t.Fatalf("shard %d: entry %v is lost", i, e.key)
				}
				n++
				weight += e.item.Weight
			}
			if weight != q.weight {
				t.Fatalf("shard %d: a queue of %d says %d", i, weight, q.weight)
			}
			all += weight
		}
		if n != len(s.entries) || all > s.max {
			t.Fatalf("shard %d: %d in queues, %d in the map, weight %d of %d", i, n, len(s.entries), all, s.max)
		}
		if len(s.gone.seen) > max(len(s.entries), fewest)+1 || len(s.gone.order) > 4*max(len(s.entries), fewest)+4 {
			t.Fatalf("shard %d remembers %d of %d entries in %d places", i, len(s.gone.seen), len(s.entries), len(s.gone.order))
		}
	}
}

// Many fetch a source that changes, and invalidate after each change: whoever asks
// after an invalidation never gets what was there before it.
func TestNobodySeesWhatWasInvalidated(t *testing.T) {
	c := New[int, int64](10_000, 100)
	var source [8]atomic.Int64
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for i := range 5000 {
				k := i % len(source)
				ticket := c.Ticket(k)
				v := source[k].Load()
				c.Set(k, ticket, Item[int64]{Value: v, Weight: 10, Life: Life{Fresh: t0.Add(time.Hour)}}, t0)
			}
		})
	}
	for k := range source {
		all.Go(func() { // the only one who changes this key
			for range 1000 {
				now := source[k].Add(1)
				c.Invalidate(k)
				if v, state := c.Get(k, t0); state != Miss && v != now {
					t.Errorf("key %d is %d after the invalidation for %d", k, v, now)
				}
			}
		})
	}
	all.Wait()
	c.check(t)
}

func TestAHitAllocatesNothing(t *testing.T) {
	type key struct{ scheme, host, path string }
	c := New[key, *int](1000, 100)
	k := key{"http", "example.com", "/a"}
	c.Set(k, c.Ticket(k), Item[*int]{Value: new(int), Weight: 10, Life: Life{Fresh: t0.Add(time.Hour)}}, t0)
	if n := testing.AllocsPerRun(1000, func() {
		if _, state := c.Get(k, t0); state != Fresh {
			t.Fatal("not there")
		}
		c.Ticket(k)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestALargeCacheHasManyLocksAndASmallOneKeepsItsHeaviestValue(t *testing.T) {
	for _, tc := range []struct {
		max, largest int64
		shards       int
	}{{2, 1, 1}, {64e6, 4e6, 8}, {1e9, 1e6, 16}, {100, 50, 1}} {
		c := New[string, int](tc.max, tc.largest)
		if len(c.shards) != tc.shards {
			t.Errorf("%d for %d: %d shards, want %d", tc.max, tc.largest, len(c.shards), tc.shards)
		}
		if !put(c, "a", item(1, tc.largest)) {
			t.Errorf("%d for %d: the heaviest value was refused", tc.max, tc.largest)
		}
	}
}
