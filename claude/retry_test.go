package claude_test

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/anthropics/anthropic-sdk-go"
	"github.com/anthropics/anthropic-sdk-go/option"
	"github.com/google/go-cmp/cmp"

	"mainstay.dev/mainstay/claude"
	"mainstay.dev/mainstay/telemetry"
)

func TestRetriesWaitOneTwoAndFourSeconds(t *testing.T) {
	inBubble(t, answers(busy, busy, busy, fine), nil, func(t *testing.T, st *stage) {
		begun := time.Now()
		r := st.post(hello)
		if took := time.Since(begun); r.status != 200 || took != 7*time.Second || r.head.Get("Mainstay-Attempts") != "4" || r.head.Get("Mainstay-Code") != "" {
			t.Errorf("%d after %v, head %v", r.status, took, r.head)
		}
		x := st.book.last(t, 1)
		var waits []time.Duration
		var causes []string
		var statuses []int
		for _, a := range x.Attempts {
			waits, causes, statuses = append(waits, a.Waited), append(causes, a.Cause), append(statuses, a.Status)
		}
		want := []time.Duration{0, time.Second, 2 * time.Second, 4 * time.Second}
		if d := cmp.Diff(want, waits) + cmp.Diff([]string{"overloaded", "overloaded", "overloaded", ""}, causes) +
			cmp.Diff([]int{529, 529, 529, 200}, statuses); d != "" || x.Tries != 4 || x.Waited != 7*time.Second {
			t.Error(d, x.Tries, x.Waited)
		}
		if x.Code != "ok" || x.Blame != telemetry.BlameNone || x.GenAI.OutputTokens != 5 || x.GenAI.UpstreamID != "req_fine" {
			t.Errorf("%+v", x)
		}
		if n := strings.Count(st.logs.String(), "trying again"); n != 3 {
			t.Errorf("%d retries in the log:\n%s", n, st.logs)
		}
		if s := st.Stats(); s.Calls != 1 || s.Attempts != 4 || s.Retries != 3 || s.Failed != 0 || s.InFlight != 0 || s.ReplayBytes != 0 {
			t.Errorf("%+v", s)
		}
	})
}

func TestTheLastAnswerThatClaudeGaveStandsUnchanged(t *testing.T) {
	const odd = `{"type":"error", "error":{"type":"overloaded_error","message":"é"}, "more":[1 ,2]}`
	reset := func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }
	for name, script := range map[string]http.HandlerFunc{
		"refused to the end":          answers(busy, busy, busy, says(529, odd, "Retry-After", "9", "X-Odd", "1")),
		"refused, then unreachable":   answers(busy, busy, says(529, odd, "Retry-After", "9", "X-Odd", "1"), reset),
		"unreachable, then refused":   answers(reset, reset, reset, says(529, odd, "Retry-After", "9", "X-Odd", "1")),
		"refused and not to be again": answers(says(529, odd, "Retry-After", "9", "X-Odd", "1", "X-Should-Retry", "false")),
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, script, nil, func(t *testing.T, st *stage) {
				r := st.post(hello)
				if r.status != 529 || r.body != odd || r.head.Get("Retry-After") != "9" || r.head.Get("X-Odd") != "1" || r.head.Get("Mainstay-Code") != "overloaded" {
					t.Errorf("%d %v %s", r.status, r.head, r.body)
				}
				if x := st.book.last(t, 1); x.Code != "overloaded" || x.Blame != telemetry.BlameUpstream || x.GenAI.Model != "claude-sonnet-5" {
					t.Errorf("%+v", x)
				}
			})
		})
	}
}

func TestWhatClaudeAsksForIsKeptTo(t *testing.T) {
	limited := func(head ...string) http.HandlerFunc { return says(429, "{}", head...) }
	for _, c := range []struct {
		name     string
		answer   http.HandlerFunc
		attempts int
		took     time.Duration
	}{
		{"seconds", limited("Retry-After", "3"), 2, 3 * time.Second},
		{"a part of a second", limited("Retry-After", "0.25"), 2, 250 * time.Millisecond},
		{"milliseconds come first", limited("Retry-After", "30", "Retry-After-Ms", "150"), 2, 150 * time.Millisecond},
		{"a date", limited("Retry-After", "Sat, 01 Jan 2000 00:00:05 GMT"), 2, 5 * time.Second}, // a bubble begins in 2000
		{"a date gone by", limited("Retry-After", "Sat, 01 Jan 1999 00:00:05 GMT"), 2, time.Second},
		{"an hour is cut", limited("Retry-After", "3600"), 2, time.Minute},
		{"nonsense", limited("Retry-After", "soon"), 2, time.Second},
		{"nothing", limited(), 2, time.Second},
		{"x-should-retry says no", limited("X-Should-Retry", "false"), 1, 0},
		{"x-should-retry says yes", says(400, "{}", "X-Should-Retry", "true"), 2, time.Second},
		{"a wrong request", says(400, "{}", "Retry-After", "1"), 1, 0},
		{"408", says(408, "{}"), 2, time.Second},
		{"409", says(409, "{}"), 2, time.Second},
		{"500", says(500, "{}"), 2, time.Second},
		{"502 in HTML", says(502, "<html>", "Content-Type", "text/html"), 2, time.Second},
		{"504", says(504, "{}"), 2, time.Second},
		{"401", says(401, "{}"), 1, 0},
		{"a redirect", says(307, "", "Location", "http://elsewhere.test/"), 1, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			inBubble(t, answers(c.answer, fine), nil, func(t *testing.T, st *stage) {
				st.http.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
				begun := time.Now()
				r := st.post(hello)
				took := time.Since(begun)
				if x := st.book.last(t, 1); x.Tries != c.attempts || took != c.took || (r.status == 200) != (c.attempts == 2) {
					t.Errorf("%d attempts in %v, then %d", x.Tries, took, r.status)
				}
			})
		})
	}
}

