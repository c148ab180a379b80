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
// to blame; if not, that is what they take now. In a flood other rules hold: see tide.
type gauge struct {
	limit float64
	ease  [kinds]ease

	since    time.Time // of the window
	works    int
	took     time.Duration // all of them
	failures int
	ratios   float64
	squares  float64 // of the ratios
	peak     int
	pressed  bool // somebody had to wait, so that a larger limit would be used
	tide     tide // of the window

	flood  bool // the window before was one
	others flow // of several windows
	trying bool
	rested time.Time // from when there may be a trial

	last    float64       // the mean ratio of the window before
	lag     time.Duration // the mean time that works took in it
	calm    time.Time     // when work was at ease, or a probe ended
	probing bool
	probed  int // works of the probe or the trial
	sum     float64
}

// ease is how long a kind takes with room to spare, in nanoseconds.
type ease struct {
	took  float64
	works int
}

func (g *gauge) fit(r Rule) {
	if !r.Adapt {
		g.limit, g.probing, g.trying = float64(r.Max), false, false
		return
	}
	g.limit = min(max(g.limit, float64(r.Min)), float64(r.Max))
}

// now is the limit at this moment.
func (g *gauge) now() float64 {
	switch {
	case g.probing && !g.flood:
		return g.limit / 2
	case g.trying:
		return g.limit * step
	}
	return g.limit
}

// note takes in what became of a work.
func (g *gauge) note(p *Pass, took time.Duration, managed bool, now time.Time, v *Valve) {
	if g.since.IsZero() {
		g.since, g.calm = now, now
	}
	g.works++
	g.took += took
	if managed {
		ratio := g.compare(p, max(float64(took), 1), now)
		g.ratios += ratio
		g.squares += ratio * ratio
		if p.probe && (g.probing || p.began.Sub(g.since) >= g.lag) {
			g.probed++
			g.sum += ratio
		}
	} else {
		g.failures++
	}
	switch {
	case g.probing:
		g.probe(now, v.rule)
	case g.trying:
		g.try(now, v)
	case g.works >= least && now.Sub(g.since) >= window:
		if g.flood = g.tide.flood.waited > g.tide.others.waited; g.flood && !g.clear() {
			break
		}
		g.judge(v.rule)
		g.probing = g.pressed && g.last > 1/relief && now.Sub(g.calm) >= probeAfter
		if g.flood {
			g.plan(now)
		}
		g.begin(now, v.inFlight)
	}
}

// begin begins a window.
func (g *gauge) begin(now time.Time, inFlight int) {
	g.pressed, g.tide = false, tide{}
	g.lag = g.took / time.Duration(max(g.works, 1))
	g.since, g.works, g.took, g.failures, g.ratios, g.squares, g.peak = now, 0, 0, 0, 0, 0, inFlight
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
func (g *gauge) probe(now time.Time, r Rule) {
	enough := probeWorks
	if g.flood {
		enough = floodProbe
	}
	if g.probed < enough && now.Sub(g.since) < probeFor {
		return
	}
	switch mean := g.sum / max(float64(g.probed), 1); {
	case g.probed < probeWorks:
	case g.flood:
		g.verified(mean)
	case mean > g.last*relief:
		g.learn(mean)
	}
	g.probing, g.probed, g.sum, g.calm = false, 0, 0, now
	g.begin(now, 0)
	g.fit(r)
}

// learn has all kinds take so many times as long at ease as it was thought.
func (g *gauge) learn(times float64) {
	for i := range g.ease {
		g.ease[i].took *= times
	}
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
		if g.flood {
			g.stem(used)
			break
		}
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
