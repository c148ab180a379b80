// Package kept holds answers of the app that may be given to others later: a resource
// has several, each with the request headers on which it depends. It keeps what it is
// told to; whether an answer may be kept, and when it is given, is the edge's business.
//
// Edge alone imports it.
package kept

import (
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"mainstay.dev/mainstay/cache"
)

// A Resource is what answers are kept for: a URI as the app is asked for it.
type Resource struct {
	Scheme, Host string
	Path, Query  string
	Forced       bool // it ends with a ? and has no query
}

// clone is r with strings of its own: those of a request are parts of larger ones.
func (r Resource) clone() Resource {
	for _, s := range []*string{&r.Scheme, &r.Host, &r.Path, &r.Query} {
		*s = strings.Clone(*s)
	}
	return r
}

func (r Resource) weight() int64 { return int64(len(r.Host) + len(r.Path) + len(r.Query)) }

// variants are the answers that are kept for a resource, the newest first.
type variants []*Answer

// Store is safe for concurrent use.
type Store struct {
	answers *cache.Cache[Resource, variants]
	largest int64        // body
	most    int64        // bytes of the bodies that are being copied at once
	copying atomic.Int64 // of them, now
	used    atomic.Bool  // something was kept since all was dropped
}

const (
	// maxVariants bounds the answers that are kept for one resource.
	maxVariants = 8
	// maxHeader bounds the header of an answer that is kept, with the request headers on
	// which it depends.
	maxHeader = 32e3
	// costs is what an answer takes beside its bytes.
	costs = 1e3
)

// New makes a store for answers whose bodies have largest bytes at most, within memory:
// an eighth of it is for bodies that are on their way in. Memory is at least 1 MB, and
// 16 times largest.
func New(memory, largest int64) *Store {
	s := &Store{largest: largest, most: memory / 8}
	s.answers = cache.New[Resource, variants](memory-s.most, s.heaviest())
	return s
}

// heaviest is what all answers of one resource may weigh.
func (s *Store) heaviest() int64 { return 4 * (s.largest + maxHeader) }

// Stats is how the store stands; Entries are resources.
func (s *Store) Stats() cache.Stats { return s.answers.Stats() }

// Ticket is to be taken before the app is asked for r, and given to Copy with its answer.
func (s *Store) Ticket(r Resource) cache.Ticket { return s.answers.Ticket(r) }

// Drop invalidates a resource, also what is on its way.
func (s *Store) Drop(r Resource) { s.answers.Invalidate(r) }

// Clear drops everything, if there is anything.
func (s *Store) Clear() {
	if s.used.Load() && s.used.Swap(false) { // the load alone on the way of every answer
		s.answers.Clear()
	}
}

// A Request is what the store knows of one.
type Request struct {
	Resource Resource
	Header   func(name string) string // the values joined by commas, or ""
	Most     time.Duration            // for how long stale answers are of use
	// Live reports whether answers of an origin may be given.
	Live func(origin uint64) bool
}

// Find returns the newest answer that r may be given and fits reports true of; nil:
// there is none.
func (s *Store) Find(r *Request, now time.Time, fits func(*Answer) bool) *Answer {
	found, _ := s.answers.Get(r.Resource, now)
	for _, a := range found {
		if now.Before(a.Term.Until(r.Most)) && r.Live(a.Origin) && a.matches(r.Header) && fits(a) {
			return a
		}
	}
	return nil
}

// put keeps a in place of those that r would have been given. If two come at the same
// moment, one may be lost.
func (s *Store) put(r *Request, a *Answer, t cache.Ticket) {
	now := time.Now()
	key := r.Resource.clone()
	before, _ := s.answers.Get(key, now)
	next, weight := variants{a}, a.weight+key.weight()
	life := cache.Life{Fresh: a.Term.Fresh(), Until: a.Term.Until(r.Most)}
	for _, b := range before {
		if b.Color == a.Color && b.matches(r.Header) {
			if b.Asked.After(a.Asked) {
				return // it is newer
			}
			continue
		}
		if len(next) == maxVariants || weight+b.weight > s.heaviest() || !now.Before(b.Term.Until(r.Most)) || !r.Live(b.Origin) {
			continue
		}
		next, weight = append(next, b), weight+b.weight
		life.Fresh, life.Until = latest(life.Fresh, b.Term.Fresh()), latest(life.Until, b.Term.Until(r.Most))
	}
	if s.answers.Set(key, t, cache.Item[variants]{Value: slices.Clip(next), Weight: weight, Life: life}, now) {
		s.used.Store(true)
	}
}

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
