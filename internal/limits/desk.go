package limits

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"mainstay.dev/mainstay/ratelimit"
)

// An Inquiry names a caller to look at or to act on. Where Workspace and Tier are
// empty, those count with which this node has seen it last.
type Inquiry struct {
	Key       string `json:"key"`
	Workspace string `json:"workspace,omitempty"`
	Tier      string `json:"tier,omitempty"`
	Claude    bool   `json:"claude,omitempty"` // end the grant of calls to Claude
	Who       string `json:"who,omitempty"`    // asks, for the audit log
	Why       string `json:"why,omitempty"`
}

// Showing is how a caller stands.
type Showing struct {
	Key       string     `json:"key"`
	Workspace string     `json:"workspace,omitempty"`
	Tier      string     `json:"tier"`
	From      string     `json:"from"` // where its limits are from: tier, file or grant
	Grant     *Grant     `json:"grant,omitempty"`
	Claude    *Grant     `json:"claude_grant,omitempty"`
	Exempt    string     `json:"exempt,omitempty"` // allow or deny, if a list names it
	Mode      string     `json:"mode"`             // exact, or how it is counted while Redis is down
	Rules     []RuleShow `json:"rules"`
	Refused   uint64     `json:"refused"` // since this node remembers it
}

// RuleShow is how one limit stands.
type RuleShow struct {
	Name      string  `json:"name"`
	Limit     int64   `json:"limit"`
	Window    float64 `json:"window_s"`
	Remaining int64   `json:"remaining"`
	Next      float64 `json:"next_s"`  // until the first unit is free again
	Reset     float64 `json:"reset_s"` // until all are
	Shadow    bool    `json:"shadow,omitempty"`
}

// asks are the questions whose rules are all that hold for the caller.
func (g *Gate) asks(q Inquiry) (Caller, []Ask, error) {
	who, err := ParseCaller(q.Key)
	if err != nil {
		return who, nil, fmt.Errorf("%q %w", clip(q.Key), err)
	}
	if st, ok := g.seen.find(who); ok {
		if q.Workspace == "" {
			q.Workspace = st.workspace
		}
		if q.Tier == "" {
			q.Tier = st.tier
		}
	}
	a := Ask{Inner: true, Peek: true, Workspace: q.Workspace, Tier: q.Tier}
	switch who.Kind {
	case perWorkspace:
		a.Workspace = who.ID
	case perUser:
		a.User = who.ID
	default:
		prefix, _ := parseRange(who.ID) // ParseCaller has read it
		a.Address = prefix.Addr()
	}
	asks := []Ask{a}
	if who.Kind != perWorkspace {
		for _, r := range g.policy.Load().routes {
			a.Class = r.Name
			asks = append(asks, a)
		}
	}
	if _, granted := g.grant(grantee{who, true}); granted || g.policy.Load().claude.on() {
		a.Class, a.Claude = "", true
		asks = append(asks, a)
	}
	return who, asks, nil
}

// Show tells how a caller stands, by the counters themselves; it takes nothing.
func (g *Gate) Show(ctx context.Context, q Inquiry) (Showing, error) {
	who, asks, err := g.asks(q)
	if err != nil {
		return Showing{}, err
	}
	s := Showing{Key: who.String(), Workspace: asks[0].Workspace, From: "tier", Rules: []RuleShow{}}
	p := g.policy.Load()
	if _, ok := p.overrides[who]; ok {
		s.From = "file"
	}
	if grant, ok := g.grant(grantee{Caller: who}); ok {
		s.From, s.Grant = "grant", &grant
	}
	if grant, ok := g.grant(grantee{who, true}); ok {
		s.Claude = &grant
	}
	for _, a := range asks {
		v, err := p.admit(ctx, g.store, a, *g.granted.Load())
		if err != nil {
			return Showing{}, fmt.Errorf("look at the counters of %s: %w", who, err)
		}
		s.Tier, s.Mode = v.Tier, v.Decision.Mode.String()
		if v.Denied {
			s.Exempt = "deny"
		} else if len(v.Rules) == 0 && p.allow.matches(&a) {
			s.Exempt = "allow"
		}
		for i := range v.Rules {
			r := &v.Rules[i]
			if !concerns(who, r) || slices.ContainsFunc(s.Rules, func(o RuleShow) bool { return o.Name == r.Name }) {
				continue
			}
			s.Rules = append(s.Rules, RuleShow{r.Name, r.Check.Limit.Max, r.Check.Limit.Window.Seconds(), r.Remaining, r.Next.Seconds(), r.Reset.Seconds(), r.Check.Shadow})
		}
	}
	if st, ok := g.seen.find(who); ok {
		s.Refused = st.refused
	}
	return s, nil
}

