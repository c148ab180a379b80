package deploy

import (
	"fmt"
	"time"

	"mainstay.dev/mainstay/internal/deploy/internal/compare"
)

// Evidence is what is known of what the colors do. Its method may be called from
// several goroutines at once.
type Evidence interface {
	// Window sums up what a color did since a moment, or for as long as is
	// known if that is shorter.
	Window(color string, since time.Time) Figures
}

// A Ratio is errors of all that were tried.
type Ratio = compare.Ratio

// Figures are what a color did in a window of time.
type Figures struct {
	Requests Ratio         // errors of requests; an answer of 500 or more is one
	Claude   Ratio         // errors of calls
	Database Ratio         // errors of queries
	Latency  Spread        // of requests that are neither tunnels nor event streams, in nanoseconds
	Cost     Spread        // of Claude calls, in millionths of a dollar
	Log      Mishaps       // what the app wrote as errors
	Span     time.Duration // how much of the window is known
}

// A Spread is how sizes are distributed.
type Spread = compare.Spread

// A Bucket counts what is about as large.
type Bucket = compare.Bucket

// Mishaps are lines at level error.
type Mishaps struct {
	Lines  uint64
	Bursts uint64 // tenths of a second with such lines: many of them may be one stack trace
}

// slower counts the requests that took longer than limit.
func (f Figures) slower(limit time.Duration) Ratio { return f.Latency.Beyond(int64(limit)) }

// p95 is the 95th percentile of latency; 0 of nothing.
func (f Figures) p95() time.Duration { return time.Duration(f.Latency.P95()) }

// times are how often something befell a color that had so many requests in so
// much time.
func (f Figures) times(n uint64) compare.Times {
	return compare.Times{N: n, Requests: f.Requests.Of, Span: f.Span}
}

// control is what the old color did before the switch.
type control struct {
	Figures
	known bool
}

const pastReach = 10 * time.Minute

// past asks what a color did until now.
func (d *Deployer) past(color string) control {
	if d.deps.Evidence == nil {
		return control{}
	}
	return control{d.deps.Evidence.Window(color, time.Now().Add(-pastReach)), true}
}

// alarm tells the deploy at work what befell the copy in s, if that is its new
// color and has traffic.
func (d *Deployer) alarm(s *slot, why string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if t := d.current; t != nil && t.next == s && d.live == s {
		select {
		case t.alarms <- why:
		default: // one is enough
		}
	}
}

// verdict is how a watch ended; without a phase it goes on.
type verdict struct {
	phase Phase
	why   string
}

// observe watches the new color for a span of time. It returns as soon as there is
// a verdict: what befalls the color, what a person orders, and what the figures
// say, whichever comes first.
func (d *Deployer) observe(t *transition, span time.Duration) verdict {
	d.progress(t, StepWatching, fmt.Sprintf("%s is watched for %v with %d%% of the traffic%s", t.next.id, span, d.Status().Live.Share, d.comparedWith(t)))
	began := time.Now()
	look := time.NewTicker(time.Second)
	defer look.Stop()
	end := time.NewTimer(span)
	defer end.Stop()
	for {
		select {
		case why := <-t.alarms: // goes before what may have come at the same time
			return d.worse(t, why)
		default:
		}
		select {
		case <-t.life.Done():
			return verdict{RolledBack, errStops.Error() + " before the watch was over"}
		case why := <-t.alarms:
			return d.worse(t, why)
		case o := <-t.orders:
			return d.obey(o)
		case <-look.C:
			if why := d.judge(t, began); why != "" {
				return d.worse(t, why)
			}
		case <-end.C:
			if why := d.judge(t, began); why != "" {
				return d.worse(t, why)
			}
			return verdict{}
		}
	}
}

// comparedWith says for people what the new color is compared with.
func (d *Deployer) comparedWith(t *transition) string {
	d.mu.Lock()
	share, from := d.share, t.record.From
	d.mu.Unlock()
	switch {
	case d.deps.Evidence == nil:
		return ", by its probes alone"
	case share < 100:
		return ", compared with " + from + " at the same time"
	case t.before.known && t.before.Requests.Of > 0:
		return fmt.Sprintf(", compared with what %s did in the last %v before the switch", from, t.before.Span.Round(time.Second))
	}
	return ", by the limits of app.watch alone: it is not known what " + from + " did before"
}

