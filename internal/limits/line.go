package limits

import (
	"context"
	"hash/maphash"
	"sync"
	"time"

	"mainstay.dev/mainstay/ratelimit"
)

// lines remember which members of a workspace were told to come again, and when: of
// several that were refused, only one can have the first unit that becomes free.
// They are bounded; a member for whom there is no place is told when all are free.
type lines struct {
	seed   maphash.Seed
	shards [lineShards]struct {
		sync.Mutex
		of map[string]map[Caller]time.Time // by the counter's key
	}
}

const (
	lineShards = 16
	maxLines   = 256 // in a shard
	maxWaiting = 128 // members in a line
)

// place is where a member stands: how many others are before it, and the moment it
// was told already, if it was.
func (l *lines) place(key string, who Caller, now time.Time) (ahead int, told time.Time) {
	shard := &l.shards[maphash.String(l.seed, key)%lineShards]
	shard.Lock()
	defer shard.Unlock()
	line := shard.of[key]
	for c, at := range line {
		if !at.After(now) {
			delete(line, c)
		}
	}
	return len(line), line[who]
}

// tell notes when a member was told to come.
func (l *lines) tell(key string, who Caller, at time.Time) {
	shard := &l.shards[maphash.String(l.seed, key)%lineShards]
	shard.Lock()
	defer shard.Unlock()
	line := shard.of[key]
	if line == nil {
		if shard.of == nil {
			shard.of = map[string]map[Caller]time.Time{}
		}
		if len(shard.of) >= maxLines {
			for k, old := range shard.of { // one that is over, or else any
				delete(shard.of, k)
				if len(old) > 0 {
					break
				}
			}
		}
		line = map[Caller]time.Time{}
		shard.of[key] = line
	}
	if len(line) < maxWaiting {
		line[who] = at
	}
}

// queue has members of one workspace come one after the other: each is told the
// moment at which there is room for it and for all that were told before it. A node
// knows whom it has told itself, and takes it that every other node has told as many:
// so there is room for those too.
func (g *Gate) queue(ctx context.Context, a *Ask, v *Verdict) {
	r := v.Refused()
	if r == nil || !ofWorkspace(r) || a.User == "" && !a.Address.IsValid() || r.Retry == ratelimit.Never || v.Decision.Mode == ratelimit.ModeShut ||
		r.Check.Limit.Algorithm == ratelimit.Concurrency {
		return
	}
	now, who := time.Now(), a.caller()
	key := r.Check.Key + "/" + short(r.Check.Limit.Window)
	ahead, told := g.lines.place(key, who, now)
	if told.IsZero() {
		wait := r.Retry
		if units := int64(ahead+1) * g.nodes() * r.Check.Cost; units > r.Check.Cost {
			wait = max(wait, g.roomFor(ctx, v, r, units))
		}
		told = now.Add(time.Duration(seconds(wait)) * time.Second)
		g.lines.tell(key, who, told)
	}
	r.Retry = max(r.Retry, told.Sub(now))
}

// nodes is how many nodes share the limits, this one included.
func (g *Gate) nodes() int64 {
	if g.deps.Store == nil || g.deps.Nodes == nil {
		return 1
	}
	return int64(max(g.deps.Nodes(), 1))
}

// roomFor is how long it takes until so many units are free at once. It asks the
// counters themselves, by a decision that cannot be allowed and so takes nothing;
// while they cannot be asked it is until all are free. Nobody waits for a store a
// second time that has just not answered.
func (g *Gate) roomFor(ctx context.Context, v *Verdict, r *Rule, units int64) time.Duration {
	if units > r.Check.Limit.Max || v.Decision.Mode >= ratelimit.ModeLocal || g.deps.Store != nil && g.shield.Down() {
		return r.Reset
	}
	look := r.Check
	look.Cost, look.Shadow = units, false
	never := ratelimit.Check{Key: r.Check.Key + ":never", Limit: ratelimit.Limit{Max: 1, Window: ratelimit.MinWindow}, Cost: 2}
	var store ratelimit.Store = g.memory
	if g.deps.Store != nil { // not through the shield, which would remember the refusal
		store = g.deps.Store
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, g.policy.Load().cfg.StoreTimeout)
		defer cancel()
	}
	var results [2]ratelimit.Result
	if _, err := store.Take(ctx, []ratelimit.Check{look, never}, results[:]); err != nil || results[0].Retry == ratelimit.Never {
		return r.Reset
	}
	return results[0].Retry
}