// concerns reports whether a rule counts the caller alone: a user's workspace is
// somebody else's business.
func concerns(who Caller, r *Rule) bool {
	return who.Kind == perWorkspace || !ofWorkspace(r)
}

// Reset forgets what a caller has taken. Other nodes may repeat a refusal for
// another five seconds.
func (g *Gate) Reset(ctx context.Context, q Inquiry) error {
	who, asks, err := g.asks(q)
	if err != nil {
		return err
	}
	var checks []ratelimit.Check
	for _, a := range asks {
		v := Verdict{policy: g.policy.Load(), failure: g.policy.Load().failure, Tier: a.Tier}
		if _, ok := v.policy.tiers[v.Tier]; !ok {
			v.Tier = v.policy.cfg.DefaultTier
		}
		if a.Tier = v.Tier; a.Claude {
			v.policy.claudeRules(&a, &v, *g.granted.Load())
		} else {
			v.policy.rules(&a, &v, *g.granted.Load())
		}
		for i := range v.Rules {
			c := v.Rules[i].Check
			if concerns(who, &v.Rules[i]) && !slices.ContainsFunc(checks, func(o ratelimit.Check) bool {
				return o.Key == c.Key && o.Limit.Family() == c.Limit.Family() && o.Limit.Window == c.Limit.Window
			}) {
				checks = append(checks, c)
			}
		}
	}
	for part := range slices.Chunk(checks, ratelimit.MaxChecks) {
		if err := g.store(ratelimit.FailLocal).Reset(ctx, part); err != nil {
			return fmt.Errorf("reset %s: %w", who, err)
		}
	}
	g.move()
	g.told("limits_reset", "The limits of a caller were reset.", Entry{What: "reset", Key: who.String(), Who: q.Who, Why: q.Why})
	return nil
}

// clip bounds what is shown of something that a person wrote.
func clip(s string) string {
	if len(s) > 80 {
		s = s[:80] + "…"
	}
	return strings.ToValidUTF8(s, "?")
}

// Overview is how the limits stand; modes and down are of this node.
type Overview struct {
	Told   int              `json:"told"`  // nodes whose callers stand in top
	Redis  bool             `json:"redis"` // shared by several nodes
	Down   bool             `json:"down"`  // Redis does not answer
	Nodes  int              `json:"nodes"`
	Modes  map[string]int64 `json:"modes"` // decisions by who made them
	Shadow bool             `json:"shadow"`
	Top    []Standing       `json:"top"`
	Grants []Grant          `json:"grants"`
	Now    time.Time        `json:"now"`
}

// Overview tells how the limits stand, with the n callers nearest to their end on all
// nodes that were heard of lately.
func (g *Gate) Overview(n int) Overview {
	o := Overview{Nodes: 1, Modes: map[string]int64{}, Shadow: g.policy.Load().cfg.Shadow, Grants: g.Grants(), Now: time.Now()}
	o.Top, o.Told = g.fellows.join(g.Top(n), n, o.Now)
	if g.shield != nil {
		o.Redis, o.Down = true, g.shield.Down()
		for _, m := range modes {
			o.Modes[m.String()] = int64(g.shield.Decisions(m))
		}
		if g.deps.Nodes != nil {
			o.Nodes = g.deps.Nodes()
		}
	}
	return o
}
