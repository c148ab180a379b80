package app

import (
	"context"
	"fmt"
	"math"
	"time"

	"mainstay.dev/mainstay/internal/deploy"
	"mainstay.dev/mainstay/internal/monitor"
	"mainstay.dev/mainstay/internal/setting"
)

// evidence is what the monitor knows of a color, in the words of the watch.
type evidence struct{ monitor *monitor.Monitor }

func (e evidence) Window(color string, since time.Time) deploy.Figures {
	requests := e.monitor.Since("edge", color, since)
	f := deploy.Figures{
		Requests: deploy.Ratio{Hits: requests.Errors, Of: requests.Count},
		Claude:   e.ratio("claude", color, since),
		Database: e.ratio("pooler", color, since),
		Latency:  spread(requests.Latency, time.Nanosecond),
		Cost:     spread(e.monitor.Since("claude", color, since).Cost, time.Microsecond), // as Spell says
		Span:     requests.Span,
	}
	f.Log.Lines, f.Log.Bursts = e.monitor.Errors(color, since)
	return f
}

// spread puts buckets into a unit.
func spread(bs []monitor.Bucket, unit time.Duration) (s deploy.Spread) {
	for _, b := range bs {
		s = append(s, deploy.Bucket{Size: int64(b.Took / unit), Count: b.Count})
	}
	return s
}

func (e evidence) ratio(plane, color string, since time.Time) deploy.Ratio {
	s := e.monitor.Since(plane, color, since)
	return deploy.Ratio{Hits: s.Errors, Of: s.Count}
}

// burning tells what a deploy must not be laid over: an error budget that burns.
func (a *App) burning(context.Context) (what []string) {
	if why := a.budgetBurns(a.current.Load().App.Gates.ErrorBudget); why != "" {
		what = append(what, why)
	}
	return what
}

// fewFailures is how many requests may fail at any rate: of a handful of requests
// each is a large share.
const fewFailures = 10

// budgetBurns says in words that the error budget burns, after the way of the SRE
// workbook: over the window, and still at its end.
func (a *App) budgetBurns(b deploy.ErrorBudget) string {
	if b.Objective == 0 {
		return ""
	}
	allowed := math.Round((1-float64(b.Objective))*1e9) / 1e9 // 0.1%, not what floating point makes of it
	failed, all, known := a.monitor.Failed(b.Window)
	lately, ofThem, _ := a.monitor.Failed(max(b.Window/12, time.Minute))
	if failed < fewFailures || float64(failed) < b.Burn*allowed*float64(all) || float64(lately) < b.Burn*allowed*float64(ofThem) || lately == 0 {
		return ""
	}
	rate := float64(failed) / float64(all)
	return fmt.Sprintf("the error budget burns %.0f times as fast as it may: %.2g%% of %d requests failed in the last %v, %v may (app.gates.error_budget)",
		rate/allowed, 100*rate, all, known.Round(time.Second), setting.Percent(allowed))
}
