package limits

import (
	"strings"
	"sync"
	"sync/atomic"

	"mainstay.dev/mainstay/ratelimit"
	"mainstay.dev/mainstay/telemetry"
)

// The outcomes of a rule.
const (
	allowed = "allowed"
	refused = "refused"
	shadow  = "shadow" // it would have refused
)

// maxTallies bounds how many combinations of rule, tier and outcome are told
// apart; the names come from the file, so only many reloads get there.
const maxTallies = 2000

// tally names a counter.
type tally struct{ rule, tier, outcome string }

// tallies counts decisions since the start, by rule and tier.
type tallies struct {
	counts        sync.Map // tally → *atomic.Uint64
	kinds         atomic.Int64
	invalid       atomic.Uint64        // asks that made no sense
	degraded      [steps]atomic.Uint64 // admitted requests by the step of their caller
	unsettled     atomic.Uint64        // corrections that did not reach the store
	refusedGrants atomic.Uint64
}

// count notes what every rule of v said.
func (t *tallies) count(v *Verdict) {
	t.degraded[v.Step()].Add(1)
	if v.Denied {
		t.add(tally{"deny", v.Tier, outcome(false, v.Allowed)})
		return
	}
	if len(v.Rules) == 0 {
		t.add(tally{"none", v.Tier, allowed})
		return
	}
	for i := range v.Rules {
		r := &v.Rules[i]
		rule := r.Name
		if strings.HasPrefix(r.Check.Key, ownKey) {
			rule = "own" // the app may call them what it likes
		}
		t.add(tally{rule, v.Tier, outcome(r.Allowed, r.Check.Shadow)})
	}
}

func outcome(ok, silent bool) string {
	switch {
	case ok:
		return allowed
	case silent:
		return shadow
	}
	return refused
}

func (t *tallies) add(k tally) {
	n, ok := t.counts.Load(k)
	if !ok {
		if t.kinds.Load() >= maxTallies {
			k = tally{"other", "other", k.outcome}
		}
		var first bool
		if n, first = t.counts.LoadOrStore(k, new(atomic.Uint64)); !first {
			t.kinds.Add(1)
		}
	}
	n.(*atomic.Uint64).Add(1)
}

// modes are the ways a decision is made, in the words of the RateLimit field.
var modes = [...]ratelimit.Mode{ratelimit.ModeExact, ratelimit.ModeDeny, ratelimit.ModeLocal, ratelimit.ModeOpen, ratelimit.ModeShut}

// Levels is how the gate stands, for the metrics.
func (g *Gate) Levels() []telemetry.Level {
	var levels []telemetry.Level
	g.counts.Range(func(k, n any) bool {
		t := k.(tally)
		levels = append(levels, telemetry.Level{
			Name: "mainstay_limits_decisions_total", Help: "Decisions by rule and tier; shadow: the rule would have refused, and only counts.", Counter: true,
			Labels: []telemetry.Label{{Name: "rule", Value: t.rule}, {Name: "tier", Value: t.tier}, {Name: "outcome", Value: t.outcome}},
			Value:  float64(n.(*atomic.Uint64).Load()),
		})
		return true
	})
	levels = append(levels,
		telemetry.Level{Name: "mainstay_limits_grants", Help: "Grants of limits in force.", Value: float64(len(*g.granted.Load()))},
		telemetry.Level{Name: "mainstay_limits_grants_refused_total", Help: "Grants that made no sense, or came from a file that others may write.", Value: float64(g.refusedGrants.Load()), Counter: true},
		telemetry.Level{Name: "mainstay_limits_invalid_total", Help: "Asks that made no sense, such as a negative cost; nothing was decided.", Value: float64(g.invalid.Load()), Counter: true},
		telemetry.Level{Name: "mainstay_limits_unsettled_total", Help: "Costs that were told too late to be counted, because the store did not answer.", Value: float64(g.unsettled.Load()), Counter: true})
	for s := Warned; s < steps; s++ {
		levels = append(levels, telemetry.Level{
			Name: "mainstay_limits_degraded_total", Help: "Requests that were admitted, by how their callers are degraded: warn, slow or cheaper.", Counter: true,
			Labels: []telemetry.Label{{Name: "step", Value: s.String()}}, Value: float64(g.degraded[s].Load()),
		})
	}
	if g.shield == nil {
		return levels
	}
	down := 0.0
	if g.shield.Down() {
		down = 1
	}
	levels = append(levels, telemetry.Level{Name: "mainstay_limits_store_down", Help: "1 while Redis does not answer and limits go on as on_store_failure says.", Value: down})
	for _, m := range modes {
		levels = append(levels, telemetry.Level{
			Name: "mainstay_limits_mode_total", Help: "Decisions by who made them: exact (Redis), deny (known to be over the limit), local, open or shut (Redis was down).", Counter: true,
			Labels: []telemetry.Label{{Name: "mode", Value: m.String()}}, Value: float64(g.shield.Decisions(m)),
		})
	}
	return levels
}
