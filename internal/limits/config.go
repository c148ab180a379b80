// Package limits is the policy of rate limits that the planes share: who has how
// much by tier, what a route adds, who is exempt, and the words of the answer. How
// units are counted is ratelimit's business.
//
// The planes, admin and app import it.
package limits

import (
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"time"

	"mainstay.dev/mainstay/internal/setting"
	"mainstay.dev/mainstay/ratelimit"
)

// Config is the limits section.
type Config struct {
	Tiers       map[string]Tier `yaml:"tiers" doc:"Limits by tier. Without this key: free 100, pro 1000 and enterprise 10000 requests an hour."`
	DefaultTier string          `yaml:"default_tier" doc:"Tier of callers who have none, or one that is not in tiers."`
	Per         []string        `yaml:"per" doc:"Who has the tier's number for itself: user, workspace. A caller without a user is counted by address, IPv6 by its /64."`
	Routes      []Route         `yaml:"routes" doc:"Requests with rules of their own; the first that matches counts."`
	Ceiling     Tier            `yaml:"ceiling" doc:"A limit over all callers together. Counted in a Redis Cluster, it costs a second round trip."`
	Apps        map[string]Tier `yaml:"apps" doc:"A limit over all callers of one app, by its name; the one app that there is now is app. Costs as the ceiling does."`
	Claude      Claude          `yaml:"claude" doc:"Limits of calls to Claude, beside those of the requests that lead to them."`
	CostHeader  string          `yaml:"cost_header" doc:"Header of the app's answer that says how many units of the caller's tier the request really took: a whole number from 0 on. Clients do not see it. Empty: none is read."`
	Overrides   map[string]Tier `yaml:"overrides" doc:"Limits of single callers in place of their tier's, by user:ID, workspace:ID or address:ADDRESS."`
	Allow       []string        `yaml:"allow" doc:"Callers who are never limited: user:ID, workspace:ID, tier:NAME, address:ADDRESS or address:RANGE."`
	Deny        []string        `yaml:"deny" doc:"Callers who are always refused, with 403; written as in allow."`
	Shadow      bool            `yaml:"shadow" doc:"Count and report everything, refuse nobody."`
	Upgrade     string          `yaml:"upgrade" doc:"Address of a page where a caller can get a higher tier; stands in the answer of a refusal."`

	Degrade Degrade `yaml:"degrade" doc:"What happens to a caller before it is refused: a warning, then delays, then cheaper answers. The share is that of the limit of which most is used; limits with burst or at_once do not count."`

	OnStoreFailure string        `yaml:"on_store_failure" doc:"While Redis does not answer: local (each node gives its share), allow or deny."`
	StoreTimeout   time.Duration `yaml:"store_timeout" doc:"Longest wait for Redis in one request."`
	Memory         setting.Bytes `yaml:"memory" doc:"Memory for counters in this process: room for a good hundred thousand callers with 32MB. When it is full, the callers who were seen least are forgotten."`
}

// Tier is one or several limits that hold together.
type Tier struct {
	Requests int           `yaml:"requests" doc:"How many requests."`
	Window   time.Duration `yaml:"window" doc:"In any window of this length."`
	Burst    int           `yaml:"burst" doc:"Not 0: the requests are spaced evenly instead of counted, and so many may come at once."`
	Also     []Window      `yaml:"also" doc:"Further windows that hold at the same time."`
	AtOnce   int           `yaml:"at_once" doc:"How many requests may run at the same time; 0: any number. A request that was not seen to end counts for ten minutes."`
	Shadow   bool          `yaml:"shadow" doc:"Count and report this limit, but refuse nobody for it."`
}

// Window is a further limit of a tier.
type Window struct {
	Requests int           `yaml:"requests" doc:"How many requests."`
	Window   time.Duration `yaml:"window" doc:"In any window of this length."`
}

// Route is a class of requests.
type Route struct {
	Name    string   `yaml:"name" doc:"The class's name in answers, metrics and logs, such as login."`
	Path    string   `yaml:"path" doc:"Path of the requests; a * at its end matches every continuation."`
	Paths   []string `yaml:"paths" doc:"Further paths, written alike."`
	Methods []string `yaml:"methods" doc:"Methods of the requests; all if empty."`
	Cost    int      `yaml:"cost" doc:"How many units of the caller's tier a request takes; 0: none, so that the tier does not limit it."`
	Limit   Tier     `yaml:"limit" doc:"A limit for this class alone, for each caller. It counts requests, whatever their cost."`
	Shadow  bool     `yaml:"shadow" doc:"Count the class's own limit, but refuse nobody for it."`

	Tiers map[string]Tier `yaml:"tiers" doc:"The class's own limit by tier, in place of limit for callers of that tier."`

	OnStoreFailure string `yaml:"on_store_failure" doc:"As limits.on_store_failure, for this class; empty: the same."`
}

// SetDefaults fills in what the file leaves out.
func (r *Route) SetDefaults() { *r = Route{Cost: 1} }

// SetDefaults fills in what the file leaves out.
func (c *Config) SetDefaults() {
	*c = Config{
		Tiers: map[string]Tier{
			"free":       {Requests: 100, Window: time.Hour},
			"pro":        {Requests: 1000, Window: time.Hour},
			"enterprise": {Requests: 10000, Window: time.Hour},
		},
		CostHeader:  "Mainstay-Cost",
		DefaultTier: "free", Per: []string{perUser, perWorkspace},
		OnStoreFailure: "local", StoreTimeout: 5 * time.Millisecond, Memory: 32e6,
	}
	c.Degrade.SetDefaults()
	c.Claude.SetDefaults()
}

// What a limit can be per.
const (
	perUser      = "user"
	perWorkspace = "workspace"
)

