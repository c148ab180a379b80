package routes

import (
	"fmt"
	"hash/fnv"
	"math"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"mainstay.dev/mainstay/claude/internal/bedrock"
)

// A Route is a way that a call may go. What is known of its keys changes; the rest of
// it does not. Its methods may be called from many goroutines.
type Route struct {
	Name string
	cfg  Config
	base *url.URL // nil: claude.upstream
	keys []*Access

	answered *atomic.Int64
	said     []string
}

// An Access is one of a route's keys, and how it stands.
type Access struct {
	Name   string // main/a: the route's and the key's
	key    string // its own name
	secret string
	token  *token // instead of secret
	owner  string // whose rate limits it has; empty: not told
	bearer bool
	signs  bool // requests are signed with it, and it is not sent
	seed   uint64
	weight float64

	rests, out     atomic.Int64 // until then, in Unix nanoseconds; 0: it does not
	refused        atomic.Int64 // the status; 0: it is let in
	served, failed *atomic.Int64
}

// outFor is how long a key that was refused is left alone, until one call looks
// whether it is good again.
const outFor = 5 * time.Minute

// Compile makes routes of a valid configuration. The first is claude.upstream's; those
// that lead to it share its keys.
func Compile(all []Config, keys []Key) ([]*Route, error) {
	first := newRoute(Config{Name: First, Keys: keys})
	out := []*Route{first}
	for _, c := range all {
		r := newRoute(c)
		if c.Upstream != "" {
			u, err := url.Parse(c.Upstream)
			if err != nil {
				return nil, fmt.Errorf("route %s: %w", c.Name, err)
			}
			r.base = u
		} else {
			r.keys = first.keys
		}
		out = append(out, r)
	}
	return out, nil
}

func newRoute(c Config) *Route {
	r := &Route{Name: c.Name, cfg: c, answered: new(atomic.Int64), said: []string{c.Name}}
	for _, k := range c.Keys {
		var renewed *token
		if k.File != "" {
			renewed = &token{path: k.File, good: isToken}
			if c.Auth == sigv4 {
				renewed.good = isCredentials
			}
		}
		r.keys = append(r.keys, &Access{
			Name: c.Name + "/" + k.Name, key: k.Name, secret: k.Key.Reveal(), token: renewed, bearer: c.Auth == "bearer" || c.Kind == vertex || c.Kind == amazon, signs: c.Auth == sigv4, owner: k.Owner,
			seed: hash(c.Name, k.Name), weight: float64(max(k.Weight, 1)), served: new(atomic.Int64), failed: new(atomic.Int64),
		})
	}
	return r
}

// Continue lets the counts go on from those of before a reload; whether a key
// is fit is found out anew.
func Continue(now, before []*Route) {
	known, calls := map[string]*Access{}, map[string]*atomic.Int64{}
	for _, r := range before {
		calls[r.Name] = r.answered
		for _, k := range r.keys {
			known[k.Name] = k
		}
	}
	for _, r := range now {
		if n := calls[r.Name]; n != nil {
			r.answered = n
		}
		for _, k := range r.keys {
			if was := known[k.Name]; was != nil {
				k.served, k.failed = was.served, was.failed
			}
		}
	}
}

// Takes reports whether calls of a tier for a model may go this way, and what model
// they then ask for.
func (r *Route) Takes(tier, model string) (as string, ok bool) {
	if len(r.cfg.Tiers) > 0 && !slices.Contains(r.cfg.Tiers, tier) {
		return "", false
	}
	if as, ok = model, true; len(r.cfg.Models) > 0 {
		as, ok = Instead(r.cfg.Models, model)
		ok = ok && (r.base != nil || as != model)
	}
	switch r.cfg.Kind {
	case vertex:
		ok = ok && isModel(as)
	case amazon:
		ok = ok && bedrock.IsModel(as)
	}
	return as, ok
}

// MaxTokens is the largest max_tokens that is asked for this way, beside the budget for
// thinking; 0: as the call says.
func (r *Route) MaxTokens() int64 { return r.cfg.MaxTokens }

// Elsewhere reports whether the route leads to another upstream.
func (r *Route) Elsewhere() bool { return r.base != nil }

// Said is the route's name as the value of a header; nobody may change it.
func (r *Route) Said() []string { return slices.Clip(r.said) }

// Host is where the route leads; first is claude.upstream's host.
func (r *Route) Host(first string) string {
	if r.base == nil {
		return first
	}
	return r.base.Host
}

// Body makes the body that goes this way of the one that the call has: the same memory,
// if nothing has to be changed. betas are the headers anthropic-beta that it came with.
func (r *Route) Body(text []byte, model string, betas []string) []byte {
	text, _ = Change(text, model, r.cfg.MaxTokens)
	switch r.cfg.Kind {
	case vertex:
		text = vertexBody(text)
	case amazon:
		text = bedrock.Body(text, betas)
	}
	return text
}

// An Aim says what is asked for.
type Aim struct {
	Base    string // path of claude.upstream, below which the request's lies
	Model   string
	Streams bool
}

