package identity

import "sync/atomic"

// Sources lists every Source, for the metric and the docs.
var Sources = []Source{ByAddress, ByToken, ByKey, ByHeader, ByCookie, ByCertificate}

// counts are what has happened since the start.
type counts struct {
	callers  [6]atomic.Uint64 // by Sources
	refused  [14]atomic.Uint64
	verified atomic.Uint64
}

func (c *counts) count(w *Who) {
	for i, s := range Sources {
		if s == w.By {
			c.callers[i].Add(1)
		}
	}
	if w.Refused != "" {
		c.refuse(w.Refused)
	}
}

func (c *counts) refuse(why Reason) {
	for i, r := range Reasons {
		if r == why {
			c.refused[i].Add(1)
		}
	}
}

// Stats is how a desk stands.
type Stats struct {
	Callers  map[Source]uint64 `json:"callers"`  // requests by what vouched for the user
	Refused  map[Reason]uint64 `json:"refused"`  // credentials that were not believed
	Verified uint64            `json:"verified"` // credentials that were not in memory
	Memory   int               `json:"memory"`   // proofs that are kept
	Keys     int               `json:"keys"`     // of the issuer's key set
	Fetches  uint64            `json:"fetches"`  // of the key set
	Failures uint64            `json:"fetches_failed"`
}

// Stats may be called at any time. The maps have every source and every reason.
func (d *Desk) Stats() Stats {
	p := d.policy.Load()
	s := Stats{Callers: map[Source]uint64{}, Refused: map[Reason]uint64{}, Verified: d.counts.verified.Load(), Memory: p.good.len()}
	for i, source := range Sources {
		s.Callers[source] = d.counts.callers[i].Load()
	}
	for i, reason := range Reasons {
		s.Refused[reason] = d.counts.refused[i].Load()
	}
	if p.keys != nil {
		s.Fetches, s.Failures = p.keys.fetches.Load(), p.keys.failures.Load()
		if set := p.keys.set.Load(); set != nil {
			s.Keys = len(set.keys)
		}
	}
	return s
}
