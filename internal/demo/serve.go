package demo

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"mainstay.dev/mainstay/load"
)

// serve keeps everything up, with a light load on Mainstay so that there is
// something to see, until ctx ends.
func (h *house) serve(ctx context.Context, m *measurement) error {
	rate := max(2, float64(int(m.rate/10)))
	h.invite(ctx, rate)
	var recent atomic.Pointer[load.Tally]
	recent.Store(load.NewTally())
	plan := h.plan(h.kept, rate, 0, m.opts.Slices+1)
	plan.Observe = func(o load.Outcome) { recent.Load().Add(o) }

	watching := make(chan struct{})
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		defer close(watching)
		h.watch(ctx, &recent)
	}()
	_, err := load.Run(ctx, plan)
	cancel()
	<-watching
	return err
}

// watch says how the load goes: on a terminal on one line that changes every few
// seconds, elsewhere by a line a minute.
func (h *house) watch(ctx context.Context, recent *atomic.Pointer[load.Tally]) {
	every, show := time.Minute, func(line string) { h.screen.say("  %s", line) }
	if h.screen.live {
		every, show = 10*time.Second, func(line string) { h.screen.draw("  " + wrap(line)[0]) }
	}
	for pause(ctx, every) {
		show(glanceLine(every, recent.Swap(load.NewTally())))
		h.trimLogs()
	}
	h.screen.draw()
}

// invite tells a person where to look and what to try.
func (h *house) invite(ctx context.Context, rate float64) {
	link, err := h.mainstay(ctx, "dashboard", "-c", h.config)
	if err != nil {
		link = fmt.Sprintf("none: %v", err)
	}
	s := h.screen
	s.say("  It goes on with a light load of %.0f requests/s; Ctrl-C ends and removes it all.", rate)
	s.say("")
	s.say("  %-12s %s", "dashboard", s.in(bold, strings.TrimSpace(link)))
	s.say("  %-12s %s", "the app", h.kept.base)
	s.say("  %-12s %s", "bare", h.bare.base)
	s.say("")
	s.say("  To try in another terminal:")
	s.say("    %s status -c %s", h.opts.Mainstay, h.config)
	s.say("    %s deploy -c %s -- %s", h.opts.Mainstay, h.config, h.opts.App)
	s.say("    %s dashboard -c %s", h.opts.Mainstay, h.config)
	s.say("")
}

// glanceLine says how the light load went lately.
func glanceLine(lately time.Duration, t *load.Tally) string {
	all, api := t.Summary(nil), t.Summary(isAPI)
	if all.Requests == 0 {
		return fmt.Sprintf("the last %s: nothing answered yet", lately)
	}
	parts := []string{fmt.Sprintf("the last %s: %d requests, %d failed, API p95 %s", lately, all.Requests, all.Failed, short(api.P95))}
	for _, cause := range sortedKeys(all.Causes) {
		parts = append(parts, fmt.Sprintf("%d %s", all.Causes[cause], cause))
	}
	return strings.Join(parts, "; ")
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