// worse is the verdict on a color that is worse than the one before.
func (d *Deployer) worse(t *transition, why string) verdict {
	d.mu.Lock()
	back := d.old.fit()
	d.mu.Unlock()
	switch {
	case t.record.OneWay:
		return verdict{Frozen, why + " (and the deploy is one-way)"}
	case !back:
		return verdict{Frozen, why + " (and the old color is not fit to go back to)"}
	}
	return verdict{RolledBack, why}
}

func (d *Deployer) obey(o order) verdict {
	if o.phase != RolledBack {
		return verdict{o.phase, "by " + o.by}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.old.present() {
		return verdict{RolledBack, "by " + o.by}
	}
	return verdict{Frozen, "by " + o.by + ", who asked for a rollback, but the old color does not run"}
}

// A look is one comparison of the colors.
type look struct {
	cfg              Watch
	fresh, then, now Figures // of the new color; of the old one before the switch, and since
}

// What the tests are asked for: the figures are looked at every second, so each
// look must be sure on its own. a test measures how often
// two equal colors are told apart.
const (
	sureThat  = 0.0002 // chance that what is seen is luck, for the comparison
	sureLimit = 0.002  // likewise for a limit of the file
	harm      = 0.005  // a difference of error rates below that is none
	slowness  = 1.2    // likewise a ratio of percentiles
	alike     = 0.05   // above it the old color does as it did before the switch
	costly    = 1.5    // likewise a ratio of costs, or of calls to requests
	minCalls  = 20     // of Claude and of the database
	minBursts = 5      // of errors in the log
	clustered = 4      // Claude calls that come together count as one
	fewest    = 20     // of the old color at the same time, below which it says nothing of itself
)

// judge compares the colors and says in words what is worse; empty if nothing is.
func (d *Deployer) judge(t *transition, since time.Time) string {
	if d.deps.Evidence == nil {
		return ""
	}
	d.mu.Lock()
	from := t.record.From
	d.mu.Unlock()
	l := look{cfg: d.policy.Load().Watch, fresh: d.deps.Evidence.Window(t.next.color, since), then: t.before.Figures, now: d.deps.Evidence.Window(from, since)}
	why := l.judge()
	evidence := l.sentences(t.next.color, from)
	if why != "" {
		evidence = append(evidence, why)
	}
	d.mu.Lock()
	t.record.Evidence = evidence
	d.mu.Unlock()
	return why
}

func (l look) judge() string {
	enough := uint64(l.cfg.MinSamples)
	for _, k := range []struct {
		what             string
		fresh, then, now Ratio
		enough           uint64
	}{
		{"requests", l.fresh.Requests, l.then.Requests, l.now.Requests, enough},
		{"Claude calls", l.fresh.Claude, l.then.Claude, l.now.Claude, min(enough, minCalls)},
		{"database queries", l.fresh.Database, l.then.Database, l.now.Database, min(enough, minCalls)},
	} {
		old := pool(k.then, k.now)
		if k.fresh.Of >= k.enough && old.Of > 0 && k.fresh.Rate()-old.Rate() > harm && compare.Above(k.fresh, old) < sureThat {
			return fmt.Sprintf("%.1f%% of its %d %s failed, %.1f%% of the old color's %d (chance that this is luck: less than %g)",
				100*k.fresh.Rate(), k.fresh.Of, k.what, 100*old.Rate(), old.Of, sureThat)
		}
	}
	if l.fresh.Requests.Of < enough {
		return ""
	}
	if limit := float64(l.cfg.MaxErrorRate); limit > 0 && compare.Exceeds(l.fresh.Requests, limit) < sureLimit {
		return fmt.Sprintf("%.1f%% of its %d requests failed, more than the %v of app.watch.max_error_rate", 100*l.fresh.Requests.Rate(), l.fresh.Requests.Of, l.cfg.MaxErrorRate)
	}
	if limit := l.cfg.MaxP95; limit > 0 && compare.Exceeds(l.fresh.slower(limit), 0.05) < sureLimit {
		return fmt.Sprintf("its p95 is %v, more than the %v of app.watch.max_p95", l.fresh.p95(), limit)
	}
	for _, look := range []func() string{l.slow, l.noisy, l.costlier} {
		if why := look(); why != "" {
			return why
		}
	}
	return ""
}

// slow compares the latencies: whether the new color has truly more requests than
// the old one beyond the old one's 95th percentile, and those by far.
func (l look) slow() string {
	p95, mark, worse := heavier(l.fresh.Latency, l.then.Latency, l.now.Latency, uint64(l.cfg.MinSamples), slowness)
	if !worse {
		return ""
	}
	return fmt.Sprintf("its p95 is %v, the old color's %v (chance that this is luck: less than %g)", time.Duration(p95), time.Duration(mark), sureThat)
}

// noisy compares what the colors write as errors, by their requests and by time:
// what a color writes of its own accord must not count against the one that has
// fewer requests, nor what it writes at every request against the one that has more.
func (l look) noisy() string {
	of := func(f Figures) compare.Times { return f.times(f.Log.Bursts) }
	fresh, old := of(l.fresh), poolTimes(of(l.then), of(l.now))
	if fresh.N < minBursts || fresh.Per()-old.Per() <= harm || compare.More(fresh, old) >= sureThat {
		return ""
	}
	return fmt.Sprintf("it wrote errors into its log %.1f times in 100 requests, the old color %.1f times (chance that this is luck: less than %g)", 100*fresh.Per(), 100*old.Per(), sureThat)
}

// costlier compares what a Claude call costs, and how many of them a request makes.
func (l look) costlier() string {
	if p95, mark, worse := heavier(l.fresh.Cost, l.then.Cost, l.now.Cost, minCalls, costly); worse {
		return fmt.Sprintf("its Claude calls cost $%.4f (p95), the old color's $%.4f (chance that this is luck: less than %g)", dollars(p95), dollars(mark), sureThat)
	}
	of := func(f Figures) compare.Times { return f.times(f.Claude.Of / clustered) }
	fresh, old := of(l.fresh), poolTimes(of(l.then), of(l.now))
	if l.fresh.Claude.Of < minCalls || fresh.Per() < costly*old.Per() || compare.More(fresh, old) >= sureThat {
		return ""
	}
	return fmt.Sprintf("100 of its requests make %.0f Claude calls, 100 of the old color's %.0f (chance that this is luck: less than %g)", 100*clustered*fresh.Per(), 100*clustered*old.Per(), sureThat)
}

// heavier tells whether the new color has truly more than the old one beyond the
// old one's 95th percentile, and by the ratio at least. What the old color did
// before the switch counts as long as it does the same now.
func heavier(fresh, then, now Spread, enough uint64, ratio float64) (p95, mark int64, worse bool) {
	old := now
	if at := then.P95(); at > 0 && (now.Count() < fewest || compare.Above(now.Beyond(at), then.Beyond(at)) > alike) {
		old = then.Plus(now)
	}
	mark, p95 = old.P95(), fresh.P95()
	if mark == 0 || fresh.Count() < enough || float64(p95) < ratio*float64(mark) {
		return p95, mark, false
	}
	return p95, mark, compare.Above(fresh.Beyond(mark), old.Beyond(mark)) < sureThat
}

// poolTimes is pool for what is counted by requests and by time.
func poolTimes(then, now compare.Times) compare.Times {
	if now.Requests >= fewest && compare.More(now, then) <= alike {
		return now
	}
	return then.Plus(now)
}

// pool adds what the old color did before the switch to what it did since, unless
// it has become worse itself meanwhile: then only the same time counts.
func pool(then, now Ratio) Ratio {
	if now.Of >= fewest && compare.Above(now, then) <= alike {
		return now
	}
	return then.Plus(now)
}

func dollars(millionths int64) float64 { return float64(millionths) / 1e6 }

// sentences are what was seen, for the record.
func (l look) sentences(fresh, old string) []string {
	line := func(who string, f Figures) string {
		s := fmt.Sprintf("%s: %d requests, %d failed, p95 %v", who, f.Requests.Of, f.Requests.Hits, f.p95())
		if f.Claude.Of > 0 {
			s += fmt.Sprintf("; %d Claude calls, %d failed", f.Claude.Of, f.Claude.Hits)
		}
		if f.Cost.Count() > 0 {
			s += fmt.Sprintf(", at $%.4f each (p95)", dollars(f.Cost.P95()))
		}
		if f.Log.Lines > 0 {
			s += fmt.Sprintf("; %d lines of error in its log", f.Log.Lines)
		}
		if f.Database.Of > 0 {
			s += fmt.Sprintf("; %d queries, %d failed", f.Database.Of, f.Database.Hits)
		}
		return s
	}
	return []string{line(fresh, l.fresh), line(old+" at the same time", l.now), line(old+" before the switch", l.then)}
}
