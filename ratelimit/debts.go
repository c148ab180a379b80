package ratelimit

import "context"

// learn takes over what the store said, unless an outage has begun meanwhile: what
// was known before is then what counts.
func (s *Shield) learn(checks []Check, results []Result, at int64, outage uint64) {
	now := s.local.now()
	for i := range checks {
		s.known.with(&checks[i], now, true, func(k *known) {
			if k.used == 0 && k.resetAt == 0 && !k.owing() {
				k.outage = outage // a counter first heard of has no debts
			}
			if !k.owing() && k.settling == nil && k.outage == s.outage.Load() {
				k.learn(&checks[i], &results[i], at, now, s.opts.DenyFor)
			}
		})
	}
}

// A claim is debts that one caller has taken on to tell the store.
type claim struct {
	checks []Check
	debts  []Debt
	done   chan struct{}
	// results are what the store counts after it was told.
	results []Result
	at      int64
}

// owing reports whether this process has decided on its own since the store last
// heard of the counter.
func (k *known) owing() bool { return k.local || k.added > 0 }

// settleDebts tells the store what it may have missed of these counters: units that
// were admitted without it, and, after an outage, what it knew before. While one
// caller does so, others for the same counter wait, or Redis would admit them on
// an empty counter.
func (s *Shield) settleDebts(ctx context.Context, checks []Check, outage uint64) error {
	for {
		c, wait := s.claimDebts(checks, outage)
		if wait == nil {
			if len(c.checks) == 0 {
				return nil
			}
			err := s.store.Restore(ctx, c.checks, c.debts)
			s.closeDebts(c, err == nil, outage)
			return err
		}
		s.closeDebts(c, false, outage)
		select {
		case <-wait:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// claimDebts claims what is owed to the counters. If another caller has claimed one
// of them, wait ends when that one is done, and what was claimed must be closed.
func (s *Shield) claimDebts(checks []Check, outage uint64) (c claim, wait chan struct{}) {
	now := s.local.now()
	for i := range checks {
		check := &checks[i]
		s.known.with(check, now, false, func(k *known) {
			switch {
			case k.settling != nil:
				wait = k.settling
				return
			case !k.owing() && k.outage == outage:
				return
			case now >= k.addsTo:
				k.added = 0
			}
			if c.done == nil {
				c.done = make(chan struct{})
			}
			k.settling = c.done
			c.checks = append(c.checks, *check)
			c.debts = append(c.debts, Debt{Used: k.still(now), Reset: micros(max(k.resetAt-now, 0)), Add: k.added})
		})
		if wait != nil {
			break
		}
	}
	return c, wait
}

// closeDebts ends a claim: the debts are told, or stay.
func (s *Shield) closeDebts(c claim, told bool, outage uint64) {
	now := s.local.now()
	for i := range c.checks {
		s.known.with(&c.checks[i], now, false, func(k *known) {
			k.settling = nil
			if told {
				k.added = max(k.added-c.debts[i].Add, 0)
				k.used = c.debts[i].Used + c.debts[i].Add
				k.nextAt, k.resetAt = max(k.nextAt, now), max(k.resetAt, k.addsTo)
				// What was seeded stays so for as long as this node is on its own.
				k.local, k.outage = k.local && s.down.Load(), outage
			}
		})
	}
	if c.done != nil {
		close(c.done)
	}
}

// tellAll tells the store of all units that were admitted without it, and asks what
// it has heard from other nodes.
func (s *Shield) tellAll(ctx context.Context) error {
	outage := s.outage.Load()
	for i := range s.known.shards {
		var err error
		for _, c := range s.claimShard(&s.known.shards[i]) {
			if err == nil {
				c.at, err = s.reconcile(ctx, c)
			}
			s.closeDebts(c, err == nil, outage)
			if err == nil {
				s.adopt(c)
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// reconcile tells the store of a claim and reads what it now counts into its results.
func (s *Shield) reconcile(ctx context.Context, c claim) (at int64, err error) {
	ctx, cancel := s.patiently(ctx)
	defer cancel()
	if err := s.store.Restore(ctx, c.checks, c.debts); err != nil {
		return 0, err
	}
	d, err := s.store.Take(ctx, c.checks, c.results[:len(c.checks)])
	return d.At, err
}

// adopt takes over what the store counts.
func (s *Shield) adopt(c claim) {
	now := s.local.now()
	for i := range c.checks {
		s.known.with(&c.checks[i], now, false, func(k *known) { k.learn(&c.checks[i], &c.results[i], c.at, now, 0) })
	}
}

// claimShard claims the units that are owed in one shard, a few keys a claim.
func (s *Shield) claimShard(t *table[known]) (claims []claim) {
	now := s.local.now()
	t.Lock()
	defer t.Unlock()
	for _, cell := range t.ring {
		k := &cell.value
		if !k.owing() || k.settling != nil || now >= k.addsTo {
			continue
		}
		if n := len(claims); n == 0 || len(claims[n-1].checks) == MaxChecks {
			claims = append(claims, claim{done: make(chan struct{}), results: make([]Result, MaxChecks)})
		}
		c := &claims[len(claims)-1]
		k.settling = c.done
		c.checks = append(c.checks, Check{Key: cell.key, Limit: k.limit})
		c.debts = append(c.debts, Debt{Used: k.still(now), Reset: micros(max(k.resetAt-now, 0)), Add: k.added})
	}
	return claims
}
