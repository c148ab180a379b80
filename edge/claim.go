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
	terms    []term

	sticky  traffic.Sticky
	preview traffic.Preview
	mirror  *mirror // nil: none
	page    string
}

// share is a target's part of the traffic.
type share struct {
	*target
	weight int
	backup bool // takes what those with a weight cannot
}

// term is the time during which a release takes traffic without a break.
type term struct {
	release string
	id      uint64
}

// termOf is the id of the term of a target's release; false: it takes no traffic.
func (p *plan) termOf(t *target) (id uint64, ok bool) {
	for _, x := range p.terms {
		if x.release == t.release {
			return x.id, true
		}
	}
	return 0, false
}

// live reports whether the term with that id lasts.
func (p *plan) live(id uint64) bool {
	return slices.ContainsFunc(p.terms, func(x term) bool { return x.id == id })
}

// terms are those of the releases with a weight. A plan without any (all copies are
// gone, and the traffic waits) leaves those of the plan before.
func (s *Server) terms(next, old *plan) (ts []term) {
	for _, sh := range next.shares {
		if sh.weight == 0 || slices.ContainsFunc(ts, func(t term) bool { return t.release == sh.release }) {
			continue
		}
		t := term{release: sh.release}
		if i := slices.IndexFunc(old.terms, func(t term) bool { return t.release == sh.release }); i >= 0 {
			t = old.terms[i]
		} else {
			s.lastTerm++
			t.id = s.lastTerm
		}
		ts = append(ts, t)
	}
	if len(ts) == 0 {
		return old.terms
	}
	return ts
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
	next := &plan{mode: p.Mode, replaced: make(chan struct{}), sticky: p.Sticky, preview: p.Preview, page: p.Page}
	for _, spec := range p.Targets {
		t := live[spec.ID]
		switch {
		case t == nil:
			t = newTarget(spec, s.deps, &s.policy.Load().cfg)
			if spec.Weight > 0 && slices.ContainsFunc(old.shares, func(sh share) bool { return sh.color == spec.Color && sh.weight > 0 }) {
				t.health.ease()
			}
		case !t.is(spec):
			return nil, fmt.Errorf("apply traffic plan: target %s is live as another copy; give the new one an id of its own", spec.ID)
		}
		delete(live, spec.ID)
		next.shares = append(next.shares, share{t, spec.Weight, spec.Backup && spec.Weight == 0})
	}
	next.mirror = mirrorTo(p.Mirror, next.shares, old.mirror)
	next.terms = s.terms(next, old)
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

// pick chooses a target that was not tried yet: one that an ejected target's turn
// to be probed has come to, else by weight among those that are fit, kept to the
// client's color if it has one; else the backup; else one that is ejected, since
// nobody else is left.
func (p *plan) pick(r *Request, tried []*target) *target {
	if len(p.shares) == 1 && len(tried) == 0 {
		return p.shares[0].target
	}
	weighted := func(sh share) int { return sh.weight }
	backup := func(sh share) int {
		if sh.backup {
			return 1
		}
		return 0
	}
	r.spare = false
	rest := 0
	for _, sh := range p.shares {
		if (sh.weight > 0 || sh.backup) && !slices.Contains(tried, sh.target) {
			rest++
		}
	}
	r.spare = rest > 1
	for _, sh := range p.shares {
		if r.spare && sh.weight > 0 && !slices.Contains(tried, sh.target) && sh.due(r) {
			r.probe = true
			return sh.target
		}
	}
	color := p.colorFor(r)
	if t := p.draw(tried, true, func(sh share) int {
		if sh.color != color {
			return 0
		}
		return sh.weight
	}); t != nil {
		return t
	}
	for _, fit := range []bool{true, false} {
		if t := p.draw(tried, fit, weighted); t != nil {
			return t
		}
		if t := p.draw(tried, fit, backup); t != nil {
			return t
		}
	}
	return nil
}

// draw chooses by the weight that of gives each target, among those that were not
// tried and, if fit is wanted, are not ejected.
func (p *plan) draw(tried []*target, fit bool, of func(share) int) *target {
	may := func(sh share) int {
		if slices.Contains(tried, sh.target) || fit && sh.health.out.Load() {
			return 0
		}
		return of(sh) * sh.health.eased()
	}
	total := 0
	for _, sh := range p.shares {
		total += may(sh)
	}
	if total == 0 {
		return nil
	}
	n := rand.IntN(total)
	for _, sh := range p.shares {
		if n -= may(sh); n < 0 {
			return sh.target
		}
	}
	return nil // a target was ejected between the two looks
}

// claim takes a place on a live target that was not tried yet. While the traffic
// is held it waits, bounded in number and time; a target that begins to drain
// between the look and the claim has been replaced, so it looks again. A request
// for the preview goes to the preview's color whatever the mode, and never to
// another.
func (s *Server) claim(ctx context.Context, r *Request, tried []*target) (*target, Code) {
	var waiting *hold
	defer func() { waiting.end(r) }()
	for {
		p := s.plan.Load()
		if t, asked := p.previewFor(r, tried); asked && (t != nil || p.mode == traffic.Serve) {
			switch {
			case t == nil:
				return nil, NoTarget
			case t.enter():
				return t, OK
			}
			continue
		}
		switch p.mode {
		case traffic.Maintenance:
			return nil, Maintenance
		case traffic.Serve:
			t := p.pick(r, tried)
			if t == nil {
				return nil, NoTarget
			}
			if t.enter() {
				p.settle(r, t)
				return t, OK
			}
			r.unprobe(t)
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
			return nil, s.gone()
		}
	}
}

// unprobe gives up the right to find out whether t is back.
func (r *Request) unprobe(t *target) {
	if r.probe {
		r.probe = false
		t.health.probing.Store(false)
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
	r.held = true
}
