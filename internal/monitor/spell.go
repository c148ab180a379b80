package monitor

import "time"

// A Spell is what one color did in one plane since a moment.
type Spell struct {
	Count   uint64
	Errors  uint64   // Mainstay or an upstream is to blame
	Latency []Bucket // from short to long, without empty ones; tunnels and event streams are not in it
}

// A Bucket counts exchanges that took about as long, at most 3.2% off.
type Bucket struct {
	Took  time.Duration
	Count uint64
}

// Since sums up the whole seconds since a moment, the one under way included, as
// far back as Retention. What is unknown did nothing.
func (m *Monitor) Since(plane, color string, since time.Time) (s Spell) {
	p := m.planes[plane]
	if p == nil {
		return s
	}
	l := (*p.lanes.Load())[color]
	if l == nil {
		return s
	}
	now := m.now()
	first := int64((since.Sub(m.start) + time.Second - 1) / time.Second)
	var t tally
	l.each(max(first, now-int64(Retention/time.Second)+1), now+1, t.addBasics)
	s.Count, s.Errors = t.count, t.errors()
	for i, n := range t.latency.counts {
		if n > 0 {
			s.Latency = append(s.Latency, Bucket{middle(i), n})
		}
	}
	return s
}
