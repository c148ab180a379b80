package limits

import (
	"context"
	"slices"
	"strings"

	"mainstay.dev/mainstay/internal/setting"
	"mainstay.dev/mainstay/ratelimit"
)

// Claude is the section limits.claude: what callers may take of the Claude API. The
// edge has charged the request that leads to a call, so that without this section the
// call itself is not limited a second time.
type Claude struct {
	Limit Tier            `yaml:"limit" doc:"Calls to Claude that a caller whom the app names (by the header Mainstay-Identity) may make; per user and per workspace, as limits.per says. Empty: calls are not limited."`
	Tiers map[string]Tier `yaml:"tiers" doc:"The same by tier, in place of limit for callers of that tier."`
	Cost  string          `yaml:"cost" doc:"What is counted: calls, or tokens (as Claude counts them: input, output and what is written to the prompt cache). A call may begin while one token is left; it takes at once what it is likely to need, or all that is left, and is corrected to what Claude has counted when it ends."`

	Overrides      map[string]Tier `yaml:"overrides" doc:"The same for single callers, by user:ID or workspace:ID; limits.overrides do not count here, since they count requests."`
	OnStoreFailure string          `yaml:"on_store_failure" doc:"As limits.on_store_failure, for calls to Claude; empty: the same."`
}

// SetDefaults fills in what the file leaves out.
func (c *Claude) SetDefaults() { *c = Claude{Cost: costCalls} }

// What limits.claude counts.
const (
	costCalls  = "calls"
	costTokens = "tokens"
)

// The names of its rules.
const (
	claudeUser      = "claude-user"
	claudeWorkspace = "claude-workspace"
)

// claudeSuffix ends the keys of its counters.
const claudeSuffix = ":claude"

// claude is a compiled Claude.
type claude struct {
	limit     bound
	tiers     map[string]bound
	overrides map[Caller]bound
	tokens    bool
	failure   ratelimit.Failure
}

// on reports whether calls are limited at all.
func (c *claude) on() bool {
	return len(c.limit.limits) > 0 || len(c.tiers) > 0 || len(c.overrides) > 0
}

func (p *Policy) compileClaude(ps *setting.Problems) {
	c := &p.cfg.Claude
	p.claude = claude{tiers: map[string]bound{}, overrides: map[Caller]bound{}, tokens: c.Cost == costTokens, failure: p.failure}
	if c.OnStoreFailure != "" {
		p.claude.failure = failure(ps, "claude.on_store_failure", c.OnStoreFailure)
	}
	if c.Cost != costCalls && c.Cost != costTokens {
		ps.Add("claude.cost", "must be calls or tokens", "try calls")
	}
	if c.Limit.given() {
		p.claude.limit = c.Limit.compile(ps, "claude.limit", claudeUser, claudeWorkspace)
	}
	for tier, t := range c.Tiers {
		if _, ok := p.cfg.Tiers[tier]; !ok {
			ps.Add("claude.tiers."+tier, "is not one of the tiers", "name one of limits.tiers")
		}
		p.claude.tiers[tier] = t.compile(ps, "claude.tiers."+tier, claudeUser, claudeWorkspace)
	}
	for who, t := range c.Overrides {
		key, err := ParseCaller(who)
		if err != nil || key.Kind == perAddress {
			ps.Add("claude.overrides."+who, "names no caller whom the app can name", "write user:ID or workspace:ID")
		}
		p.claude.overrides[key] = t.compile(ps, "claude.overrides."+who, claudeUser, claudeWorkspace)
	}
}

// claudeBound is what holds for a caller of a tier when it calls Claude.
func (p *Policy) claudeBound(tier string, who Caller, granted grants) bound {
	if b, ok := granted[grantee{who, true}]; ok {
		return b
	}
	if b, ok := p.claude.overrides[who]; ok {
		return b
	}
	if b, ok := p.claude.tiers[tier]; ok {
		return b
	}
	return p.claude.limit
}

// claudeRules lists what holds for a call to Claude.
func (p *Policy) claudeRules(a *Ask, v *Verdict, granted grants) {
	v.failure = p.claude.failure
	units := int64(0) // the bound counts calls
	if p.claude.tokens {
		units = max(a.Cost, 1)
	}
	key := ""
	if a.Workspace != "" {
		tag := "{" + Caller{perWorkspace, a.Workspace}.key() + "}"
		key = tag + ":"
		if slices.Contains(p.cfg.Per, perWorkspace) {
			v.add(claudeWorkspace, tag+claudeSuffix, p.claudeBound(v.Tier, Caller{perWorkspace, a.Workspace}, granted), units)
		}
	}
	if a.User != "" && slices.Contains(p.cfg.Per, perUser) {
		caller := Caller{perUser, a.User}
		who := caller.key()
		if key == "" {
			who = "{" + who + "}"
		}
		v.add(claudeUser, key+who+claudeSuffix, p.claudeBound(v.Tier, caller, granted), units)
	}
	for i := range v.Rules {
		r := &v.Rules[i]
		switch c := &r.Check; {
		case !r.Units:
		case c.Shadow: // it would say that too little is left for all that may be needed
			c.Cost = 1
		default:
			c.Cost = min(c.Cost, c.Limit.Capacity())
		}
	}
}

// fits is how often a call that finds less than it is likely to need tries to begin
// with what is left.
const fits = 4

// takeTokens takes what the call is likely to need, or all that is left, at least one
// token: so a caller's calls cannot begin together beyond what is left by more than
// they turn out to take above what was expected. Each try is all or none. It waits for
// a store that fails twice at most.
func (v *Verdict) takeTokens(ctx context.Context, store ratelimit.Store, results []ratelimit.Result) error {
	for try := range fits {
		var err error
		if v.Decision, err = store.Take(ctx, v.checks(), results); err != nil || v.Decision.Allowed {
			return err
		}
		last := try == fits-2 || v.Decision.Mode >= ratelimit.ModeLocal
		if !v.askLess(results, last) {
			break
		}
	}
	return nil
}

// askLess lowers the costs that did not fit to what was left, or to one if it is the
// last try. False: they are that already.
func (v *Verdict) askLess(results []ratelimit.Result, last bool) (less bool) {
	for i := range v.Rules {
		c := &v.Rules[i].Check
		if results[i].Allowed || c.Shadow || !v.Rules[i].Units || c.Cost == 1 {
			continue
		}
		less = true
		if c.Cost = min(max(results[i].Remaining, 1), c.Cost); last {
			c.Cost = 1
		}
	}
	return less
}

// SettleTokens has the counters corrected to the tokens that an admitted call has
// taken, if it is tokens that they count.
func (g *Gate) SettleTokens(v *Verdict, tokens int64) {
	if v.policy != nil && v.policy.claude.tokens {
		g.Settle(v, tokens)
	}
}

// ofWorkspace reports whether r counts a whole workspace: its members compete.
func ofWorkspace(r *Rule) bool {
	key := strings.TrimSuffix(r.Check.Key, claudeSuffix)
	return strings.HasPrefix(key, "{"+perWorkspace+":") && strings.HasSuffix(key, "}")
}
