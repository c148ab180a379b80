// Package overload is the edge's policy for more requests than the app can take:
// who goes first, who waits, and who is shed. How much the app can take is package
// capacity's to find out.
//
// Package edge imports it.
package overload

import (
	"hash/maphash"
	"net/netip"
	"strings"
	"time"

	"mainstay.dev/mainstay/capacity"
	"mainstay.dev/mainstay/identity"
	"mainstay.dev/mainstay/internal/setting"
)

// Config is the section edge.overload.
type Config struct {
	Concurrency string          `yaml:"concurrency" doc:"How many requests the app is given at once: off (as many as come), auto (found by how long it takes to answer, compared with how long it takes at ease) or fixed (as many as most says). Event streams and tunnels do not count."`
	Most        int             `yaml:"most" doc:"The most that auto may find, or the number of fixed."`
	Least       int             `yaml:"least" doc:"The least that auto may find."`
	Reserve     setting.Percent `yaml:"reserve" doc:"Share that is kept for critical requests; background ones leave twice as much free."`
	Queue       Queue           `yaml:"queue" doc:"Where requests wait when there is no room. The critical go first; callers take turns, and whoever has most waiting loses a place first."`
	Critical    []string        `yaml:"critical" doc:"Requests that go first: tier:NAME, key:NAME, class:NAME (of limits.routes) or path:PATTERN (a * at its end matches every continuation)."`
	Background  []string        `yaml:"background" doc:"Requests that are shed first, unless they are critical; written likewise."`
}

// Queue bounds the requests that wait.
type Queue struct {
	Requests int           `yaml:"requests" doc:"How many may wait at once; one more is answered 503, code shed. 0: none may."`
	For      time.Duration `yaml:"for" doc:"Longest wait; then likewise."`
}

// The words of Config.Concurrency.
const (
	off   = "off"
	auto  = "auto"
	fixed = "fixed"
)

// SetDefaults fills in what the file leaves out.
func (c *Config) SetDefaults() {
	*c = Config{
		Concurrency: off, Most: 1000, Least: 10, Reserve: 0.2, Queue: Queue{Requests: 200, For: time.Second},
		Critical: []string{"tier:pro", "tier:enterprise"},
	}
}

// Validate reports every mistake.
func (c *Config) Validate(ps *setting.Problems) {
	_, err := Compile(*c)
	*ps = append(*ps, setting.Of(err)...)
}

// A Policy is a compiled Config. It is immutable and safe for concurrent use.
type Policy struct {
	// On tells that requests have to enter at all.
	On   bool
	Rule capacity.Rule

	critical, background selector
	seed                 maphash.Seed
}

// start is what auto begins with: it is learned within seconds what an app can take.
const start = 40

// tolerance is how many times as long as at ease the app may take.
const tolerance = 2

// Compile checks c and returns the policy that obeys it. It is pure.
func Compile(c Config) (*Policy, error) {
	var ps setting.Problems
	p := &Policy{On: c.Concurrency != off, seed: maphash.MakeSeed()}
	p.Rule = capacity.Rule{
		Adapt: c.Concurrency == auto, Max: c.Most, Min: c.Least, Start: min(max(start, c.Least), c.Most),
		Tolerance: tolerance, Reserve: float64(c.Reserve), Queue: c.Queue.Requests, Wait: c.Queue.For,
	}
	if c.Concurrency != off && c.Concurrency != auto && c.Concurrency != fixed {
		ps.Add("concurrency", "must be off, auto or fixed", "try auto")
	}
	if c.Least < 1 || c.Most < 1 || c.Most < c.Least && c.Concurrency != fixed || c.Most > 1_000_000 {
		ps.Add("most", "must be a million at most, and least between 1 and it", "try least: 10, most: 1000")
	}
	if c.Reserve >= 0.5 {
		ps.Add("reserve", "must be below 50%", "try 20%")
	}
	if c.Queue.Requests < 0 || c.Queue.Requests > 100_000 {
		ps.Add("queue.requests", "must be between 0 and 100000", "try 200")
	}
	if c.Queue.For < 0 || c.Queue.For > time.Minute {
		ps.Add("queue.for", "must be between 0s and 1m", "try 1s")
	}
	p.critical = compile(&ps, "critical", c.Critical)
	p.background = compile(&ps, "background", c.Background)
	if len(ps) > 0 {
		return nil, ps
	}
	return p, nil
}

// selector is a compiled list of requests.
type selector struct {
	names map[string]bool // "tier:pro"
	paths []string        // patterns
}

func compile(ps *setting.Problems, key string, list []string) selector {
	s := selector{names: map[string]bool{}}
	for _, entry := range list {
		kind, value, _ := strings.Cut(entry, ":")
		switch {
		case value != "" && (kind == "tier" || kind == "key" || kind == "class"):
			s.names[entry] = true
		case kind == "path" && strings.HasPrefix(value, "/"):
			s.paths = append(s.paths, value)
		default:
			ps.Add(key, entry+" names no requests", "write tier:NAME, key:NAME, class:NAME or path:/checkout/*")
		}
	}
	return s
}

// A Request is what the policy looks at.
type Request struct {
	Who    *identity.Who
	Tier   string // that counts: the caller's own, or the default one
	Class  string // of limits.routes; empty: none
	Method string
	Path   string
}

func (s *selector) matches(r *Request) bool {
	if len(s.names) > 0 && (s.named("tier:", r.Tier) || s.named("key:", r.Who.Key) || s.named("class:", r.Class)) {
		return true
	}
	for _, p := range s.paths {
		if prefix, ok := strings.CutSuffix(p, "*"); r.Path == p || ok && strings.HasPrefix(r.Path, prefix) {
			return true
		}
	}
	return false
}

func (s *selector) named(kind, name string) bool { return name != "" && s.names[kind+name] }

// Work is what r is to the valve: the tenant is the workspace, else the user, else
// the address, IPv6 by its /64; the kind is the method and the beginning of the
// path.
func (p *Policy) Work(r *Request) capacity.Work {
	w := capacity.Work{Class: capacity.Ordinary, Tenant: tenant(r.Who), Kind: p.kind(r)}
	switch {
	case p.critical.matches(r):
		w.Class = capacity.Critical
	case p.background.matches(r):
		w.Class = capacity.Background
	}
	return w
}

func tenant(w *identity.Who) string {
	switch {
	case w.Workspace != "":
		return "w:" + w.Workspace
	case w.User != "":
		return "u:" + w.User
	}
	return network(w.Address)
}

func network(a netip.Addr) string {
	if a.Is6() {
		if p, err := a.Prefix(64); err == nil {
			a = p.Addr()
		}
	}
	return a.String()
}

// depth is how many segments of a path tell the kind: what comes after them is
// ids, mostly.
const depth = 2

func (p *Policy) kind(r *Request) uint64 {
	path, end := r.Path, 0
	for range depth {
		i := strings.IndexByte(path[min(end+1, len(path)):], '/')
		if i < 0 {
			end = len(path)
			break
		}
		end += 1 + i
	}
	var h maphash.Hash
	h.SetSeed(p.seed)
	_, _ = h.WriteString(r.Method) // never fails
	_, _ = h.WriteString(path[:end])
	return h.Sum64()
}
