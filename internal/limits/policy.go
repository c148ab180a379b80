package limits

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"slices"

	"mainstay.dev/mainstay/internal/setting"
	"mainstay.dev/mainstay/ratelimit"
	"mainstay.dev/mainstay/ratelimit/httplimit"
)

// An Ask is what a plane knows of a request and whoever makes it. User, Workspace
// and Tier must be verified: a claim that nobody vouches for stays empty.
type Ask struct {
	User      string
	Workspace string
	Tier      string
	Address   netip.Addr
	Method    string
	Path      string
	App       string // whose request it is; empty: no app's
	Cost      int64  // in place of the route's; 0: the route's. Of a call to Claude: the tokens that it is likely to need

	Claude bool // it is a call to Claude: what limits.claude says holds, and nothing else

	// What the app itself may ask for, within a request that was admitted.
	Inner bool   // it is no request of its own: what counts requests of all does not count it
	Class string // the route by its name, since there is no path
	Own   []Own  // limits of the app's own, decided together with the rest
	Peek  bool   // take nothing, only tell
}

// An Own is a limit of the app's own.
type Own struct {
	Name  string // as in Route
	Key   string // whose it is, such as a user's id
	Limit Tier
	Cost  int64
}

// A Rule is one limit that was checked for an Ask, with what it said: "user",
// "workspace", "login", "ceiling"; with "-1m" where several windows hold.
type Rule = httplimit.Rule

// A Verdict is what an Ask came to.
type Verdict struct {
	Allowed  bool
	Denied   bool   // by the deny list: 403, not 429
	Tier     string // that counted
	Route    string // the class, or ""
	Rules    []Rule // that were checked; none for callers who are exempt
	Upgrade  string
	Decision ratelimit.Decision
	policy   *Policy
	failure  ratelimit.Failure
	leased   bool // something counts it as running
}

// A Policy is a compiled Config. It is immutable and safe for concurrent use.
type Policy struct {
	cfg       Config
	tiers     map[string]bound
	overrides map[Caller]bound
	routes    []route
	apps      map[string]appCeiling
	ceiling   bound
	claude    claude
	allow     selector
	deny      selector
	failure   ratelimit.Failure

	costHeader string // in its canonical form
}

type route struct {
	Route
	paths   []string
	limit   bound
	tiers   map[string]bound
	suffix  string // of its keys
	failure ratelimit.Failure
}

type appCeiling struct {
	bound
	rule, key string
}

// Compile checks c and returns the policy that obeys it. It is pure.
func Compile(c Config) (*Policy, error) {
	var ps setting.Problems
	p := &Policy{cfg: c, costHeader: http.CanonicalHeaderKey(c.CostHeader), tiers: map[string]bound{}, overrides: map[Caller]bound{}, apps: map[string]appCeiling{}}
	for tier, t := range c.Tiers {
		if !name.MatchString(tier) {
			ps.Add("tiers."+tier, "is no name", "use a-z, 0-9, - and _")
		}
		p.tiers[tier] = t.compile(&ps, "tiers."+tier, callers...)
	}
	if _, ok := c.Tiers[c.DefaultTier]; !ok {
		ps.Add("default_tier", "is not one of the tiers", "name one of them")
	}
	for i, per := range c.Per {
		if per != perUser && per != perWorkspace || slices.Contains(c.Per[:i], per) {
			ps.Add("per", "must be user, workspace or both", "try [user, workspace]")
		}
	}
	for who, t := range c.Overrides {
		key, err := ParseCaller(who)
		if err != nil {
			ps.Add("overrides."+who, "names no caller", "write user:ID, workspace:ID or address:ADDRESS")
		}
		p.overrides[key] = t.compile(&ps, "overrides."+who, callers...)
	}
	if c.Ceiling.given() {
		p.ceiling = c.Ceiling.compile(&ps, "ceiling", ceilingRule)
	}
	for app, t := range c.Apps {
		if !name.MatchString(app) {
			ps.Add("apps."+app, "is no name", "use a-z, 0-9, - and _")
		}
		rule := "app-" + app
		p.apps[app] = appCeiling{t.compile(&ps, "apps."+app, rule), rule, "{app:" + app + "}"}
	}
	if c.CostHeader != "" && !headerName.MatchString(c.CostHeader) {
		ps.Add("cost_header", "is no name of a header", "try Mainstay-Cost")
	}
	p.allow, p.deny = c.selector(&ps, "allow", c.Allow), c.selector(&ps, "deny", c.Deny)
	p.failure = failure(&ps, "on_store_failure", c.OnStoreFailure)
	if c.StoreTimeout <= 0 {
		ps.Add("store_timeout", "must be positive", "try 5ms")
	}
	if c.Memory < 1e6 || c.Memory > 64e9 {
		ps.Add("memory", "must be between 1MB and 64GB", "try 32MB")
	}
	var ladder setting.Problems
	c.Degrade.Validate(&ladder)
	ps.Below("degrade", ladder)
	p.compileRoutes(&ps)
	p.compileClaude(&ps)
	if len(ps) > 0 {
		return nil, ps
	}
	return p, nil
}

