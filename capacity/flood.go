package capacity

import (
	"math"
	"time"
)

// The constants of a flood.
const (
	floodTolerance = 1.15 // times as long as at ease: more is the flood's own queue
	floodWorks     = 150  // that a judgement needs, unless fewer leave no doubt …
	doubt          = 2.5  // … which so many standard errors do
	obvious        = 1.5  // times as long that need no probe to confirm them
	floodCut       = 0.5  // how far they move the limit at once

	verifyApart = time.Second // probes, at least
	floodProbe  = 150         // works that one needs
	floodRelief = 0.85        // what it must leave of the time if the flood was to blame

	step     = 1.25            // what a trial lets in, in parts of the limit
	trial    = 60              // works that it needs
	tryFor   = time.Second     // what it takes at most, beside what three works take
	even     = 1.05            // times as long that show no difference
	modesty  = 0.95            // what is believed of a trial that showed one
	trySoon  = time.Second     // the rest after a trial that showed none …
	tryAfter = 4 * time.Second // … and after others
	tryRest  = 40              // times as long as the trial at least, so that no p95 sees them

	othersWorks = 50  // of the others, that tell whether they have room …
	othersWait  = 0.3 // … which they have not if such a share has to wait
)

// tide tells a flood: most of what has to wait is of a tenant who wants more than its
// share.
//
// That is no reason to let in more, however long it waits. In a flood the limit is what
// the upstream does without taking longer, and grows only by a trial every few seconds,
// in which a quarter more is let in for some works, as far as they take no longer. When
// work takes longer, a probe that halves the flood shows whether it is to blame; if so,
// it is let in less. Others who have to wait for want of room are a reason, as long as
// work takes no longer.
type tide struct{ flood, others flow }

// flow is how much work came, and how much of it had to wait.
type flow struct{ came, waited int }

// came notes that work came, and whether it entered at once.
func (g *gauge) came(flood, entered bool) {
	f := &g.tide.others
	if flood {
		f = &g.tide.flood
	}
	if f.came++; !entered {
		f.waited++
		g.pressed = true
	}
}

// clear reports whether the window shows clearly whether work takes longer: its mean
// is far from the tolerance, or it has many works. A limit that a chance lowers comes
// back slowly in a flood.
func (g *gauge) clear() bool {
	n := float64(g.works - g.failures)
	if g.works >= floodWorks || n < 2 {
		return true
	}
	mean := g.ratios / n
	spread := math.Sqrt(max(g.squares/n-mean*mean, 0) / n)
	return math.Abs(mean-floodTolerance) > doubt*spread
}

// stem moves the limit at the end of a window in a flood.
func (g *gauge) stem(used float64) {
	switch {
	case g.last >= obvious && used > underUse:
		g.limit *= 1 - (1-g.excess(1))*floodCut
	case g.last <= floodTolerance && g.tight():
		g.limit += math.Sqrt(g.limit) * growth
	}
}

// excess is what has to be left of the limit so that a flood, which leaves a part of it
// free, no longer makes work take longer than so many times as at ease.
func (g *gauge) excess(times float64) float64 { return max((1-spare)*times/g.last, 0.5) }

// tight reports whether much of the others' work has to wait.
func (g *gauge) tight() bool {
	g.others.came += g.tide.others.came
	g.others.waited += g.tide.others.waited
	if g.others.came < othersWorks {
		return false
	}
	waits := float64(g.others.waited) > othersWait*float64(g.others.came)
	g.others = flow{}
	return waits
}

// plan has a probe or a trial begin when it is time.
func (g *gauge) plan(now time.Time) {
	longer := g.last > floodTolerance
	g.probing = now.Sub(g.calm) >= probeAfter || longer && g.last < obvious && now.Sub(g.calm) >= verifyApart
	g.trying = !g.probing && !longer && !now.Before(g.rested)
}

// verified takes in what a probe has shown: the flood is to blame, or that is what work
// takes at ease, of which half is believed.
func (g *gauge) verified(mean float64) {
	switch {
	case mean > g.last*floodRelief:
		g.learn((1 + mean) / 2)
	case g.last > floodTolerance:
		g.limit *= g.excess(mean)
	}
}

// try ends the trial: what was let in without taking longer is the new limit. Works of
// its first moments do not tell, since the crowd has to come about.
func (g *gauge) try(now time.Time, v *Valve) {
	took := now.Sub(g.since)
	if g.probed < trial && took < tryFor+3*g.lag {
		return
	}
	rest := tryAfter
	if g.probed >= least && g.pressed {
		grown := step * modesty / max(g.sum/float64(g.probed), 1)
		if g.sum <= even*float64(g.probed) {
			rest, grown = trySoon, step
		}
		g.limit *= grown
		g.fit(v.rule)
	}
	g.trying, g.probed, g.sum, g.rested = false, 0, 0, now.Add(max(rest, tryRest*took))
	g.begin(now, v.inFlight)
}