func TestWithoutAnyAnswerTheErrorIsOursAndClaudeShaped(t *testing.T) {
	reset := func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }
	hang := func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }
	for _, c := range []struct {
		name   string
		h      http.HandlerFunc
		status int
		code   string
		cause  string
		kind   string
		took   time.Duration
	}{
		{"the connection breaks", answers(reset), 502, "unreachable", "broken", "api_error", 7 * time.Second},
		{"nothing comes", answers(hang), 504, "upstream_timeout", "timeout", "timeout_error", 47 * time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			inBubble(t, c.h, func(cfg *claude.Config) { cfg.Timeouts.FirstByte = 10 * time.Second }, func(t *testing.T, st *stage) {
				begun := time.Now()
				r := st.post(hello)
				e := parseError(t, r.body)
				if took := time.Since(begun); r.status != c.status || r.head.Get("Mainstay-Code") != c.code || took != c.took ||
					e.Error.Type != c.kind || e.ID == "" || e.ID != r.head.Get("Request-Id") || r.head.Get("Mainstay-Attempts") != "4" {
					t.Errorf("%d after %v: %v %s", r.status, took, r.head, r.body)
				}
				x := st.book.last(t, 1)
				if x.Code != c.code || x.Attempts[3].Cause != c.cause || x.ID != e.ID || x.HTTP.Status != c.status || x.Err == nil {
					t.Errorf("%+v", x)
				}
			})
		})
	}
}

func TestAClientThatLeavesDuringAWaitEndsTheCallAtOnce(t *testing.T) {
	inBubble(t, answers(busy), nil, func(t *testing.T, st *stage) {
		ctx, leave := context.WithTimeout(t.Context(), 1500*time.Millisecond) // in the second wait
		defer leave()
		req, _ := http.NewRequestWithContext(ctx, "POST", st.url+"/v1/messages", strings.NewReader(hello))
		begun := time.Now()
		if _, err := st.http.Do(req); err == nil {
			t.Fatal("an answer came")
		}
		x := st.book.last(t, 1)
		if took := time.Since(begun); took > 1600*time.Millisecond || x.Code != "client_gone" || x.Tries != 2 || x.Blame != telemetry.BlameClient {
			t.Errorf("after %v: %+v", took, x)
		}
	})
}

func TestRetriesCanBeTurnedOff(t *testing.T) {
	inBubble(t, answers(busy, fine), func(c *claude.Config) { c.Retry.MaxRetries = 0 }, func(t *testing.T, st *stage) {
		if r := st.post(hello); r.status != 529 || r.head.Get("Mainstay-Attempts") != "1" {
			t.Errorf("%d %v", r.status, r.head)
		}
	})
}

// Under the policy compatible too there is one owner of retries: four tries in all, where
// an SDK behind it would make twelve of them.
func TestUnderThePolicyCompatibleAFinalFailureIsFinalForTheSDKToo(t *testing.T) {
	gone := func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }
	asks := says(429, `{"type":"error","error":{"type":"rate_limit_error","message":"m"}}`, "Retry-After", "3600", "Retry-After-Ms", "3600000")
	for name, c := range map[string]struct {
		api     http.HandlerFunc
		retries int
		status  int
		tries   int64 // that reach the API, of an SDK with two retries of its own
	}{
		"overloaded":            {busy, 3, 529, 4},
		"no connection":         {gone, 3, 502, 4},
		"limited":               {asks, 1, 429, 2},
		"retries are the SDK's": {busy, 0, 529, 3},
		"refused":               {says(400, `{}`), 3, 400, 1},
	} {
		h, all, _ := counted(c.api)
		inBubble(t, h, func(cfg *claude.Config) { cfg.Retry.MaxRetries = c.retries }, func(t *testing.T, st *stage) {
			sdk := client(st.url, option.WithHTTPClient(st.http), option.WithMaxRetries(2))
			err := converse(t, sdk, "hello", false)
			e, ok := errors.AsType[*anthropic.Error](err)
			if !ok || e.StatusCode != c.status || all.Load() != c.tries {
				t.Fatalf("%s: %v after %d tries", name, err, all.Load())
			}
			again := e.Response.Header.Get("X-Should-Retry")
			if want := map[bool]string{true: "false"}[c.tries == int64(c.retries)+1]; again != want {
				t.Errorf("%s: X-Should-Retry %q, want %q", name, again, want)
			}
			if after, _ := strconv.Atoi(e.Response.Header.Get("Retry-After")); c.status == 429 && (after < 60 || after > 75 || e.Response.Header.Get("Retry-After-Ms") != "") {
				t.Errorf("%v", e.Response.Header)
			}
			if e.Response.Header.Get("Mainstay-Claude-Route") != "claude" {
				t.Errorf("%v", e.Response.Header)
			}
		})
	}
}