func failure(ps *setting.Problems, path, s string) ratelimit.Failure {
	f, ok := failures[s]
	if !ok {
		ps.Add(path, "must be local, allow or deny", "try local")
	}
	return f
}

// Stores gives the store to ask, by what is to be done when it fails; a
// [ratelimit.Shield]'s On is one.
type Stores func(ratelimit.Failure) ratelimit.Store

// Admit decides on a. An error means that nothing was decided: ctx ended, or the
// cost makes no sense.
func (p *Policy) Admit(ctx context.Context, stores Stores, a Ask) (Verdict, error) {
	return p.admit(ctx, stores, a, nil)
}

// grants are limits of single callers that were given while running.
type grants map[grantee]bound

// A grantee is whose limits were changed, and which: those of requests, or those of
// calls to Claude.
type grantee struct {
	Caller
	claude bool
}

func (g grantee) String() string {
	if g.claude {
		return "claude:" + g.Caller.String()
	}
	return g.Caller.String()
}

func (p *Policy) admit(ctx context.Context, stores Stores, a Ask, granted grants) (Verdict, error) {
	if a.Cost < 0 || a.Cost > ratelimit.MaxUnits {
		return Verdict{}, fmt.Errorf("%w: a cost of %d", ratelimit.ErrInvalid, a.Cost)
	}
	v := Verdict{Allowed: true, Tier: a.Tier, Upgrade: p.cfg.Upgrade, policy: p, failure: p.failure}
	if _, ok := p.tiers[v.Tier]; !ok {
		v.Tier = p.cfg.DefaultTier
	}
	a.Tier = v.Tier
	switch {
	case p.allow.matches(&a):
		if class := p.class(&a); class != nil && !a.Claude {
			v.Route = class.Name
		}
		return v, nil
	case p.deny.matches(&a):
		v.Allowed, v.Denied = p.cfg.Shadow, true
		return v, nil
	}
	if a.Claude {
		p.claudeRules(&a, &v, granted)
	} else {
		p.rules(&a, &v, granted)
	}
	if err := v.own(a.Own); err != nil {
		return Verdict{}, err
	}
	for i := range v.Rules {
		if a.Peek {
			v.Rules[i].Check.Cost = 0
		}
	}
	if len(v.Rules) == 0 {
		return v, nil
	}
	var err error
	results := make([]ratelimit.Result, len(v.Rules))
	if a.Claude && p.claude.tokens && !a.Peek {
		err = v.takeTokens(ctx, stores(v.failure), results)
	} else {
		v.Decision, err = stores(v.failure).Take(ctx, v.checks(), results)
	}
	if err != nil {
		v.Allowed = false
		return v, err
	}
	for i := range v.Rules {
		v.Rules[i].Result = results[i]
	}
	v.Allowed = v.Decision.Allowed
	return v, nil
}

func (v *Verdict) checks() []ratelimit.Check {
	checks := make([]ratelimit.Check, len(v.Rules))
	for i := range v.Rules {
		checks[i] = v.Rules[i].Check
	}
	return checks
}

// Leases are the checks that count the request as running until it is released.
func (v *Verdict) leases() (held []ratelimit.Check) {
	for i := range v.Rules {
		if r := &v.Rules[i]; v.Allowed && r.Allowed && r.Check.Limit.Algorithm == ratelimit.Concurrency {
			held = append(held, r.Check)
		}
	}
	return held
}

// Release tells that an admitted request has ended, for the limits of what may run
// at once.
func (v *Verdict) Release(ctx context.Context, stores Stores) error {
	if held := v.leases(); len(held) > 0 {
		return stores(v.failure).Refund(ctx, v.Decision, held)
	}
	return nil
}

// Refund gives back all that an admitted request took, as if it had never come.
func (v *Verdict) Refund(ctx context.Context, stores Stores) error {
	var back []ratelimit.Check
	for i := range v.Rules {
		if r := &v.Rules[i]; v.Allowed && r.Allowed && r.Check.Cost > 0 {
			back = append(back, r.Check)
		}
	}
	if len(back) == 0 {
		return nil
	}
	return stores(v.failure).Refund(ctx, v.Decision, back)
}

// Settle corrects what an admitted request took to what it really cost: less is
// given back, more is charged, at most down to nothing left.
func (v *Verdict) Settle(ctx context.Context, stores Stores, cost int64) error {
	var back, more []ratelimit.Check
	for _, r := range v.Rules {
		if !r.Allowed || !r.Units {
			continue
		}
		switch c := r.Check; {
		case cost < c.Cost:
			c.Cost -= max(cost, 0)
			back = append(back, c)
		case cost > c.Cost:
			c.Cost = min(cost-c.Cost, ratelimit.MaxUnits)
			more = append(more, c)
		}
	}
	store := stores(v.failure)
	var failed error
	if len(back) > 0 {
		failed = store.Refund(ctx, v.Decision, back)
	}
	if len(more) > 0 {
		failed = errors.Join(failed, store.Charge(ctx, more))
	}
	return failed
}
