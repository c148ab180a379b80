package capacity

import (
	"math"
	"time"
)

// The gauge's constants.
const (
	kinds      = 256                    // of work that are told apart
	window     = 100 * time.Millisecond // the least time between two judgements
	least      = 10                     // works that a judgement needs
	worst      = 10.0                   // how much a single work may weigh
	smoothing  = 0.3                    // how far a judgement moves the limit
	growth     = 0.5                    // times the square root of the limit: what is tried beyond a crowd
	cut        = 0.9                    // what failures leave of it
	tooMany    = 0.1                    // the share of failures that counts
	underUse   = 0.5                    // the share of the limit below which long work is not the crowd's fault
	calmUse    = 0.25                   // the share up to which work is at ease: well below what takes twice as long
	settle     = 0.02                   // how far one calm work moves what its kind takes
	firstWorks = 50                     // over which what a kind takes is a plain mean

	probeAfter = 10 * time.Second // without calm work
	probeFor   = 5 * time.Second  // at most
	probeWorks = 30               // that a probe needs
	relief     = 0.8              // what a probe must leave of the time if the crowd was to blame
)

// gauge finds the limit: the most work at once that does not take Tolerance times
// as long as at ease. It compares each work with what its kind takes when there is
// room to spare, so that a change of the mix is no sign of pressure, and moves the
// limit by the ratio, as Netflix's gradient limiter does; the square
// root of the limit is added, or half of it in a crowd, so that it can grow again.
//
// While there is never room to spare, nothing shows what work takes at ease: an app
// that a release has made slower looks like one that is crowded. So the limit is
// halved for some works every ten seconds then. If they take less time, the crowd is
// to blame; if not, that is what they take now.
type gauge struct {
	limit float64
	ease  [kinds]ease

	since    time.Time // of the window
	works    int
	failures int
	ratios   float64
	peak     int
	pressed  bool // somebody had to wait, so that a larger limit would be used

	last    float64   // the mean ratio of the window before
	calm    time.Time // when work was at ease, or a probe ended
	probing bool
	probed  int // works of the probe
	sum     float64
}

// ease is how long a kind takes with room to spare, in nanoseconds.
type ease struct {
	took  float64
	works int
}

func (g *gauge) fit(r Rule) {
	if !r.Adapt {
		g.limit, g.probing = float64(r.Max), false
		return
	}
	g.limit = min(max(g.limit, float64(r.Min)), float64(r.Max))
}

// now is the limit at this moment.
func (g *gauge) now() float64 {
	if g.probing {
		return g.limit / 2
	}
	return g.limit
}

// note takes in what became of a work.
func (g *gauge) note(p *Pass, took time.Duration, managed bool, v *Valve) {
	now := time.Now()
	if g.since.IsZero() {
		g.since, g.calm = now, now
	}
	g.works++
	if managed {
		ratio := g.compare(p, max(float64(took), 1), now)
		g.ratios += ratio
		if g.probing && p.probe {
			g.probed++
			g.sum += ratio
		}
	} else {
		g.failures++
	}
	if g.probing {
		g.probe(now)
		return
	}
	if g.works >= least && now.Sub(g.since) >= window {
		g.judge(v.rule)
		g.begin(now, v.inFlight)
		g.probing = g.pressed && g.last > 1/relief && now.Sub(g.calm) >= probeAfter
		g.pressed = false
	}
}

// begin begins a window.
func (g *gauge) begin(now time.Time, inFlight int) {
	g.since, g.works, g.failures, g.ratios, g.peak = now, 0, 0, 0, inFlight
}

// compare returns how many times as long as at ease a work took.
func (g *gauge) compare(p *Pass, took float64, now time.Time) float64 {
	e := &g.ease[p.work.Kind%kinds]
	if e.works == 0 {
		e.took = took
	}
	ratio := min(took/e.took, worst)
	if p.calm {
		g.calm = now
	}
	if p.calm || e.works < least {
		e.works++
		e.took += (took - e.took) * max(1/float64(min(e.works, firstWorks)), settle)
	}
	return ratio
}

// probe ends the probe when it has told enough, or takes too long.
func (g *gauge) probe(now time.Time) {
	if g.probed < probeWorks && now.Sub(g.since) < probeFor {
		return
	}
	if mean := g.sum / max(float64(g.probed), 1); g.probed >= probeWorks && mean > g.last*relief {
		for i := range g.ease {
			g.ease[i].took *= mean
		}
	}
	g.probing, g.probed, g.sum, g.calm = false, 0, 0, now
	g.begin(now, 0)
}

// judge moves the limit at the end of a window.
func (g *gauge) judge(r Rule) {
	used := float64(g.peak) / g.limit
	switch managed := g.works - g.failures; {
	case float64(g.failures) > tooMany*float64(g.works):
		if used > underUse {
			g.limit *= cut
		}
	case managed > 0:
		g.last = g.ratios / float64(managed)
		target := g.limit + math.Sqrt(g.limit)
		if g.last > r.Tolerance {
			target = g.limit*max(r.Tolerance/g.last, 0.5) + math.Sqrt(g.limit)*growth
		}
		if target < g.limit && used < underUse || target > g.limit && !g.pressed {
			break
		}
		g.limit += (target - g.limit) * smoothing
	}
	g.fit(r)
}
