package load

import (
	"context"
	"sync/atomic"
	"time"
)

// Saturate asks how much the server can do: workers send one request after the
// other, each as soon as the one before is answered, for p.Duration; p.Rate is not
// used. It returns the requests per second that were OK and the tally. Being a
// closed loop it says how much, never how fast: ignore its latencies.
func Saturate(ctx context.Context, p Plan, workers int) (perSecond float64, t *Tally, err error) {
	p.Rate, p.InFlight = 1, workers
	r, err := newRunner(ctx, p)
	if err != nil {
		return 0, nil, err
	}
	defer r.close()
	began := time.Now()
	var next atomic.Int64
	for range workers {
		r.flying.Go(func() {
			for r.ctx.Err() == nil && time.Since(began) < p.Duration {
				kind, chance := r.plan.choose(next.Add(1) - 1)
				if o, ok := r.send(kind, chance, time.Now()); ok {
					r.observe(o)
				}
			}
		})
	}
	r.flying.Wait()
	perSecond = float64(r.tally.Summary(nil).OK) / time.Since(began).Seconds()
	return perSecond, r.tally, r.failure()
}
