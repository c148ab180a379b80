package claude_test

import (
	"flag"
	"fmt"
	"testing"
	"time"

	"mainstay.dev/mainstay/claude/claudetest/simulate"
)

// calls is how many calls each seed of a simulation makes, and seeds how many there
// are; bench/claude -faults runs them at length.
var (
	calls = flag.Int("calls", 2000, "simulated calls per seed")
	seeds = flag.Int("seeds", 2, "seeds per simulation")
)

func TestSimulatedCallsOfTheDefaultPolicyDoNotFail(t *testing.T) {
	for _, s := range simulate.Scenarios() {
		t.Run(fmt.Sprintf("%s/streams %v", s.Name, s.Streams), func(t *testing.T) {
			v := simulate.Run(t, s, nil, *calls, *seeds)
			t.Log(v)
			if v.Failed*10_000 >= v.Calls || s.Calls > 0 && v.Failed > 0 {
				t.Errorf("%d of %d failed, 0.01%% or more", v.Failed, v.Calls)
			}
			if v.PerCall() > 1.1 {
				t.Errorf("%d attempts for %d calls", v.Attempts, v.Calls)
			}
			if v.Refused > 0 {
				t.Errorf("%d attempts were refused", v.Refused)
			}
		})
	}
}

// What is simulated hurts: the other policies fail calls.
func TestSimulatedCallsOfOtherPoliciesFail(t *testing.T) {
	for _, c := range []struct {
		of    simulate.Scenario
		least map[string]float64 // per cent
	}{
		{simulate.Independent(false), map[string]float64{"no retries": 4}},
		{simulate.Independent(true), map[string]float64{"no retries": 4, "SDK": 2, "compatible": 2}},
		{simulate.OwnLimit(), map[string]float64{"no retries": 20, "SDK": 20, "compatible": 20}},
		{simulate.Overload(), map[string]float64{"no retries": 3, "SDK": 3, "compatible": 30}},
	} {
		for _, p := range simulate.Policies()[1:] {
			if v := simulate.Run(t, c.of, p.Policy, 1000, 1); v.Share() < c.least[p.Name] {
				t.Errorf("%s, streams %v, %s: %v", c.of.Name, c.of.Streams, p.Name, v)
			}
		}
	}
}

// While Claude is down no more is tried than comes, but for one retry: the one that tells a
// call that failed from an outage. It is a tenth of what comes where ten calls come while
// Claude is down, and more where fewer do.
func TestASimulatedOutageMeetsNextToNoRetries(t *testing.T) {
	for rate, most := range map[float64]int64{0.05: 150, 0.1: 120, 0.25: 110, 0.5: 110, 1: 110, 2: 110, 20: 110} {
		t.Run(fmt.Sprint(rate, " calls a second"), func(t *testing.T) {
			s := simulate.Scenario{PerSecond: rate, Work: 3 * time.Second, Down: simulate.Every(10*time.Minute, time.Minute)}
			// Which of two that come at the same moment is the first is chance: of many outages it is little.
			v := simulate.Run(t, s, nil, max(4**calls, int(rate*13*60)), *seeds)
			t.Logf("%s; in the outages %d calls came, and %d attempts were made (%.3f per call)", v, v.Came, v.Vain, float64(v.Vain)/float64(v.Came))
			if v.Failed != 0 {
				t.Errorf("%d of %d failed", v.Failed, v.Calls)
			}
			if v.Came == 0 || v.Vain*100 > v.Came*most {
				t.Errorf("%d attempts in the outages for %d calls", v.Vain, v.Came)
			}
		})
	}
}
