// Package load drives HTTP traffic at a constant rate and says truthfully what
// became of it.
//
// The load is open: request number n is due n/rate after the start, whether or not
// those before it were answered, as users arrive whether or not others wait.
// Latency runs from that due time, so a server that stalls for a second is charged
// with it by every request that was due meanwhile (a closed loop would send fewer
// requests just then, and understate it: "coordinated omission").
//
// What is the generator's own doing is never charged to the server: requests in
// flight are bounded, connections are kept and used again, and a request that
// finds no place in flight, no port or no file descriptor is [Saturated], apart
// from all failures.
//
// The same seed gives the same requests in the same order. A plan is safe to use
// again, also at the same time. Anyone may import this package; it imports no other
// part of Mainstay, because it judges from outside.
package load

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"sync"
	"time"
)

// A Kind is one sort of request in a mix.
type Kind struct {
	Name   string // what its outcomes are counted under
	Weight int    // its share of all requests; 0: none
	// Make makes a request to the server at base. All chance comes from r, so
	// that a run can be repeated. It may be called concurrently.
	Make func(ctx context.Context, base string, r *rand.Rand) (*http.Request, error)
	// Judge says what an answer is worth and, unless it is OK, why, in a word.
	// nil: a status below 400 is OK. It may be called concurrently.
	Judge func(Answer) (verdict Verdict, cause string)
}

// An Answer is what the server sent, and to what.
type Answer struct {
	Request *http.Request // its body has been read
	Status  int
	Header  http.Header
	Body    []byte
}

// A Plan is a load to run.
type Plan struct {
	Base     string        // where the server is: http://127.0.0.1:8080
	Rate     float64       // requests per second
	Duration time.Duration // how long requests become due; 0: until Stop or the end of the context
	Mix      []Kind
	Seed     uint64
	// Stop ends the arrivals when it is closed; requests in flight are waited
	// for. May be nil.
	Stop <-chan struct{}

	InFlight int           // requests at once, and connections kept; default 256
	Timeout  time.Duration // of one request from when it is sent; default 30s
	MaxBody  int64         // bytes of an answer; a larger one is a WrongBody; default 4 MiB

	// Observe is told every outcome, from many goroutines at once. May be nil.
	Observe func(Outcome)
	// Transport carries the requests; default: one of its own that keeps InFlight
	// connections, takes no proxy from the environment and follows no redirect.
	// Like a browser, net/http sends a request without a body again when the
	// server closed a kept connection before the first byte of an answer.
	Transport http.RoundTripper
}

// A Report is what became of a run.
type Report struct {
	Tally *Tally
	Began time.Time
	Took  time.Duration // while requests became due; not the wait for the last answers
}

// Run drives the plan and returns when the last answer is in. When ctx ends, it
// gives up what is in flight (which is then not counted) and returns what it has;
// that is no error. An error means that the plan is not fit to run.
func Run(ctx context.Context, p Plan) (Report, error) {
	r, err := newRunner(ctx, p)
	if err != nil {
		return Report{}, err
	}
	defer r.close()
	report := Report{Tally: r.tally, Began: time.Now()}
	r.schedule(report.Began)
	report.Took = time.Since(report.Began)
	r.flying.Wait()
	return report, r.failure()
}

// Check reports every mistake of the plan.
func (p Plan) Check() error {
	var errs []error
	if p.Rate <= 0 {
		errs = append(errs, errors.New("rate: must be positive"))
	}
	if p.Duration < 0 || p.InFlight < 0 || p.Timeout < 0 || p.MaxBody < 0 {
		errs = append(errs, errors.New("duration, in flight, timeout and max body: must not be negative"))
	}
	total := 0
	for _, k := range p.Mix {
		if k.Make == nil {
			errs = append(errs, fmt.Errorf("mix: %q makes no request", k.Name))
		}
		if k.Weight < 0 {
			errs = append(errs, fmt.Errorf("mix: the weight of %q is negative", k.Name))
		}
		total += k.Weight
	}
	if total <= 0 {
		errs = append(errs, errors.New("mix: no kind has a weight"))
	}
	return errors.Join(errs...)
}

func (p Plan) withDefaults() Plan {
	if p.InFlight == 0 {
		p.InFlight = 256
	}
	if p.Timeout == 0 {
		p.Timeout = 30 * time.Second
	}
	if p.MaxBody == 0 {
		p.MaxBody = 4 << 20
	}
	return p
}

// choose picks request number n: its kind, and the chance that makes it. It
// depends on the seed and n alone, never on what happened before.
func (p Plan) choose(n int64) (Kind, *rand.Rand) {
	r := rand.New(rand.NewPCG(p.Seed, uint64(n)))
	total := 0
	for _, k := range p.Mix {
		total += k.Weight
	}
	at := r.IntN(total)
	for _, k := range p.Mix {
		if at < k.Weight {
			return k, r
		}
		at -= k.Weight
	}
	panic("load: the weights changed during a run")
}

// A runner is one run of a plan.
type runner struct {
	plan   Plan
	ctx    context.Context
	cancel context.CancelCauseFunc
	via    http.RoundTripper
	own    *http.Transport // via, when it is ours to close
	places chan struct{}   // one for each request in flight
	flying sync.WaitGroup
	tally  *Tally
}

func newRunner(ctx context.Context, p Plan) (*runner, error) {
	if err := p.Check(); err != nil {
		return nil, fmt.Errorf("this load can't run: %w", err)
	}
	p = p.withDefaults()
	r := &runner{plan: p, via: p.Transport, places: make(chan struct{}, p.InFlight), tally: NewTally()}
	if r.via == nil {
		r.own = &http.Transport{
			MaxConnsPerHost:     p.InFlight,
			MaxIdleConns:        p.InFlight,
			MaxIdleConnsPerHost: p.InFlight,
			IdleConnTimeout:     90 * time.Second,
			DisableCompression:  true,
		}
		r.via = r.own
	}
	r.ctx, r.cancel = context.WithCancelCause(ctx)
	return r, nil
}

func (r *runner) close() {
	r.cancel(nil)
	if r.own != nil {
		r.own.CloseIdleConnections()
	}
}

// errUnmade marks the end of a run because a Kind could make no request.
type errUnmade struct{ error }

func (r *runner) failure() error {
	if unmade, ok := errors.AsType[errUnmade](context.Cause(r.ctx)); ok {
		return unmade.error
	}
	return nil
}
