package monitor

import "time"

// A Spell is what one color did in one plane since a moment.
type Spell struct {
	Count   uint64
	Errors  uint64        // Mainstay or an upstream is to blame
	Latency []Bucket      // from short to long, without empty ones; tunnels and event streams are not in it
	Cost    []Bucket      // of Claude calls that told their tokens: Took is 1 µs for the price of each uncached input token
	Span    time.Duration // how much of the time since then is known
}

// A Bucket counts exchanges that took about as long, at most 3.2% off.
type Bucket struct {
	Took  time.Duration
	Count uint64
}

// Since sums up what a color did in a plane since a moment, the second under way
// included, as far back as Reach; what is older than five minutes it knows by tens
// of seconds. What is unknown did nothing.
func (m *Monitor) Since(plane, color string, since time.Time) (s Spell) {
	s.Span = max(0, min(time.Since(since), time.Since(m.start), Reach))
	p := m.planes[plane]
	if p == nil {
		return s
	}
	l := (*p.lanes.Load())[color]
	if l == nil {
		return s
	}
	now := m.now()
	var latency, cost [buckets]uint32
	s.Count, s.Errors, latency, cost = l.since(max(m.second(since), now-int64(Reach/time.Second)+1), now)
	s.Latency, s.Cost = listed(&latency), listed(&cost)
	return s
}

// second is the number of the first second that begins at or after a moment.
func (m *Monitor) second(t time.Time) int64 {
	return int64((t.Sub(m.start) + time.Second - 1) / time.Second)
}

func listed(counts *[buckets]uint32) (bs []Bucket) {
	for i, n := range counts {
		if n > 0 {
			bs = append(bs, Bucket{middle(i), uint64(n)})
		}
	}
	return bs
}