// Validate reports every mistake.
func (c *Config) Validate(ps *setting.Problems) {
	_, err := Compile(*c)
	*ps = append(*ps, setting.Of(err)...)
}

// name is what may stand in a header, a metric and a key without quoting.
var name = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,62}$`)

// A bound is a compiled Tier.
type bound struct {
	limits []ratelimit.Limit
	names  map[string][]string // of the rules that the limits make, by who is counted
	shadow bool
}

// name gives the rules of b their names: that of whoever is counted, with what
// tells apart where several limits hold.
func (b *bound) name(kinds ...string) {
	b.names = map[string][]string{}
	for _, kind := range kinds {
		for i, l := range b.limits {
			n := kind
			switch {
			case l.Algorithm == ratelimit.Concurrency:
				n += "-at-once"
			case i > 0:
				n += "-" + short(l.Window)
			}
			b.names[kind] = append(b.names[kind], n)
		}
	}
}

// short writes a window without its zeros: 1h and not 1h0m0s.
func short(d time.Duration) string {
	s := d.String()
	for _, zero := range []string{"m0s", "h0m"} {
		if strings.HasSuffix(s, zero) {
			s = s[:len(s)-2]
		}
	}
	return s
}

// given reports whether the file says anything of t.
func (t *Tier) given() bool {
	return t.Requests != 0 || t.Window != 0 || t.Burst != 0 || t.AtOnce != 0 || len(t.Also) > 0
}

// compile turns t into limits, reporting its mistakes below path.
func (t *Tier) compile(ps *setting.Problems, path string, kinds ...string) (b bound) {
	b = bound{shadow: t.Shadow}
	defer func() { b.name(kinds...) }()
	if t.Requests != 0 || t.Window != 0 || t.Burst != 0 || t.AtOnce == 0 {
		first := ratelimit.Limit{Max: int64(t.Requests), Window: t.Window}
		if t.Burst != 0 {
			first.Algorithm, first.Burst = ratelimit.GCRA, int64(t.Burst)
		}
		b.limits = append(b.limits, first)
	}
	for _, w := range t.Also {
		b.limits = append(b.limits, ratelimit.Limit{Max: int64(w.Requests), Window: w.Window})
	}
	if len(b.limits) > maxWindows {
		ps.Add(setting.Join(path, "also"), "has more than 3 windows", "keep the ones that matter")
		return b
	}
	if t.AtOnce != 0 {
		b.limits = append(b.limits, ratelimit.Limit{Algorithm: ratelimit.Concurrency, Max: int64(t.AtOnce), Window: leaseLife})
	}
	for i, l := range b.limits {
		at, mend := path, "try {requests: 1000, window: 1h}"
		switch {
		case l.Algorithm == ratelimit.Concurrency:
			at, mend = setting.Join(path, "at_once"), "try 20"
		case i > 0:
			at = setting.Join(path, "also")
		}
		if err := l.Validate(); err != nil {
			ps.Add(at, strings.TrimPrefix(err.Error(), ratelimit.ErrInvalid.Error()+": "), mend)
			return b
		}
		for _, o := range b.limits[:i] {
			if o.Window == l.Window && o.Family() == l.Family() {
				ps.Add(at, "has the window "+l.Window.String()+" twice", "keep the smaller number")
				return b
			}
		}
	}
	return b
}

// maxWindows bounds the windows of one tier: five of them (user, workspace, class,
// app, ceiling), with a limit of what may run at once for each, stay within what
// one decision may check.
const maxWindows = 4

// leaseLife is how long a request that was not seen to end counts as running.
const leaseLife = 10 * time.Minute

// selector is a compiled list of callers.
type selector struct {
	names  map[string]bool // "user:7"
	ranges []netip.Prefix
}

func (c *Config) selector(ps *setting.Problems, key string, list []string) selector {
	s := selector{names: map[string]bool{}}
	for _, entry := range list {
		kind, value, _ := strings.Cut(entry, ":")
		switch {
		case value == "" || !slices.Contains([]string{"user", "workspace", "tier", "address"}, kind):
			ps.Add(key, entry+" names no caller", "write user:ID, workspace:ID, tier:NAME, address:10.0.0.5 or address:10.0.0.0/8")
		case kind == "address":
			prefix, ok := parseRange(value)
			if !ok {
				ps.Add(key, value+" is neither an address nor a range", "write address:10.0.0.5 or address:10.0.0.0/8")
				continue
			}
			s.ranges = append(s.ranges, prefix)
		default:
			s.names[entry] = true
		}
	}
	return s
}

func parseRange(s string) (netip.Prefix, bool) {
	if a, err := netip.ParseAddr(s); err == nil {
		return network(a), true
	}
	p, err := netip.ParsePrefix(s)
	return p.Masked(), err == nil
}

// network is what a caller's address is counted as: IPv4 by itself, IPv6 by its
// /64, since one customer has all of that.
func network(a netip.Addr) netip.Prefix {
	a = a.Unmap().WithZone("")
	bits := 32
	if a.Is6() {
		bits = 64
	}
	p, _ := a.Prefix(bits) // fails for an invalid address only, and is invalid then
	return p
}

func (s *selector) matches(a *Ask) bool {
	if len(s.names) > 0 && (a.User != "" && s.names["user:"+a.User] ||
		a.Workspace != "" && s.names["workspace:"+a.Workspace] || s.names["tier:"+a.Tier]) {
		return true
	}
	for _, p := range s.ranges {
		if p.Contains(a.Address.Unmap()) {
			return true
		}
	}
	return false
}

var failures = map[string]ratelimit.Failure{
	"local": ratelimit.FailLocal, "allow": ratelimit.FailAllow, "deny": ratelimit.FailDeny,
}
