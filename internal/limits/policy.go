package limits

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"net/netip"
	"slices"
	"strings"

	"mainstay.dev/mainstay/internal/setting"
	"mainstay.dev/mainstay/ratelimit"
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
	Cost      int64 // in place of the route's; 0: the route's
}

// A Rule is one limit that was checked for an Ask, with what it said.
type Rule struct {
	Name  string // "user", "workspace", "login", "ceiling"; with "-1m0s" where several windows hold
	Check ratelimit.Check
	ratelimit.Result
}

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
}

// A Policy is a compiled Config. It is immutable and safe for concurrent use.
type Policy struct {
	cfg       Config
	tiers     map[string][]ratelimit.Limit
	overrides map[string][]ratelimit.Limit
	routes    []route
	ceiling   []ratelimit.Limit
	allow     selector
	deny      selector
	failure   ratelimit.Failure
}

type route struct {
	Route
	limits  []ratelimit.Limit
	failure ratelimit.Failure
}

// Compile checks c and returns the policy that obeys it. It is pure.
func Compile(c Config) (*Policy, error) {
	var ps setting.Problems
	p := &Policy{cfg: c, tiers: map[string][]ratelimit.Limit{}, overrides: map[string][]ratelimit.Limit{}}
	for tier, t := range c.Tiers {
		if !name.MatchString(tier) {
			ps.Add("tiers."+tier, "is no name", "use a-z, 0-9, - and _")
		}
		p.tiers[tier] = t.compile(&ps, "tiers."+tier)
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
		if kind, id, _ := strings.Cut(who, ":"); id == "" || kind != perUser && kind != perWorkspace && kind != "address" {
			ps.Add("overrides."+who, "names no caller", "write user:ID, workspace:ID or address:ADDRESS")
		}
		p.overrides[who] = t.compile(&ps, "overrides."+who)
	}
	if c.Ceiling.Requests != 0 || c.Ceiling.Window != 0 {
		p.ceiling = c.Ceiling.compile(&ps, "ceiling")
	}
	p.allow, p.deny = c.selector(&ps, "allow", c.Allow), c.selector(&ps, "deny", c.Deny)
	p.failure = failure(&ps, "on_store_failure", c.OnStoreFailure)
	if c.StoreTimeout <= 0 {
		ps.Add("store_timeout", "must be positive", "try 5ms")
	}
	if c.Memory < 1e6 || c.Memory > 64e9 {
		ps.Add("memory", "must be between 1MB and 64GB", "try 32MB")
	}
	p.compileRoutes(&ps)
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

// reserved are names that rules of other kinds have.
var reserved = []string{perUser, perWorkspace, "address", "ceiling"}

func (p *Policy) compileRoutes(ps *setting.Problems) {
	names := map[string]bool{}
	for _, r := range p.cfg.Routes {
		path := "routes." + r.Name
		if !name.MatchString(r.Name) || names[r.Name] || slices.Contains(reserved, r.Name) {
			ps.Add("routes", r.Name+" is no name, or taken", "give each route its own, of a-z, 0-9, - and _")
		}
		names[r.Name] = true
		if !strings.HasPrefix(r.Path, "/") {
			ps.Add(path+".path", "must begin with a slash", "try /api/*")
		}
		if r.Cost < 0 || r.Cost > ratelimit.MaxUnits {
			ps.Add(path+".cost", "must be between 0 and a billion", "try 1")
		}
		compiled := route{Route: r, failure: p.failure}
		if r.OnStoreFailure != "" {
			compiled.failure = failure(ps, path+".on_store_failure", r.OnStoreFailure)
		}
		if r.Limit.Requests != 0 || r.Limit.Window != 0 {
			compiled.limits = r.Limit.compile(ps, path+".limit")
		}
		p.routes = append(p.routes, compiled)
	}
}

func (r *route) matches(a *Ask) bool {
	if len(r.Methods) > 0 && !slices.Contains(r.Methods, a.Method) {
		return false
	}
	if prefix, ok := strings.CutSuffix(r.Path, "*"); ok {
		return strings.HasPrefix(a.Path, prefix)
	}
	return a.Path == r.Path
}

// Stores gives the store to ask, by what is to be done when it fails; a
// [ratelimit.Shield]'s On is one.
type Stores func(ratelimit.Failure) ratelimit.Store

// Admit decides on a. An error means that nothing was decided: ctx ended, or the
// cost makes no sense.
func (p *Policy) Admit(ctx context.Context, stores Stores, a Ask) (Verdict, error) {
	v := Verdict{Allowed: true, Tier: a.Tier, Upgrade: p.cfg.Upgrade, policy: p, failure: p.failure}
	if _, ok := p.tiers[v.Tier]; !ok {
		v.Tier = p.cfg.DefaultTier
	}
	a.Tier = v.Tier
	switch {
	case p.allow.matches(&a):
		return v, nil
	case p.deny.matches(&a):
		v.Allowed, v.Denied = p.cfg.Shadow, true
		return v, nil
	}
	p.rules(&a, &v)
	if len(v.Rules) == 0 {
		return v, nil
	}
	var err error
	results := make([]ratelimit.Result, len(v.Rules))
	if v.Decision, err = stores(v.failure).Take(ctx, v.checks(), results); err != nil {
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

// Settle corrects what an admitted request took to what it really cost: less is
// given back, more is charged, at most down to nothing left.
func (v *Verdict) Settle(ctx context.Context, stores Stores, cost int64) error {
	var back, more []ratelimit.Check
	for _, r := range v.Rules {
		if !r.Allowed || r.Check.Cost == 0 {
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
	if len(back) > 0 {
		return store.Refund(ctx, v.Decision, back)
	}
	if len(more) > 0 {
		return store.Charge(ctx, more)
	}
	return nil
}

// rules lists what holds for a.
func (p *Policy) rules(a *Ask, v *Verdict) {
	cost, class := int64(1), (*route)(nil)
	for i := range p.routes {
		if p.routes[i].matches(a) {
			class = &p.routes[i]
			cost, v.Route, v.failure = int64(class.Cost), class.Name, class.failure
			break
		}
	}
	if a.Cost != 0 {
		cost = a.Cost
	}
	kind, id := perUser, a.User
	if id == "" {
		kind, id = "address", network(a.Address).Addr().String()
	}
	tag := "{" + kind + ":" + clean(id) + "}"
	caller := tag
	if a.Workspace != "" {
		tag = "{workspace:" + clean(a.Workspace) + "}"
		caller = tag + ":" + kind + ":" + clean(id)
	}
	if cost != 0 {
		if slices.Contains(p.cfg.Per, perUser) {
			v.add(kind, caller, p.limits(v.Tier, kind+":"+id), cost, p.cfg.Shadow)
		}
		if a.Workspace != "" && slices.Contains(p.cfg.Per, perWorkspace) {
			v.add(perWorkspace, tag, p.limits(v.Tier, "workspace:"+a.Workspace), cost, p.cfg.Shadow)
		}
	}
	if class != nil && len(class.limits) > 0 {
		v.add(class.Name, caller+":route:"+class.Name, class.limits, max(a.Cost, 1), class.Shadow || p.cfg.Shadow)
	}
	v.add("ceiling", "{ceiling}", p.ceiling, 1, p.cfg.Shadow)
}

func (p *Policy) limits(tier, who string) []ratelimit.Limit {
	if l, ok := p.overrides[who]; ok {
		return l
	}
	return p.tiers[tier]
}

func (v *Verdict) add(rule, key string, limits []ratelimit.Limit, cost int64, shadow bool) {
	for i, l := range limits {
		n := rule
		if i > 0 {
			n += "-" + l.Window.String()
		}
		v.Rules = append(v.Rules, Rule{Name: n, Check: ratelimit.Check{Key: key, Limit: l, Cost: cost, Shadow: shadow}})
	}
}

// maxID is the longest id that stands in a key as it is.
const maxID = 128

// clean makes an id safe in a key: one that is long or holds what keys are built
// with is replaced by its SHA-256.
func clean(id string) string {
	if len(id) <= maxID && !strings.ContainsAny(id, "{}: \r\n") || isAddress(id) {
		return id
	}
	sum := sha256.Sum256([]byte(id))
	return "sha256-" + hex.EncodeToString(sum[:])
}

func isAddress(id string) bool {
	_, err := netip.ParseAddr(id)
	return err == nil && len(id) <= maxID && !strings.ContainsAny(id, "{}")
}
