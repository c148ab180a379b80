package candidates

import (
	"cmp"
	"hash/fnv"
	"math"
	"net/http"
	"slices"
	"sync/atomic"
	"time"
)

// A Table is the routes of a configuration, with what is known of their keys. Its
// methods may be called from many goroutines. The nil Table has no routes.
type Table struct{ routes []route }

type route struct {
	Route
	keys []*key
	all  []Choice // by key
}

// key is one of a route's, and how it stands. A route without keys has one, which is
// the caller's own.
type key struct {
	name   string
	secret string // empty: the caller's own
	seed   uint64
	weight float64

	rests, out     atomic.Int64 // until then, in Unix nanoseconds; 0: it does not
	refused        atomic.Int64 // the status; 0: it is let in
	served, failed *atomic.Int64
}

// A Choice is a route with one of its keys.
type Choice struct {
	route *route
	key   *key
	at    int
	name  string
}

// outFor is how long a key that was refused is left alone, until one call looks
// whether it is good again.
const outFor = 5 * time.Minute

// New makes the table of routes that have passed [Validate]. Counts go on from those
// of before, if it is not nil; whether keys are fit is found out anew.
func New(routes []Route, before *Table) *Table {
	if len(routes) == 0 {
		return nil
	}
	t := &Table{routes: make([]route, len(routes))}
	for i := range routes {
		r := &t.routes[i]
		if r.Route = routes[i]; r.Tries == 0 {
			r.Tries = usualTries
		}
		given := r.Keys
		if len(given) == 0 {
			given = []Key{{}}
		}
		for n, k := range given {
			one := &key{name: k.Name, secret: k.Key.Reveal(), seed: hash(r.Name, k.Name), weight: float64(max(k.Weight, 1))}
			one.served, one.failed = before.counts(r.Name, k.Name)
			r.keys = append(r.keys, one)
			name := r.Name
			if k.Name != "" {
				name += "/" + k.Name
			}
			r.all = append(r.all, Choice{route: r, key: r.keys[n], at: i, name: name})
		}
	}
	return t
}

func (t *Table) counts(route, name string) (served, failed *atomic.Int64) {
	if t != nil {
		for _, r := range t.routes {
			for _, k := range r.keys {
				if r.Name == route && k.name == name {
					return k.served, k.failed
				}
			}
		}
	}
	return new(atomic.Int64), new(atomic.Int64)
}

// Len is how many routes there are.
func (t *Table) Len() int {
	if t == nil {
		return 0
	}
	return len(t.routes)
}

// Keys returns the candidates of a route in the order in which a call whose prompt
// begins with prefix asks them: the same prompt the same one first, so that the prompt
// cache is of use, and different prompts by the keys' weights. Those that are not fit
// are left out; any: unless that leaves none.
func (t *Table) Keys(at int, prefix uint64, anyway bool) []*Choice {
	r, now := &t.routes[at], time.Now().UnixNano()
	found := make([]*Choice, 0, len(r.all))
	for i := range r.all {
		if r.all[i].key.fit(now) {
			found = append(found, &r.all[i])
		}
	}
	if len(found) == 0 && anyway {
		for i := range r.all {
			found = append(found, &r.all[i])
		}
	}
	if len(found) > 1 {
		slices.SortFunc(found, func(a, b *Choice) int { return cmp.Compare(a.key.distance(prefix), b.key.distance(prefix)) })
	}
	return found
}

// Fit reports whether a route has a key that may be used now, other than except.
func (t *Table) Fit(at int, except *Choice) bool {
	now := time.Now().UnixNano()
	for i := range t.routes[at].all {
		if c := &t.routes[at].all[i]; c != except && c.key.fit(now) {
			return true
		}
	}
	return false
}

func (k *key) fit(now int64) bool { return now >= k.rests.Load() && now >= k.out.Load() }

// distance is less the sooner a prompt asks the key: weighted rendezvous hashing, in
// which a key that goes or comes moves no other's prompts.
func (k *key) distance(prefix uint64) float64 {
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

// Name is the route's and the key's: main/a.
func (c *Choice) Name() string { return c.name }

// Route is the place of its route in the order.
func (c *Choice) Route() int { return c.at }

// Tries is how many of one call's may fail there.
func (c *Choice) Tries() int { return c.route.Tries }

// Own reports whether its key is the configuration's, not the caller's.
func (c *Choice) Own() bool { return c.key.secret != "" }

// Model is the model to ask there for instead of model.
func (c *Choice) Model(model string) string { return Rename(c.route.Models, model) }

// Sign puts the key into the header of a request, in the place of the caller's own.
func (c *Choice) Sign(h http.Header) {
	if c.key.secret == "" {
		return
	}
	delete(h, "X-Api-Key")
	delete(h, "Authorization")
	name, before := header(c.route.Auth)
	h[name] = []string{before + c.key.secret}
}

// Served notes that a try was good; it returns true if the key had been refused
// before.
func (c *Choice) Served() (back bool) {
	c.key.served.Add(1)
	if c.key.refused.Load() == 0 {
		return false
	}
	c.key.out.Store(0)
	return c.key.refused.Swap(0) != 0
}

// Failed notes that a try was not.
func (c *Choice) Failed() { c.key.failed.Add(1) }

// Refused takes the key out, since it was answered with status; first tells that it
// had been good until then.
func (c *Choice) Refused(status int) (first bool) {
	c.key.out.Store(time.Now().Add(outFor).UnixNano())
	return c.key.refused.Swap(int64(status)) == 0
}

// Rest leaves the key alone for d, since its rate limit is used up.
func (c *Choice) Rest(d time.Duration) {
	c.key.rests.Store(time.Now().Add(min(max(d, time.Second), time.Minute)).UnixNano())
}

// A Standing is how a candidate stands.
type Standing struct {
	Route  string `json:"route"`
	Key    string `json:"key,omitempty"` // its name
	Host   string `json:"host"`
	State  string `json:"state"`          // fit, refused, resting or shut
	Shut   int    `json:"shut,omitempty"` // models that fail there
	Served int64  `json:"served"`         // tries that were good
	Failed int64  `json:"failed"`         // tries that were not
}

// Standings of all candidates, in their order. The caller fills in Host and Shut.
func (t *Table) Standings() []Standing {
	if t == nil {
		return nil
	}
	var all []Standing
	now := time.Now().UnixNano()
	for i := range t.routes {
		for _, k := range t.routes[i].keys {
			s := Standing{Route: t.routes[i].Name, Key: k.name, State: "fit", Served: k.served.Load(), Failed: k.failed.Load()}
			switch {
			case k.refused.Load() != 0:
				s.State = "refused"
			case now < k.rests.Load():
				s.State = "resting"
			}
			all = append(all, s)
		}
	}
	return all
}

// Serves reports whether a route may ask for model: one that names models of its own
// asks for those only.
func (t *Table) Serves(route, model string) bool {
	for _, r := range t.routes {
		if r.Name == route && len(r.Models) > 0 {
			for _, to := range r.Models {
				if to == model {
					return true
				}
			}
			return false
		}
	}
	return true
}
