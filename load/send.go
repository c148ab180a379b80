package load

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"time"
)

// schedule lets requests become due until the plan's end, and never waits for an
// answer.
func (r *runner) schedule(start time.Time) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for n := int64(0); ; n++ {
		after := time.Duration(float64(n) / r.plan.Rate * float64(time.Second))
		last := r.plan.Duration > 0 && after >= r.plan.Duration
		if last {
			after = r.plan.Duration
		}
		due := start.Add(after)
		timer.Reset(time.Until(due))
		select {
		case <-timer.C:
		case <-r.plan.Stop:
			return
		case <-r.ctx.Done():
			return
		}
		if last {
			return
		}
		r.launch(n, due)
	}
}

// launch sends request n by a goroutine of its own, if there is a place in flight.
func (r *runner) launch(n int64, due time.Time) {
	kind, chance := r.plan.choose(n)
	select {
	case r.places <- struct{}{}:
	default:
		now := time.Now()
		r.observe(Outcome{Kind: kind.Name, Due: due, Sent: now, Done: now, Verdict: Saturated, Cause: "in_flight"})
		return
	}
	r.flying.Go(func() {
		defer func() { <-r.places }()
		if o, ok := r.send(kind, chance, due); ok {
			r.observe(o)
		}
	})
}

// send carries one request and judges its answer; false means that the run ended
// first, so that nothing can be said.
func (r *runner) send(kind Kind, chance *rand.Rand, due time.Time) (Outcome, bool) {
	o := Outcome{Kind: kind.Name, Due: due, Sent: time.Now()}
	ctx, cancel := context.WithTimeout(r.ctx, r.plan.Timeout)
	defer cancel()
	req, err := kind.Make(ctx, r.plan.Base, chance)
	if err != nil {
		r.cancel(errUnmade{fmt.Errorf("make a request of kind %q: %w", kind.Name, err)})
		return o, false
	}
	answer, err := r.exchange(req.WithContext(ctx))
	o.Done = time.Now()
	if r.ctx.Err() != nil {
		return o, false
	}
	o.Status = answer.Status
	switch {
	case err != nil:
		o.Verdict, o.Cause = blame(err)
	case int64(len(answer.Body)) > r.plan.MaxBody:
		o.Verdict, o.Cause = WrongBody, "too_large"
	case kind.Judge != nil:
		o.Verdict, o.Cause = kind.Judge(answer)
	default:
		o.Verdict, o.Cause = ByStatus(answer)
	}
	return o, true
}

// exchange sends the request and reads the whole answer, so that its connection
// can be used again.
func (r *runner) exchange(req *http.Request) (Answer, error) {
	resp, err := r.via.RoundTrip(req)
	if err != nil {
		return Answer{}, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, r.plan.MaxBody+1))
	return Answer{Request: req, Status: resp.StatusCode, Header: resp.Header, Body: body}, err
}

func (r *runner) observe(o Outcome) {
	r.tally.Add(o)
	if r.plan.Observe != nil {
		r.plan.Observe(o)
	}
}
