package limits

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"mainstay.dev/mainstay/internal/setting"
	"mainstay.dev/mainstay/ratelimit"
)

// ceilingRule is the name of the limit over all callers.
const ceilingRule = "ceiling"

// perAddress is a caller without a user.
const perAddress = "address"

// callers are what a tier's limits can count.
var callers = []string{perUser, perAddress, perWorkspace}

// reserved are names that rules of other kinds have.
var reserved = append([]string{ceilingRule, "deny", "none", "other", claudeUser, claudeWorkspace}, callers...)

// headerName is what a header's name may be (RFC 9110, 5.6.2).
var headerName = regexp.MustCompile("^[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}$")

func (p *Policy) compileRoutes(ps *setting.Problems) {
	names := map[string]bool{}
	for _, r := range p.cfg.Routes {
		path := "routes." + r.Name
		if !name.MatchString(r.Name) || names[r.Name] || slices.Contains(reserved, r.Name) || strings.HasPrefix(r.Name, "app-") {
			ps.Add("routes", r.Name+" is no name, or taken", "give each route its own, of a-z, 0-9, - and _")
		}
		names[r.Name] = true
		c := route{Route: r, failure: p.failure, suffix: ":route:" + r.Name, tiers: map[string]bound{}}
		if r.Path != "" || len(r.Paths) == 0 {
			c.paths = append(c.paths, r.Path)
		}
		c.paths = append(c.paths, r.Paths...)
		for _, pattern := range c.paths {
			if !strings.HasPrefix(pattern, "/") {
				ps.Add(path+".path", "must begin with a slash", "try /api/*")
			}
		}
		if r.Cost < 0 || r.Cost > ratelimit.MaxUnits {
			ps.Add(path+".cost", "must be between 0 and a billion", "try 1")
		}
		if r.OnStoreFailure != "" {
			c.failure = failure(ps, path+".on_store_failure", r.OnStoreFailure)
		}
		if r.Limit.given() {
			c.limit = r.Limit.compile(ps, path+".limit", r.Name)
		}
		for tier, t := range r.Tiers {
			if _, ok := p.cfg.Tiers[tier]; !ok {
				ps.Add(path+".tiers."+tier, "is not one of the tiers", "name one of limits.tiers")
			}
			c.tiers[tier] = t.compile(ps, path+".tiers."+tier, r.Name)
		}
		p.routes = append(p.routes, c)
	}
	for _, r := range p.cfg.Degrade.Stale.Routes {
		if !names[r] {
			ps.Add("degrade.stale.routes", r+" is not one of limits.routes", "name one of them")
		}
	}
}

// class is the first route that matches a; nil: none does.
func (p *Policy) class(a *Ask) *route {
	for i := range p.routes {
		if a.Inner && a.Class == p.routes[i].Name || !a.Inner && p.routes[i].matches(a) {
			return &p.routes[i]
		}
	}
	return nil
}

func (r *route) matches(a *Ask) bool {
	if len(r.Methods) > 0 && !slices.Contains(r.Methods, a.Method) {
		return false
	}
	for _, pattern := range r.paths {
		if prefix, ok := strings.CutSuffix(pattern, "*"); ok && strings.HasPrefix(a.Path, prefix) || a.Path == pattern {
			return true
		}
	}
	return false
}

// rules lists what holds for a. Tiers count units, the rest counts requests.
func (p *Policy) rules(a *Ask, v *Verdict, granted grants) {
	cost, class := int64(1), p.class(a)
	if class != nil {
		cost, v.Route, v.failure = int64(class.Cost), class.Name, class.failure
	}
	if a.Cost != 0 {
		cost = a.Cost
	}
	v.Rules = make([]Rule, 0, 4)
	who := a.caller()
	space := Caller{perWorkspace, a.Workspace}
	tag := "{" + who.key() + "}"
	key := tag
	if a.Workspace != "" {
		tag = "{" + space.key() + "}"
		key = tag + ":" + who.key()
	}
	if a.nobody() {
		cost, class = 0, nil
	}
	if cost != 0 {
		if slices.Contains(p.cfg.Per, perUser) && (a.User != "" || a.Address.IsValid() || !a.Inner) {
			v.add(who.Kind, key, p.bound(v.Tier, who, granted), cost)
		}
		if a.Workspace != "" && slices.Contains(p.cfg.Per, perWorkspace) {
			v.add(perWorkspace, tag, p.bound(v.Tier, space, granted), cost)
		}
	}
	if class != nil {
		limit, ok := class.tiers[v.Tier]
		if !ok {
			limit = class.limit
		}
		limit.shadow = limit.shadow || class.Shadow
		v.add(class.Name, key+class.suffix, limit, 0)
	}
	if a.Inner {
		return
	}
	if app, ok := p.apps[a.App]; ok {
		v.add(app.rule, app.key, app.bound, 0)
	}
	v.add(ceilingRule, "{ceiling}", p.ceiling, 0)
}

