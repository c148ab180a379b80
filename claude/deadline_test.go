package claude_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"mainstay.dev/mainstay/claude"
	"mainstay.dev/mainstay/claude/claudetest"
)

// patient makes a plane of the default policy.
func patient(c *claude.Config) { c.Retry.Policy = "deadline" }

func TestUnderTheDefaultPolicyEveryJSONFaultEndsWell(t *testing.T) {
	for _, f := range append(claudetest.HTTPFaults(), claudetest.Hang) {
		for _, n := range []int{1, 3, -1, -3} {
			gathers := n < 0
			if n = max(n, -n); gathers && f == claudetest.Truncated {
				continue // a stream can't be
			}
			t.Run(fmt.Sprint(f, n, gathers), func(t *testing.T) {
				fake := claudetest.New(claudetest.Options{RetryAfter: "2"})
				for range n {
					fake.Next(f)
				}
				inBubble(t, fake, func(c *claude.Config) {
					patient(c)
					c.Timeouts.FirstByte, c.Recovery.Aggregate = time.Minute/4, gathers
				}, func(t *testing.T, st *stage) {
					r := st.post(hello)
					x := st.book.last(t, 1)
					if r.status != 200 || !strings.Contains(r.body, `"stop_reason":"end_turn"`) || x.Code != "ok" || x.Tries != n+1 {
						t.Errorf("%d %s after %d tries: %s", r.status, x.Code, x.Tries, r.body)
					}
				})
			})
		}
	}
}

func TestTheCallersDeadlineEndsItsCallWithOneErrorBeforeIt(t *testing.T) {
	for name, head := range map[string]string{"Mainstay-Deadline": "9s", "X-Stainless-Timeout": "9"} {
		seen := make(chan http.Header, 100)
		h := func(w http.ResponseWriter, r *http.Request) { seen <- r.Header; busy(w, r) }
		inBubble(t, answers(h), patient, func(t *testing.T, st *stage) {
			begun := time.Now()
			r := st.send("POST", "/v1/messages", hello, func(r *http.Request) { r.Header.Set(name, head) })
			if took := time.Since(begun); took >= 9*time.Second || r.status != 529 || r.head.Get("X-Should-Retry") != "false" || r.head.Get("Mainstay-Code") != "overloaded" {
				t.Errorf("%d after %v: %v", r.status, took, r.head)
			}
			if parseError(t, r.body).Error.Type != "overloaded_error" || (<-seen).Get("Mainstay-Deadline") != "" {
				t.Error("no Claude error, or our header went upstream")
			}
		})
	}
	inBubble(t, answers(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }), patient, func(t *testing.T, st *stage) {
		begun := time.Now()
		r := st.send("POST", "/v1/messages", hello, func(r *http.Request) { r.Header.Set("Mainstay-Deadline", "30") })
		if took := time.Since(begun); took >= 30*time.Second || r.status != 504 || r.head.Get("X-Should-Retry") != "false" {
			t.Errorf("%d after %v", r.status, took)
		}
		if st.Stats().Shut != 0 {
			t.Error("the caller's own haste shut the gate")
		}
	})
}

func TestAWaitOfAnHourIsRefusedAtOnceWithOneInReason(t *testing.T) {
	inBubble(t, answers(says(429, `{"type":"error","error":{"type":"rate_limit_error","message":"m"}}`, "Retry-After", "3600")), patient, func(t *testing.T, st *stage) {
		begun := time.Now()
		r := st.post(hello)
		after, _ := strconv.Atoi(r.head.Get("Retry-After"))
		if time.Since(begun) != 0 || r.status != 429 || after < 60 || after > 75 || r.head.Get("X-Should-Retry") != "false" || st.book.last(t, 1).Tries != 1 {
			t.Errorf("%d after %v: %v", r.status, time.Since(begun), r.head)
		}
	})
}

func TestAWrongRequestIsNeitherTriedAgainNorHeldAgainstClaude(t *testing.T) {
	wrong := says(400, `{"type":"error","error":{"type":"invalid_request_error","message":"m"}}`)
	limited := says(429, `{}`, "Retry-After", "9999")
	inBubble(t, answers(wrong, wrong, wrong, wrong, wrong, wrong, wrong, limited, limited, limited, limited, limited, limited, fine), patient, func(t *testing.T, st *stage) {
		for range 7 {
			if r := st.post(hello); r.status != 400 || r.head.Get("X-Should-Retry") != "" {
				t.Errorf("%d %v", r.status, r.head)
			}
		}
		for range 6 {
			st.post(hello)
		}
		if s := st.Stats(); s.Shut != 0 || s.Attempts != 13 {
			t.Errorf("%+v", s)
		}
	})
}

func TestInAnOutageCallsAreHeldAndClaudeIsNotHammered(t *testing.T) {
	var mu sync.Mutex
	attempts := 0
	begun := time.Time{}
	h := func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		if begun.IsZero() {
			begun = time.Now()
		}
		down := time.Since(begun) < time.Minute
		if down {
			attempts++
		}
		mu.Unlock()
		if down {
			busy(w, r)
			return
		}
		fine(w, r)
	}
	inBubble(t, answers(h), patient, func(t *testing.T, st *stage) {
		const calls = 120 // two a second, all during the outage
		var wg sync.WaitGroup
		for range calls {
			wg.Go(func() {
				if r := st.post(hello); r.status != 200 {
					t.Errorf("%d %s", r.status, r.body)
				}
			})
			time.Sleep(500 * time.Millisecond)
		}
		wg.Wait()
		if attempts > calls*11/10 {
			t.Errorf("%d attempts in the outage for %d calls", attempts, calls)
		}
		if s := st.Stats(); s.Failed != 0 || s.Holding != 0 || s.Waiting != 0 {
			t.Errorf("%+v", s)
		}
	})
}

func TestAnotherModelIsNotHeldWithTheOneThatFails(t *testing.T) {
	h := func(w http.ResponseWriter, r *http.Request) {
		var ask struct{ Model string }
		_ = json.NewDecoder(r.Body).Decode(&ask)
		if ask.Model == "claude-opus-5" {
			busy(w, r)
			return
		}
		fine(w, r)
	}
	inBubble(t, http.HandlerFunc(h), patient, func(t *testing.T, st *stage) {
		opus := strings.Replace(hello, "sonnet", "opus", 1)
		var wg sync.WaitGroup
		for range 10 {
			wg.Go(func() {
				r := st.send("POST", "/v1/messages", opus, func(r *http.Request) { r.Header.Set("Mainstay-Deadline", "30s") })
				if r.status != 529 || parseError(t, r.body).Error.Type != "overloaded_error" {
					t.Errorf("%d", r.status)
				}
			})
		}
		time.Sleep(10 * time.Second)
		if st.Stats().Shut != 1 {
			t.Error("the gate is not shut")
		}
		before := time.Now()
		if r := st.post(hello); r.status != 200 || time.Since(before) != 0 {
			t.Errorf("%d after %v", r.status, time.Since(before))
		}
		wg.Wait()
	})
}