// Aim makes the request that goes this way of the one that the call has made, which
// would go to claude.upstream. key may be nil.
func (r *Route) Aim(req *http.Request, at Aim, key *Access) *http.Request {
	if r.base == nil && key == nil {
		return req
	}
	out := req.Clone(req.Context())
	switch {
	case r.base == nil:
	case r.cfg.Kind == vertex:
		out.URL = vertexURL(r.base, at.Model, at.Streams)
		delete(out.Header, "Anthropic-Version")
	case r.cfg.Kind == amazon:
		out.URL = bedrock.URL(r.base, at.Model, at.Streams)
		bedrock.Aim(out.Header)
	default:
		u := *r.base
		u.Path, u.RawPath = strings.TrimRight(u.Path, "/")+strings.TrimPrefix(req.URL.Path, at.Base), ""
		u.RawQuery = req.URL.RawQuery
		out.URL = &u
	}
	if r.base != nil {
		out.Host = out.URL.Host
		delete(out.Header, "Cookie")
	}
	key.sign(out.Header)
	return out
}

// Key returns the key with which a call whose prompt begins with prefix goes this way:
// the same prompt the same one, so that the prompt cache is of use, and different
// prompts by the keys' weights. Keys that are not fit and those in not are left out;
// anyway: unless that leaves none. nil and true: the caller's own.
func (r *Route) Key(prefix uint64, not []*Access, anyway bool) (*Access, bool) {
	if len(r.keys) == 0 {
		return nil, true
	}
	now := time.Now().UnixNano()
	var found *Access
	least := math.Inf(1)
	for _, unfit := range [...]bool{false, true} {
		for _, k := range r.keys {
			if d := k.distance(prefix); d < least && k.now() != "" && (unfit || k.fit(now) && !slices.Contains(not, k)) {
				found, least = k, d
			}
		}
		if found != nil || !anyway {
			break
		}
	}
	return found, found != nil
}

// Answered counts a call that the route has served; Calls is how many.
func (r *Route) Answered() { r.answered.Add(1) }

// Calls is how many calls the route has served.
func (r *Route) Calls() int64 { return r.answered.Load() }

// Asks reports whether the route may ask for model: one that names models of its own
// asks for those only.
func (r *Route) Asks(model string) bool {
	for _, to := range r.cfg.Models {
		if to == model {
			return true
		}
	}
	return len(r.cfg.Models) == 0
}

// Len is how many keys there are; 0: the caller's own is used.
func (r *Route) Len() int { return len(r.keys) }

func (k *Access) fit(now int64) bool { return now >= k.rests.Load() && now >= k.out.Load() }

// distance is less the sooner a prompt asks the key: weighted rendezvous hashing, in
// which a key that goes or comes moves no other's prompts.
func (k *Access) distance(prefix uint64) float64 {
	u := (float64(mix(prefix^k.seed)>>11) + 0.5) / (1 << 53)
	return -math.Log(u) / k.weight
}

// mix is the finalizer of splitmix64.
func mix(x uint64) uint64 {
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

func hash(parts ...string) uint64 {
	h := fnv.New64a()
	for _, p := range parts {
		_, _ = h.Write([]byte(p)) // can't fail
		_, _ = h.Write([]byte{0})
	}
	return mix(h.Sum64())
}

// Lane is whose rate limits the key has. told: the file says so.
func (k *Access) Lane() (name string, told bool) {
	if k.owner != "" {
		return "org:" + k.owner, true
	}
	return "key:" + k.Name, false
}

// Served notes that an attempt was good; it returns true if the key had been refused
// before.
func (k *Access) Served() (back bool) {
	k.served.Add(1)
	if k.refused.Load() == 0 {
		return false
	}
	k.out.Store(0)
	return k.refused.Swap(0) != 0
}

// Failed notes that an attempt was not.
func (k *Access) Failed() { k.failed.Add(1) }

// Refused takes the key out, since it was answered with status; first tells that it
// had been good until then.
func (k *Access) Refused(status int) (first bool) {
	k.out.Store(time.Now().Add(outFor).UnixNano())
	return k.refused.Swap(int64(status)) == 0
}

// Rest leaves the key alone for d, a second at least and a minute at most, since its
// rate limit is used up.
func (k *Access) Rest(d time.Duration) {
	k.rests.Store(time.Now().Add(min(max(d, time.Second), time.Minute)).UnixNano())
}

// A Standing is how a key stands.
type Standing struct {
	Key    string `json:"key"`    // its name
	State  string `json:"state"`  // fit, resting (its limit is used up) or refused
	Served int64  `json:"served"` // attempts that were good
	Failed int64  `json:"failed"` // attempts that were not
}

// Standings of the route's keys, in their order; routes that lead to claude.upstream
// have none of their own.
func (r *Route) Standings() []Standing {
	if r.base == nil && r.Name != First {
		return nil
	}
	now := time.Now().UnixNano()
	var all []Standing
	for _, k := range r.keys {
		s := Standing{Key: k.key, State: "fit", Served: k.served.Load(), Failed: k.failed.Load()}
		switch {
		case k.refused.Load() != 0:
			s.State = "refused"
		case now < k.rests.Load():
			s.State = "resting"
		}
		all = append(all, s)
	}
	return all
}
