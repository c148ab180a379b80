package main

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"mainstay.dev/mainstay/claude/claudetest/simulate"
)

// simulated prints what callers see of each scenario under each policy, and ends the
// program, with code 1 if one of the bars of the policy deadline was missed. Virtual
// time is to be had in a test only, so it is one.
func simulated(calls, seeds int) {
	testing.Init()
	testing.Main(func(string, string) (bool, error) { return true, nil }, []testing.InternalTest{
		{Name: "faults", F: func(t *testing.T) { table(t, calls, seeds) }},
	}, nil, nil)
}

func table(t *testing.T, calls, seeds int) {
	fmt.Printf("%d seeds. Failed, attempts for each call, and what 99.9%% of the calls waited at most, in all. (Policies other than deadline: a tenth of the calls.)\n\n| | calls |", seeds)
	policies := simulate.Policies()
	for _, p := range policies {
		fmt.Printf(" %s |", p.Name)
	}
	fmt.Println("\n|---|---|" + strings.Repeat("---|", len(policies)))
	for _, s := range simulate.Scenarios() {
		kind := "JSON"
		if s.Streams {
			kind = "streams"
		}
		for i, p := range policies {
			n := calls
			if i > 0 {
				n = (calls + 9) / 10
			}
			v := simulate.Run(t, s, p.Policy, n, seeds)
			if i == 0 {
				fmt.Printf("| %s, %s | %d |", kind, s.Name, v.Calls)
				judge(t, s, v)
			}
			fmt.Printf(" %d (%.4g%%), %.3f, %v |", v.Failed, v.Share(), v.PerCall(), v.Waited.Round(100*time.Millisecond))
		}
		fmt.Println()
	}
}

// judge holds the policy deadline to its promises.
func judge(t *testing.T, s simulate.Scenario, v simulate.Verdict) {
	if v.Failed*10_000 >= v.Calls || s.Calls > 0 && v.Failed > 0 || v.PerCall() > 1.1 || v.Refused > 0 {
		t.Errorf("%s: the policy deadline misses its bar: %v, %d attempts refused", s.Name, v, v.Refused)
	}
}
