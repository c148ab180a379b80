package demo

import (
	"context"
	"fmt"
	"os"
	"time"

	"mainstay.dev/mainstay/load"
)

// A measurement is what the demo found.
type measurement struct {
	opts     Options
	rate     float64
	capacity float64 // what the bare app was found to hold; 0: it was not asked
	loadavg  float64 // of the machine before the demo began; 0 where the kernel does not say
	sides    []*result
}

// A result is what the users of one side felt, over all of its slices.
type result struct {
	side    *side
	all     *load.Tally
	deploys *load.Tally   // of requests that a deploy may have touched
	took    time.Duration // under load
	windows []time.Duration
	undone  []error // deploys that did not come to their end
}

// Of each: how long the bare app is driven to find what it holds, how long each
// side is warmed, and how long after a deploy the load goes on.
const (
	probeFor  = 4 * time.Second
	warmFor   = 2 * time.Second
	afterwork = time.Second
)

// share of what the bare app holds that both sides get.
const share = 0.7

// measure finds the rate, then gives the load to one side after the other, as often
// as the options say: they would share the machine's cores if it came at once.
func (h *house) measure(ctx context.Context) (*measurement, error) {
	m := &measurement{opts: h.opts, rate: h.opts.Rate, loadavg: h.loadavg}
	for _, s := range h.sides() {
		m.sides = append(m.sides, &result{side: s, all: load.NewTally(), deploys: load.NewTally()})
	}
	if m.rate == 0 {
		if err := h.screen.step("the load", func() (string, error) { return h.calibrate(ctx, m) }); err != nil {
			return nil, err
		}
	}
	for _, s := range h.sides() {
		if _, err := load.Run(ctx, h.plan(s, m.rate, warmFor, 0)); err != nil {
			return nil, err
		}
	}
	h.screen.begin(m)
	defer h.screen.end()
	for n := range h.opts.Slices {
		for _, r := range m.sides {
			if err := h.slice(ctx, m, r, n); err != nil {
				return nil, err
			}
			if !pause(ctx, 500*time.Millisecond) {
				return nil, ctx.Err()
			}
		}
	}
	return m, nil
}

// plan is the load on one side. Slice n has the same requests on both sides.
func (h *house) plan(s *side, rate float64, length time.Duration, n int) load.Plan {
	return load.Plan{Base: s.base, Rate: rate, Duration: length, Mix: mix(), Seed: h.opts.Seed<<16 + uint64(n)}
}

// calibrate asks the bare app how much it can do, by a closed loop, and takes a
// share of it.
func (h *house) calibrate(ctx context.Context, m *measurement) (string, error) {
	const workers = 16 // enough to keep two cores busy while some wait for Claude
	capacity, tally, err := load.Saturate(ctx, h.plan(h.bare, 0, probeFor, 0), workers)
	if err != nil {
		return "", err
	}
	if ctx.Err() != nil {
		return "", ctx.Err()
	}
	if capacity < 10 {
		return "", fmt.Errorf("the bare app answers %.0f requests/s at most (%v): too few to measure; is the machine busy?", capacity, tally.Summary(nil).Causes)
	}
	m.capacity = capacity
	m.rate = min(400, max(10, float64(int(capacity*share))))
	return fmt.Sprintf("the bare app can do %.0f requests/s; each side gets %.0f/s (%.0f%%)", capacity, m.rate, 100*m.rate/capacity), nil
}

// slice gives one side the load once, with a deploy from the middle on. The load
// outlasts the deploy, however long that takes.
func (h *house) slice(ctx context.Context, m *measurement, r *result, n int) error {
	window, stop := &load.Window{}, make(chan struct{})
	plan := h.plan(r.side, m.rate, 0, n+1)
	plan.Stop = stop
	plan.Observe = func(o load.Outcome) {
		r.all.Add(o)
		window.Add(o)
	}
	var undone error
	began := time.Now()
	go func() {
		defer close(stop)
		undone = h.deployMidway(ctx, r.side, window, m.opts.Slice)
		pause(ctx, max(afterwork, m.opts.Slice-time.Since(began)))
	}()
	shown := h.screen.follow(m, r, n)
	report, err := load.Run(ctx, plan)
	<-stop
	r.took += report.Took
	r.deploys.Merge(window.Tally())
	r.windows = append(r.windows, window.Length())
	if ctx.Err() != nil {
		err = ctx.Err()
	} else if undone != nil {
		r.undone = append(r.undone, undone)
	}
	shown()
	return err
}

// deployMidway deploys on the side when half of the slice is over.
func (h *house) deployMidway(ctx context.Context, s *side, window *load.Window, slice time.Duration) error {
	if !pause(ctx, slice/2) {
		return ctx.Err()
	}
	window.Open()
	defer window.Close()
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if err := s.deploy(ctx); err != nil {
		return fmt.Errorf("deploy %s: %w", s.title, err)
	}
	return nil
}

// loadAverage is how many processes have wanted to run during the last minute.
func loadAverage() (average float64) {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return 0
	}
	// What can't be read is 0: not known.
	_, _ = fmt.Sscan(string(text), &average)
	return average
}
