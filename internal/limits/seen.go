package limits

import (
	"hash/maphash"
	"slices"
	"strings"
	"sync"
	"time"

	"mainstay.dev/mainstay/ratelimit"
)

// seen remembers the callers of late, for whoever wants to know who is near a
// limit. It is bounded. A look that another goroutine has the lock for is left out,
// so that who passes never waits; a refusal does, since people read how many there were.
type seen struct {
	seed   maphash.Seed
	shards [seenShards]struct {
		sync.Mutex
		callers map[Caller]*standing
	}
}

const (
	seenShards = 16
	maxSeen    = 256 // callers in a shard
	forget     = time.Hour
	rivals     = 8 // that a new caller is compared with when a shard is full
)

// standing is how a caller stood when it was last seen.
type standing struct {
	tier, workspace string
	rule            string
	max, remaining  int64
	refused         uint64 // since it is remembered
	at              time.Time
}

func (s *standing) used() float64 { return 1 - float64(s.remaining)/float64(max(s.max, 1)) }

// note remembers what v says of the caller and the workspace.
func (s *seen) note(a *Ask, v *Verdict) {
	var own, space *Rule
	for i := range v.Rules {
		r := &v.Rules[i]
		to := &own
		switch {
		case strings.HasPrefix(r.Check.Key, ownKey) || r.Check.Limit.Algorithm == ratelimit.Concurrency:
			continue
		case ofWorkspace(r):
			to = &space
		case strings.HasPrefix(r.Check.Key, "{app:") || strings.HasPrefix(r.Check.Key, "{"+ceilingRule):
			continue
		}
		if *to == nil || r.Remaining*(*to).Check.Limit.Max < (*to).Remaining*r.Check.Limit.Max || !r.Allowed {
			*to = r
		}
	}
	if own != nil {
		s.put(a.caller(), a.Workspace, v.Tier, own)
	}
	if space != nil {
		s.put(Caller{perWorkspace, a.Workspace}, "", v.Tier, space)
	}
}

func (s *seen) put(who Caller, workspace, tier string, r *Rule) {
	h := maphash.String(s.seed, who.ID)
	shard := &s.shards[h%seenShards]
	if !r.Allowed {
		shard.Lock()
	} else if !shard.TryLock() {
		return
	}
	defer shard.Unlock()
	st := shard.callers[who]
	if st == nil {
		if shard.callers == nil {
			shard.callers = map[Caller]*standing{}
		}
		if len(shard.callers) >= maxSeen && !makeRoom(shard.callers, r) {
			return
		}
		// The id may point into a request that is large.
		st = &standing{}
		shard.callers[Caller{who.Kind, strings.Clone(who.ID)}] = st
	}
	if st.workspace != workspace {
		st.workspace = strings.Clone(workspace)
	}
	st.tier, st.rule = tier, r.Name // names of the file
	st.max, st.remaining, st.at = r.Check.Limit.Max, r.Remaining, time.Now()
	if !r.Allowed {
		st.refused++
	}
}

// makeRoom drops the one of a few callers that is farthest from its limit, or
// nobody, if that is the new one.
func makeRoom(callers map[Caller]*standing, r *Rule) bool {
	var victim Caller
	far, n := 2.0, 0
	now := time.Now()
	for c, st := range callers { // in no order, which is what is wanted
		used := st.used()
		if now.Sub(st.at) > forget {
			used = -1
		}
		if used < far {
			victim, far = c, used
		}
		if n++; n == rivals {
			break
		}
	}
	fresh := standing{max: r.Check.Limit.Max, remaining: r.Remaining}
	if far > fresh.used() {
		return false
	}
	delete(callers, victim)
	return true
}

// find returns what is remembered of a caller.
func (s *seen) find(who Caller) (standing, bool) {
	shard := &s.shards[maphash.String(s.seed, who.ID)%seenShards]
	shard.Lock()
	defer shard.Unlock()
	if st := shard.callers[who]; st != nil {
		return *st, true
	}
	return standing{}, false
}

// Standing is how a caller stood when it was last seen.
type Standing struct {
	Key       string    `json:"key"` // user:ann
	Workspace string    `json:"workspace,omitempty"`
	Tier      string    `json:"tier"`
	Rule      string    `json:"rule"` // the nearest to its end
	Limit     int64     `json:"limit"`
	Remaining int64     `json:"remaining"`
	Used      float64   `json:"used"`    // 0 to 1
	Refused   uint64    `json:"refused"` // since this node remembers it
	Seen      time.Time `json:"seen"`
}

// Top returns the callers that are nearest to a limit on this node, at most n.
func (g *Gate) Top(n int) []Standing {
	all := []Standing{}
	for i := range g.seen.shards {
		shard := &g.seen.shards[i]
		shard.Lock()
		for c, st := range shard.callers {
			if time.Since(st.at) <= forget {
				all = append(all, Standing{c.String(), st.workspace, st.tier, st.rule, st.max, st.remaining, st.used(), st.refused, st.at})
			}
		}
		shard.Unlock()
	}
	slices.SortFunc(all, nearest)
	return all[:min(n, len(all))]
}
