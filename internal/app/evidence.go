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
		Latency:  make([]deploy.Bucket, len(requests.Latency)),
	}
	for i, b := range requests.Latency {
		f.Latency[i] = deploy.Bucket(b)
	}
	return f
}

func (e evidence) ratio(plane, color string, since time.Time) deploy.Ratio {
	s := e.monitor.Since(plane, color, since)
	return deploy.Ratio{Hits: s.Errors, Of: s.Count}
}
