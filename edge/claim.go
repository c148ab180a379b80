package edge

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"mainstay.dev/mainstay/internal/traffic"
)

// plan is a traffic.Plan with its live targets. It is immutable; Apply swaps the
// pointer to it.
type plan struct {
	mode     traffic.Mode
	shares   []share
	replaced chan struct{} // closed when another plan has taken over
}

// share is a target's part of the traffic.
type share struct {
	*target
	weight int
}

// Apply makes p the plan. Every claim that begins after Apply has returned obeys
// it. Targets that p names by an id that is live already keep their connections;
// those it does not name are retired: they finish what they have and get nothing
// new. The drain that Apply returns waits for that, or until its ctx ends.
//
// Apply may be called at any time and from any goroutine; calls are served one
// after the other.
func (s *Server) Apply(p traffic.Plan) (drain func(ctx context.Context) error, err error) {
	if ps := p.Problems(); len(ps) > 0 {
		return nil, fmt.Errorf("apply traffic plan: %w", ps)
	}
	s.applying.Lock()
	defer s.applying.Unlock()
	old := s.plan.Load()
	live := map[string]*target{}
	for _, sh := range old.shares {
		live[sh.id] = sh.target
	}
	next := &plan{mode: p.Mode, replaced: make(chan struct{})}
	for _, spec := range p.Targets {
		t := live[spec.ID]
		switch {
		case t == nil:
			t = newTarget(spec, s.deps, s.policy.Load().cfg.Timeouts)
		case !t.is(spec):
			return nil, fmt.Errorf("apply traffic plan: target %s is live as another copy; give the new one an id of its own", spec.ID)
		}
		delete(live, spec.ID)
		next.shares = append(next.shares, share{t, spec.Weight})
	}
	s.plan.Store(next)
	close(old.replaced)
	for _, t := range live {
		t.retire()
	}
	return func(ctx context.Context) error {
		var errs []error
		for _, t := range live {
			if err := t.wait(ctx); err != nil {
				errs = append(errs, fmt.Errorf("drain %s: %d requests still open: %w", t.id, t.inflight(), err))
			}
		}
		return errors.Join(errs...)
	}, nil
}

// pick chooses by weight, leaving out the targets that were tried in vain.
func (p *plan) pick(tried []*target) *target {
	if len(p.shares) == 1 && len(tried) == 0 {
		return p.shares[0].target
	}
	total := 0
	for _, sh := range p.shares {
		if !slices.Contains(tried, sh.target) {
			total += sh.weight
		}
	}
	if total == 0 {
		return nil
	}
	n := rand.IntN(total)
	for _, sh := range p.shares {
		if slices.Contains(tried, sh.target) {
			continue
		}
		if n -= sh.weight; n < 0 {
			return sh.target
		}
	}
	return nil
}

// claim takes a place on a live target that was not tried yet. While the traffic
// is held it waits, bounded in number and time; a target that begins to drain
// between the look and the claim has been replaced, so it looks again.
func (s *Server) claim(ctx context.Context, r *Request, tried []*target) (*target, Code) {
	var waiting *hold
	defer func() { waiting.end(r) }()
	for {
		p := s.plan.Load()
		switch p.mode {
		case traffic.Maintenance:
			return nil, Maintenance
		case traffic.Serve:
			t := p.pick(tried)
			if t == nil {
				return nil, NoTarget
			}
			if t.enter() {
				return t, OK
			}
			continue
		}
		if waiting == nil {
			if waiting = s.beginHold(); waiting == nil {
				return nil, HoldFull
			}
		}
		select {
		case <-p.replaced:
		case <-waiting.timer.C:
			return nil, HoldTimeout
		case <-ctx.Done():
			return nil, ClientGone
		}
	}
}

// hold is one request's wait for the traffic to flow again.
type hold struct {
	s     *Server
	start time.Time
	timer *time.Timer
}

func (s *Server) beginHold() *hold {
	limits := s.policy.Load().cfg.Hold
	if s.holding.Add(1) > int64(limits.Requests) {
		s.holding.Add(-1)
		return nil
	}
	return &hold{s, time.Now(), time.NewTimer(limits.For)}
}

func (h *hold) end(r *Request) {
	if h == nil {
		return
	}
	h.timer.Stop()
	h.s.holding.Add(-1)
	r.x.Waited += time.Since(h.start)
}
