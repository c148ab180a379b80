package limits

import (
	"slices"
	"strings"

	"mainstay.dev/mainstay/internal/setting"
)

// Claude is the section limits.claude: what callers may take of the Claude API. The
// edge has charged the request that leads to a call, so that without this section the
// call itself is not limited a second time.
type Claude struct {
	Limit Tier            `yaml:"limit" doc:"Calls to Claude that a caller whom the app names (by the header Mainstay-Identity) may make; per user and per workspace, as limits.per says. Empty: calls are not limited."`
	Tiers map[string]Tier `yaml:"tiers" doc:"The same by tier, in place of limit for callers of that tier."`
	Cost  string          `yaml:"cost" doc:"What is counted: calls, or tokens (as Claude counts them: input, output and what is written to the prompt cache). A call may begin while one token is left, and what it took is charged when it ends."`
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
	limit  bound
	tiers  map[string]bound
	tokens bool
}

func (p *Policy) compileClaude(ps *setting.Problems) {
	c := &p.cfg.Claude
	p.claude = claude{tiers: map[string]bound{}, tokens: c.Cost == costTokens}
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
}

// claudeRules lists what holds for a call to Claude.
func (p *Policy) claudeRules(a *Ask, v *Verdict) {
	b, ok := p.claude.tiers[v.Tier]
	if !ok {
		b = p.claude.limit
	}
	units := int64(0) // the bound counts calls
	if p.claude.tokens {
		units = 1
	}
	key := ""
	if a.Workspace != "" {
		tag := "{" + Caller{perWorkspace, a.Workspace}.key() + "}"
		key = tag + ":"
		if slices.Contains(p.cfg.Per, perWorkspace) {
			v.add(claudeWorkspace, tag+claudeSuffix, b, units)
		}
	}
	if a.User != "" && slices.Contains(p.cfg.Per, perUser) {
		who := Caller{perUser, a.User}.key()
		if key == "" {
			who = "{" + who + "}"
		}
		v.add(claudeUser, key+who+claudeSuffix, b, units)
	}
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
