package monitor

import (
	"sync/atomic"
	"time"

	"mainstay.dev/mainstay/telemetry"
)

// Reach is how far back Since looks.
const Reach = 10 * time.Minute

const (
	grain  = 10 // seconds in a block
	blocks = int64(Reach/time.Second)/grain + 2
)

// A past holds what cells held that were replaced, ten seconds in one, and of it
// what a Spell tells.
type past [blocks]*block

type block struct {
	number        int64 // in tens of seconds
	count, errors uint64
	latency, cost [buckets]uint32
}

func (p *past) take(c *cell) {
	n := c.second / grain
	b := p[n%blocks]
	if b == nil || b.number < n {
		b = &block{number: n}
		p[n%blocks] = b
	}
	if b.number > n {
		return // older than anybody asks for
	}
	b.count += c.count.Load()
	b.errors += uint64(c.blames[telemetry.BlameMainstay].Load()) + uint64(c.blames[telemetry.BlameUpstream].Load())
	c.latency.Load().into(&b.latency)
	c.cost.Load().into(&b.cost)
}

// into adds s, which may be nil, to counts.
func (s *spread) into(counts *[buckets]uint32) {
	if s == nil {
		return
	}
	for i := range s {
		counts[i] += s[i].Load()
	}
}

// since sums up the seconds of l from first to now.
func (l *lane) since(first, now int64) (count, errors uint64, latency, cost [buckets]uint32) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range l.ring {
		c := l.ring[i].Load()
		if c == nil || c.second < first || c.second > now {
			continue
		}
		count += c.count.Load()
		errors += uint64(c.blames[telemetry.BlameMainstay].Load()) + uint64(c.blames[telemetry.BlameUpstream].Load())
		c.latency.Load().into(&latency)
		c.cost.Load().into(&cost)
	}
	for _, b := range l.past {
		if b == nil || b.number*grain < first || b.number*grain > now {
			continue
		}
		count, errors = count+b.count, errors+b.errors
		for i := range latency {
			latency[i] += b.latency[i]
			cost[i] += b.cost[i]
		}
	}
	return count, errors, latency, cost
}

// unpriced is what an input token of a model without a known price is taken to
// cost, in millionths of a dollar: the middle of the models'.
const unpriced = 3

// weight is what a call costs, in millionths of a dollar. One without a known price
// is weighed by its tokens, whose prices differ from model to model, but not by how
// much one kind costs more than another.
func weight(g *telemetry.GenAI) int64 {
	if g.CostNanoUSD > 0 {
		return (g.CostNanoUSD + 999) / 1000
	}
	tokens := max(g.InputTokens, 0) + 5*max(g.OutputTokens, 0) + max(g.CacheReadTokens, 0)/10 + max(g.CacheWriteTokens, 0)*5/4
	return unpriced * tokens
}

// budgetMinutes is how far back Failed looks: a day, and the minute under way.
const budgetMinutes = 24*60 + 1

// A budget counts the requests of the edge minute by minute.
type budget [budgetMinutes]atomic.Pointer[minute]

type minute struct {
	number     int64
	all, wrong atomic.Uint64
}

func (b *budget) count(number int64, wrong bool) {
	at := &b[number%budgetMinutes]
	m := at.Load()
	for m == nil || m.number < number {
		at.CompareAndSwap(m, &minute{number: number})
		m = at.Load()
	}
	m.all.Add(1)
	if wrong {
		m.wrong.Add(1)
	}
}

// Failed counts the requests of the edge in the window that ends now, at most a
// day and in whole minutes, and those of them that Mainstay or the app is to blame
// for. known is how much of the window this monitor has lived.
func (m *Monitor) Failed(window time.Duration) (failed, all uint64, known time.Duration) {
	window = min(window, 24*time.Hour)
	now := m.now() / 60
	first := now - int64(window/time.Minute) + 1
	for i := range m.budget {
		if c := m.budget[i].Load(); c != nil && c.number >= first && c.number <= now {
			all += c.all.Load()
			failed += c.wrong.Load()
		}
	}
	return failed, all, min(window, time.Since(m.start))
}