// nobody reports that the app asks for limits of its own alone.
func (a *Ask) nobody() bool {
	return a.Inner && a.User == "" && a.Workspace == "" && !a.Address.IsValid()
}

// ownKey begins the keys of the app's own limits.
const ownKey = "{own:"

// own adds the limits of the app's own. Each has a key of its own, since the app
// may count in it whom it likes.
func (v *Verdict) own(limits []Own) error {
	for i := range limits {
		o := &limits[i]
		var ps setting.Problems
		if !name.MatchString(o.Name) || slices.Contains(reserved, o.Name) {
			ps.Add("name", "is no name, or taken", "use a-z, 0-9, - and _")
		}
		if o.Cost < 0 || o.Cost > ratelimit.MaxUnits {
			ps.Add("cost", "must be between 0 and a billion", "try 1")
		}
		b := o.Limit.compile(&ps, "", o.Name)
		if err := ps.Err(); err != nil {
			return fmt.Errorf("%w: limits[%d] %w", ratelimit.ErrInvalid, i, err)
		}
		v.add(o.Name, ownKey+o.Name+":"+clean(o.Key)+"}", b, 0)
		for k := len(v.Rules) - len(b.limits); k < len(v.Rules); k++ {
			if v.Rules[k].Check.Limit.Algorithm != ratelimit.Concurrency {
				v.Rules[k].Check.Cost = o.Cost
			}
		}
	}
	return nil
}

// bound is what holds for a caller of a tier, or for that caller alone.
func (p *Policy) bound(tier string, who Caller, granted grants) bound {
	if b, ok := granted[grantee{Caller: who}]; ok {
		return b
	}
	if b, ok := p.overrides[who]; ok {
		return b
	}
	return p.tiers[tier]
}

// add adds a bound's rules. units are what the request takes of a tier; 0: the
// bound counts requests.
func (v *Verdict) add(kind, key string, b bound, units int64) {
	names := b.names[kind]
	for i, l := range b.limits {
		r := Rule{Name: names[i], Units: units > 0 && l.Algorithm != ratelimit.Concurrency}
		r.Check = ratelimit.Check{Key: key, Limit: l, Cost: 1, Shadow: b.shadow || v.policy.cfg.Shadow}
		if l.Algorithm == ratelimit.Concurrency {
			v.leased = true
		}
		if r.Units {
			r.Check.Cost = units
		}
		v.Rules = append(v.Rules, r)
	}
}

// A Caller is somebody who is counted: a user, a workspace, or an address.
type Caller struct{ Kind, ID string }

// ParseCaller reads user:ID, workspace:ID or address:ADDRESS, an IPv6 address as
// its /64.
func ParseCaller(s string) (Caller, error) {
	kind, id, _ := strings.Cut(s, ":")
	if id == "" || len(s) > maxCaller || !slices.Contains(callers, kind) {
		return Caller{}, errCaller
	}
	if kind == perAddress {
		prefix, ok := parseRange(id)
		if !ok || !prefix.IsValid() {
			return Caller{}, errCaller
		}
		id = network(prefix.Addr()).Addr().String()
	}
	return Caller{kind, id}, nil
}

// maxCaller bounds what a person or a file may name.
const maxCaller = 1024

var errCaller = errors.New("names no caller: write user:ID, workspace:ID or address:ADDRESS")

func (c Caller) String() string { return c.Kind + ":" + c.ID }

// key is c as it stands in a key.
func (c Caller) key() string { return c.Kind + ":" + clean(c.ID) }

// caller is who a's units are counted for, beside the workspace.
func (a *Ask) caller() Caller {
	if a.User != "" {
		return Caller{perUser, a.User}
	}
	return Caller{perAddress, network(a.Address).Addr().String()}
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
