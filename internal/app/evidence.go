package app

import (
	"time"

	"mainstay.dev/mainstay/internal/deploy"
	"mainstay.dev/mainstay/internal/monitor"
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
