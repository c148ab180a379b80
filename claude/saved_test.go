package claude_test

import (
	"context"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"mainstay.dev/mainstay/claude"
	"mainstay.dev/mainstay/claude/claudetest"
)

func TestACallTellsWhatSavedItAndEveryAttemptsRequestID(t *testing.T) {
	for _, c := range []struct {
		name   string
		body   string
		faults []claudetest.Fault
		saved  claude.Saved
	}{
		{"healthy", hello, nil, claude.SavedNone},
		{"wrong", `{"model":"claude-sonnet-5"}`, nil, claude.SavedNone},
		{"overloaded once", hello, []claudetest.Fault{claudetest.Overloaded}, claude.SavedRetry},
		{"begun anew", helloS, []claudetest.Fault{claudetest.ErrorAfterStart}, claude.SavedRetry},
		{"cut midway", helloS, []claudetest.Fault{claudetest.CutBetween}, claude.SavedResume},
		{"gathered, cut midway", hello, []claudetest.Fault{claudetest.CutBetween}, claude.SavedAggregate},
	} {
		t.Run(c.name, func(t *testing.T) {
			fake := claudetest.New(claudetest.Options{})
			fake.Next(c.faults...)
			inBubble(t, fake, patient, func(t *testing.T, st *stage) {
				st.post(c.body)
				x := st.book.last(t, 1)
				if x.GenAI.Saved != string(c.saved) || x.Tries != len(c.faults)+1 {
					t.Errorf("saved by %q in %d tries, want %q: %v", x.GenAI.Saved, x.Tries, c.saved, x.Err)
				}
				seen := map[string]bool{"": true}
				for _, a := range x.Attempts {
					if seen[a.UpstreamID] || !strings.HasPrefix(a.UpstreamID, "req_") {
						t.Errorf("request-id %q among %v", a.UpstreamID, seen)
					}
					seen[a.UpstreamID] = true
				}
			})
		})
	}
}

func TestACallThatWaitsForClaudeToComeBackIsSavedByTheHold(t *testing.T) {
	fake := claudetest.New(claudetest.Options{FaultRate: 1, Faults: []claudetest.Fault{claudetest.Overloaded}})
	inBubble(t, fake, patient, func(t *testing.T, st *stage) {
		var wg sync.WaitGroup
		for i := range 8 { // calls that differ shut the gate
			wg.Go(func() { st.post(strings.Replace(hello, "hello", strconv.Itoa(i), 1)) })
		}
		time.Sleep(5 * time.Second)
		time.AfterFunc(5*time.Second, func() { fake.SetFaults(0) })
		if r := st.send("POST", "/v1/messages", hello, func(r *http.Request) { r.Header.Set("X-Request-Id", "late") }); r.status != 200 {
			t.Errorf("%d %s", r.status, r.body)
		}
		wg.Wait()
		for _, x := range st.book.pages(t, 9) {
			if x.ID == "late" && x.GenAI.Saved != "hold" {
				t.Errorf("saved by %q in %d tries", x.GenAI.Saved, x.Tries)
			}
		}
	})
}

func TestAnAttachedRetrySaysSo(t *testing.T) {
	inBubble(t, claudetest.New(claudetest.Options{Latency: 10 * time.Second}), patient, func(t *testing.T, st *stage) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, "POST", st.url+"/v1/messages", strings.NewReader(hello))
		if err != nil {
			t.Fatal(err)
		}
		req.Header = http.Header{"X-Api-Key": {key}, "Anthropic-Version": {"2023-06-01"}, "Content-Type": {"application/json"}}
		if _, err := st.http.Do(req); err == nil {
			t.Fatal("an answer")
		}
		r := st.send("POST", "/v1/messages", hello, func(r *http.Request) { r.Header.Set("X-Stainless-Retry-Count", "1") })
		if r.status != 200 || r.head.Get("Mainstay-Attached") != "1" {
			t.Fatalf("%d %v", r.status, r.head)
		}
		saved := map[string]int{}
		for _, x := range st.book.pages(t, 2) {
			saved[x.GenAI.Saved]++
		}
		if saved["attach"] != 1 || saved[""] != 1 {
			t.Errorf("%v", saved)
		}
	})
}

// In real time: where no time passes between two steps, a probe can't lose its way.
func TestClaudeIsFoundToBeBackByARealClockToo(t *testing.T) {
	st, fake := over(t, claudetest.Options{}, func(c *claude.Config) { patient(c); c.Retry.Deadline = 30 * time.Second })
	for range 8 {
		fake.Next(claudetest.Overloaded)
	}
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			if r := st.post(strings.Replace(hello, "hello", strconv.Itoa(i), 1)); r.status != 200 {
				t.Errorf("%d %s", r.status, r.body)
			}
		})
	}
	wg.Wait()
}
