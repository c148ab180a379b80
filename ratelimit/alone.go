package ratelimit

import (
	"context"
	"errors"
	"time"
)

// without decides while the store cannot be asked.
func (s *Shield) without(checks []Check, results []Result, f Failure) (Decision, error) {
	if f == FailLocal {
		return s.alone(checks, results)
	}
	d := Decision{Allowed: f == FailAllow, Mode: ModeOpen, At: s.local.now()}
	r := Result{Allowed: d.Allowed}
	if !d.Allowed {
		d.Mode, d.Retry, r.Retry = ModeShut, time.Second, time.Second
	}
	for i := range checks {
		if r.Remaining = 0; d.Allowed {
			r.Remaining = capacity(&checks[i].Limit)
		}
		results[i] = r
	}
	return d, nil
}

// share is a check as one node of several sees it.
func share(c Check, nodes int64) Check {
	c.Limit.Max = max(c.Limit.Max/nodes, 1)
	c.Limit.Burst = max(c.Limit.Burst/nodes, min(c.Limit.Burst, 1))
	// A cost that is more than a node's share takes all of the share.
	c.Cost = min(c.Cost, capacity(&c.Limit))
	return c
}

func (s *Shield) nodes() int64 { return int64(max(s.opts.Nodes(), 1)) }

// alone decides in this process, beginning with what the store last said.
func (s *Shield) alone(checks []Check, results []Result) (Decision, error) {
	nodes, now := s.nodes(), s.local.now()
	shares := make([]Check, len(checks))
	for i := range checks {
		shares[i] = share(checks[i], nodes)
		if err := s.seed(&checks[i], shares[i], nodes, now); err != nil {
			return Decision{}, err
		}
	}
	d, err := s.local.Take(context.Background(), shares, results)
	d.Mode = ModeLocal
	if err != nil || !d.Allowed {
		return d, err
	}
	for i := range checks {
		if results[i].Allowed {
			s.note(&checks[i], checks[i].Cost, results[i].Reset, now)
		}
	}
	return d, nil
}

// seed gives the local counter its share of what is taken, when it is first needed
// since the store last heard of this key.
func (s *Shield) seed(c *Check, own Check, nodes, now int64) error {
	var debt Debt
	first := false
	s.known.with(c, now, true, func(k *known) {
		if k.local {
			return
		}
		first, k.local, k.limit = true, true, c.Limit
		debt = Debt{Used: (k.still(now) + nodes - 1) / nodes, Reset: micros(max(k.resetAt-now, 0))}
		k.addsTo = now + own.Limit.window()
	})
	if !first {
		return nil
	}
	// What the local counter still holds of an earlier outage counts, too: the
	// larger of the two is what this node has had.
	return s.local.Restore(context.Background(), []Check{own}, []Debt{debt})
}

// note remembers what the store must be told of.
func (s *Shield) note(c *Check, cost int64, reset time.Duration, now int64) {
	s.known.with(c, now, true, func(k *known) {
		k.limit = c.Limit
		k.added = max(k.added+cost, 0)
		k.addsTo = max(k.addsTo, now+int64(reset/time.Microsecond))
	})
}

// Refund implements [Store]. What the store decided is given back there, what this
// process decided, here. A refund that the store misses is lost: its units leave
// with their window, its leases with their life.
func (s *Shield) Refund(ctx context.Context, d Decision, checks []Check) error {
	switch d.Mode {
	case ModeExact:
		for i := range checks {
			s.known.with(&checks[i], s.local.now(), false, func(k *known) { k.denyUntil = 0 })
		}
		return s.ask(ctx, checks, func(ctx context.Context) error { return s.store.Refund(ctx, d, checks) })
	case ModeLocal:
		shares := make([]Check, len(checks))
		for i := range checks {
			shares[i] = share(checks[i], s.nodes())
			s.note(&checks[i], -checks[i].Cost, 0, s.local.now())
		}
		return s.local.Refund(ctx, d, shares)
	}
	return nil
}

// Charge implements [Store]; while the store is down it charges here.
func (s *Shield) Charge(ctx context.Context, checks []Check) error {
	if err := Validate(checks, nil); err != nil {
		return err
	}
	err := s.ask(ctx, checks, func(ctx context.Context) error { return s.store.Charge(ctx, checks) })
	if err == nil {
		return nil
	}
	nodes, now := s.nodes(), s.local.now()
	for i := range checks {
		own := share(checks[i], nodes)
		if err := s.seed(&checks[i], own, nodes, now); err != nil {
			return err
		}
		if err := s.local.Charge(ctx, []Check{own}); err != nil {
			return err
		}
		s.note(&checks[i], checks[i].Cost, checks[i].Limit.Window, now)
	}
	return nil
}

// Restore implements [Store].
func (s *Shield) Restore(ctx context.Context, checks []Check, debts []Debt) error {
	return s.ask(ctx, checks, func(ctx context.Context) error { return s.store.Restore(ctx, checks, debts) })
}

// Reset implements [Store]: here at once, and in the store.
func (s *Shield) Reset(ctx context.Context, checks []Check) error {
	if err := s.local.Reset(ctx, checks); err != nil {
		return err
	}
	for i := range checks {
		s.known.forget(&checks[i])
	}
	return s.ask(ctx, checks, func(ctx context.Context) error { return s.store.Reset(ctx, checks) })
}

// ask calls the store within the time limit, or not at all while it is down.
func (s *Shield) ask(ctx context.Context, checks []Check, do func(context.Context) error) error {
	if s.down.Load() {
		return ErrDown
	}
	if len(checks) == 0 {
		return nil
	}
	within, cancel := context.WithTimeout(ctx, s.opts.Timeout)
	defer cancel()
	err := do(within)
	if err != nil && ctx.Err() == nil && !errors.Is(err, ErrInvalid) {
		s.failed(err, &checks[0])
	}
	return err
}

// ErrDown is what a [Shield] answers to what only the store could do.
var ErrDown = errors.New("ratelimit: the shared store is down")
